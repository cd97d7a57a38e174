#!/usr/bin/env python3
"""The approach of the Python project that came first, as a yardstick: transformers for all but the experts, which Python
keeps in an LRU in device memory, behind it an LRU in pinned memory, behind it preads of the checkpoint's files.

    python_reference.py MODEL_DIR [--device cuda|cpu] [--vram-experts N] [--ram-experts N] [--tokens 64] [--warm 64]
                        [--repeats 3]

MODEL_DIR: a synthetic checkpoint (`stoker synth --preset bench`) or a published FP8 one. Decodes the ids of its
routing_tokens.txt one by one, as `stoker bench` does, and prints one JSON line per repeat and the median. Numerics are
bfloat16, as that project's: this measures speed, not truth. Needs torch, transformers and safetensors, no network.
"""

import argparse
import collections
import json
import os
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

PARTS = ("gate_proj", "up_proj", "down_proj")


class Checkpoint:
    """Where every tensor lies: safetensors headers, read without the library so that reads are plain preads."""

    def __init__(self, directory):
        self.where, self.files = {}, []
        for path in sorted(Path(directory).glob("*.safetensors")):
            file = os.open(path, os.O_RDONLY)
            size = int.from_bytes(os.pread(file, 8, 0), "little")
            for name, info in json.loads(os.pread(file, size, 8)).items():
                if name != "__metadata__":
                    begin, end = info["data_offsets"]
                    self.where[name] = (file, 8 + size + begin, end - begin, info["dtype"], info["shape"])

    DTYPES = {"F8_E4M3": torch.float8_e4m3fn, "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}

    def read(self, name):
        file, offset, length, dtype, shape = self.where[name]
        data = bytearray(os.pread(file, length, offset))
        # Nothing stays in the page cache: what --ram-experts does not hold comes from the disk.
        os.posix_fadvise(file, offset, length, os.POSIX_FADV_DONTNEED)
        assert len(data) == length, f"{name} is truncated"
        return torch.frombuffer(data, dtype=self.DTYPES[dtype]).reshape(shape)


def dequantise(weight, scale):
    rows, cols = weight.shape
    wide = scale.float().repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :cols]
    return (weight.float() * wide).to(torch.bfloat16)


class Lru(collections.OrderedDict):
    def __init__(self, size, load):
        super().__init__()
        self.size, self.load, self.hits, self.misses = size, load, 0, 0

    def take(self, key):
        if key in self:
            self.hits += 1
            self.move_to_end(key)
            return self[key]
        self.misses += 1
        while self and len(self) >= self.size:
            self.popitem(last=False)
        self[key] = value = self.load(key)
        return value


class Experts:
    """(layer, expert) -> six tensors on the device: codes and scales of gate, up, down."""

    def __init__(self, checkpoint, device, vram, ram):
        self.checkpoint, self.device = checkpoint, device
        self.ram = Lru(ram, self._from_disk)
        self.vram = Lru(vram, self._from_ram)

    def _from_disk(self, key):
        layer, expert = key
        names = [f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight" for part in PARTS]
        tensors = [self.checkpoint.read(n) for name in names for n in (name, name + "_scale_inv")]
        return [t.pin_memory() for t in tensors] if self.device == "cuda" else tensors

    def _from_ram(self, key):
        return [t.to(self.device, non_blocking=True) for t in self.ram.take(key)]


class StreamedMoe(torch.nn.Module):
    """In the place of the model's own MoE block, with the same names for what is resident."""

    def __init__(self, config, layer, experts, shared):
        super().__init__()
        self.k, self.layer, self.experts = config.num_experts_per_tok, layer, experts
        self.gate = torch.nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.shared_expert = shared
        self.shared_expert_gate = torch.nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, hidden, *_, **__):
        x = hidden.reshape(-1, hidden.shape[-1])
        weights, ids = torch.softmax(self.gate(x).float(), -1).topk(self.k, -1)
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        out = torch.zeros_like(x)
        for expert in sorted(set(ids.flatten().tolist())):
            row, rank = (ids == expert).nonzero(as_tuple=True)
            gate, gate_s, up, up_s, down, down_s = self.experts.vram.take((self.layer, expert))
            y = torch.nn.functional.silu(x[row] @ dequantise(gate, gate_s).T) * (x[row] @ dequantise(up, up_s).T)
            out.index_add_(0, row, (y @ dequantise(down, down_s).T) * weights[row, rank, None])
        out += torch.sigmoid(self.shared_expert_gate(x)) * self.shared_expert(x)
        return out.reshape(hidden.shape)


def build(directory, device, vram, ram):
    config = AutoConfig.from_pretrained(directory)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    checkpoint = Checkpoint(directory)
    experts = Experts(checkpoint, device, vram, ram)
    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        for i, layer in enumerate(net.model.layers):
            layer.mlp = StreamedMoe(config, i, experts, layer.mlp.shared_expert)
    values = {}
    for name in checkpoint.where:
        if ".experts." in name or name.endswith("_scale_inv"):
            continue
        value = checkpoint.read(name)
        if value.dtype == torch.float8_e4m3fn:
            value = dequantise(value, checkpoint.read(name + "_scale_inv"))
        values[name] = value.to(device, torch.bfloat16)
    missing, unexpected = net.load_state_dict(values, strict=False, assign=True)
    assert not missing and not unexpected, (missing[:4], unexpected[:4])
    # Buffers are not in the checkpoint: rotary frequencies.
    rotary = type(net.model.rotary_emb)(config)
    net.model.rotary_emb = rotary.to(device)
    return net.eval(), experts


def decode(net, ids, device, cache):
    for token in ids:
        out = net(input_ids=torch.tensor([[token]], device=device), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        int(out.logits[0, -1].argmax())  # as a sampler would: waits for the device
    return cache


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    parser.add_argument("--vram-experts", type=int, default=1700)
    parser.add_argument("--ram-experts", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--warm", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    text = (Path(args.model) / "routing_tokens.txt").read_text()
    ids = [int(t) for t in text.replace(",", " ").split()]
    need = args.warm + args.repeats * args.tokens
    assert len(ids) >= need, f"routing_tokens.txt has {len(ids)} ids, {need} are needed"
    net, experts = build(args.model, args.device, args.vram_experts, args.ram_experts)
    cache = decode(net, ids[: args.warm], args.device, None)
    speeds = []
    for r in range(args.repeats):
        before = (experts.vram.hits, experts.vram.misses, experts.ram.misses)
        started = time.perf_counter()
        begin = args.warm + r * args.tokens
        cache = decode(net, ids[begin : begin + args.tokens], args.device, cache)
        seconds = time.perf_counter() - started
        hits, misses, disk = (b - a for a, b in zip(before, (experts.vram.hits, experts.vram.misses, experts.ram.misses)))
        speeds.append(args.tokens / seconds)
        print(json.dumps({"tokens_per_second": speeds[-1], "device": args.device, "vram_hits": hits / (hits + misses),
                          "from_ram": (misses - disk) / (hits + misses), "from_disk": disk / (hits + misses)}), flush=True)
    print(f"median {statistics.median(speeds):.2f} tokens/s ({min(speeds):.2f}-{max(speeds):.2f})")


if __name__ == "__main__":
    main()
