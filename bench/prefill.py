#!/usr/bin/env python3
"""Long prompts: how far prefill is from its limit, and what it does to the decode working set.

The limit of a prefill is the larger of two times, measured in the same repeat: one pass over all experts at the disk's
raw bandwidth, and the arithmetic at the rate of a packaged sgemm (OpenBLAS, all threads) of the same shapes: dense
matrices with a chunk of rows, experts with the rows that a chunk gives each on average. Attention and the delta rule
are not in it, nor is turning FP8 into floats.

Then the working set: two private stacks decode the same forced ids; one of them computes a prompt of the longest
length in between. "Found in the pool" of the ids after it, and their difference in points. Standard library and
libopenblas.so.0 (Debian: libopenblas0-pthread).

    bench/prefill.py --bin build/release/bin --model DIR [--tokens 1024,4096] [--fraction 0.12] [--repeats 5]
"""

import argparse
import array
import ctypes
import os
import pathlib
import sys
import tempfile
import time

from out_of_core import open_model, raw_bandwidth, spread
from harness import Stack  # noqa: E402  (out_of_core adds its folder to the path)


class Sgemm:
    """y[rows, n] = x[rows, k] * W[n, k]^T in a packaged library."""

    def __init__(self):
        try:
            self.lib = ctypes.CDLL("libopenblas.so.0")
        except OSError:
            sys.exit("libopenblas.so.0 is missing; apt-get install libopenblas0-pthread")
        self.lib.openblas_set_num_threads(os.cpu_count())

    def seconds(self, rows, n, k):
        """Of one product; median of at least five, after one that is not counted."""
        floats = [(ctypes.c_float * size).from_buffer(array.array("f", [0.5]) * size) for size in (rows * k, n * k, rows * n)]
        times, begin = [], time.perf_counter()
        while len(times) < 6 or time.perf_counter() - begin < 0.2:
            start = time.perf_counter()
            # CblasRowMajor, no transpose, transpose
            self.lib.cblas_sgemm(101, 111, 112, rows, n, k, ctypes.c_float(1), floats[0], k, floats[1], k,
                                 ctypes.c_float(0), floats[2], n)
            times.append(time.perf_counter() - start)
        return sorted(times[1:])[len(times[1:]) // 2]


def matrices(c):
    """(count in the model, n, k) of the dense matrices, and of the experts' three."""
    hidden, layers = c["hidden_size"], c["num_hidden_layers"]
    full = c["layer_types"].count("full_attention")
    keys = c["linear_num_key_heads"] * c["linear_key_head_dim"]
    values = c["linear_num_value_heads"] * c["linear_value_head_dim"]
    heads, kv, width = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    shared = c["shared_expert_intermediate_size"]
    dense = [(layers - full, 2 * keys + 2 * values, hidden), (layers - full, 2 * c["linear_num_value_heads"], hidden),
             (layers - full, hidden, values), (full, 2 * heads * width, hidden), (2 * full, kv * width, hidden),
             (full, hidden, heads * width), (layers, c["num_experts"], hidden), (2 * layers, shared, hidden),
             (layers, hidden, shared)]
    inner = c["moe_intermediate_size"]
    return dense, [(2, inner, hidden), (1, hidden, inner)]


def sgemm_seconds(sgemm, config, tokens, chunk):
    """The arithmetic of `tokens` in chunks, at the library's rate; dense and experts apart."""
    dense, expert = matrices(config)
    rows = min(tokens, chunk)
    chunks = tokens / rows
    each = max(1, round(rows * config["num_experts_per_tok"] / config["num_experts"]))
    experts = config["num_hidden_layers"] * config["num_experts"]
    return (chunks * sum(count * sgemm.seconds(rows, n, k) for count, n, k in dense),
            chunks * experts * sum(count * sgemm.seconds(each, n, k) for count, n, k in expert))


def found(before, after):
    used = {k: after["experts"][k] - before["experts"][k] for k in ("pool", "pool_hinted", "disk", "disk_late_hint")}
    return 100 * (used["pool"] + used["pool_hinted"]) / sum(used.values())


def one_stack(args, config, ids, work, prompt):
    """(prefill seconds or 0, share found in the pool before, after)."""
    slots = int(args.fraction * config["num_hidden_layers"] * config["num_experts"])
    stack = Stack(args.bin, args.model, work, slots=slots, extra_worker=("--kept-sequences", "0")).start_all(timeout=1800)
    try:
        def decode(first, count):
            forced = work / "forced.txt"
            forced.write_text(",".join(map(str, ids[first + 4:first + 4 + count])))
            before = stack.status()
            stack.ask("--tokens", ",".join(map(str, ids[first:first + 4])), "--forced", forced, timeout=3600)
            return found(before, stack.status())
        decode(0, args.warm)
        earlier = decode(args.warm, args.decode)
        took = 0
        if prompt:
            stats = stack.ask("--tokens", ",".join(map(str, prompt)), "--max-tokens", 1, timeout=3600)["stats"]
            took = stats["prefill_seconds"]
        return took, earlier, decode(args.warm + args.decode, args.decode)
    finally:
        stack.stop()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", default="build/release/bin")
    p.add_argument("--model", required=True)
    p.add_argument("--tokens", default="1024,4096")
    p.add_argument("--chunk", type=int, default=1024, help="rows per step of the worker (its default)")
    p.add_argument("--fraction", type=float, default=0.12)
    p.add_argument("--decode", type=int, default=64)
    p.add_argument("--warm", type=int, default=96)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--raw-seconds", type=float, default=0.5)
    args = p.parse_args()
    model = pathlib.Path(args.model)
    config, ids = open_model(model)
    args.expert_bytes = 3 * config["hidden_size"] * config["moe_intermediate_size"]
    lengths = sorted(int(x) for x in args.tokens.split(","))
    text = args.warm + 2 * args.decode + 8
    if len(ids) < text + lengths[-1]:
        sys.exit(f"routing_tokens.txt has {len(ids)} ids, {text + lengths[-1]} are needed")
    sgemm = Sgemm()
    runs = {n: [] for n in lengths}
    sets = []
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as work:
        for repeat in range(args.repeats):
            for n in lengths:
                experts = config["num_hidden_layers"] * config["num_experts"] * args.expert_bytes
                once = experts / raw_bandwidth(args)
                dense, sparse = sgemm_seconds(sgemm, config, n, args.chunk)
                took, before, after = one_stack(args, config, ids, pathlib.Path(work), ids[-n:])
                runs[n].append({"took": took, "pass": once, "dense": dense, "sparse": sparse,
                                "share": 100 * max(once, dense + sparse) / took})
                print(f"# {time.strftime('%H:%M:%S')} repeat {repeat + 1}, {n} tokens: {took:.1f} s, one pass {runs[n][-1]['pass']:.1f} s, "
                      f"sgemm {dense:.1f} + {sparse:.1f} s", file=sys.stderr, flush=True)
                if n == lengths[-1]:
                    control = one_stack(args, config, ids, pathlib.Path(work), None)[2]
                    sets.append((before, after, control))
                    print(f"#   found in the pool: {before:.1f} % before, {after:.1f} % after, {control:.1f} % without it",
                          file=sys.stderr, flush=True)
    print(f"{args.repeats} repeats, pool of {args.fraction:.0%}, {os.cpu_count()} cores; median (min-max)\n")
    print("| tokens | seconds | tokens/s | one pass over the experts, s | sgemm: dense, s | experts, s | share of the limit, % |")
    print("|---|---|---|---|---|---|---|")
    for n in lengths:
        r = runs[n]
        print(f"| {n} | {spread([x['took'] for x in r], 1, 1)} | {spread([n / x['took'] for x in r], 1, 1)} | "
              f"{spread([x['pass'] for x in r], 1, 1)} | {spread([x['dense'] for x in r], 1, 1)} | "
              f"{spread([x['sparse'] for x in r], 1, 1)} | {spread([x['share'] for x in r], 1, 0)} |")
    print(f"\n| decode, {args.decode} tokens: found in the pool, % | before | right after {lengths[-1]} tokens of prompt | the same ids without it | difference, points |")
    print("|---|---|---|---|---|")
    print(f"| | {spread([s[0] for s in sets], 1, 1)} | {spread([s[1] for s in sets], 1, 1)} | {spread([s[2] for s in sets], 1, 1)} | "
          f"{spread([s[1] - s[2] for s in sets], 1, 1)} |")


if __name__ == "__main__":
    main()
