"""More is asked of the server than it can do: bounds hold, and nothing is lost. What it does to
latency is measured by tests/bench/overload.py."""

import asyncio
import itertools
import random

import pytest

from load import LoadClient, broken_promises, decks, recomputed_share
from shoal_server import seconds

MAX_MODEL_LEN = 256
KV_BYTES_PER_TOKEN = 4 * 2 * 128 * 2  # of `tiny`: layers, keys and values, width, bfloat16


def under_load(server, cards, num_jobs, num_clients):
    """(answers, samples of the server) of clients that all come at once, and come again when they
    are refused, until each job is done."""
    client = LoadClient(server, timeout=seconds(60))
    jobs = itertools.islice(decks(cards, random.Random(1)), num_jobs)
    return asyncio.run(client.watch(
        client.closed_loop(jobs, num_clients, retry_seconds=seconds(0.05))))


def num_whole(answers):
    return sum(not answer.complaint for answer in answers)


def test_queue_keeps_its_bounds_and_nothing_is_lost(start_server, tiny_model):
    server = start_server(tiny_model, "--max-model-len", MAX_MODEL_LEN, "--max-num-seqs", 4,
                          "--max-num-queued-requests", 12, "--max-num-queued-tokens", 600)
    cards = list(itertools.product((8, 40, 150), (8, 24, 48)))
    answers, samples = under_load(server, cards, num_jobs=90, num_clients=48)
    assert broken_promises(answers, samples, max_queued_requests=12, max_queued_tokens=600) == []
    assert num_whole(answers) == 90
    assert any(answer.refused for answer in answers)


@pytest.mark.parametrize("num_sequences", [1, 2, 4])
def test_little_is_computed_twice_when_the_cache_holds_few(start_server, tiny_model,
                                                           num_sequences):
    """Most requests end long before they have all the tokens that they asked for, so what they will
    need is not known."""
    server = start_server(
        tiny_model, "--max-model-len", MAX_MODEL_LEN, "--max-num-seqs", 32,
        "--kv-cache-memory-bytes", num_sequences * MAX_MODEL_LEN * KV_BYTES_PER_TOKEN)
    cards = [(prompt, most, 16) for prompt in (8, 32, 60) for most in (64, 128, 192)]
    answers, samples = under_load(server, cards, num_jobs=45, num_clients=24)
    blocks = samples[-1]["shoal:kv_blocks"]
    assert blocks * 16 == num_sequences * MAX_MODEL_LEN
    assert broken_promises(answers, samples, max_queued_requests=256,
                           max_queued_tokens=1 << 20) == []
    assert num_whole(answers) == len(answers) == 45
    assert recomputed_share(samples) < 0.15
