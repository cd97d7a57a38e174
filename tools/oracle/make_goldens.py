#!/usr/bin/env python3
"""Makes tests/golden/data/*.{json,bin} with transformers. One command: tools/oracle/make_goldens.py (docs/goldens.md).

A .bin holds little-endian fp32. Per case (at "offset", in floats), for each position a record of
  32 logits (entries probe_ids(position)) | largest |logit| | argmax | log sum exp | (top1 - top2) / largest |logit|
and then the whole logits row of the last position.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

import cases
import checkpoint
import configs
import generator
import hf


def record(logits: np.ndarray) -> np.ndarray:
    n, vocab = logits.shape
    out = np.empty((n, cases.PROBES + 4), dtype="<f4")
    for p in range(n):
        out[p, : cases.PROBES] = logits[p, cases.probe_ids(p, vocab)]
    top = logits.max(axis=-1).astype(np.float64)
    out[:, -4] = np.abs(logits).max(axis=-1)
    out[:, -3] = logits.argmax(axis=-1)
    out[:, -2] = top + np.log(np.exp(logits - top[:, None]).sum(axis=-1, dtype=np.float64))
    out[:, -1] = cases.margins(logits)
    return out


def golden(model: configs.GoldenModel, out: Path) -> None:
    start = time.time()
    net = hf.load(model)
    manifest = {
        "name": model.name,
        "purpose": model.purpose,
        "made_with": hf.versions(),
        "salt": model.salt,
        "rules": model.rules,
        "weight_dtype": model.weight_dtype,
        "scale_dtype": model.scale_dtype,
        "shard_bytes": min(model.shard_bytes, 1 << 40),
        "straddling_experts": checkpoint.straddling_experts(model),
        "config": configs.published_config(model),
        "shards": list(checkpoint.shard_digests(model, None)),
        "probes": cases.PROBES,
        "cases": [],
    }
    blob, offset = [], 0
    for case in cases.make(model, net):
        part = np.concatenate([record(case.logits).ravel(), case.logits[-1].astype("<f4")])
        manifest["cases"].append({
            "name": case.name, "tokens": case.tokens, "splits": case.splits, "prompt": case.prompt,
            "greedy": case.greedy, "offset": offset, "router_gap": round(case.router_gap, 7),
            "greedy_margin": round(case.greedy_margin, 6), "self_noise": float(f"{case.self_noise:.2e}"),
        })  # fmt: skip
        blob.append(part)
        offset += part.size
    (out / f"{model.name}.json").write_text(layout(manifest))
    np.concatenate(blob).tofile(out / f"{model.name}.bin")
    worst = max(c["self_noise"] for c in manifest["cases"])
    print(f"{model.name}: {len(blob)} cases, {offset * 4} bytes, transformers against itself {worst:.1e}, "
          f"{time.time() - start:.0f} s", flush=True)  # fmt: skip


def layout(manifest: dict) -> str:
    """One line per key, case and shard: small, and a diff shows what changed."""
    def value(v) -> str:
        if isinstance(v, list) and v and isinstance(v[0], dict):
            return "[\n  " + ",\n  ".join(json.dumps(x) for x in v) + "\n ]"
        return json.dumps(v)

    return "{\n " + ",\n ".join(f"{json.dumps(k)}: {value(v)}" for k, v in manifest.items()) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", action="append", help="name of a golden model; may be given several times")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "tests/golden/data")
    args = parser.parse_args()
    generator.self_check()
    hf.prepare()
    args.out.mkdir(parents=True, exist_ok=True)
    for model in configs.MODELS if not args.only else [configs.by_name(n) for n in args.only]:
        golden(model, args.out)


if __name__ == "__main__":
    main()
