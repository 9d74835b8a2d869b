"""The DeepSeekMoE forward pass (arXiv 2401.06066) in NumPy: what every backend is held against.

Plain and slow on purpose: one function per formula, the whole sequence at once, no cache, float64
throughout. Only what is part of the model's definition is rounded: the weights (to the type they
are served in) and the rotary angles (float32).
"""

import dataclasses

import numpy as np

from checkpoint import is_moe_layer, read_checkpoint, round_to_bf16

# Values of the published configuration class for keys that config.json leaves out.
CONFIG_DEFAULTS = {
    "first_k_dense_replace": 0,
    "moe_layer_freq": 1,
    "n_routed_experts": None,
    "n_shared_experts": None,
    "num_experts_per_tok": None,
    "norm_topk_prob": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
}


@dataclasses.dataclass
class Output:
    logits: np.ndarray  # [num_tokens, vocab_size]
    # [num_tokens] How close the routing of each token is to another one: over the layers, the least
    # distance between the last expert chosen and the first one not chosen, in router logits,
    # relative to the token's largest router logit.
    routing_margin: np.ndarray


def rms_norm(x, weight, epsilon):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def log_softmax(x):
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def rope_base(config, position):
    """Base of the frequencies at `position`. Dynamic scaling sees the sequence as it is generated,
    token by token: a key is rotated once, when the sequence ends with it."""
    base, scaling = config["rope_theta"], config["rope_scaling"]
    longest, length = config["max_position_embeddings"], position + 1
    if scaling is None or scaling["type"] != "dynamic" or length <= longest:
        return base
    factor = scaling["factor"]
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    stretch = factor * length / longest - (factor - 1)
    return base * stretch ** (head_dim / (head_dim - 2))


def rope_table(config, num_positions):
    """Cosines and sines [num_positions, head_dim / 2] of float32 angles."""
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    scaling = config["rope_scaling"]
    divisor = scaling["factor"] if scaling is not None and scaling["type"] == "linear" else 1.0
    exponents = -2.0 * np.arange(head_dim // 2) / head_dim
    angles = np.empty((num_positions, head_dim // 2), np.float32)
    for position in range(num_positions):
        frequencies = np.float32(rope_base(config, position) ** exponents)
        angles[position] = np.float32(position / divisor) * frequencies
    wide = angles.astype(np.float64)
    return np.cos(wide).astype(np.float32), np.sin(wide).astype(np.float32)


def rotate(x, cos, sin):
    """RoPE (arXiv 2104.09864) of x [num_tokens, num_heads, head_dim]: pairs (i, i + head_dim/2)."""
    first, second = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)


class Reference:
    """A checkpoint's model. `weight_type`: "float32", or "bfloat16" to round the weights first."""

    def __init__(self, directory, weight_type="float32"):
        config, tensors = read_checkpoint(directory)
        self.config = CONFIG_DEFAULTS | config
        if self.config.get("num_key_value_heads") is None:
            self.config["num_key_value_heads"] = self.config["num_attention_heads"]
        self.config["rope_theta"] = float(self.config["rope_theta"])
        rounded = round_to_bf16 if weight_type == "bfloat16" else lambda values: values
        self.weights = {name: rounded(t).astype(np.float64) for name, t in tensors.items()}

    def linear(self, name, x):
        y = x @ self.weights[f"{name}.weight"].T
        bias = self.weights.get(f"{name}.bias")
        return y if bias is None else y + bias

    def norm(self, name, x):
        return rms_norm(x, self.weights[f"{name}.weight"], self.config["rms_norm_eps"])

    def attention(self, layer, x):
        config = self.config
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        num_tokens, head_dim = len(x), config["hidden_size"] // heads
        q, k, v = (
            self.linear(f"{layer}.self_attn.{name}_proj", x).reshape(num_tokens, -1, head_dim)
            for name in "qkv"
        )
        table = rope_table(config, num_tokens)
        q, k = rotate(q, *table), rotate(k, *table)
        k, v = (np.repeat(t, heads // kv_heads, axis=1) for t in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(head_dim)
        future = np.triu(np.ones((num_tokens, num_tokens), bool), 1)
        scores[:, future] = -np.inf
        mixed = np.einsum("hqk,khd->qhd", softmax(scores), v).reshape(num_tokens, -1)
        return self.linear(f"{layer}.self_attn.o_proj", mixed)

    def ffn(self, name, x):
        gate, up = self.linear(f"{name}.gate_proj", x), self.linear(f"{name}.up_proj", x)
        return self.linear(f"{name}.down_proj", silu(gate) * up)

    def route(self, layer, x):
        """(expert ids, their weights, margin) of each token: the most likely experts, ties to the
        lower id."""
        config, top_k = self.config, self.config["num_experts_per_tok"]
        logits = self.linear(f"{layer}.mlp.gate", x)
        scores = softmax(logits)
        order = np.argsort(-scores, axis=-1, kind="stable")
        chosen = order[:, :top_k]
        weights = np.take_along_axis(scores, chosen, axis=-1)
        if config["norm_topk_prob"] and top_k > 1:
            weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
        if top_k == config["n_routed_experts"]:
            return chosen, weights, np.full(len(x), np.inf)
        ranked = np.take_along_axis(logits, order, axis=-1)
        margin = (ranked[:, top_k - 1] - ranked[:, top_k]) / np.abs(logits).max(axis=-1)
        return chosen, weights, margin

    def moe(self, layer, x):
        """(output, routing margin) of the routed experts plus the shared ones."""
        chosen, weights, margin = self.route(layer, x)
        y = np.zeros_like(x)
        for expert in np.unique(chosen):
            token, k = np.nonzero(chosen == expert)
            rows = self.ffn(f"{layer}.mlp.experts.{expert}", x[token])
            y[token] += weights[token, k, None] * rows
        if self.config["n_shared_experts"]:
            y += self.ffn(f"{layer}.mlp.shared_experts", x)
        return y, margin

    def forward(self, token_ids):
        """Output for every position of one sequence."""
        h = self.weights["model.embed_tokens.weight"][np.asarray(token_ids)]
        least_margin = np.full(len(token_ids), np.inf)
        for index in range(self.config["num_hidden_layers"]):
            layer = f"model.layers.{index}"
            h = h + self.attention(layer, self.norm(f"{layer}.input_layernorm", h))
            normed = self.norm(f"{layer}.post_attention_layernorm", h)
            if is_moe_layer(self.config, index):
                delta, margin = self.moe(layer, normed)
                least_margin = np.minimum(least_margin, margin)
            else:
                delta = self.ffn(f"{layer}.mlp", normed)
            h = h + delta
        tied = self.config["tie_word_embeddings"]
        head = self.weights["model.embed_tokens.weight" if tied else "lm_head.weight"]
        return Output(self.norm("model.norm", h) @ head.T, least_margin)
