"""Who shares what: the prefix cache, the machine, the time; and what a client is told who must wait."""

import concurrent.futures
import json
import re

import httpx
import openai
import pytest

from shoal_server import seconds, wait_until

PROMPT = [7] * 100
LONG = {"prompt": [1], "max_tokens": 3000, "ignore_eos": True}


def ask(server, key=None, headers=None, **fields):
    """The response to a completion, on a connection of its own."""
    given = ({"x-api-key": key} if key else {}) | (headers or {})
    with httpx.Client(base_url=server.base_url, timeout=seconds(30), trust_env=False) as client:
        return client.post("/v1/completions", headers=given,
                           json={"model": server.model, "prompt": PROMPT, "max_tokens": 1} | fields)


def cached_tokens(server, **options):
    response = ask(server, **options)
    assert response.status_code == 200, response.text
    return response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


def gauge(server, name):
    text = server.http.get("/metrics").text
    return float(re.search(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)[1])


class LongStream:
    """A request of `n` choices that runs, or waits if it `waits`, until it is closed."""

    def __init__(self, server, key=None, n=1, waits=False):
        headers = {"x-api-key": key} if key else {}
        self._client = httpx.Client(base_url=server.base_url, timeout=seconds(30), trust_env=False,
                                    headers=headers)
        request = self._client.build_request(
            "POST", "/v1/completions", json={"model": server.model, "stream": True, "n": n} | LONG)
        response = self._client.send(request, stream=True)
        assert response.status_code == 200, response.read()
        self._lines = response.iter_lines()
        if not waits:
            next(self._lines)

    def close(self):
        self._client.close()


def test_prefixes_are_shared_within_a_key_only(start_server, tiny_model):
    server = start_server(tiny_model, "--api-key", "one,two")
    for key in ("one", "two"):
        assert cached_tokens(server, key=key) == 0
        assert cached_tokens(server, key=key) >= 80


def test_prefixes_are_shared_within_a_salt_only(server):
    for salt in ("pepper", "garlic"):
        assert cached_tokens(server, cache_salt=salt) == 0
        assert cached_tokens(server, cache_salt=salt) >= 80


def test_the_prefix_cache_can_be_reset(start_server, tiny_model):
    server = start_server(tiny_model, "--api-key", "one")
    assert cached_tokens(server, key="one") == 0
    assert cached_tokens(server, key="one") >= 80
    assert server.http.post("/reset_prefix_cache").status_code == 401
    assert server.http.get("/reset_prefix_cache", headers={"x-api-key": "one"}).status_code == 405
    assert cached_tokens(server, key="one") >= 80
    reset = server.http.post("/reset_prefix_cache", headers={"x-api-key": "one"})
    assert reset.status_code == 200
    assert cached_tokens(server, key="one") == 0


@pytest.mark.parametrize("fair_share, is_next", [("key", True), ("off", False)])
def test_a_key_that_asks_for_little_does_not_wait_for_one_that_asks_for_much(
        start_server, tiny_model, fair_share, is_next):
    server = start_server(tiny_model, "--api-key", "one,two", "--max-num-seqs", 1,
                          "--fair-share", fair_share)
    server.http.headers["x-api-key"] = "one"
    running = LongStream(server, "one")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        def queue(request_ids, key, num_waiting):
            for request_id in request_ids:
                pool.submit(ask, server, key, {"X-Request-Id": request_id}, max_tokens=40,
                            ignore_eos=True)
            wait_until(lambda: gauge(server, "vllm:num_requests_waiting") == num_waiting, 10,
                       f"{num_waiting} queued requests")

        queue([f"much-{number}" for number in range(6)], "one", 6)
        queue(["little"], "two", 7)
        running.close()

    def ended():
        """All requests, as the log has them: in the order of their ends, but for neighbours."""
        ids = re.findall(r'"request_id": ?"(much-\d|little)"', server.log)
        return ids if len(ids) == 7 else None

    assert (wait_until(ended, 10, "end of all").index("little") < 3) == is_next


def test_a_request_may_ask_for_an_end_in_time(server):
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=2,
                       timeout=seconds(30)) as client:
        with pytest.raises(openai.InternalServerError) as error:
            client.completions.create(
                model=server.model, prompt="x", max_tokens=1000, extra_body={"ignore_eos": True},
                extra_headers={"x-request-timeout-ms": "1"})
    assert error.value.status_code == 504
    assert error.value.response.headers["x-should-retry"] == "false"

    def counted():
        return re.findall(r'^http_requests_total{.*status="504"} (\d+)',
                          server.http.get("/metrics").text, re.MULTILINE)

    # The client does not ask again for what takes too long.
    assert wait_until(counted, 10, "counted request") == ["1"]


def test_a_bad_timeout_is_named(server):
    response = ask(server, headers={"x-request-timeout-ms": "soon"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "x-request-timeout-ms"
    assert ask(server, headers={"x-request-timeout-ms": "600000"}).status_code == 200


def test_the_servers_timeout_ends_streams_with_an_error(start_server, tiny_model):
    server = start_server(tiny_model, "--request-timeout-ms", 20)
    response = ask(server, headers={"x-request-timeout-ms": "600000"}, stream=True, **LONG)
    if response.status_code == 200:  # else even the start took too long
        events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
        assert events[-1] == "[DONE]" and "error" in json.loads(events[-2])
    else:
        assert response.status_code == 504
    wait_until(lambda: gauge(server, "vllm:num_requests_running") == 0, 10, "end")


def test_who_finds_the_queue_full_is_told_when_to_come_again(start_server, tiny_model):
    server = start_server(tiny_model, "--max-num-seqs", 1, "--max-num-queued-requests", 2)
    running = LongStream(server)
    waiting = LongStream(server, n=2, waits=True)
    # What can never wait is the request's own fault.
    response = ask(server, prompt=[1], n=3)
    assert response.status_code == 400 and response.json()["error"]["param"] == "n", response.text
    # Whatever the prompt is like: it is not looked at.
    for prompt in ([1], [[]]):
        response = ask(server, prompt=prompt)
        assert response.status_code == 429, response.text
        assert 1 <= int(response.headers["retry-after"]) <= 120
        assert 1 <= int(response.headers["retry-after-ms"]) <= 120_000
    waiting.close()
    running.close()
