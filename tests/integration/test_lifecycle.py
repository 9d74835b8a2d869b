"""Start, configuration, drain and end of the server."""

import json
import signal
import socket
import subprocess
import threading

import httpx
import pytest

from checkpoint import tensor_shapes, write_zeros
from shoal_server import seconds, wait_until

# Half a gibibyte of weights: long enough to load that the start can be watched.
LARGE = {"hidden_size": 1024, "moe_intermediate_size": 1024, "n_routed_experts": 28,
         "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 8,
         "attention_bias": False, "moe_layer_freq": 1, "tie_word_embeddings": False}


def completion(server, **fields):
    return {"model": server.model, "prompt": "hello", "ignore_eos": True} | fields


def open_stream(server, max_tokens):
    """(client, response) of a stream whose first bytes have arrived; `lines` goes on from there."""
    client = httpx.Client(base_url=server.base_url, timeout=seconds(30), trust_env=False)
    request = client.build_request(
        "POST", "/v1/completions", json=completion(server, max_tokens=max_tokens, stream=True))
    response = client.send(request, stream=True)
    lines = response.iter_lines()
    next(lines)
    return client, lines


def test_startup_is_watched_through_the_probes(start_server, tiny_model, tmp_path):
    config = json.loads((tiny_model / "config.json").read_text()) | LARGE
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_zeros(tmp_path / "model.safetensors", tensor_shapes(config), "BF16")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_model / name).read_bytes())

    server = start_server(tmp_path, "--max-model-len", 256, wait=False)
    wait_until(lambda: server.probe("/livez") == 200, 20, "listening server")
    seen = []

    def started():
        response = server.http.get("/startupz")
        seen.append(response.json() | {"status": response.status_code})
        if response.status_code == 200:
            return True
        assert server.probe("/livez") == 200
        refused = server.http.post("/v1/completions", json=completion(server, max_tokens=1))
        assert refused.status_code in (200, 503)
        if refused.status_code == 503:
            assert refused.headers["retry-after"]
        return False

    wait_until(started, 60, "started server")
    server.wait_until_ready()
    assert {state["status"] for state in seen} == {503, 200}
    assert seen[0]["phase"] != "ready" and seen[-1]["phase"] == "ready"
    loading = [state["percent"] for state in seen if state["phase"] == "loading weights"]
    assert loading == sorted(loading) and all(0 <= percent <= 100 for percent in loading)


def test_sigterm_lets_running_requests_finish_and_refuses_new_ones(start_server, tiny_model):
    server = start_server(tiny_model)
    client, lines = open_stream(server, max_tokens=1500)
    late = httpx.Client(base_url=server.base_url, timeout=seconds(30), trust_env=False)
    assert late.get("/readyz").status_code == 200  # its connection outlives the listening socket
    server.signal()
    wait_until(lambda: server.process.poll() is not None or late_status(late) == 503, 5, "drain")
    chunks = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert chunks[-1] == "[DONE]"
    assert json.loads(chunks[-2])["choices"][0]["finish_reason"] == "length"
    assert server.wait_for_exit() == 0
    client.close()
    late.close()


def late_status(client):
    try:
        return client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1}).status_code
    except httpx.TransportError:
        return 503  # the connection was closed instead


def test_a_second_sigterm_ends_at_once(start_server, tiny_model):
    server = start_server(tiny_model)
    client, lines = open_stream(server, max_tokens=3000)
    server.signal()
    wait_until(lambda: server.probe("/readyz") != 200, 5, "drain")
    server.signal()
    rest = []

    def read():
        try:
            rest.extend(lines)
        except httpx.TransportError:
            pass

    reader = threading.Thread(target=read)
    reader.start()
    server.wait_for_exit(10)
    reader.join(seconds(10))
    assert not any('"finish_reason":"length"' in line.replace(" ", "") for line in rest)
    client.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_with_0(start_server, tiny_model, number):
    server = start_server(tiny_model)
    server.signal(number)
    assert server.wait_for_exit() == 0


def test_sigterm_while_loading_ends_the_program(start_server, tiny_model):
    server = start_server(tiny_model, wait=False)
    wait_until(lambda: server.probe("/livez") == 200, 20, "listening server")
    server.signal()
    assert server.wait_for_exit() == 0


def test_a_port_in_use_is_named(shoal, tiny_model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = shoal("serve", "--model", tiny_model, "--port", port)
    assert result.returncode == 1
    assert str(port) in result.stderr.strip().splitlines()[-1]


def printed(shoal, *flags, env=None):
    """The resolved configuration as text {flag: value}."""
    result = shoal("serve", "--print-config", *flags, env=env)
    assert result.returncode == 0, result.stderr
    return {name: str(value) for name, value in json.loads(result.stdout).items()}


def test_flags_go_before_environment_before_file_before_defaults(shoal, tmp_path):
    file = tmp_path / "shoal.json"
    file.write_text(json.dumps({"max-num-seqs": 3, "block-size": 8, "seed": 7}))
    env = {"SHOAL_MAX_NUM_SEQS": "4", "SHOAL_BLOCK_SIZE": "32"}
    config = printed(shoal, "--model", "m", "--config", file, "--max-num-seqs", 5, env=env)
    assert config["max-num-seqs"] == "5"  # flag
    assert config["block-size"] == "32"  # environment
    assert config["seed"] == "7"  # file
    assert config["port"] == "8000"  # default


def test_the_printed_configuration_is_one_that_can_be_read(shoal, tmp_path):
    file = tmp_path / "shoal.json"
    flags = ("--model", "m", "--max-num-seqs", 5, "--no-enable-prefix-caching")
    printed_text = shoal("serve", "--print-config", *flags).stdout
    file.write_text(printed_text)
    assert shoal("serve", "--print-config", "--config", file).stdout == printed_text


def test_keys_are_never_printed(shoal):
    result = shoal("serve", "--print-config", "--model", "m", "--api-key", "open sesame")
    assert result.returncode == 0 and "sesame" not in result.stdout + result.stderr


@pytest.mark.parametrize("text, named", [
    ('{"max-num-sequences": 3}', "max-num-sequences"), ('{"max-num-seqs": "x"}', "max-num-seqs"),
    ('{', "shoal.json")])
def test_a_bad_config_file_is_refused(shoal, tiny_model, tmp_path, text, named):
    file = tmp_path / "shoal.json"
    file.write_text(text)
    result = shoal("serve", "--model", tiny_model, "--config", file, "--port", 0)
    assert result.returncode > 0 and named in result.stderr


def test_an_unknown_flag_is_named(shoal):
    result = shoal("serve", "--modle", "m")
    assert result.returncode > 0 and "modle" in result.stderr


def test_a_closed_standard_input_and_output_do_no_harm(shoal_binary, tiny_model):
    result = subprocess.run(
        [str(shoal_binary), "generate", "--model", str(tiny_model), "--max-tokens", "2", "hi"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        timeout=seconds(60), check=False)
    assert result.returncode == 0, result.stderr
