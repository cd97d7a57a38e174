#!/usr/bin/env python3
"""A Stoker checkpoint (qwen3_next, FP8 with 128 x 128 scales) as one GGUF file, so that peers decode the same model.

Every FP8 matrix, the embeddings and lm_head become Q8_0 (32 weights and one fp16 scale, 8.5 bits a weight: an expert
takes 3,342,336 bytes where ours takes 3,145,728, 6 % more); router, norms and the small DeltaNet tensors become F32.
Of two FP8 weights that differ, Q8_0 may make one value: routing is planted with a margin that survives it, and
forced_decode --routes prints the experts chosen, to compare.
The vocabulary is a stand-in (one token per byte, the rest unreachable by text): ids are what matters here.

    pip install gguf numpy                     # PyPI; nothing else of any peer is needed
    bench/peers/make_gguf.py --model DIR --out FILE.gguf [--layers N]
"""

import argparse
import json
import pathlib
import sys

import gguf
import numpy as np

TILE = 128
BLOCK = 32  # weights of one Q8_0 block
BLOCK_BYTES = 34
F32, Q8_0 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0


def fp8_table():
    """The 256 values of E4M3FN as fp32."""
    code = np.arange(256)
    sign, exponent, fraction = np.where(code & 128, -1.0, 1.0), (code >> 3) & 15, code & 7
    value = np.where(exponent == 0, fraction * 2.0 ** -9, (8 + fraction) * 2.0 ** (exponent - 10.0))
    return (sign * value).astype(np.float32)


FP8 = fp8_table()


def bf16(raw):
    return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


class Checkpoint:
    """Tensors of a directory of safetensors shards, by name, as fp32."""

    def __init__(self, path):
        self.where = {}
        for shard in sorted(pathlib.Path(path).glob("*.safetensors")):
            data = np.memmap(shard, dtype=np.uint8, mode="r")
            length = int.from_bytes(data[:8].tobytes(), "little")
            for name, entry in json.loads(data[8:8 + length].tobytes()).items():
                if name != "__metadata__":
                    self.where[name] = (data, 8 + length, entry)

    def raw(self, name):
        data, base, entry = self.where[name]
        begin, end = entry["data_offsets"]
        return data[base + begin:base + end], entry["dtype"], entry["shape"]

    def get(self, name):
        raw, dtype, shape = self.raw(name)
        if dtype == "BF16":
            return bf16(raw).reshape(shape)
        if dtype == "F32":
            return raw.view(np.float32).reshape(shape)
        sys.exit(f"{name}: dtype {dtype} is not known here")

    def q8_0(self, name):
        """A matrix as rows of Q8_0 blocks: fp16 scale = largest magnitude / 127, then 32 rounded int8."""
        raw, dtype, shape = self.raw(name)
        if dtype == "F8_E4M3":
            return packed(*self.fp8_blocks(raw, shape, self.get(name + "_scale_inv"))).reshape(*shape[:-1], -1)
        rows = np.array_split(raw.reshape(shape[0], -1), max(1, shape[0] // 1024))
        parts = [packed(*float_blocks(bf16(some))) for some in rows]
        return np.concatenate(parts).reshape(*shape[:-1], -1)

    @staticmethod
    def fp8_blocks(raw, shape, tiles):
        """All weights of a block share the tile's scale, so a table of code and largest code of the block does it."""
        codes = raw.reshape(-1, BLOCK)
        largest = np.bitwise_and(codes, 127).max(axis=1)
        weights = RATIO.take(largest.astype(np.uint16)[:, None] * np.uint16(256) + codes)
        scale = np.repeat(np.repeat(tiles, TILE, axis=0)[:shape[0]], TILE // BLOCK, axis=1).reshape(-1)
        return scale * FP8[largest] / np.float32(127), weights


def packed(scale, weights):
    out = np.empty((len(scale), BLOCK_BYTES), np.uint8)
    out[:, :2] = scale.astype(np.float16)[:, None].view(np.uint8)
    out[:, 2:] = weights.view(np.uint8)
    return out


def ratio_table():
    """RATIO[256 * largest + code]: the weight as a 127th of the block's largest, rounded."""
    largest = np.where(FP8[:127] > 0, FP8[:127], np.inf)[:, None]
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(np.rint(FP8[None, :] / largest * 127)).clip(-127, 127).astype(np.int8).reshape(-1)


RATIO = ratio_table()


def float_blocks(matrix):
    blocks = matrix.reshape(-1, BLOCK)
    scale = np.maximum(blocks.max(axis=1), -blocks.min(axis=1)) / np.float32(127)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    return scale, np.rint(blocks * inverse[:, None]).astype(np.int8)


class Plan:
    """Tensors in file order: name, logical shape, type, and the function that makes the bytes when their turn comes."""

    def __init__(self):
        self.tensors = []

    def f32(self, name, shape, make):
        self.tensors.append((name, tuple(shape), F32, lambda: np.ascontiguousarray(make(), np.float32)))

    def q8(self, name, shape, make):
        self.tensors.append((name, tuple(shape), Q8_0, make))


def regrouped(weights, config):
    """in_proj_qkvz: per key head (q, k, v, z) rows to all q, all k, all v and all z (our model.md 2.1)."""
    heads = config["linear_num_key_heads"]
    key = config["linear_key_head_dim"]
    value = config["linear_num_value_heads"] // heads * config["linear_value_head_dim"]
    group = weights.reshape(heads, 2 * key + 2 * value, -1)
    q, k, v, z = np.split(group, [key, 2 * key, 2 * key + value], axis=1)
    width = weights.shape[-1]
    return np.concatenate([x.reshape(-1, width) for x in (q, k, v)]), z.reshape(-1, width)


def plan_linear(plan, ck, i, c):
    src, dst = f"model.layers.{i}.linear_attn.", f"blk.{i}."
    hidden, key = c["hidden_size"], c["linear_num_key_heads"] * c["linear_key_head_dim"]
    value = c["linear_num_value_heads"] * c["linear_value_head_dim"]
    conv, heads = 2 * key + value, c["linear_num_value_heads"]
    plan.q8(dst + "attn_qkv.weight", (conv, hidden), lambda: regrouped(ck.q8_0(src + "in_proj_qkvz.weight"), c)[0])
    plan.q8(dst + "attn_gate.weight", (value, hidden), lambda: regrouped(ck.q8_0(src + "in_proj_qkvz.weight"), c)[1])
    plan.f32(dst + "ssm_ba.weight", (2 * heads, hidden), lambda: ck.get(src + "in_proj_ba.weight"))
    taps = c["linear_conv_kernel_dim"]
    plan.f32(dst + "ssm_conv1d.weight", (conv, taps), lambda: ck.get(src + "conv1d.weight").reshape(conv, taps))
    plan.f32(dst + "ssm_dt.bias", (heads,), lambda: ck.get(src + "dt_bias"))
    plan.f32(dst + "ssm_a", (heads,), lambda: -np.exp(ck.get(src + "A_log")))
    plan.f32(dst + "ssm_norm.weight", (c["linear_value_head_dim"],), lambda: ck.get(src + "norm.weight"))
    plan.q8(dst + "ssm_out.weight", (hidden, value), lambda: ck.q8_0(src + "out_proj.weight"))


def plan_attention(plan, ck, i, c):
    src, dst = f"model.layers.{i}.self_attn.", f"blk.{i}."
    hidden, dim = c["hidden_size"], c["head_dim"]
    heads, groups = c["num_attention_heads"] * dim, c["num_key_value_heads"] * dim
    for ours, theirs, shape in (("q_proj", "attn_q", (2 * heads, hidden)), ("k_proj", "attn_k", (groups, hidden)),
                                ("v_proj", "attn_v", (groups, hidden)), ("o_proj", "attn_output", (hidden, heads))):
        plan.q8(f"{dst}{theirs}.weight", shape, lambda ours=ours: ck.q8_0(f"{src}{ours}.weight"))
    for which in ("q_norm", "k_norm"):
        plan.f32(f"{dst}attn_{which}.weight", (dim,), lambda which=which: 1 + ck.get(f"{src}{which}.weight"))


def all_experts(ck, prefix, part, count):
    """The matrices of one kind of all experts of a layer, one after the other: the layout peers slice."""
    first = ck.q8_0(f"{prefix}0.{part}.weight")
    out = np.empty((count, *first.shape), np.uint8)
    out[0] = first
    for e in range(1, count):
        out[e] = ck.q8_0(f"{prefix}{e}.{part}.weight")
    return out


def plan_experts(plan, ck, i, c):
    src, dst = f"model.layers.{i}.mlp.", f"blk.{i}."
    hidden, experts = c["hidden_size"], c["num_experts"]
    plan.f32(dst + "ffn_gate_inp.weight", (experts, hidden), lambda: ck.get(src + "gate.weight"))
    plan.f32(dst + "ffn_gate_inp_shexp.weight", (hidden,), lambda: ck.get(src + "shared_expert_gate.weight").reshape(-1))
    shared, routed = c["shared_expert_intermediate_size"], c["moe_intermediate_size"]
    for part, theirs in (("gate_proj", "gate"), ("up_proj", "up"), ("down_proj", "down")):
        shape = (hidden, shared) if part == "down_proj" else (shared, hidden)
        plan.q8(f"{dst}ffn_{theirs}_shexp.weight", shape, lambda p=part: ck.q8_0(f"{src}shared_expert.{p}.weight"))
        shape = (experts, hidden, routed) if part == "down_proj" else (experts, routed, hidden)
        plan.q8(f"{dst}ffn_{theirs}_exps.weight", shape,
                lambda p=part: all_experts(ck, src + "experts.", p, experts))


def make_plan(ck, c):
    plan = Plan()
    hidden, vocab = c["hidden_size"], c["vocab_size"]
    plan.q8("token_embd.weight", (vocab, hidden), lambda: ck.q8_0("model.embed_tokens.weight"))
    plan.q8("output.weight", (vocab, hidden), lambda: ck.q8_0("lm_head.weight"))
    plan.f32("output_norm.weight", (hidden,), lambda: 1 + ck.get("model.norm.weight"))
    for i in range(c["num_hidden_layers"]):
        for ours, theirs in (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "post_attention_norm")):
            plan.f32(f"blk.{i}.{theirs}.weight", (hidden,),
                     lambda i=i, ours=ours: 1 + ck.get(f"model.layers.{i}.{ours}.weight"))
        attention = c["layer_types"][i] == "full_attention"
        (plan_attention if attention else plan_linear)(plan, ck, i, c)
        plan_experts(plan, ck, i, c)
    return plan


def add_settings(w, c):
    w.add_name("stoker-bench")
    w.add_block_count(c["num_hidden_layers"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_key_length(c["head_dim"])
    w.add_value_length(c["head_dim"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_rope_freq_base(c["rope_theta"])
    w.add_rope_dimension_count(int(c["head_dim"] * c["partial_rotary_factor"]))
    w.add_expert_count(c["num_experts"])
    w.add_expert_used_count(c["num_experts_per_tok"])
    w.add_expert_feed_forward_length(c["moe_intermediate_size"])
    w.add_expert_shared_feed_forward_length(c["shared_expert_intermediate_size"])
    w.add_ssm_conv_kernel(c["linear_conv_kernel_dim"])
    w.add_ssm_state_size(c["linear_key_head_dim"])
    w.add_ssm_group_count(c["linear_num_key_heads"])
    w.add_ssm_time_step_rank(c["linear_num_value_heads"])
    w.add_ssm_inner_size(c["linear_num_value_heads"] * c["linear_value_head_dim"])
    w.add_uint32("qwen3next.full_attention_interval", 4)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)


def printable_bytes():
    """Byte-level BPE writes the bytes that do not print as code points from 256 on."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return [chr(b) if b in shown else chr(256 + hidden.index(b)) for b in range(256)]


def add_vocabulary(w, c):
    tokens = printable_bytes()
    tokens += ["ab"]  # one merge, because a list of none is refused by some readers
    tokens += [f"<|unused{n}|>" for n in range(len(tokens), c["vocab_size"])]
    kinds = [gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.UNUSED] * (len(tokens) - 257)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(tokens)
    w.add_token_types(kinds)
    w.add_token_merges(["a b"])
    w.add_eos_token_id(c["eos_token_id"])
    w.add_pad_token_id(c["eos_token_id"])
    w.add_add_bos_token(False)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--layers", type=int, help="only the first N layers, to try a reader on a small file")
    args = p.parse_args()
    c = json.loads((pathlib.Path(args.model) / "config.json").read_text())
    c["num_hidden_layers"] = min(args.layers or c["num_hidden_layers"], c["num_hidden_layers"])
    plan = make_plan(Checkpoint(args.model), c)
    w = gguf.GGUFWriter(args.out, "qwen3next")
    add_settings(w, c)
    add_vocabulary(w, c)
    for name, shape, kind, _ in plan.tensors:
        size = int(np.prod(shape)) * 4 if kind == F32 else int(np.prod(shape)) // BLOCK * BLOCK_BYTES
        w.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    for number, (name, _, _, make) in enumerate(plan.tensors):
        w.write_tensor_data(make())
        print(f"\r{number + 1}/{len(plan.tensors)} {name:40}", end="", file=sys.stderr, flush=True)
    w.close()
    print(file=sys.stderr)


if __name__ == "__main__":
    main()
