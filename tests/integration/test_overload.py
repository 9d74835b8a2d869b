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
    answers, samples = under_load(server, cards, num_jobs=80, num_clients=48)
    assert broken_promises(answers, samples, max_queued_requests=12, max_queued_tokens=600) == []
    assert num_whole(answers) == 80
    assert any(answer.refused for answer in answers)


def cramped(start_server, model, num_sequences, *flags):
    """A server whose cache holds so many sequences of the greatest length."""
    return start_server(
        model, "--max-model-len", MAX_MODEL_LEN, "--max-num-seqs", 32,
        "--kv-cache-memory-bytes", num_sequences * MAX_MODEL_LEN * KV_BYTES_PER_TOKEN, *flags)


def finish_all(server):
    """Samples of a server while it finishes requests that all ask for many tokens; most end long
    before, some do not, so what they will need is not known."""
    cards = [(prompt, 160, stops) for prompt in (8, 24, 60) for stops in (16, 16, 16, 0)]
    answers, samples = under_load(server, cards, num_jobs=48, num_clients=24)
    assert broken_promises(answers, samples, max_queued_requests=256,
                           max_queued_tokens=1 << 20) == []
    assert num_whole(answers) == len(answers) == 48
    return samples


@pytest.mark.parametrize("num_sequences", [1, 2, 4])
def test_little_is_computed_twice_when_the_cache_holds_few(start_server, tiny_model,
                                                           num_sequences):
    server = cramped(start_server, tiny_model, num_sequences, "--no-enable-prefix-caching")
    samples = finish_all(server)
    assert samples[0]["shoal:kv_blocks"] * 16 == num_sequences * MAX_MODEL_LEN
    assert recomputed_share(samples) < 0.15


def test_all_finish_when_they_take_the_cache_from_one_another(start_server, tiny_model):
    samples = finish_all(cramped(start_server, tiny_model, 2, "--schedule-conservativeness", 0))
    assert samples[-1]["vllm:num_preemptions_total"] > 0
