"""tests/gpu/check itself, at toy sizes: the kernels run under the emulator."""

import json
import os
import pathlib
import subprocess

import pytest

CHECK = pathlib.Path(__file__).parent / "check"
ROOT = CHECK.parents[2]
BUILD = pathlib.Path(os.environ.get("SHOAL_BUILD", ROOT / "build/release"))


def check(*arguments, **environment):
    command = [CHECK, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600,
                          env=os.environ | environment)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """(the run, its JSON)"""
    output = tmp_path_factory.mktemp("gpu")
    result = check("--emulated", "--binaries", BUILD, "--output", output)
    reports = list(output.glob("*.json"))
    assert len(reports) == 1, result.stdout + result.stderr
    return result, json.loads(reports[0].read_text())


def test_every_stage_runs(emulated):
    result, report = emulated
    assert result.returncode == 0, result.stdout + result.stderr
    statuses = {stage["name"]: stage["status"] for stage in report["stages"]}
    assert statuses == {"ceilings": "passed", "parity": "passed", "memcheck": "skipped",
                        "racecheck": "skipped", "synccheck": "skipped", "kernels": "passed",
                        "model": "passed", "engine": "passed"}


def test_every_row_has_a_time(emulated):
    _, report = emulated
    for command in ("ceilings", "kernels", "model"):
        assert report[command]["machine"]["memory_bytes"] > 0
        assert report[command]["ceilings"]["copy_bytes_per_second"] > 0
        for row in report[command]["rows"]:
            assert row["seconds"] or "skipped" in row["note"], row
    names = {row["name"] for row in report["kernels"]["rows"]}
    assert {"norm + route", "expert plan", "expert gate/up", "expert down", "qkv", "o", "head",
            "decode attention", "prefill attention", "sample top-p", "combine + norm"} <= names
    steps = [row for row in report["model"]["rows"] if row["name"] == "decode step"]
    assert steps and all(row["kernels"] and row["tokens_per_second"] > 0 for row in steps)
    assert report["engine"]["completed"] == report["engine"]["num_prompts"]


def test_says_in_a_sentence_what_is_missing(tmp_path):
    result = check("--binaries", tmp_path)
    assert result.returncode == 2 and str(tmp_path / "gpu_bench") in result.stderr
    assert check("--speed").returncode == 2
    assert "no NVIDIA driver" in subprocess.run(
        [BUILD / "gpu_bench", "ceilings"], capture_output=True, text=True, timeout=60).stderr \
        or pathlib.Path("/proc/driver/nvidia").exists()
