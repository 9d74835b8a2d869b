#!/usr/bin/env python3
"""What happens to requests, queue and memory when more is asked of `shoal serve` than it can do.

  overload.py                     alone, at capacity, overloaded for two minutes, at capacity again
  overload.py --kv-requests 1,2,4 instead, a KV cache that holds so many requests of the greatest
                                  length: what is computed twice

Starts $SHOAL_BINARY (default: the release build) on the loopback interface with random weights.
Ends with 1 if a promise is broken that is not about time: a bound, a lost request, growing memory.
"""

import argparse
import asyncio
import collections
import contextlib
import itertools
import json
import os
import pathlib
import random
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from load import LoadClient, broken_promises, decks, recomputed_share  # noqa: E402
from shoal_server import ShoalServer, run_shoal  # noqa: E402

# `tiny`, wider: a token takes long enough that it is the model that requests wait for, and is short
# enough that thousands of requests end in two minutes.
SHAPE = {"hidden_size": 256, "moe_intermediate_size": 176, "n_routed_experts": 32}
BYTES_PER_TOKEN = 4 * 2 * 256 * 2  # layers, keys and values, width, bfloat16

# (prompt, output) lengths in tokens: few long prompts, many short ones.
CARDS = [(prompt, output) for prompt, count in ((16, 4), (64, 3), (256, 2), (768, 1))
         for output in (16, 48, 128) for _ in range(count)]
# All ask for many tokens, most end long before, some do not: what they will need is not known.
KV_CARDS = [(prompt, 384, stops) for prompt in (16, 64, 120) for stops in (16, 16, 16, 0)]
KV_CLIENTS = 32

RSS_SLACK = 0.02  # of growth between the second and the last quarter of the overload
SPARKS = "▁▂▃▄▅▆▇█"
PLOT_WIDTH = 80


def make_checkpoint(binary, directory):
    """A random checkpoint of SHAPE; returns its directory."""
    def run(output, *arguments):
        result = run_shoal(binary, "make-checkpoint", *arguments, "--output", output,
                           "--tokenizer", ROOT / "deploy/tokenizer", "--seed", 1)
        assert result.returncode == 0, result.stderr

    run(directory / "tiny", "--preset", "tiny")
    config = json.loads((directory / "tiny/config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | SHAPE))
    run(directory / "model", "--config", directory / "config.json")
    return directory / "model"


def quantile(values, share):
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


def spread(values):
    """{p50, p99, max, mean} of some numbers."""
    values = list(values)
    mean = statistics.fmean(values) if values else float("nan")
    return {"p50": quantile(values, 0.5), "p99": quantile(values, 0.99),
            "max": max(values, default=float("nan")), "mean": mean, "count": len(values)}


def jobs_for(jobs, seconds):
    """The next jobs, for so long."""
    end = time.monotonic() + seconds
    return itertools.takewhile(lambda _: time.monotonic() < end, jobs)


def per_second(answers):
    """How many ended per second between the first end and the last begin: all clients were busy."""
    begin = min(answer.end for answer in answers)
    end = max(answer.sent for answer in answers)
    return sum(begin < answer.end <= end for answer in answers) / (end - begin)


def whole(answers):
    return [answer for answer in answers if not answer.complaint]


def service_seconds(answers, num_places):
    """[(shape, queue wait, the rest of the latency)] of whole answers. The queue is first come,
    first served, and a place is taken at once: request k begins when k - num_places have ended."""
    answers = sorted(whole(answers), key=lambda answer: answer.sent)
    ends = sorted(answer.end for answer in answers)
    result = []
    for number, answer in enumerate(answers):
        free = ends[number - num_places] if number >= num_places else answer.sent
        begin = max(answer.sent, free)
        result.append((answer.job.shape, begin - answer.sent, answer.end - begin))
    return result


def medians(services):
    """{shape: median seconds of service}."""
    by_shape = collections.defaultdict(list)
    for shape, _, seconds in services:
        by_shape[shape].append(seconds)
    return {shape: statistics.median(values) for shape, values in by_shape.items()}


def latencies(answers):
    """Figures of whole answers, in seconds."""
    done = whole(answers)
    return {
        "total": spread(answer.seconds for answer in done),
        "first_token": spread(answer.token_times[0] - answer.sent for answer in done),
        "per_token": spread((answer.token_times[-1] - answer.token_times[0]) /
                            (answer.num_tokens - 1) for answer in done if answer.num_tokens > 1)}


def ratios(services, reference):
    return spread(seconds / reference[shape] for shape, _, seconds in services)


def by_prompt(answers, services, reference):
    """{prompt tokens: refused share, slowdown}: whether long or short prompts fare worse."""
    table = {}
    for length in sorted({answer.job.num_prompt_tokens for answer in answers}):
        own = [answer for answer in answers if answer.job.num_prompt_tokens == length]
        table[length] = {
            "sent": len(own),
            "refused": sum(answer.refused for answer in own) / len(own),
            "ratio": ratios([each for each in services if each[0][0] == length], reference)}
    return table


def rss_growth(samples):
    """Growth of the resident memory from the second to the last quarter, as a part of it."""
    rss = [sample.rss_bytes for sample in samples]
    quarter = len(rss) // 4
    second = statistics.median(rss[quarter:2 * quarter])
    return statistics.median(rss[3 * quarter:]) / second - 1


def mean_queue_seconds(samples):
    """As the engine measured it."""
    name = "vllm:request_queue_time_seconds"
    total, count = (samples[-1][name + suffix] - samples[0][name + suffix]
                    for suffix in ("_sum", "_count"))
    return total / count if count else float("nan")


def sparkline(values, low=0):
    """The greatest values of PLOT_WIDTH stretches of time, drawn from `low` up."""
    values = list(values)
    size = max(len(values) / PLOT_WIDTH, 1)
    peaks = [max(values[int(i * size):max(int((i + 1) * size), int(i * size) + 1)])
             for i in range(int(len(values) / size))]
    span = max(peaks) - low or 1
    return "".join(SPARKS[round((peak - low) / span * (len(SPARKS) - 1))] for peak in peaks)


def plot(samples):
    rss = [sample.rss_bytes / 2**20 for sample in samples]
    lines = {"waiting": ([each.num_queued for each in samples], 0),
             "waiting tokens": ([each.num_queued_tokens for each in samples], 0),
             "running": ([each.num_running for each in samples], 0),
             "KV cache in use": ([each["vllm:kv_cache_usage_perc"] for each in samples], 0),
             "memory, MiB": (rss, min(rss))}
    for name, (values, low) in lines.items():
        print(f"{name:>16} {sparkline(values, low)} {low:.4g} to {max(values):.4g}")


def print_spread(name, values, scale=1000, unit="ms"):
    columns = "".join(f"{key} {values[key] * scale:8.2f}  "
                      for key in ("p50", "p99", "max", "mean"))
    print(f"{name:<44} {columns}{unit} ({values['count']})")


class OverloadBench:
    """The phases of the overload, on one server."""

    def __init__(self, server, options):
        self.options = options
        self.client = LoadClient(server)
        self.jobs = decks(CARDS, random.Random(options.seed))
        self.broken = []
        self.figures = {}

    async def phase(self, load):
        answers, samples = await self.client.watch(load)
        self.broken += broken_promises(answers, samples, self.options.max_num_queued_requests,
                                       self.options.max_num_queued_tokens)
        return answers, samples

    async def capacity(self):
        places = self.options.max_num_seqs
        jobs = jobs_for(self.jobs, self.options.capacity_seconds)
        return (await self.phase(self.client.closed_loop(jobs, places)))[0]

    async def run(self):
        places = self.options.max_num_seqs
        await self.client.closed_loop(itertools.islice(self.jobs, 2 * places), places)  # warm up
        one_at_a_time = decks(sorted(set(CARDS)), random.Random(self.options.seed))
        alone, _ = await self.phase(
            self.client.closed_loop(itertools.islice(one_at_a_time, 3 * len(set(CARDS))), 1))
        before = await self.capacity()
        rate = self.options.overload * per_second(before)
        overloaded, samples = await self.phase(self.client.open_loop(
            self.jobs, rate, random.Random(self.options.seed), self.options.seconds))
        after = await self.capacity()
        self.judge_load(overloaded, rate)
        growth = rss_growth(samples)
        if growth > RSS_SLACK:
            self.broken.append(f"memory grew by {growth:.1%}")
        self.summarize(alone, (before, after), overloaded, samples)

    def judge_load(self, overloaded, rate):
        """A client that cannot keep up proves nothing."""
        achieved = len(overloaded) / self.options.seconds
        lateness = spread(answer.sent - answer.due for answer in overloaded)
        self.figures["offered"] = {"asked_per_second": rate, "per_second": achieved,
                                   "lateness_seconds": lateness}
        if achieved < 0.9 * rate:
            self.broken.append(f"the client sent {achieved:.1f} of {rate:.1f} requests per second")

    def summarize(self, alone, at_capacity, overloaded, samples):
        places = self.options.max_num_seqs
        free = [each for answers in at_capacity for each in service_seconds(answers, places)]
        alone_medians, free_medians = medians(service_seconds(alone, 1)), medians(free)
        services = service_seconds(overloaded, places)
        refusals = [answer for answer in overloaded if answer.refused]
        span = max(answer.sent for answer in overloaded) - min(a.sent for a in overloaded)
        self.figures |= {
            "capacity_per_second": [per_second(answers) for answers in at_capacity],
            "sent": len(overloaded), "refused": len(refusals), "finished": len(services),
            "finished_per_second": sum(answer.end <= overloaded[-1].sent
                                       for answer in whole(overloaded)) / span,
            "alone": latencies(alone), "at_capacity": latencies(sum(at_capacity, [])),
            "overloaded": latencies(overloaded),
            "refusal": spread(answer.seconds for answer in refusals),
            "retry_after_ms": spread(int(each.headers["retry-after-ms"]) for each in refusals),
            "queue_seconds": spread(wait for _, wait, _ in services),
            "engine_mean_queue_seconds": mean_queue_seconds(samples),
            "ratio_at_capacity": ratios(free, free_medians),
            "ratio_over_capacity": ratios(services, free_medians),
            "ratio_over_alone": ratios(services, alone_medians),
            "by_prompt": by_prompt(overloaded, services, free_medians),
            "most_queued_requests": max(each.num_queued for each in samples),
            "most_queued_tokens": max(each.num_queued_tokens for each in samples),
            "preemptions": samples[-1]["vllm:num_preemptions_total"],
            "rss_growth": rss_growth(samples)}
        self.report()
        plot(samples)

    def report(self):
        figures, options = self.figures, self.options
        capacity = figures["capacity_per_second"]
        offered = figures["offered"]
        print(f"requests per second: capacity {capacity[0]:.1f} before, {capacity[1]:.1f} after; "
              f"offered {offered['per_second']:.1f} ({offered['per_second'] / capacity[0]:.2f} x), "
              f"finished {figures['finished_per_second']:.1f}")
        print(f"sent {figures['sent']} = {figures['refused']} refused + {figures['finished']} "
              f"finished + {figures['sent'] - figures['refused'] - figures['finished']} lost; "
              f"{figures['preemptions']:.0f} preemptions")
        print(f"most that waited: {figures['most_queued_requests']:.0f} requests of "
              f"{options.max_num_queued_requests}, {figures['most_queued_tokens']:.0f} tokens of "
              f"{options.max_num_queued_tokens}")
        print_spread("a request was sent late by", offered["lateness_seconds"])
        for phase in ("alone", "at_capacity", "overloaded"):
            for what, values in figures[phase].items():
                print_spread(f"{phase.replace('_', ' ')}: {what.replace('_', ' ')}", values)
        print_spread("refusal, from connect to the last byte", figures["refusal"])
        print_spread("Retry-After", figures["retry_after_ms"], 0.001, "s")
        print_spread("queue wait", figures["queue_seconds"])
        print(f"    by the engine's clock: mean {figures['engine_mean_queue_seconds']:.3f} s")
        print("latency less queue wait, over the median for the same lengths")
        print_spread("    at capacity, over at capacity", figures["ratio_at_capacity"], 1, "x")
        print_spread("    overloaded, over at capacity (aim: 1.5)", figures["ratio_over_capacity"],
                     1, "x")
        print_spread("    overloaded, over alone", figures["ratio_over_alone"], 1, "x")
        for length, row in figures["by_prompt"].items():
            print_spread(f"    prompts of {length:>3}, {row['refused']:.1%} of them refused",
                         row["ratio"], 1, "x")
        print(f"memory grew by {figures['rss_growth']:+.2%} from the second quarter to the last")


async def run_kv(server, options):
    """(figures, broken promises) of a KV cache that is smaller than what its clients want."""
    jobs = itertools.islice(decks(KV_CARDS, random.Random(options.seed)), options.kv_jobs)
    client = LoadClient(server)
    answers, samples = await client.watch(
        client.closed_loop(jobs, KV_CLIENTS, retry_seconds=0.05))
    broken = broken_promises(answers, samples, options.max_num_queued_requests,
                             options.max_num_queued_tokens)
    busy = samples[1:-1] or samples
    return {"finished": len(whole(answers)), "recomputed_share": recomputed_share(samples),
            "preemptions": samples[-1]["vllm:num_preemptions_total"],
            "most_running": max(each.num_running for each in samples),
            "seconds": max(answer.end for answer in answers) - samples[0].when,
            "mean_kv_usage": statistics.fmean(each["vllm:kv_cache_usage_perc"] for each in busy),
            }, broken


@contextlib.contextmanager
def running(binary, model, options, flags):
    server = ShoalServer(
        binary, model, "--threads", options.threads,
        "--max-num-queued-requests", options.max_num_queued_requests,
        "--max-num-queued-tokens", options.max_num_queued_tokens, *flags, *options.flags.split())
    try:
        yield server
    finally:
        server.stop()


def kv_flags(num_requests, max_model_len):
    """Of a KV cache that holds so many sequences of that length."""
    return ("--max-model-len", max_model_len,
            "--kv-cache-memory-bytes", num_requests * max_model_len * BYTES_PER_TOKEN)


def run_overload_bench(binary, model, options):
    flags = ("--max-num-seqs", options.max_num_seqs, *kv_flags(options.max_num_seqs, 1024))
    with running(binary, model, options, flags) as server:
        bench = OverloadBench(server, options)
        asyncio.run(bench.run())
    return bench.figures, bench.broken


def run_kv_bench(binary, model, options):
    """As it is and, to hold it against, admitting whatever fits for now."""
    all_figures, all_broken = {}, []
    for num_requests, as_it_is in itertools.product(map(int, options.kv_requests.split(",")),
                                                    (True, False)):
        flags = ("--max-num-seqs", KV_CLIENTS, *kv_flags(num_requests, 512))
        name = f"KV cache for {num_requests}"
        if not as_it_is:
            name += ", no room kept"
            flags += ("--schedule-conservativeness", 0)
        with running(binary, model, options, flags) as server:
            figures, broken = asyncio.run(run_kv(server, options))
        if figures["finished"] != options.kv_jobs:
            broken.append(f"{figures['finished']} of {options.kv_jobs} requests finished")
        if as_it_is and figures["recomputed_share"] >= 0.15:
            broken.append("15 % of the work or more was done again")
        print(f"{name}: {figures['finished']} finished in {figures['seconds']:.1f} s, up to "
              f"{figures['most_running']:.0f} ran, {figures['mean_kv_usage']:.0%} of it in use, "
              f"{figures['preemptions']:.0f} preemptions, {figures['recomputed_share']:.1%} "
              "computed again" + (" (aim: < 15 %)" if as_it_is else ""))
        all_figures[name] = figures
        all_broken += [f"{name}: {each}" for each in broken]
    return all_figures, all_broken


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120, help="of overload")
    parser.add_argument("--capacity-seconds", type=float, default=20, help="before and after it")
    parser.add_argument("--overload", type=float, default=4, help="offered load over capacity")
    parser.add_argument("--max-num-seqs", type=int, default=8)
    parser.add_argument("--max-num-queued-requests", type=int, default=64)
    parser.add_argument("--max-num-queued-tokens", type=int, default=10000)
    parser.add_argument("--threads", type=int, default=max((os.cpu_count() or 2) - 1, 1),
                        help="of the server's maths; the client needs a core too")
    parser.add_argument("--flags", default="", help="more flags for the server, in one string")
    parser.add_argument("--kv-requests", metavar="N,N,...", help="sizes of the KV cache to try")
    parser.add_argument("--kv-jobs", type=int, default=120, help="requests for each of them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the figures there")
    return parser.parse_args()


def main():
    options = parse_options()
    binary = pathlib.Path(os.environ.get("SHOAL_BINARY", ROOT / "build/release/shoal")).resolve()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        model = make_checkpoint(binary, pathlib.Path(directory))
        run = run_kv_bench if options.kv_requests else run_overload_bench
        figures, broken = run(binary, model, options)
    print(f"{os.cpu_count()} cores, load of the machine {load:.1f} before, "
          f"{os.getloadavg()[0]:.1f} after")
    for sentence in broken[:20]:
        print(f"BROKEN: {sentence}")
    print(f"{len(broken)} broken promises")
    if options.json:
        options.json.write_text(json.dumps({"figures": figures, "broken": broken}, indent=1))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
