"""The reference against itself and against cases that can be worked out by hand."""

import json

import numpy as np
import pytest

from checkpoint import tensor_shapes, write_tensors
from reference import Reference, log_softmax, rope_base, rope_table, rotate
from variants import VARIANTS, Variant

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]


def small_config(**changes):
    small = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 24,
             "moe_intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 4, "n_routed_experts": 6, "num_experts_per_tok": 2}
    return Variant("", small | changes).config(14, 15)


def make(directory, config, change=lambda tensors: None):
    """A checkpoint of normal random weights, in float32, after `change` has been at them."""
    rng = np.random.default_rng(7)
    tensors = {
        name: rng.normal(0, 0.5, shape).astype(np.float32)
        for name, shape in tensor_shapes(config).items()
    }
    change(tensors)
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    write_tensors(directory / "model.safetensors", tensors, "F32")
    return Reference(directory)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_prefix_gives_the_same_logits_alone(tmp_path, variant):
    changes = {"vocab_size": 64, "torch_dtype": "float32"}
    model = make(tmp_path, variant.config(62, 63) | changes)
    whole = model.forward(TOKENS * 3).logits
    for length in (1, 7, 25, 30):
        np.testing.assert_allclose(
            model.forward((TOKENS * 3)[:length]).logits, whole[:length], atol=1e-11)


def test_without_layers_logits_are_the_normed_embedding_times_the_head(tmp_path):
    def silence(tensors):
        for name in tensors:
            if "o_proj" in name or "down_proj" in name:
                tensors[name] *= 0

    model = make(tmp_path, small_config(), silence)
    x = model.weights["model.embed_tokens.weight"][3]
    normed = x / np.sqrt(np.mean(x**2) + 1e-6) * model.weights["model.norm.weight"]
    expected = model.weights["lm_head.weight"] @ normed
    np.testing.assert_allclose(model.forward([3]).logits[0], expected, rtol=1e-12)


def test_the_first_token_attends_to_itself_alone(tmp_path):
    model = make(tmp_path, small_config(attention_bias=True))
    x = np.random.default_rng(1).normal(size=(1, 16))
    value = model.linear("model.layers.0.self_attn.v_proj", x)
    expected = model.linear("model.layers.0.self_attn.o_proj", value)
    np.testing.assert_allclose(model.attention("model.layers.0", x), expected, rtol=1e-12)


def test_grouped_queries_equal_full_attention_with_repeated_key_heads(tmp_path):
    grouped = make(tmp_path / "grouped", small_config(num_key_value_heads=2))

    def repeat(tensors):
        for name in tensors:
            tensors[name] = grouped.weights[name].astype(np.float32)
            if "k_proj" in name or "v_proj" in name:
                heads = tensors[name].reshape(2, 4, 16)
                tensors[name] = np.repeat(heads, 2, axis=0).reshape(16, 16)

    full = make(tmp_path / "full", small_config(), repeat)
    np.testing.assert_allclose(
        grouped.forward(TOKENS).logits, full.forward(TOKENS).logits, atol=1e-12)


def test_equal_experts_renormalised_act_as_one(tmp_path):
    def equal(tensors):
        for name in tensors:
            if ".experts." in name:
                first = name.split(".experts.")[0] + ".experts.0." + name.split(".", 6)[6]
                tensors[name] = tensors[first]

    model = make(tmp_path, small_config(norm_topk_prob=True, n_shared_experts=None), equal)
    x = np.random.default_rng(1).normal(size=(5, 16))
    y, _ = model.moe("model.layers.1", x)
    np.testing.assert_allclose(y, model.ffn("model.layers.1.mlp.experts.0", x), rtol=1e-9)


def test_routing_takes_the_most_likely_experts_with_their_softmax_and_ties_go_to_the_lower_id(
        tmp_path):
    model = make(tmp_path, small_config())
    router = np.zeros((6, 16))
    router[:, 0] = [1, 3, 2, 3, 0, 2]
    model.weights["model.layers.1.mlp.gate.weight"] = router
    chosen, weights, margin = model.route("model.layers.1", np.eye(16)[:1])
    assert chosen.tolist() == [[1, 3]]
    expected = np.exp(3) / np.exp(router[:, 0]).sum()
    np.testing.assert_allclose(weights, [[expected, expected]], rtol=1e-12)
    np.testing.assert_allclose(margin, [1 / 3], rtol=1e-12)


def test_rotation_depends_on_distance_only():
    config = small_config() | {"hidden_size": 64}  # heads of 16
    cos, sin = rope_table(config, 40)
    q, k = np.random.default_rng(2).normal(size=(2, 1, 1, 16))

    def score(query_position, key_position):
        at = [slice(p, p + 1) for p in (query_position, key_position)]
        rotated = rotate(q, cos[at[0]], sin[at[0]]), rotate(k, cos[at[1]], sin[at[1]])
        return float((rotated[0] * rotated[1]).sum())

    np.testing.assert_allclose(rotate(q, cos[:1], sin[:1]), q)
    np.testing.assert_allclose(score(39, 30), score(9, 0), atol=1e-4)
    assert abs(score(39, 30) - score(39, 29)) > 1e-2


def test_rotation_pairs_the_halves_of_a_head():
    config = small_config() | {"hidden_size": 16}  # heads of 4: frequencies 1 and 1/100
    cos, sin = rope_table(config, 2)
    x = np.array([[[1.0, 0, 0, 0]], [[0, 1.0, 0, 0]]])
    first, second = rotate(x, cos[[1, 1]], sin[[1, 1]])[:, 0]
    np.testing.assert_allclose(first, [np.cos(1), 0, np.sin(1), 0], atol=1e-7)
    np.testing.assert_allclose(second, [0, np.cos(0.01), 0, np.sin(0.01)], atol=1e-7)


def test_linear_scaling_divides_the_position():
    config = small_config(rope_scaling={"type": "linear", "factor": 4.0})
    np.testing.assert_array_equal(rope_table(config, 9)[0][8], rope_table(small_config(), 3)[0][2])


def test_dynamic_scaling_begins_beyond_the_longest_trained_position():
    config = small_config(rope_scaling={"type": "dynamic", "factor": 2.0},
                          max_position_embeddings=8, hidden_size=32)  # heads of 8
    assert [rope_base(config, position) for position in (0, 7)] == [10000, 10000]
    np.testing.assert_allclose(rope_base(config, 15), 10000 * (2 * 16 / 8 - 1) ** (8 / 6))


def test_log_softmax_sums_to_one():
    np.testing.assert_allclose(np.exp(log_softmax(np.array([[1.0, 2, 900]]))).sum(), 1)
