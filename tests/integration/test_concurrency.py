"""Many clients at once: each gets what it gets alone, and nothing stays behind."""

import concurrent.futures
import json
import random
import re
import socket
import threading

import httpx
import pytest

from shoal_server import seconds, wait_until

NUM_CLIENTS = 32
RSS_SLACK_BYTES = 16 << 20  # heap that the allocator keeps for reuse
VOCAB_SIZE = 2048


@pytest.fixture(scope="module")
def server(module_server, tiny_model):
    """Fewer places and tokens per step than the clients ask for, so that they queue, and prompts
    are computed in chunks beside other clients' tokens."""
    return module_server(tiny_model, "--max-model-len", 1024, "--max-num-seqs", 12,
                         "--max-num-batched-tokens", 128)


def payload(server, number):
    rng = random.Random(number)
    length = rng.choice((1, 5, 16, 40, 150, 300))
    return {
        "model": server.model, "stream": True, "logprobs": 2, "ignore_eos": True, "seed": number,
        "prompt": [rng.randrange(VOCAB_SIZE) for _ in range(length)],
        "max_tokens": rng.choice((1, 8, 17, 33, 60)),
        "temperature": rng.choice((0, 0.7, 1)), "top_p": rng.choice((1, 0.9)),
    }


def streamed(server, request):
    """(text, tokens, logprobs as digits) of one streamed completion on a connection of its own."""
    text, tokens, logprobs = "", [], []
    with httpx.Client(base_url=server.base_url, timeout=seconds(60), trust_env=False) as client:
        with client.stream("POST", "/v1/completions", json=request) as response:
            assert response.status_code == 200, response.read()
            lines = [line.removeprefix("data: ") for line in response.iter_lines()
                     if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    for line in lines:
        [choice] = json.loads(line, parse_float=str)["choices"]
        text += choice["text"]
        if choice["logprobs"]:
            tokens += choice["logprobs"]["tokens"]
            logprobs += choice["logprobs"]["token_logprobs"]
    assert choice["finish_reason"] == "length"
    assert len(tokens) == len(logprobs) == request["max_tokens"]
    return text, tokens, logprobs


def all_at_once(server, requests):
    """Every client's result; all begin together."""
    start = threading.Barrier(len(requests))

    def client(request):
        start.wait(seconds(30))
        return streamed(server, request)

    with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(client, requests))


def gauges(server):
    text = server.http.get("/metrics").text
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    return {name: float(re.search(rf"^vllm:{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)[1])
            for name in names}


def wait_until_idle(server, idle, timeout=10):
    wait_until(lambda: gauges(server) == idle, timeout, "return to the idle state")


def test_each_of_32_clients_gets_what_it_gets_alone(server):
    requests = [payload(server, number) for number in range(NUM_CLIENTS)]
    idle = gauges(server)
    assert idle["num_requests_running"] == idle["kv_cache_usage_perc"] == 0
    alone = [streamed(server, request) for request in requests]
    assert all_at_once(server, requests) == alone
    wait_until_idle(server, idle)


def test_preempted_requests_get_what_they_get_alone(start_server, server, tiny_model):
    """The cache holds two sequences of the greatest length, and six grow in it at once."""
    cramped = start_server(tiny_model, "--max-model-len", 256, "--kv-cache-memory-bytes", 1 << 20,
                           "--schedule-conservativeness", 0)
    requests = [payload(server, number) | {"prompt": [number], "max_tokens": 200}
                for number in range(6)]
    alone = [streamed(server, request) for request in requests]
    assert all_at_once(cramped, requests) == alone
    preemptions = re.search(r"^vllm:num_preemptions_total(?:{.*})? (\S+)$",
                            cramped.http.get("/metrics").text, re.MULTILINE)
    assert float(preemptions[1]) > 0


@pytest.mark.parametrize("flags", [
    ("--expert-parallel", 2), ("--expert-parallel", 4, "--num-redundant-experts", 3),
    ("--num-speculative-tokens", 4), ("--no-async-scheduling",)], ids=lambda flags: " ".join(map(str, flags)))
def test_how_the_work_is_done_changes_no_digit(start_server, server, tiny_model, flags):
    other = start_server(tiny_model, "--max-model-len", 1024, *flags)
    requests = [payload(server, number) for number in range(8)]
    alone = [streamed(server, request) for request in requests]
    assert all_at_once(other, requests) == alone


def test_memory_returns_to_its_level(server, sanitized):
    requests = [payload(server, number) for number in range(NUM_CLIENTS)]
    idle = gauges(server)
    all_at_once(server, requests)
    warm = server.rss_bytes()
    for _ in range(3):
        all_at_once(server, requests)
    wait_until_idle(server, idle)
    if not sanitized:  # sanitizers keep freed memory on purpose
        assert server.rss_bytes() - warm < RSS_SLACK_BYTES


def start_long_stream(server, seed=0):
    """A socket on which a stream of many tokens has begun to arrive."""
    body = json.dumps(payload(server, seed) | {"max_tokens": 700}).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=seconds(30))
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
                       b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
                       + body)
    received = b""
    while b"data: " not in received:
        received += connection.recv(4096)
    return connection


def test_blocks_of_a_killed_client_are_freed_while_others_go_on(server):
    idle = gauges(server)
    others = [payload(server, number) for number in (3, 4, 5)]
    alone = [streamed(server, request) for request in others]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        victims = [start_long_stream(server, seed) for seed in range(4)]
        assert gauges(server)["kv_cache_usage_perc"] > 0
        results = [pool.submit(streamed, server, request) for request in others]
        for victim in victims:
            victim.close()
        wait_until_idle(server, idle, timeout=5)
        assert [result.result() for result in results] == alone


def test_a_killed_client_in_the_queue_never_runs(start_server, tiny_model):
    server = start_server(tiny_model, "--max-num-seqs", 1)
    idle = gauges(server)
    running = start_long_stream(server)
    queued = socket.create_connection(("127.0.0.1", server.port), timeout=seconds(30))
    body = json.dumps(payload(server, 1) | {"max_tokens": 700}).encode()
    queued.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
                   % len(body) + body)
    wait_until(lambda: gauges(server)["num_requests_waiting"] == 1, 10, "queued request")
    queued.close()
    wait_until(lambda: gauges(server)["num_requests_waiting"] == 0, 10, "empty queue")
    running.close()
    wait_until_idle(server, idle)


def test_an_answer_that_nobody_reads_does_not_hold_up_others(server):
    sleeper = start_long_stream(server)
    request = payload(server, 7)
    assert streamed(server, request) == streamed(server, request)
    sleeper.close()
