"""Load on a running server: completions asked for at given times, what became of each, and what the
server said of itself meanwhile. One asyncio loop over plain sockets, a connection per request.
Answers are kept as bytes and read after the load: the client is to take little from the server."""

import asyncio
import dataclasses
import functools
import json
import random
import re
import time

VOCAB_SIZE = 2000  # of the tokenizer, without its special tokens
HTTP_HEAD = "{} HTTP/1.1\r\nHost: shoal\r\nConnection: close\r\nContent-Length: {}\r\n\r\n"


def http_request(target, body=b""):
    return HTTP_HEAD.format(target, len(body)).encode() + body


@dataclasses.dataclass(frozen=True)
class Job:
    """A completion to ask for: a random prompt of its own, so that no prefix is shared."""
    number: int  # seed of the prompt and of the sampling
    num_prompt_tokens: int
    max_tokens: int
    num_stop_tokens: int = 0  # as many token ids end it early

    @property
    def shape(self):
        return self.num_prompt_tokens, self.max_tokens

    def request(self, model):
        rng = random.Random(self.number)
        ids = range(VOCAB_SIZE)
        return http_request("POST /v1/completions", json.dumps({
            "model": model, "seed": self.number, "max_tokens": self.max_tokens, "temperature": 1,
            "prompt": rng.choices(ids, k=self.num_prompt_tokens),
            "ignore_eos": True, "stop_token_ids": rng.sample(ids, self.num_stop_tokens),
            "stream": True, "stream_options": {"include_usage": True}, "logprobs": 0}).encode())


def decks(cards, rng):
    """Jobs without end, whose (prompt, output) lengths are those of `cards` in ever new order: any
    stretch of them is about as much work as another of its length."""
    number = 0
    while True:
        for card in rng.sample(cards, len(cards)):
            yield Job(number, *card)
            number += 1


def read_chunks(data):
    """The body of a chunked message, as far as it came."""
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size or b"0", 16)
        body += data[:length]
        data = data[length + 2:]
    return body


@dataclasses.dataclass
class Answer:
    """What came back for a request. Times are of time.monotonic(), in seconds."""
    job: Job
    due: float  # when it was to be sent
    sent: float = 0  # before the connection was made
    pieces: list = dataclasses.field(default_factory=list)  # (time, bytes), as they came
    failure: str = ""  # of the connection

    @functools.cached_property
    def _parts(self):
        head, _, body = b"".join(data for _, data in self.pieces).partition(b"\r\n\r\n")
        lines = head.decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:])
        if headers.get("transfer-encoding") == "chunked":
            body = read_chunks(body)
        return int(lines[0].split()[1]) if head else 0, headers, body

    @property
    def status(self):
        return self._parts[0]

    @property
    def refused(self):
        """Turned away in good order: told when to come again."""
        return self.status in (429, 503) and {"retry-after", "retry-after-ms"} <= set(self.headers)

    @property
    def headers(self):
        return self._parts[1]

    @property
    def end(self):
        return self.pieces[-1][0] if self.pieces else self.sent

    @property
    def seconds(self):
        return self.end - self.sent

    @functools.cached_property
    def token_times(self):
        """When the pieces of the stream that hold tokens came."""
        return [when for when, data in self.pieces if b"token_logprobs" in data]

    @functools.cached_property
    def _events(self):
        return [line.removeprefix("data: ") for line in self._parts[2].decode().splitlines()
                if line.startswith("data: ")]

    @functools.cached_property
    def num_tokens(self):
        """Tokens received, counted one by one."""
        logprobs = [choice["logprobs"] for event in self._events if event != "[DONE]"
                    for choice in json.loads(event).get("choices", ())]
        return sum(len(each["tokens"]) for each in logprobs if each)

    @functools.cached_property
    def complaint(self):
        """Why this is no whole completion; empty if it is one."""
        if self.failure or self.status != 200:
            return self.failure or f"status {self.status}: {self._parts[2][:200].decode()}"
        if len(self._events) < 3 or self._events[-1] != "[DONE]":
            return "the stream broke off"
        last = json.loads(self._events[-3])
        reason = last["choices"][0]["finish_reason"] if last.get("choices") else json.dumps(last)
        if reason not in ("stop", "length"):
            return f"it ended with {reason}"
        told = json.loads(self._events[-2])["usage"]["completion_tokens"]
        expected = self.job.max_tokens if reason == "length" else told
        if not self.num_tokens == told == expected:
            return f"{self.num_tokens} tokens came, usage says {told}, expected {expected}"
        return ""


def metric(text, name, **labels):
    """Sum of the series of a metric that have `labels`, in Prometheus' text format."""
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    series = re.finditer(rf"^{re.escape(name)}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
    return sum(float(match[2]) for match in series
               if all(label in (match[1] or "") for label in wanted))


@dataclasses.dataclass
class Sample:
    """The server at one time."""
    when: float
    rss_bytes: int
    text: str  # /metrics

    def __getitem__(self, name):
        return metric(self.text, name)

    @functools.cached_property
    def num_queued(self):
        """Requests that hold a place in the queue."""
        return self["vllm:num_requests_waiting"] + self["shoal:num_requests_reserved"]

    @functools.cached_property
    def num_queued_tokens(self):
        return self["shoal:num_waiting_tokens"]

    @functools.cached_property
    def num_running(self):
        return self["vllm:num_requests_running"]

    @property
    def idle(self):
        return self.num_queued == self.num_running == self["vllm:kv_cache_usage_perc"] == 0


class _Exchange(asyncio.Protocol):
    """A request, and the answer up to the end of the connection."""

    def __init__(self, request, pieces):
        self._request = request
        self._pieces = pieces
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data):
        self._pieces.append((time.monotonic(), data))

    def connection_lost(self, error):
        if not self.ended.done():
            self.ended.set_result(error)


class LoadClient:
    """Sends to one server. An answer that takes longer than `timeout` seconds has failed."""

    def __init__(self, server, timeout=300):
        self._server = server
        self._timeout = timeout

    async def _exchange(self, request, pieces):
        """Why it failed, or ""."""
        transport = None
        try:
            async with asyncio.timeout(self._timeout):
                transport, exchange = await asyncio.get_running_loop().create_connection(
                    lambda: _Exchange(request, pieces), "127.0.0.1", self._server.port)
                error = await exchange.ended
        except (OSError, TimeoutError) as failure:
            error = failure
        if transport:
            transport.abort()
        return repr(error) if error else ""

    async def send(self, job, due=None):
        answer = Answer(job, due or time.monotonic())
        request = job.request(self._server.model)
        answer.sent = time.monotonic()
        answer.failure = await self._exchange(request, answer.pieces)
        return answer

    async def closed_loop(self, jobs, num_clients, retry_seconds=None):
        """Each client sends a job when its last one has ended, until `jobs` are used up. One that
        is refused is sent again after `retry_seconds`, if given; each try has its answer."""
        answers = []

        async def client():
            for job in jobs:
                answers.append(await self.send(job))
                while retry_seconds is not None and answers[-1].refused:
                    await asyncio.sleep(retry_seconds)
                    answers.append(await self.send(job))

        await asyncio.gather(*(client() for _ in range(num_clients)))
        return answers

    async def open_loop(self, jobs, per_second, rng, seconds):
        """Jobs come at random times (a Poisson process), whatever became of those before."""
        start = time.monotonic()
        due = start + rng.expovariate(per_second)
        tasks = []
        for job in jobs:
            if due >= start + seconds:
                break
            await asyncio.sleep(max(due - time.monotonic(), 0))
            tasks.append(asyncio.create_task(self.send(job, due)))
            due += rng.expovariate(per_second)
        return await asyncio.gather(*tasks)

    async def sample(self):
        pieces = []
        failure = await self._exchange(http_request("GET /metrics"), pieces)
        text = b"".join(data for _, data in pieces).decode()
        assert not failure and text.startswith("HTTP/1.1 200"), failure or text[:200]
        return Sample(time.monotonic(), self._server.rss_bytes(), text)

    async def quiet_sample(self):
        """One of an idle server, or of what is not idle 20 seconds later. An answer may come a
        moment before the metrics know of it."""
        deadline = time.monotonic() + 20
        while not (sample := await self.sample()).idle and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        return sample

    async def watch(self, load, interval=0.25):
        """(result of `load`, samples): one before, some while it runs, one when all is quiet."""
        samples = [await self.quiet_sample()]
        task = asyncio.create_task(load)
        while not task.done():
            await asyncio.wait((task,), timeout=interval)
            samples.append(await self.sample())
        samples.append(await self.quiet_sample())
        return await task, samples


def broken_promises(answers, samples, max_queued_requests, max_queued_tokens):
    """What a server under any load must keep and did not, as sentences. None is about time."""
    whole = [answer for answer in answers if not answer.complaint]
    refused = [answer for answer in answers if answer.refused]
    lost = [answer for answer in answers if answer.complaint and not answer.refused]
    broken = [f"{answer.job} was lost: {answer.complaint}" for answer in lost]

    def at_most(what, value, bound):
        if value > bound:
            broken.append(f"{what}: {value:g}, at most {bound:g}")

    def equal(what, client, server):
        if client != server:
            broken.append(f"{what}: {client:g} for the clients, {server:g} for the server")

    def counted(name, **labels):
        return metric(samples[-1].text, name, **labels) - metric(samples[0].text, name, **labels)

    at_most("queued requests", max(each.num_queued for each in samples), max_queued_requests)
    at_most("queued tokens", max(each.num_queued_tokens for each in samples), max_queued_tokens)
    equal("answers 200", len(whole), counted("http_requests_total", handler="/v1/completions",
                                             status="200"))
    equal("refusals", len(refused), counted("http_requests_total", handler="/v1/completions") -
          counted("http_requests_total", handler="/v1/completions", status="200"))
    equal("finished requests", len(whole), counted("vllm:request_success_total"))
    equal("generated tokens", sum(answer.num_tokens for answer in whole),
          counted("vllm:generation_tokens_total"))
    equal("prompt tokens", sum(answer.job.num_prompt_tokens for answer in whole),
          counted("vllm:prompt_tokens_total"))
    if not samples[-1].idle:
        broken.append(f"something stayed behind: {samples[-1].num_queued:g} requests wait, "
                      f"{samples[-1].num_running:g} run, "
                      f"{samples[-1]['vllm:kv_cache_usage_perc']:.1%} of the KV cache is in use")
    return broken


def recomputed_share(samples):
    """Of the tokens that steps computed, the part that had been computed before a preemption."""
    def computed(kind):
        first, last = (metric(each.text, "shoal:computed_tokens_total", kind=kind)
                       for each in (samples[0], samples[-1]))
        return last - first

    return computed("recomputed") / max(computed("prefill") + computed("decode"), 1)
