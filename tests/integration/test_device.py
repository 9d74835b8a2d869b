"""Which device the program computes on, and that the emulated GPU does what the CPU does."""

import concurrent.futures
import json
import os
import pathlib
import re

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from shoal_server import CRASH, seconds, wait_until

HIDDEN = {"CUDA_VISIBLE_DEVICES": ""}  # whatever devices this machine has
# Few tokens per step and few sequences: the emulator computes a step of its warm-up for each batch size.
SMALL = ("--max-model-len", 64, "--max-num-batched-tokens", 16)
FEW = ("--max-num-seqs", 2, "--kv-cache-memory-bytes", 1 << 21)
REASON = re.compile(r"driver|CUDA")
LOGPROB_TOLERANCE = 0.05  # of bfloat16, at this model's logits
PROMPTS = ("Hello", "The sea", "def main():")
MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="session")
def emulated(shoal_binary):
    """The environment in which the program finds the emulated device: the system looks there for libraries."""
    folder = pathlib.Path(os.environ.get("SHOAL_BUILD", shoal_binary.parent)) / "emulated"
    if not (folder / "libshoal_cuda.so").is_file():
        pytest.skip(f"{folder}: the emulated device is not in this build")
    return {"LD_LIBRARY_PATH": str(folder)}


@pytest.fixture(scope="module")
def on_cpu(module_server, tiny_model):
    return module_server(tiny_model, "--device", "cpu", *SMALL)


@pytest.fixture(scope="module")
def on_cuda(module_server, tiny_model, emulated):
    return module_server(tiny_model, "--device", "cuda", *SMALL, *FEW, env=emulated)


def messages_of(server):
    """What it has logged, one object per line."""
    return [json.loads(line) for line in server.log.splitlines()]


def complete(server, prompt, **fields):
    """The only choice of a greedy completion."""
    response = server.http.post("/v1/completions", json={
        "model": server.model, "prompt": prompt, "temperature": 0, "max_tokens": 4,
        "ignore_eos": True} | fields)
    assert response.status_code == 200, response.text
    [choice] = response.json()["choices"]
    return choice


def margins(logprobs):
    """Of each token, how far the likeliest is before the second."""
    best = [sorted(top.values(), reverse=True) for top in logprobs["top_logprobs"]]
    return [first - second for first, second, *_ in best]


def test_auto_takes_the_cpu_without_a_device_and_says_why_in_one_line(start_server, tiny_model):
    server = start_server(tiny_model, "--device", "auto", *SMALL, env=HIDDEN)
    assert complete(server, "Hello")["text"]
    [line] = [line for line in messages_of(server) if REASON.search(json.dumps(line))]
    assert line["message"] == "device" and line["level"] == "info"
    assert re.fullmatch(r"cpu \(.+\)", line["device"]) and REASON.search(line["device"])


def test_the_cpu_needs_no_reason(on_cpu):
    assert [line["device"] for line in messages_of(on_cpu) if line["message"] == "device"] == ["cpu"]


@pytest.mark.parametrize("arguments", [
    ("generate", "Hello"), ("serve", "--port", 0), ("bench", "--num-prompts", 1)], ids=lambda words: words[0])
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_cuda_device_that_is_not_there_is_an_error(shoal, tiny_model, arguments, device):
    command, *rest = arguments
    result = shoal(command, "--model", tiny_model, "--device", device, *rest, env=HIDDEN)
    assert result.returncode == 1 and not result.stdout
    assert not CRASH.search(result.stderr), result.stderr
    [line] = [line for line in result.stderr.splitlines() if REASON.search(line)]
    assert line.startswith("shoal: ") and line == result.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1"])
def test_a_device_of_no_known_form_is_an_error(shoal, name):
    result = shoal("serve", "--device", name)
    assert result.returncode > 0
    assert f'"{name}", expected auto, cpu, cuda or cuda:N' in result.stderr


@pytest.mark.parametrize("flags, named", [
    (("--device", "cuda:7"), "cuda:7"), (("--device", "cuda", "--dtype", "float32"), "bfloat16"),
    (("--device", "cuda", "--expert-parallel", 2), "expert_parallel")])
def test_what_the_device_cannot_do_is_named(shoal, tiny_model, emulated, flags, named):
    result = shoal("generate", "--model", tiny_model, *SMALL, *flags, "Hello", env=emulated)
    assert result.returncode == 1
    assert named in result.stderr.splitlines()[-1], result.stderr


def test_generate_takes_the_device_by_itself_and_gives_the_servers_text(shoal, tiny_model, emulated, on_cuda):
    result = shoal("generate", "--model", tiny_model, *SMALL, "--max-tokens", 4, "--temperature", 0, "Hello",
                   env=emulated)
    assert result.returncode == 0, result.stderr
    text = complete(on_cuda, "Hello", ignore_eos=False)["text"]
    assert text.strip() and text.strip() in result.stdout


def test_the_server_says_that_it_has_the_device(on_cuda):
    lines = {line["message"]: line for line in messages_of(on_cuda)}
    assert lines["device"]["device"] == "cuda:0"
    assert "KV cache" in lines["memory needed"]["plan"]
    assert "KV cache" in lines["memory taken"]["plan"]


def test_prompts_are_as_likely_as_on_the_cpu(on_cpu, on_cuda):
    for prompt in PROMPTS + ("a prompt of several steps: " + "lorem ipsum " * 6,):
        cpu, cuda = (complete(server, prompt, echo=True, max_tokens=1, logprobs=0)["logprobs"]
                     for server in (on_cpu, on_cuda))
        length = len(cpu["tokens"]) - 1
        assert cpu["tokens"][:length] == cuda["tokens"][:length]
        assert cuda["token_logprobs"][1:length] == pytest.approx(
            cpu["token_logprobs"][1:length], abs=LOGPROB_TOLERANCE)


def test_greedy_tokens_are_those_of_the_cpu_up_to_a_tie(on_cpu, on_cuda):
    num_compared = 0
    for prompt in PROMPTS:
        cpu, cuda = (complete(server, prompt, logprobs=2)["logprobs"] for server in (on_cpu, on_cuda))
        ties = [i for i, margin in enumerate(margins(cpu)) if margin < LOGPROB_TOLERANCE]
        length = min(ties, default=len(cpu["tokens"]))
        assert cuda["tokens"][:length] == cpu["tokens"][:length]
        assert cuda["token_logprobs"][:length] == pytest.approx(
            cpu["token_logprobs"][:length], abs=LOGPROB_TOLERANCE)
        num_compared += length
    assert num_compared >= len(PROMPTS)


@pytest.mark.parametrize("flags", [("--enforce-eager",), ("--no-async-scheduling",)], ids=lambda flags: flags[0])
def test_graphs_and_scheduling_ahead_change_nothing(start_server, tiny_model, emulated, on_cuda, flags):
    server = start_server(tiny_model, "--device", "cuda", *SMALL, *FEW, *flags, env=emulated)
    for fields in ({"logprobs": 3}, {"temperature": 1, "top_p": 0.9, "seed": 3}):
        assert complete(server, "Hello", **fields) == complete(on_cuda, "Hello", **fields)


def test_clients_at_once_get_what_each_gets_alone(on_cuda):
    alone = [complete(on_cuda, prompt, logprobs=1) for prompt in PROMPTS]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        together = list(pool.map(lambda prompt: complete(on_cuda, prompt, logprobs=1), PROMPTS))
    assert together == alone


def test_a_chat_streams(on_cuda):
    fields = {"model": on_cuda.model, "messages": MESSAGES, "max_tokens": 5, "seed": 5,
              "extra_body": {"ignore_eos": True}}
    with openai.OpenAI(base_url=f"{on_cuda.base_url}/v1", api_key="none", max_retries=0,
                       timeout=seconds(30)) as client:
        whole = client.chat.completions.create(**fields)
        chunks = list(client.chat.completions.create(
            stream=True, stream_options={"include_usage": True}, **fields))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text and text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 5


def test_metrics_count_what_the_device_did(on_cuda):
    def values():
        families = text_string_to_metric_families(on_cuda.http.get("/metrics").text)
        return {sample.name: sample.value for family in families for sample in family.samples}
    before = values()["vllm:generation_tokens_total"]
    complete(on_cuda, "Hello")
    wait_until(lambda: values()["vllm:generation_tokens_total"] == before + 4, 5, "4 more tokens")
    wait_until(lambda: values()["vllm:num_requests_running"] == 0, 5, "idle engine")


def test_sigterm_lets_a_running_request_finish(start_server, tiny_model, emulated):
    server = start_server(tiny_model, "--device", "cuda", *SMALL, *FEW, env=emulated)
    with server.http.stream("POST", "/v1/completions", json={
            "model": server.model, "prompt": "Hello", "max_tokens": 8, "ignore_eos": True,
            "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        server.signal()
        chunks = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert chunks[-1] == "[DONE]"
    assert json.loads(chunks[-2])["choices"][0]["finish_reason"] == "length"
    assert server.wait_for_exit() == 0
