"""The other commands of `shoal`."""

import hashlib
import json
import re

import numpy as np
import pytest

from checkpoint import read_checkpoint, tensor_shapes


def digests(directory):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(directory.iterdir())}


def checkpoint(shoal, tokenizer_directory, directory, *flags):
    result = shoal("make-checkpoint", "--output", directory, "--tokenizer", tokenizer_directory,
                   *flags)
    assert result.returncode == 0, result.stderr
    return directory


def test_version(shoal):
    result = shoal("--version")
    assert result.returncode == 0 and re.search(r"\d+\.\d+\.\d+", result.stdout)


def test_help_lists_the_commands(shoal):
    result = shoal("--help")
    assert result.returncode == 0
    for command in ("serve", "generate", "tokenize", "make-checkpoint"):
        assert command in result.stdout


def test_no_or_unknown_command_is_an_error(shoal):
    assert shoal().returncode > 0
    assert shoal("juggle").returncode > 0


def test_make_checkpoint_writes_the_hugging_face_layout(tiny_model):
    names = {path.name for path in tiny_model.iterdir()}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    config, tensors = read_checkpoint(tiny_model)
    assert {name: values.shape for name, values in tensors.items()} == tensor_shapes(config)
    for name, values in tensors.items():
        expected = 1 if "norm" in name else 0
        assert abs(values.mean() - expected) < 0.05, name
        if "norm" not in name:
            assert abs(values.std() / config["initializer_range"] - 1) < 0.1, name
    weight_sums = [np.abs(values).sum() for name, values in tensors.items() if "q_proj" in name]
    assert len(set(weight_sums)) == len(weight_sums)


def test_a_checkpoint_depends_on_its_seed_alone(shoal, tokenizer_directory, tmp_path):
    def make(name, seed):
        return digests(checkpoint(shoal, tokenizer_directory, tmp_path / name, "--preset", "tiny",
                                  "--seed", seed))
    first, again, other = make("a", 1), make("b", 1), make("c", 2)
    assert first == again
    assert {name for name in first if first[name] != other[name]} == {
        name for name in first if name.endswith(".safetensors")}


def test_a_checkpoint_of_any_config_keeps_what_the_config_says(
        shoal, tokenizer_directory, tmp_path, tiny_model):
    config = json.loads((tiny_model / "config.json").read_text())
    config |= {"num_hidden_layers": 2, "n_shared_experts": None, "attention_bias": True,
               "rope_scaling": {"type": "linear", "factor": 2.0}, "torch_dtype": "float16"}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    directory = checkpoint(shoal, tokenizer_directory, tmp_path / "model", "--config", file)
    written, tensors = read_checkpoint(directory)
    for field in ("num_hidden_layers", "n_shared_experts", "attention_bias", "rope_scaling",
                  "torch_dtype", "hidden_size"):
        assert written[field] == config[field], field
    assert {name: values.shape for name, values in tensors.items()} == tensor_shapes(config)


@pytest.mark.parametrize("flags, named", [
    (("--preset", "huge"), "huge"), (("--config", "/nowhere/config.json"), "/nowhere/config.json")])
def test_make_checkpoint_names_what_it_does_not_know(
        shoal, tokenizer_directory, tmp_path, flags, named):
    result = shoal("make-checkpoint", "--output", tmp_path / "x", "--tokenizer",
                   tokenizer_directory, *flags)
    assert result.returncode > 0 and named in result.stderr


def test_generate_continues_the_prompt_as_the_server_does(shoal, tiny_model, server):
    fields = {"max_tokens": 12, "temperature": 0}
    result = shoal("generate", "--model", tiny_model, "--max-tokens", 12, "--temperature", 0,
                   "Once upon a time")
    assert result.returncode == 0, result.stderr
    response = server.http.post("/v1/completions", json={
        "model": server.model, "prompt": "Once upon a time"} | fields)
    assert response.json()["choices"][0]["text"].strip() in result.stdout


def test_generate_repeats_itself_with_the_same_seed(shoal, tiny_model):
    def text(seed):
        result = shoal("generate", "--model", tiny_model, "--max-tokens", 16, "--temperature", 1,
                       "--seed", seed, "Hello")
        assert result.returncode == 0, result.stderr
        return result.stdout
    assert text(1) == text(1) != text(2)


def test_tokenize_prints_the_servers_ids(shoal, tiny_model, server):
    text = "Grüße, 世界!"
    result = shoal("tokenize", "--model", tiny_model, text)
    assert result.returncode == 0, result.stderr
    tokens = server.http.post("/tokenize", json={
        "model": server.model, "prompt": text, "add_special_tokens": False}).json()["tokens"]
    assert [int(line) for line in re.findall(r"^\d+", result.stdout, re.MULTILINE)] == tokens


def test_tokenize_decodes_what_it_encoded(shoal, tiny_model):
    text = "Grüße, 世界!"
    encoded = shoal("tokenize", "--model", tiny_model, text).stdout
    ids = ",".join(re.findall(r"^\d+", encoded, re.MULTILINE))
    assert shoal("tokenize", "--model", tiny_model, "--decode", ids).stdout.strip() == text
