"""Whatever comes in from outside: a clear error that names the thing, and the server lives on."""

import json
import re
import shutil

import pytest

from checkpoint import format_header, read_header, read_tensors, write_tensors
from shoal_server import CRASH, run_shoal

COMPLETION = {"prompt": "hello", "max_tokens": 1}
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}

# Field, value: each alone makes a good request a bad one, and the error's param is the field.
BAD_COMPLETION_FIELDS = [
    ("prompt", 5), ("prompt", None), ("prompt", {"a": 1}), ("prompt", []), ("prompt", [1, "a"]),
    ("prompt", [-1]), ("prompt", [2048]), ("prompt", [10**30]), ("prompt", [1.5]),
    ("prompt", [[1], "a"]), ("prompt", ["x"] * 65), ("prompt", [7] * 2000),
    ("max_tokens", -1), ("max_tokens", "5"), ("max_tokens", 1.5), ("max_tokens", True),
    ("max_tokens", 2**40), ("max_tokens", 2**70), ("max_tokens", 1e100), ("max_tokens", 5000),
    ("temperature", -0.1), ("temperature", 2.1), ("temperature", "hot"), ("temperature", 1e300),
    ("top_p", 0), ("top_p", 1.01), ("top_p", []), ("top_k", -2), ("top_k", 2**40),
    ("min_p", -0.1), ("min_p", 2), ("n", 0), ("n", 17), ("n", 10**9), ("n", "2"),
    ("seed", "x"), ("seed", 0.5), ("stop", 5), ("stop", [1]), ("stop", ["x"] * 17),
    ("stop", ["x" * 257]), ("stop_token_ids", ["a"]), ("stop_token_ids", [1] * 17),
    ("logprobs", -1), ("logprobs", 21), ("logprobs", "many"), ("stream", "yes"), ("echo", 1),
    ("ignore_eos", "no"), ("stream_options", 5), ("model", 5),
    ("presence_penalty", 2.1), ("presence_penalty", "x"), ("frequency_penalty", -2.1),
    ("repetition_penalty", 0), ("repetition_penalty", 11), ("typical_p", 0), ("typical_p", 1.1),
    ("logit_bias", 5), ("logit_bias", {"a": 1}), ("logit_bias", {"5": 101}),
    ("logit_bias", {"5": "x"}), ("logit_bias", {"2048": 1}),
    ("logit_bias", {str(token): 1 for token in range(1025)}),
    ("min_tokens", -1), ("min_tokens", 2), ("min_tokens", 1.5),
    ("allowed_token_ids", []), ("allowed_token_ids", [2048]), ("allowed_token_ids", ["a"]),
    ("priority", "high"), ("priority", 2**40), ("user", 5), ("user", "x" * 257),
    ("cache_salt", ""), ("cache_salt", 5), ("cache_salt", "x" * 257),
    ("best_of", 0), ("best_of", 17), ("best_of", "x"),
]
BAD_CHAT_FIELDS = [
    ("messages", None), ("messages", []), ("messages", "hello"), ("messages", [5]),
    ("messages", [{"role": "user"}]), ("messages", [{"content": "x"}]),
    ("messages", [{"role": "wizard", "content": "x"}]),
    ("messages", [{"role": "user", "content": 5}]),
    ("messages", [{"role": "user", "content": [{"type": "image_url"}]}]),
    ("max_tokens", -1), ("max_completion_tokens", "x"), ("top_logprobs", 21), ("top_logprobs", 5),
    ("logprobs", "x"), ("n", 17), ("best_of", 2), ("presence_penalty", 3), ("logit_bias", [1]),
    ("min_tokens", 5), ("cache_salt", ""),
]
BAD_BODIES = {
    "empty": b"",
    "cut off": b'{"prompt": "hel',
    "not an object": b'["prompt"]',
    "two values": b'{"prompt": "x"} {}',
    "infinity": b'{"prompt": "x", "temperature": 1e999}',
    "not a number": b'{"prompt": "x", "temperature": NaN}',
    "invalid UTF-8": b'{"prompt": "\xff\xfe"}',
    "lone surrogate": b'{"prompt": "\\ud800"}',
    "NUL": b'{"prompt": "x"}\x00',
    "deep nesting": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "many nodes": b'{"prompt": [' + b"{}," * 300_000 + b"{}]}",
}


def shorten(item):
    text = json.dumps(item)
    return text if len(text) < 40 else f"{text[:36]}..."


def expect_error(response, status, field=None):
    """An error in OpenAI's shape that names the field, or a part of it such as prompt[3]."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["message"] and "\n" not in error["message"]
    assert error["type"]
    if field is not None:
        assert re.split(r"[\[.]", error["param"])[0] == field and field in error["message"]


@pytest.fixture(autouse=True)
def lives_on(request):
    """After each test that uses it, the server still completes prompts."""
    yield
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        response = server.http.post("/v1/completions", json={"model": server.model} | COMPLETION)
        assert response.status_code == 200, response.text


@pytest.mark.parametrize("field, value", BAD_COMPLETION_FIELDS, ids=shorten)
def test_a_bad_field_of_a_completion_is_named(server, field, value):
    body = {"model": server.model} | COMPLETION | {field: value}
    expect_error(server.http.post("/v1/completions", json=body), 400, field)


@pytest.mark.parametrize("field, value", BAD_CHAT_FIELDS, ids=shorten)
def test_a_bad_field_of_a_chat_is_named(server, field, value):
    body = {"model": server.model} | CHAT | {field: value}
    expect_error(server.http.post("/v1/chat/completions", json=body), 400, field)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_a_body_that_is_no_proper_json_object_is_refused(server, path, body):
    response = server.http.post(path, content=body, headers={"Content-Type": "application/json"})
    expect_error(response, 400)


def test_the_best_choices_cannot_be_streamed(server):
    body = {"model": server.model, "stream": True, "n": 2, "best_of": 3} | COMPLETION
    expect_error(server.http.post("/v1/completions", json=body), 400, "best_of")


@pytest.mark.parametrize("path, body", [
    ("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)])
def test_an_unknown_model_is_not_found(server, path, body):
    response = server.http.post(path, json=body | {"model": "gpt-99"})
    expect_error(response, 404, "model")
    assert "gpt-99" in response.json()["error"]["message"]


def test_a_conversation_beyond_the_models_length_is_refused(server):
    body = {"model": server.model, "messages": [{"role": "user", "content": "x " * 3000}]}
    response = server.http.post("/v1/chat/completions", json=body)
    expect_error(response, 400)
    assert response.json()["error"]["param"] == "messages"
    assert "maximum context length is 1024 tokens" in response.json()["error"]["message"]


def test_prompt_and_output_must_fit_together(server):
    body = {"model": server.model, "prompt": [7] * 1000, "max_tokens": 25}
    expect_error(server.http.post("/v1/completions", json=body), 400)
    assert server.http.post("/v1/completions", json=body | {"max_tokens": 24}).status_code == 200


def test_an_error_before_the_first_token_of_a_stream_is_an_ordinary_error(server):
    body = {"model": server.model, "stream": True} | COMPLETION | {"temperature": 5}
    expect_error(server.http.post("/v1/completions", json=body), 400, "temperature")


@pytest.mark.parametrize("path, body, field", [
    ("/tokenize", {}, "prompt"), ("/tokenize", {"prompt": 5}, "prompt"),
    ("/detokenize", {}, "tokens"), ("/detokenize", {"tokens": "x"}, "tokens"),
    ("/detokenize", {"tokens": [2**40]}, "tokens"), ("/detokenize", {"tokens": [-1]}, "tokens"),
])
def test_bad_fields_of_the_tokenizer_routes_are_named(server, path, body, field):
    expect_error(server.http.post(path, json={"model": server.model} | body), 400, field)


# Checkpoints.

@pytest.fixture
def broken(tiny_model, tmp_path):
    """A copy of the small model that the test may break."""
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.fixture
def refusal(shoal_binary, broken):
    """refusal(): the one sentence with which the program refuses to serve the broken model."""
    def serve(*flags):
        result = run_shoal(shoal_binary, "serve", "--model", broken, "--port", 0, *flags)
        output = result.stdout + result.stderr
        assert result.returncode == 1, f"exit {result.returncode}:\n{output}"
        assert not CRASH.search(output), output
        return result.stderr.strip().splitlines()[-1]
    return serve


def weights_file(directory):
    return sorted(directory.glob("*.safetensors"))[0]


def rewrite_header(path, change):
    """Applies `change` to the header's dictionary and leaves the data as it is."""
    header, start = read_header(path)
    data = path.read_bytes()[start:]
    change(header)
    path.write_bytes(format_header(header) + data)


NORM, HEAD = "model.norm.weight", "lm_head.weight"
HEADER_CHANGES = {
    "wrong shape": (lambda h: h[HEAD]["shape"].reverse(), HEAD),
    "shape and bytes disagree": (lambda h: h[NORM].update(shape=[127]), NORM),
    "overflowing shape": (lambda h: h[NORM].update(shape=[2**62, 4]), NORM),
    "negative shape": (lambda h: h[NORM].update(shape=[-128]), NORM),
    "unknown dtype": (lambda h: h[NORM].update(dtype="Q4"), NORM),
    "beyond the file": (
        lambda h: h[HEAD].update(data_offsets=[n + 2**40 for n in h[HEAD]["data_offsets"]]), HEAD),
    "ends before it begins": (
        lambda h: h[NORM].update(data_offsets=h[NORM]["data_offsets"][::-1]), NORM),
    "missing field": (lambda h: h[NORM].pop("dtype"), NORM),
    "missing tensor": (lambda h: h.update({"model.norm.other": h.pop(NORM)}), NORM),
}


@pytest.mark.parametrize("change, named", HEADER_CHANGES.values(), ids=HEADER_CHANGES.keys())
def test_a_wrong_tensor_is_named(broken, refusal, change, named):
    rewrite_header(weights_file(broken), change)
    assert named in refusal()


@pytest.mark.parametrize("data", [
    b"", b"\x10\x00\x00", (2**60).to_bytes(8, "little") + b"{}", (64).to_bytes(8, "little") + b"{",
    (8).to_bytes(8, "little") + b"not json", (2).to_bytes(8, "little") + b"[]",
], ids=["empty", "3 bytes", "endless header", "header cut off", "no JSON", "no object"])
def test_a_file_that_is_no_safetensors_file_is_named(broken, refusal, data):
    weights_file(broken).write_bytes(data)
    assert weights_file(broken).name in refusal()


def test_a_truncated_file_is_named(broken, refusal):
    path = weights_file(broken)
    path.write_bytes(path.read_bytes()[:-100])
    assert path.name in refusal()


def test_a_missing_shard_is_named(broken, refusal):
    tensors = read_tensors(weights_file(broken))
    for path in [*broken.glob("*.safetensors"), *broken.glob("*.index.json")]:
        path.unlink()
    shards = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
    names = sorted(tensors)
    half = len(names) // 2
    write_tensors(broken / shards[0], {name: tensors[name] for name in names[:half]}, "BF16")
    weight_map = {name: shards[i >= half] for i, name in enumerate(names)}
    (broken / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert shards[1] in refusal()


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"model_type": 5}'])
def test_a_missing_or_malformed_json_file_is_named(broken, refusal, file, text):
    if text is None:
        (broken / file).unlink()
    else:
        (broken / file).write_text(text)
    assert file in refusal()


@pytest.mark.parametrize("field, value", [
    ("model_type", "llama"), ("hidden_act", "gelu"), ("scoring_func", "sigmoid"),
    ("hidden_size", 0), ("hidden_size", -128), ("hidden_size", "wide"), ("hidden_size", 1e30),
    ("hidden_size", 128.5), ("num_attention_heads", 3), ("num_key_value_heads", 3),
    ("num_hidden_layers", 10**9), ("n_routed_experts", 3), ("n_routed_experts", -1),
    ("num_experts_per_tok", 17), ("num_experts_per_tok", None), ("moe_layer_freq", 0),
    ("vocab_size", 2**40), ("vocab_size", 0), ("rms_norm_eps", "small"), ("rope_theta", -1),
    ("rope_scaling", {"type": "yarn", "factor": 2}), ("rope_scaling", {"type": "linear"}),
    ("rope_scaling", 2), ("max_position_embeddings", 0), ("torch_dtype", "int4"),
    ("attention_bias", "no"),
], ids=shorten)
def test_a_bad_config_value_is_named(broken, refusal, field, value):
    path = broken / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    sentence = refusal()
    assert field in sentence or (field == "n_routed_experts" and "experts" in sentence)


def test_a_missing_directory_is_named(shoal, tmp_path):
    result = shoal("serve", "--model", tmp_path / "nowhere", "--port", 0)
    assert result.returncode == 1 and "nowhere" in result.stderr


@pytest.mark.parametrize("flag, value", [
    ("--max-model-len", -5), ("--max-num-seqs", 0), ("--block-size", 0), ("--dtype", "int3"),
    ("--device", "abacus"), ("--port", 70000), ("--threads", -1), ("--expert-parallel", 0),
    ("--expert-parallel", 65), ("--num-redundant-experts", 1), ("--fair-share", "nobody")])
def test_a_bad_flag_is_named(shoal, tiny_model, flag, value):
    result = shoal("serve", "--model", tiny_model, "--port", 0, flag, value)
    assert result.returncode not in (0, None) and result.returncode > 0
    assert flag.strip("-").replace("-", "_") in result.stderr.replace("-", "_")
