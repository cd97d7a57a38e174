#!/usr/bin/env python3
"""Writes WORK_DIR/final.pt as a checkpoint in the format of Qwen3-Coder-Next-FP8.

    python3 export.py WORK_DIR OUT_DIR [--bf16]

Same tensor names, E4M3 with one BF16 scale per 128x128 tile for what is FP8 there (model.md 4.4), BF16 for the
rest, several shards with an index. --bf16 writes the unquantised twin, for comparison.
"""
import argparse
import hashlib
import json
import pathlib
import shutil
import sys

import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "oracle"))
import generator  # noqa: E402  FP8 quantisation and BF16 rounding, checked bit by bit by the goldens

SHARD_BYTES = 8 << 20
ENDS = ("<|endoftext|>", "<|im_end|>")


def published(state, config):
    """(name, fp32 array) of every tensor under its published name: experts apart, gate and up apart."""
    inter = config["moe_intermediate_size"]
    for name, tensor in state.items():
        values = tensor.float().numpy()
        if name.endswith("experts.gate_up_proj"):
            for expert, both in enumerate(values):
                yield name.replace("gate_up_proj", f"{expert}.gate_proj.weight"), both[:inter]
                yield name.replace("gate_up_proj", f"{expert}.up_proj.weight"), both[inter:]
        elif name.endswith("experts.down_proj"):
            for expert, down in enumerate(values):
                yield name.replace("down_proj", f"{expert}.down_proj.weight"), down
        else:
            yield name, values


def stored(state, config, fp8):
    """(name, dtype, shape, bytes) as they lie in the files."""
    for name, values in published(state, config):
        values = np.ascontiguousarray(values, dtype=np.float32)
        if not np.isfinite(values).all():
            raise SystemExit(f"{name} holds a value that is not finite")
        bits = generator.to_bf16_bits(values)
        if fp8 and generator.is_fp8_module(name):
            codes, scales = generator.quantise(generator.from_bf16_bits(bits), "BF16")
            yield name, "F8_E4M3", codes.shape, codes.tobytes()
            yield name + "_scale_inv", "BF16", scales.shape, generator.to_bf16_bits(scales).tobytes()
        else:
            yield name, "BF16", values.shape, bits.tobytes()


def write_shard(path, tensors):
    # The standard serialiser's order: wider types first, then by name.
    tensors = sorted(tensors, key=lambda t: (t[1] == "F8_E4M3", t[0]))
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text + b"".join(t[3] for t in tensors))


def write_weights(out, state, config, fp8):
    shards, size = [[]], 0
    for tensor in sorted(stored(state, config, fp8)):
        if shards[-1] and size + len(tensor[3]) > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += len(tensor[3])
    weight_map, total = {}, 0
    for i, tensors in enumerate(shards):
        name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        write_shard(out / name, tensors)
        weight_map |= {t[0]: name for t in tensors}
        total += sum(len(t[3]) for t in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, separators=(",", ":")) + "\n")
    return len(shards), total


def write_configs(out, config, fp8, tokenizer):
    end, turn = (tokenizer.token_to_id(t) for t in ENDS)
    assert config["eos_token_id"] == end, "config.json and tokenizer.json disagree about <|endoftext|>"
    if fp8:
        config = config | {"quantization_config": {
            "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
            "modules_to_not_convert": ["lm_head"] + [f"model.layers.{i}.{part}"
                                                     for i in range(config["num_hidden_layers"])
                                                     for part in unconverted(i, config)]}}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"bos_token_id": end, "do_sample": True, "eos_token_id": [end, turn], "pad_token_id": end,
                  "repetition_penalty": 1.1, "temperature": 0.7, "top_k": 20, "top_p": 0.9}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def unconverted(layer, config):
    mixer = [f"self_attn.{n}" for n in ("q_norm", "k_norm")]
    if (layer + 1) % config["full_attention_interval"]:
        mixer = [f"linear_attn.{n}" for n in ("A_log", "conv1d", "dt_bias", "in_proj_ba", "norm")]
    return ["input_layernorm", "post_attention_layernorm", *mixer, "mlp.gate", "mlp.shared_expert_gate"]


def write_tokenizer(out, work):
    from tokenizers import Tokenizer
    shutil.copy(work / "tokenizer.json", out / "tokenizer.json")
    template = (HERE.parent.parent / "tests/unit/text/data/chat_template.jinja").read_text()
    (out / "chat_template.jinja").write_text(template)
    (out / "tokenizer_config.json").write_text(json.dumps({
        "add_prefix_space": False, "bos_token": None, "clean_up_tokenization_spaces": False,
        "eos_token": ENDS[0], "model_max_length": 4096, "pad_token": ENDS[0],
        "tokenizer_class": "Qwen2TokenizerFast", "unk_token": None}, indent=2) + "\n")
    return Tokenizer.from_file(str(work / "tokenizer.json"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--from", dest="source", default="final.pt", help="file in WORK_DIR, e.g. checkpoint.pt")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for old in arguments.out.glob("*.safetensors"):
        old.unlink()
    config = json.loads((HERE / "config.json").read_text())
    saved = torch.load(arguments.work / arguments.source, map_location="cpu")
    shards, total = write_weights(arguments.out, saved["net"], config, not arguments.bf16)
    write_configs(arguments.out, config, not arguments.bf16, write_tokenizer(arguments.out, arguments.work))
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(arguments.out.glob("*.safetensors")))).hexdigest()
    print(f"{arguments.out}: step {saved['step']}, {shards} shards, {total} tensor bytes, sha256 of all {digest[:16]}")


if __name__ == "__main__":
    main()
