"""Checkpoint directories in Hugging Face layout: reads every tensor, writes small ones.

Safetensors format: 8 bytes little-endian header length, JSON header
{name: {dtype, shape, data_offsets}}, data.
"""

import json
import pathlib

import numpy as np

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def bf16_bits(values):
    """The upper halves of float32 values, rounded to nearest, ties to even. NaN is not handled."""
    raw = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((raw + np.uint32(0x7FFF) + ((raw >> 16) & 1)) >> 16).astype(np.uint16)


def bf16_to_float32(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def round_to_bf16(values):
    """Float32 values that bfloat16 can hold, nearest to `values`."""
    return bf16_to_float32(bf16_bits(values))


def decode(dtype, data, shape):
    """Bytes of a tensor as float32."""
    if dtype == "BF16":
        values = bf16_to_float32(np.frombuffer(data, "<u2"))
    else:
        values = np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)
    return values.reshape(shape)


def encode(dtype, values):
    if dtype == "BF16":
        return bf16_bits(values).astype("<u2").tobytes()
    return np.asarray(values).astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def read_header(path):
    """(header as a dict, position of the data) of a safetensors file."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def read_tensors(path):
    """{name: float32 array} of one safetensors file."""
    header, start = read_header(path)
    data = pathlib.Path(path).read_bytes()[start:]
    header.pop("__metadata__", None)
    return {
        name: decode(info["dtype"], data[slice(*info["data_offsets"])], info["shape"])
        for name, info in header.items()
    }


def read_checkpoint(directory):
    """(config.json as a dict, {name: float32 array} of all shards)."""
    directory = pathlib.Path(directory)
    config = json.loads((directory / "config.json").read_text())
    index = directory / "model.safetensors.index.json"
    shards = ["model.safetensors"]
    if index.exists():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    tensors = {}
    for shard in shards:
        tensors |= read_tensors(directory / shard)
    return config, tensors


def format_header(header):
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def layout(shapes, dtype):
    """(header, bytes of data) of tensors {name: shape} stored one after the other."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + int(np.prod(shape)) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    return header, offset


def write_tensors(path, tensors, dtype):
    """One safetensors file of {name: array}."""
    header, _ = layout({name: values.shape for name, values in tensors.items()}, dtype)
    data = b"".join(encode(dtype, values) for values in tensors.values())
    pathlib.Path(path).write_bytes(format_header(header) + data)


def write_zeros(path, shapes, dtype):
    """One safetensors file of zeros, as a hole: no disk space, however large."""
    header, data_bytes = layout(shapes, dtype)
    with open(path, "wb") as file:
        file.write(format_header(header))
        file.truncate(file.tell() + data_bytes)


def tensor_shapes(config):
    """{name: shape} of all tensors of a complete config.json."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv_width = config["num_key_value_heads"] * (hidden // heads)
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}

    def ffn(prefix, width):
        shapes[f"{prefix}.gate_proj.weight"] = shapes[f"{prefix}.up_proj.weight"] = (width, hidden)
        shapes[f"{prefix}.down_proj.weight"] = (hidden, width)

    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        for name, width in (("q", hidden), ("k", kv_width), ("v", kv_width), ("o", hidden)):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (width, hidden)
            if config["attention_bias"]:
                shapes[f"{layer}.self_attn.{name}_proj.bias"] = (width,)
        if not is_moe_layer(config, index):
            ffn(f"{layer}.mlp", config["intermediate_size"])
            continue
        shapes[f"{layer}.mlp.gate.weight"] = (config["n_routed_experts"], hidden)
        for expert in range(config["n_routed_experts"]):
            ffn(f"{layer}.mlp.experts.{expert}", config["moe_intermediate_size"])
        if config["n_shared_experts"]:
            width = config["n_shared_experts"] * config["moe_intermediate_size"]
            ffn(f"{layer}.mlp.shared_experts", width)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def is_moe_layer(config, index):
    return bool(
        config["n_routed_experts"]
        and index >= config["first_k_dense_replace"]
        and index % config["moe_layer_freq"] == 0
    )
