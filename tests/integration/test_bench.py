"""`shoal bench`: the engine's speed as figures that other tools know."""

import json

import pytest

FIELDS = ("duration", "completed", "total_input_tokens", "total_output_tokens", "request_throughput",
          "output_throughput", "total_token_throughput")


def bench(shoal, tiny_model, tmp_path, *flags, output_len=6):
    output = tmp_path / "bench.json"
    result = shoal("bench", "--model", tiny_model, "--max-model-len", 256, "--input-len", 24,
                   "--output-len", output_len, "--output-json", output, *flags)
    assert result.returncode == 0, result.stderr
    return result, json.loads(output.read_text())


def test_reports_the_fields_of_vllm_bench(shoal, tiny_model, tmp_path):
    result, figures = bench(shoal, tiny_model, tmp_path, "--num-prompts", 5)
    assert figures["model_id"] == str(tiny_model) and figures["request_rate"] == "inf"
    assert figures["num_prompts"] == figures["completed"] == 5 and figures["failed"] == 0
    assert figures["total_input_tokens"] == 5 * 24
    assert figures["total_output_tokens"] == 5 * 6
    for name in FIELDS:
        assert figures[name] > 0, name
    for value in ("ttft", "tpot", "itl", "e2el"):
        mean, median, p99 = (figures[f"{kind}_{value}_ms"] for kind in ("mean", "median", "p99"))
        assert 0 < median <= p99 and mean > 0, value
        assert 0 <= figures[f"std_{value}_ms"] < p99, value
    assert figures["mean_ttft_ms"] <= figures["mean_e2el_ms"]
    assert figures["output_throughput"] == pytest.approx(30 / figures["duration"])
    assert figures["memory_bytes_per_second"] > 0
    assert figures["decode_steps"] > 0 and figures["fraction_of_roofline"] > 0
    assert "requests 100 %" in result.stderr and "output_throughput" in result.stdout


def test_sends_requests_at_the_given_rate(shoal, tiny_model, tmp_path):
    _, figures = bench(shoal, tiny_model, tmp_path, "--num-prompts", 4, "--request-rate", 20)
    assert figures["completed"] == 4 and figures["request_rate"] == 20


def test_without_decoding_there_is_no_fraction(shoal, tiny_model, tmp_path):
    _, figures = bench(shoal, tiny_model, tmp_path, "--num-prompts", 1, output_len=1)
    assert figures["decode_steps"] == 0 and figures["fraction_of_roofline"] is None


@pytest.mark.parametrize("flags, named", [
    (("--input-len", 150), ("--input-len 150", "160")), (("--input-len", 9, "--output-json", "/nowhere/x.json"), ("/nowhere/x.json",)),
    (("--num-prompts", 0), ("--num-prompts",)), (("--model", "/nowhere"), ("/nowhere",))])
def test_says_what_is_wrong_before_it_loads(shoal, tiny_model, flags, named):
    model = () if "--model" in flags else ("--model", tiny_model)
    result = shoal("bench", *model, "--max-model-len", 160, "--output-len", 16, *flags)
    assert result.returncode > 0 and "loading" not in result.stderr
    assert all(name in result.stderr.splitlines()[-1] for name in named), result.stderr
