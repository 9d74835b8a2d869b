"""Fixtures of the tests that run the real program."""

import json
import os
import pathlib

import pytest

from shoal_server import ShoalServer, is_sanitized, run_shoal

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shoal_binary():
    """The program under test: $SHOAL_BINARY, or the release build."""
    path = pathlib.Path(os.environ.get("SHOAL_BINARY", ROOT / "build/release/shoal"))
    assert path.is_file(), f"{path} is missing: build it, or set SHOAL_BINARY"
    return path


@pytest.fixture(scope="session")
def sanitized(shoal_binary):
    return is_sanitized(shoal_binary)


@pytest.fixture(scope="session")
def tokenizer_directory():
    return ROOT / "deploy/tokenizer"


@pytest.fixture(scope="session")
def special_ids(tokenizer_directory):
    """(BOS, EOS) of the tokenizer."""
    added = json.loads((tokenizer_directory / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in added}
    config = json.loads((tokenizer_directory / "tokenizer_config.json").read_text())
    names = (config[key] for key in ("bos_token", "eos_token"))
    return tuple(ids[name["content"] if isinstance(name, dict) else name] for name in names)


@pytest.fixture(scope="session")
def shoal(shoal_binary):
    """Runs `shoal ARGUMENTS...` to its end; the result has returncode, stdout and stderr."""
    def run(*arguments, **options):
        return run_shoal(shoal_binary, *arguments, **options)
    return run


@pytest.fixture(scope="session")
def make_checkpoint(shoal, tokenizer_directory, tmp_path_factory):
    """Makes a random checkpoint of `config` with the tokenizer; returns its directory."""
    def make(config, name="model", seed=1):
        directory = tmp_path_factory.mktemp(name)
        config_file = directory.with_suffix(".json")
        config_file.write_text(json.dumps(config))
        result = shoal("make-checkpoint", "--config", config_file, "--seed", seed,
                       "--output", directory, "--tokenizer", tokenizer_directory)
        assert result.returncode == 0, result.stderr
        return directory
    return make


@pytest.fixture
def start_server(shoal_binary):
    """Starts servers that end with the test: start_server(directory, *flags, **options)."""
    servers = []

    def start(directory, *flags, **options):
        servers.append(ShoalServer(shoal_binary, directory, *flags, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def module_server(shoal_binary):
    """As start_server, for servers that a whole module shares."""
    servers = []

    def start(directory, *flags, **options):
        servers.append(ShoalServer(shoal_binary, directory, *flags, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
