"""Small checkpoints that differ in what config.json can change. Each is one way through the forward
pass; together they cover all of them."""

import dataclasses

# The structure of DeepSeekMoE 16B, small: the first layer dense, then shared and routed experts.
# Weights are drawn wide enough that every layer moves the logits by far more than rounding does,
# and not so wide that rounding errors grow from layer to layer.
BASE = {
    "architectures": ["DeepseekForCausalLM"],
    "model_type": "deepseek",
    "vocab_size": 2048,
    "hidden_size": 96,
    "intermediate_size": 224,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "n_routed_experts": 16,
    "n_shared_experts": 2,
    "num_experts_per_tok": 4,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "initializer_range": 0.05,
    "torch_dtype": "bfloat16",
}

DENSE = {"n_routed_experts": None, "n_shared_experts": None, "num_experts_per_tok": None}


@dataclasses.dataclass(frozen=True, eq=False)
class Variant:
    name: str
    changes: dict = dataclasses.field(default_factory=dict)

    def config(self, bos_token_id, eos_token_id):
        """Its config.json."""
        ids = {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id}
        return BASE | ids | self.changes


VARIANTS = [
    Variant("structure-16b"),
    Variant(
        "gshard",  # few wide experts, none shared, every layer routed
        {"first_k_dense_replace": 0, "n_shared_experts": None, "num_experts_per_tok": 2,
         "moe_intermediate_size": 192},
    ),
    Variant("dense", DENSE),
    Variant(
        "gqa-bias", {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2,
                     "attention_bias": True},
    ),
    Variant("mqa", {"num_key_value_heads": 1}),
    Variant("tied-embeddings", {"tie_word_embeddings": True}),
    Variant("every-second-layer", {"moe_layer_freq": 2, "num_hidden_layers": 4,
                                   "first_k_dense_replace": 0}),
    Variant("renormalised", {"norm_topk_prob": True, "first_k_dense_replace": 0}),
    # Switch-like: with one expert per token there is nothing to renormalise.
    Variant("one-expert", {"norm_topk_prob": True, "num_experts_per_tok": 1,
                           "n_shared_experts": None}),
    Variant("rope-linear", {"rope_scaling": {"type": "linear", "factor": 2.5},
                            "rope_theta": 5000.0}),
    Variant("rope-dynamic", {"rope_scaling": {"type": "dynamic", "factor": 4.0},
                             "max_position_embeddings": 64}),
    Variant(
        "odd-sizes",  # no dimension divides a vector register, for the CPU; experts and top-k are odd
        {"hidden_size": 72, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 88, "moe_intermediate_size": 40,
         "n_routed_experts": 5, "num_experts_per_tok": 3, "n_shared_experts": 1},
    ),
    Variant("all-experts", {"n_routed_experts": 4, "num_experts_per_tok": 4}),
    Variant("vocabulary-padded", {"vocab_size": 2112}),  # rows that no token has
    Variant("checkpoint-float32", {"torch_dtype": "float32"}),
    Variant("checkpoint-float16", {"torch_dtype": "float16"}),
]
