"""The backends against the reference: logits of the model itself, and logprobs and greedy tokens
through HTTP. The CUDA backend runs under the emulator. README.md says how errors are measured and which tokens are skipped."""

import functools
import os
import pathlib
import subprocess

import numpy as np
import pytest

from reference import Reference, log_softmax
from shoal_server import seconds
from variants import VARIANTS
from vocabulary import ids_of_texts, leading_ids, read_vocabulary

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
STEP = {"float32": 2.0**-23, "bfloat16": 2.0**-7}  # unit in the last place of a number in [1, 2)
# Routing is too close to call when the first expert left out comes this near to the last one taken,
# in steps at the size of the largest router logit: the normed input carries the rounding errors of
# all layers below.
ROUTING_STEPS = 2
PROMPT_LENGTHS = (1, 17, 96)
TOP_LOGPROBS = 20
GENERATED_TOKENS = 24
MAX_MODEL_LEN = 256  # beyond max_position_embeddings where RoPE is scaled to reach there
CHUNK_TOKENS = 40  # per step: long prompts take several

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE)


@pytest.fixture(scope="session")
def vocabulary(tokenizer_directory):
    """{id: bytes}. The server computes nothing for ids beyond it."""
    return read_vocabulary(tokenizer_directory)


@pytest.fixture(scope="session")
def checkpoint_of(make_checkpoint, special_ids):
    """checkpoint_of(variant): its directory, made once."""
    return functools.cache(
        lambda variant: make_checkpoint(variant.config(*special_ids), variant.name))


@pytest.fixture(scope="session")
def golden_logits(shoal_binary):
    """golden_logits(directory, device, dtype, token_ids): what the model itself gives for a sequence."""
    build = pathlib.Path(os.environ.get("SHOAL_BUILD", shoal_binary.parent))
    program = build / "golden_logits"
    assert program.is_file(), f"{program} is missing: build it, or set SHOAL_BUILD"
    environment = os.environ | {"LD_LIBRARY_PATH": str(build / "emulated")}

    def run(directory, device, dtype, token_ids):
        arguments = [program, directory, device, dtype, CHUNK_TOKENS, *token_ids]
        result = subprocess.run([str(argument) for argument in arguments], capture_output=True,
                                timeout=seconds(60), check=False, env=environment)
        assert result.returncode == 0, result.stderr.decode()
        return np.frombuffer(result.stdout, np.float32).reshape(len(token_ids), -1)
    return run


@functools.cache
def reference_of(directory, dtype):
    return Reference(directory, dtype)


def prompt(length, vocab_size):
    return np.random.default_rng(length).integers(0, vocab_size, length).tolist()


def error(dtype, actual, truth, row_scale):
    """float32: relative to the value itself, or to 1 if that is larger. bfloat16: relative to the
    row's largest absolute logit, since that is what a row's rounding errors are proportional to."""
    scale = np.maximum(1, np.abs(truth)) if dtype == "float32" else row_scale
    return float((np.abs(actual - truth) / scale).max(initial=0))


def settled_routing(output, dtype):
    """Which positions take the same experts in spite of rounding."""
    return output.routing_margin > ROUTING_STEPS * STEP[dtype]


def settled_greedy(logits, dtype):
    """Which rows have their most likely token at least one step of its size before the second."""
    second, first = np.sort(logits, axis=-1)[:, -2:].T
    return first - second >= STEP[dtype] * 2.0 ** np.floor(np.log2(np.abs(first)))


@pytest.mark.parametrize("device, dtype", (("cpu", "float32"), ("cpu", "bfloat16"), ("cuda", "bfloat16")))
@each_variant
def test_logits_equal_the_references(variant, device, dtype, checkpoint_of, golden_logits, measure):
    if device == "cuda" and variant.name == "odd-sizes":
        pytest.skip("head_dim must be a multiple of 16 on this device")
    directory = checkpoint_of(variant)
    reference = reference_of(directory, dtype)
    token_ids = prompt(120, reference.config["vocab_size"])
    truth = reference.forward(token_ids)
    actual = golden_logits(directory, device, dtype, token_ids)

    compared = settled_routing(truth, dtype)
    row_scale = np.abs(truth.logits).max(axis=-1, keepdims=True)
    settled = compared & settled_greedy(truth.logits, dtype)
    equal = actual.argmax(axis=-1) == truth.logits.argmax(axis=-1)
    found = measure(variant.name, dtype, f"model, {device}")
    found.num_positions, found.num_skipped = len(token_ids), int((~compared).sum())
    found.max_error = error(
        dtype, actual[compared], truth.logits[compared], row_scale[compared])
    found.num_greedy, found.num_greedy_equal = int(settled.sum()), int((settled & equal).sum())

    assert found.num_skipped <= len(token_ids) / 2
    assert found.max_error <= TOLERANCE[dtype]
    assert found.num_greedy_equal == found.num_greedy


@each_dtype
@each_variant
def test_logprobs_and_greedy_tokens_through_http_equal_the_references(
        variant, dtype, checkpoint_of, start_server, vocabulary, measure):
    directory = checkpoint_of(variant)
    server = start_server(directory, "--dtype", dtype, "--max-model-len", MAX_MODEL_LEN,
                          "--max-num-batched-tokens", CHUNK_TOKENS, "--threads", 1)
    reference = reference_of(directory, dtype)
    found = measure(variant.name, dtype, "http")
    for length in PROMPT_LENGTHS:
        token_ids = prompt(length, len(vocabulary))
        compare_echo(server, reference, token_ids, len(vocabulary), dtype, found)
        compare_greedy(server, reference, token_ids, vocabulary, dtype, found)
    assert found.num_skipped <= (found.num_positions + found.num_skipped) / 2
    assert found.num_greedy > 0
    assert found.max_error <= TOLERANCE[dtype]
    assert found.num_greedy_equal == found.num_greedy


def compare_echo(server, reference, token_ids, vocab_size, dtype, found):
    """Logprobs of the prompt's tokens, and the most likely ones in their places."""
    response = server.http.post("/v1/completions", json={
        "model": server.model, "prompt": token_ids, "echo": True, "logprobs": TOP_LOGPROBS,
        "max_tokens": 1, "temperature": 0})
    assert response.status_code == 200, response.text
    logprobs = response.json()["choices"][0]["logprobs"]
    assert len(logprobs["token_logprobs"]) == len(token_ids) + 1

    truth = reference.forward(token_ids)
    logits = truth.logits[:, :vocab_size]
    row_scale, expected = np.abs(logits).max(axis=-1), log_softmax(logits)
    for position in np.nonzero(settled_routing(truth, dtype))[0]:
        best = np.sort(expected[position])[::-1][:TOP_LOGPROBS]
        given = sorted(logprobs["top_logprobs"][position + 1].values(), reverse=True)
        pairs = [(given[:TOP_LOGPROBS], best)]
        if position + 1 < len(token_ids):
            own = expected[position, token_ids[position + 1]]
            pairs.append((logprobs["token_logprobs"][position + 1], own))
        for actual, correct in pairs:
            scaled = error(dtype, np.asarray(actual), correct, row_scale[position])
            found.max_error = max(found.max_error, scaled)
        found.num_positions += 1
    found.num_skipped += int((~settled_routing(truth, dtype)).sum())


def compare_greedy(server, reference, token_ids, vocabulary, dtype, found):
    """The tokens generated at temperature 0, each after those before it."""
    response = server.http.post("/v1/completions", json={
        "model": server.model, "prompt": token_ids, "max_tokens": GENERATED_TOKENS,
        "temperature": 0, "logprobs": 0, "ignore_eos": True, "skip_special_tokens": False})
    assert response.status_code == 200, response.text
    texts = response.json()["choices"][0]["logprobs"]["tokens"]
    generated = leading_ids(texts, ids_of_texts(vocabulary))
    truth = reference.forward(token_ids + generated)
    rows = slice(len(token_ids) - 1, len(token_ids) - 1 + len(generated))
    logits = truth.logits[rows, :len(vocabulary)]
    settled = settled_routing(truth, dtype)[rows] & settled_greedy(logits, dtype)
    equal = logits.argmax(axis=-1) == generated
    found.num_greedy += int(settled.sum())
    found.num_greedy_equal += int((settled & equal).sum())
