"""Writes a golden model as a published checkpoint: per-expert names, shards, index, config files."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import configs
import generator
from configs import GoldenModel

DTYPE_BYTES = {"F8_E4M3": 1, "BF16": 2, "F32": 4}
# The standard serialiser puts wider types first, then sorts by name (model.md 2.3).
DTYPE_RANK = {"F32": 0, "BF16": 1, "F8_E4M3": 2}


def stored(model: GoldenModel) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype, shape) of every stored tensor, scales included, in the order they fill shards."""
    out = []
    for name, shape in configs.tensors(model.config):
        if model.weight_dtype == "F8_E4M3" and generator.is_fp8_module(name):
            out.append((name, "F8_E4M3", shape))
            tiles = tuple(-(-d // generator.TILE) for d in shape)
            out.append((name + "_scale_inv", model.scale_dtype, tiles))
        else:
            out.append((name, "F32" if model.weight_dtype == "F32" else "BF16", shape))
    return out


def shards(model: GoldenModel) -> list[list[tuple[str, str, tuple[int, ...]]]]:
    """A new shard begins when the next tensor would pass shard_bytes; so experts straddle files."""
    out, size = [[]], 0
    for tensor in stored(model):
        n = DTYPE_BYTES[tensor[1]] * int(np.prod(tensor[2]))
        if out[-1] and size + n > model.shard_bytes:
            out.append([])
            size = 0
        out[-1].append(tensor)
        size += n
    return [sorted(shard, key=lambda t: (DTYPE_RANK[t[1]], t[0])) for shard in out]


class Values:
    """The bytes that are stored and the fp32 values they stand for, made on demand (one tensor is kept)."""

    def __init__(self, model: GoldenModel):
        self.model = model
        self.shapes = dict(configs.tensors(model.config))
        self._last = ("", b"", b"", None)

    def _make(self, name: str) -> None:
        if self._last[0] == name:
            return
        values = generator.make_tensor(name, self.shapes[name], self.model.salt, self.model.rules)
        if self.model.weight_dtype == "F32":
            self._last = (name, values.tobytes(), b"", values)
            return
        bits = generator.to_bf16_bits(values)
        values = generator.from_bf16_bits(bits)
        if self.model.weight_dtype == "BF16" or not generator.is_fp8_module(name):
            self._last = (name, bits.tobytes(), b"", values)
            return
        codes, scales = generator.quantise(values, self.model.scale_dtype)
        scale_bytes = scales if self.model.scale_dtype == "F32" else generator.to_bf16_bits(scales)
        self._last = (name, codes.tobytes(), scale_bytes.tobytes(), generator.dequantise(codes, scales))

    def bytes(self, name: str) -> bytes:
        self._make(name.removesuffix("_scale_inv"))
        return self._last[2 if name.endswith("_scale_inv") else 1]

    def fp32(self, name: str) -> np.ndarray:
        self._make(name)
        return self._last[3]


def _shard_name(i: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{i + 1:05d}-of-{count:05d}.safetensors"


def shard_digests(model: GoldenModel, directory: Path | None) -> Iterator[dict]:
    """Writes every shard when a directory is given; yields its name, size and the SHA-256 of its data section."""
    values = Values(model)
    plan = shards(model)
    for i, shard in enumerate(plan):
        # Weight and scale come from one computation but lie apart in the file.
        cache = {name: values.bytes(name) for name in sorted(t[0] for t in shard)}
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        digest = hashlib.sha256()
        for name, dtype, shape in shard:
            n = len(cache[name])
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + n]}
            offset += n
            digest.update(cache[name])
        file = _shard_name(i, len(plan))
        if directory is not None:
            text = json.dumps(header, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)
            with open(directory / file, "wb") as out:
                out.write(len(text).to_bytes(8, "little") + text)
                for name, _, _ in shard:
                    out.write(cache[name])
        yield {"file": file, "data_bytes": offset, "data_sha256": digest.hexdigest()}


def write(model: GoldenModel, directory: Path, tokenizer: Path | None = None) -> list[dict]:
    directory.mkdir(parents=True, exist_ok=True)
    digests = list(shard_digests(model, directory))
    plan = shards(model)
    if len(plan) > 1:
        weight_map = {t[0]: digests[i]["file"] for i, shard in enumerate(plan) for t in shard}
        index = {"metadata": {"total_size": sum(d["data_bytes"] for d in digests)},
                 "weight_map": dict(sorted(weight_map.items()))}  # fmt: skip
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (directory / "config.json").write_text(json.dumps(configs.published_config(model), indent=2) + "\n")
    generation = {"bos_token_id": model.config["bos_token_id"], "do_sample": False,
                  "eos_token_id": [model.config["eos_token_id"]]}  # fmt: skip
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    if tokenizer is not None and tokenizer.exists():
        shutil.copy(tokenizer, directory / "tokenizer.json")
    return digests


def straddling_experts(model: GoldenModel) -> int:
    """How many experts have matrices in more than one shard."""
    where: dict[str, set[int]] = {}
    for i, shard in enumerate(shards(model)):
        for name, dtype, _ in shard:
            if ".experts." in name and not name.endswith("_scale_inv"):
                where.setdefault(name.rsplit(".", 2)[0], set()).add(i)
    return sum(len(s) > 1 for s in where.values())
