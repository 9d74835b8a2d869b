"""The small random model that these tests serve: 16B's structure, nonsense as output."""

import pytest


@pytest.fixture(scope="session")
def tiny_model(shoal, tokenizer_directory, tmp_path_factory):
    """Directory of a checkpoint of the preset `tiny`. Not to be written to."""
    directory = tmp_path_factory.mktemp("tiny")
    result = shoal("make-checkpoint", "--preset", "tiny", "--seed", 1, "--output", directory,
                   "--tokenizer", tokenizer_directory)
    assert result.returncode == 0, result.stderr
    return directory


@pytest.fixture(scope="module")
def server(module_server, tiny_model):
    return module_server(tiny_model, "--max-model-len", 1024)


@pytest.fixture
def complete(server):
    """complete(prompt, **fields): the body of a successful POST /v1/completions."""
    def post(prompt, **fields):
        response = server.http.post(
            "/v1/completions", json={"model": server.model, "prompt": prompt} | fields)
        assert response.status_code == 200, response.text
        return response.json()
    return post
