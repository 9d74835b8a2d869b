"""The wire: probes, metrics, framing, the echo contract and HTTP's own manners."""

import json
import socket

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from shoal_server import seconds
from vocabulary import ids_of_texts, leading_ids, read_vocabulary

PROMPT_IDS = [1, 77, 300, 41, 1999, 1200, 7, 7, 645, 18, 1024]
METRICS = {
    "gauge": {"vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
              "vllm:cache_config_info", "shoal:num_waiting_tokens", "shoal:num_requests_reserved",
              "shoal:num_tenants", "shoal:requests_per_second", "shoal:kv_blocks",
              "shoal:step_sequences", "shoal:step_batch_tokens"},
    "counter": {"vllm:num_preemptions", "vllm:prompt_tokens", "vllm:generation_tokens",
                "vllm:request_success", "vllm:prefix_cache_queries", "vllm:prefix_cache_hits",
                "vllm:spec_decode_num_drafts", "vllm:spec_decode_num_draft_tokens",
                "vllm:spec_decode_num_accepted_tokens", "shoal:computed_tokens"},
    "histogram": {"vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds",
                  "vllm:e2e_request_latency_seconds", "vllm:request_queue_time_seconds",
                  "vllm:iteration_tokens_total", "shoal:step_seconds"},
}


def metric_families(server):
    response = server.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {family.name: family for family in text_string_to_metric_families(response.text)}


def value(families, name):
    """Sum over all label values of a gauge or counter."""
    return sum(sample.value for sample in families[name].samples
               if not sample.name.endswith("_created"))


def events(text):
    """Payloads of a server-sent event stream, whose framing is checked."""
    assert text.endswith("\n\n")
    blocks = [block for block in text[:-2].split("\n\n") if not block.startswith(":")]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks), text
    return [block.removeprefix("data: ") for block in blocks]


def raw_answer(server, request):
    """What the server sends back for the bytes `request` before it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds(15)) as connection:
        connection.sendall(request)
        answer = b""
        while block := connection.recv(65536):
            answer += block
    return answer.decode()


def test_probes_of_a_ready_server(server):
    for path in ("/livez", "/readyz", "/startupz", "/health"):
        assert server.http.get(path).status_code == 200, path
    assert server.http.get("/startupz").json()["phase"] == "ready"


def test_version(server, shoal):
    version = server.http.get("/version").json()["version"]
    assert version in shoal("--version").stdout


def test_metrics_have_the_names_that_dashboards_read(server, complete):
    complete("hello", max_tokens=3)
    families = metric_families(server)
    for kind, names in METRICS.items():
        for name in names:
            assert families[name].type == kind, name
            assert families[name].documentation, name
            assert all(sample.labels["model_name"] == server.model
                       for sample in families[name].samples if name != "vllm:cache_config_info")


def test_metrics_count_what_was_done(server, complete):
    before = metric_families(server)
    usage = complete(PROMPT_IDS, max_tokens=9, ignore_eos=True)["usage"]
    after = metric_families(server)

    def gained(name):
        return value(after, name) - value(before, name)

    assert gained("vllm:prompt_tokens") == usage["prompt_tokens"] == len(PROMPT_IDS)
    assert gained("vllm:generation_tokens") == usage["completion_tokens"] == 9
    assert gained("vllm:request_success") == 1
    counts = [
        sum(sample.value for sample in families["vllm:time_to_first_token_seconds"].samples
            if sample.name.endswith("_count"))
        for families in (before, after)]
    assert counts[1] - counts[0] == 1
    assert value(after, "vllm:num_requests_running") == 0
    # A step computes the prompt, and one each all tokens but the last.
    assert gained("shoal:computed_tokens") >= len(PROMPT_IDS) + 8


def test_tokenize_and_detokenize_are_inverse(server):
    text = "Grüße, 世界! 1+1=2\n\nfin"
    tokens = server.http.post("/tokenize", json={"model": server.model, "prompt": text,
                                                 "add_special_tokens": False}).json()["tokens"]
    back = server.http.post("/detokenize", json={"model": server.model, "tokens": tokens}).json()
    assert back["prompt"] == text


def test_tokenize_adds_bos_unless_told_otherwise(server, special_ids):
    def tokenize(**fields):
        return server.http.post("/tokenize", json={"model": server.model} | fields).json()

    bare = tokenize(prompt="hello there", add_special_tokens=False)
    assert tokenize(prompt="hello there")["tokens"] == [special_ids[0], *bare["tokens"]]
    assert bare["count"] == len(bare["tokens"]) and bare["max_model_len"] == 1024


def test_user_text_never_becomes_a_special_token(server, special_ids, tokenizer_directory):
    eos = read_vocabulary(tokenizer_directory)[special_ids[1]].decode()
    messages = [{"role": "user", "content": f"a{eos}b"}]
    reply = server.http.post("/tokenize", json={"model": server.model, "messages": messages})
    tokens = reply.json()["tokens"]
    assert tokens[0] == special_ids[0]
    assert special_ids[1] not in tokens and special_ids[0] not in tokens[1:]


def test_echo_gives_a_logprob_for_every_token_but_the_first(complete):
    choice = complete(PROMPT_IDS, echo=True, logprobs=1, max_tokens=1, temperature=0)["choices"][0]
    logprobs = choice["logprobs"]
    for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert len(logprobs[key]) == len(PROMPT_IDS) + 1, key
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert all(number <= 0 for number in logprobs["token_logprobs"][1:])
    for own, top in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:]):
        assert own in top.values()  # the prompt's own token is there, however unlikely
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])


def test_echo_without_generation(complete):
    reply = complete(PROMPT_IDS, echo=True, logprobs=1, max_tokens=0)
    assert len(reply["choices"][0]["logprobs"]["token_logprobs"]) == len(PROMPT_IDS)
    assert reply["usage"]["completion_tokens"] == 0


def test_a_greedy_tokens_logprob_is_the_greatest_digit_for_digit(server):
    """Evaluation harnesses compare the numbers for equality."""
    response = server.http.post("/v1/completions", json={
        "model": server.model, "prompt": PROMPT_IDS, "max_tokens": 8, "temperature": 0,
        "logprobs": 2, "ignore_eos": True})
    logprobs = json.loads(response.text, parse_float=str)["choices"][0]["logprobs"]
    for own, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"]):
        assert own == min(top.values(), key=lambda digits: -float(digits))


def test_echoed_logprobs_equal_those_of_generation_bit_for_bit(server, tokenizer_directory):
    id_of_text = ids_of_texts(read_vocabulary(tokenizer_directory))

    def logprobs_of(prompt, **fields):
        response = server.http.post("/v1/completions", json={
            "model": server.model, "prompt": prompt, "logprobs": 1, "ignore_eos": True,
            "skip_special_tokens": False} | fields)
        return json.loads(response.text, parse_float=str)["choices"][0]["logprobs"]

    compared = 0
    for seed in range(4):
        made = logprobs_of(PROMPT_IDS, max_tokens=24, seed=seed, temperature=1)
        known = leading_ids(made["tokens"], id_of_text)
        echoed = logprobs_of(PROMPT_IDS + known, echo=True, max_tokens=0)["token_logprobs"]
        assert echoed[len(PROMPT_IDS):] == made["token_logprobs"][:len(known)]
        compared += len(known)
    assert compared >= 16


def test_one_choice_per_prompt_in_order(complete):
    prompts = [PROMPT_IDS, PROMPT_IDS[:3], PROMPT_IDS[4:]]
    reply = complete(prompts, echo=True, logprobs=1, max_tokens=1, temperature=0)
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    for prompt, choice in zip(prompts, reply["choices"]):
        alone = complete(prompt, echo=True, logprobs=1, max_tokens=1, temperature=0)["choices"][0]
        assert choice["logprobs"] == alone["logprobs"]
    assert reply["usage"]["prompt_tokens"] == sum(map(len, prompts))


def test_chat_stream_framing(server):
    with server.http.stream("POST", "/v1/chat/completions", json={
            "model": server.model, "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 5, "stream": True, "ignore_eos": True,
            "stream_options": {"include_usage": True}}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        payloads = events(response.read().decode())
    assert payloads[-1] == "[DONE]"
    chunks = [json.loads(payload) for payload in payloads[:-1]]
    first, last, usage = chunks[0], chunks[-2], chunks[-1]
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in chunks[1:-1])
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == (
        [None] * (len(chunks) - 2) + ["length"]), last
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 5


def test_stream_without_usage_has_no_chunk_without_choices(server):
    response = server.http.post("/v1/completions", json={
        "model": server.model, "prompt": "hi", "max_tokens": 4, "stream": True})
    payloads = events(response.text)
    assert payloads[-1] == "[DONE]"
    assert all(len(json.loads(payload)["choices"]) == 1 for payload in payloads[:-1])


def test_request_id_is_echoed_or_made_up(server):
    given = server.http.get("/livez", headers={"X-Request-Id": "my-id-42"})
    assert given.headers["x-request-id"] == "my-id-42"
    made = {server.http.get("/livez").headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2 and "" not in made


def test_head_has_the_headers_without_the_body(server):
    response = server.http.head("/livez")
    assert response.status_code == 200 and response.content == b""
    assert server.http.get("/livez").status_code == 200  # the connection is still in step


@pytest.mark.parametrize("method, path, status", [
    ("GET", "/nothing/here", 404),
    ("POST", "/v1/nothing", 404),
    ("GET", "/v1/completions", 405),
    ("DELETE", "/v1/models", 405),
    ("POST", "/metrics", 405),
])
def test_wrong_path_or_method_is_an_error_in_json(server, method, path, status):
    response = server.http.request(method, path)
    assert response.status_code == status
    error = response.json()["error"]
    assert {"message", "type", "param", "code"} <= error.keys() and error["message"]
    if status == 405:
        assert response.headers["allow"]


def test_a_body_over_the_limit_is_refused(server):
    body = b'{"prompt": "' + b"x" * (5 << 20) + b'"}'
    try:
        response = httpx.post(f"{server.base_url}/v1/completions", content=body, trust_env=False,
                              timeout=seconds(15))
    except httpx.WriteError:  # refused before all of it was sent
        response = None
    if response is not None:
        assert response.status_code == 413 and response.json()["error"]["message"]
    declared = raw_answer(server, b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
                                  b"Content-Length: 999999999999\r\n\r\n")
    assert declared.startswith("HTTP/1.1 413 ")


@pytest.mark.parametrize("request_bytes, status", [
    (b"NONSENSE\r\n\r\n", 400),
    (b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
     b"0\r\n\r\n", 400),
    (b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", 400),
    (b"GET /livez HTTP/1.1\r\nHost: x\r\nBig: " + b"x" * 20000 + b"\r\n\r\n", 431),
], ids=["no request", "two lengths", "negative length", "header over the limit"])
def test_malformed_requests_are_refused_and_the_connection_closed(server, request_bytes, status):
    assert raw_answer(server, request_bytes).startswith(f"HTTP/1.1 {status} ")
    assert server.probe("/livez") == 200


def test_pipelined_requests_are_answered_in_order(server):
    one = b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Request-Id: %d\r\n%s\r\n"
    last = one % (3, b"Connection: close\r\n")
    answer = raw_answer(server, one % (1, b"") + one % (2, b"") + last)
    ids = [line.split(":")[1].strip() for line in answer.splitlines()
           if line.lower().startswith("x-request-id:")]
    assert ids == ["1", "2", "3"]
