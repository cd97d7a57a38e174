#!/usr/bin/env python3
"""Makes a routing trace (MTRC1, shared/traces/README.md) of a 512-expert, top-10, 48-layer model; needs numpy.

The recipe of shared/caching.md 6.4: the score of expert e for a token of a prompt is
a * log(heat + 1) + s_p * U_e(prompt) + s_1 * A_e(t) + s_2 * B_e(t) + s_i * noise, A and B Gaussian AR(1) with time
constants t1 and t2; the ten largest are chosen. Set "diverse" is calibrated to middling published hit rates (LRU of 49
slots per layer: 68 %), "local" to the better ones (74.6 %). No coupling between layers, no token ids: for caches, never
to judge a predictor.

    tools/routing/synthetic_trace.py local ../shared/traces/qwen3-next-80b_heat_coactivation.json OUT.mtrc [--seed 1]
"""

import argparse
import json
import struct

import numpy as np

SETS = {"diverse": dict(a=1.44, s_p=0.78, s_1=0.65, t1=69.6, s_2=2.77, t2=7.5, s_i=1.17),
        "local": dict(a=1.73, s_p=2.11, s_1=2.28, t1=34.1, s_2=2.72, t2=2.4, s_i=0.77)}
LAYERS, EXPERTS, TOP_K, PROMPTS, TOKENS = 48, 512, 10, 8, 400


def wandering(rng, time_constant):
    """AR(1) with unit variance, [token][expert]."""
    keep = np.exp(-1 / time_constant)
    fresh = np.sqrt(1 - keep * keep)
    out = np.empty((TOKENS, EXPERTS))
    out[0] = rng.standard_normal(EXPERTS)
    for t in range(1, TOKENS):
        out[t] = keep * out[t - 1] + fresh * rng.standard_normal(EXPERTS)
    return out


def prompt(rng, heat, p):
    score = p["a"] * np.log(heat + 1) + p["s_p"] * rng.standard_normal(EXPERTS)
    score = score + p["s_1"] * wandering(rng, p["t1"]) + p["s_2"] * wandering(rng, p["t2"])
    score += p["s_i"] * rng.standard_normal((TOKENS, EXPERTS))
    return np.argpartition(-score, TOP_K, axis=1)[:, :TOP_K]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("heat")
    parser.add_argument("out")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    layers = json.load(open(args.heat))["layers"]
    rng = np.random.default_rng(args.seed)
    ids = np.empty((PROMPTS * TOKENS, LAYERS, TOP_K), np.uint16)
    for layer in range(LAYERS):
        heat = np.asarray(layers[layer]["heat"], float)
        for p in range(PROMPTS):
            ids[p * TOKENS:(p + 1) * TOKENS, layer] = prompt(rng, heat, SETS[args.set])
    with open(args.out, "wb") as out:
        out.write(struct.pack("<8s5I", b"MTRC1", LAYERS, EXPERTS, TOP_K, len(ids), PROMPTS))
        out.write(struct.pack(f"<{PROMPTS}I", *range(0, len(ids), TOKENS)))
        out.write(ids.tobytes())


if __name__ == "__main__":
    main()
