#!/usr/bin/env python3
"""Start and decode of a checkpoint of the full published size with a small pool: does it fit, and how long does it take?

For each repeat, in a fresh stack: seconds from the start of the daemons until a client is answered (cold page cache for
the resident weights: they are read with O_DIRECT), then one decode run with forced token ids. Prints one Markdown table:
median (min-max) of start-up seconds, tokens/s, time to first token, and memory: pool, resident weights, peak of all
three processes (proportional set size, so shared memory counts once). Standard library only.

    bench/full_size.py --bin build/release/bin --model DIR [--pool-gib 2] [--tokens 16] [--repeats 5]
"""

import argparse
import json
import pathlib
import tempfile
import time

from out_of_core import PeakMemory, spread
from harness import Stack  # noqa: E402  (out_of_core sets the path)


def one(args, slots, ids, work):
    started = time.monotonic()
    stack = Stack(args.bin, args.model, work, slots=slots, extra_worker=("--kept-sequences", "0")).start_all(timeout=1800)
    ready = time.monotonic() - started
    memory = PeakMemory([p.pid for p in stack.processes.values()])
    memory.start()
    try:
        forced = work / "forced.txt"
        forced.write_text(",".join(map(str, ids[4:4 + args.tokens])))
        answer = stack.ask("--tokens", ",".join(map(str, ids[:4])), "--forced", forced, timeout=3600)
        status = stack.status()
    finally:
        peak = memory.stop()
        stack.stop()
    stats = answer["stats"]
    return {"ready": ready, "tokens_per_s": (stats["generated_tokens"] - 1) / stats["decode_seconds"],
            "first": stats["prefill_seconds"], "peak": peak, "pool": status["pool"]["bytes"],
            "weights": status["memory"]["weights_bytes"]}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", default="build/release/bin")
    p.add_argument("--model", required=True)
    p.add_argument("--pool-gib", type=float, default=2)
    p.add_argument("--tokens", type=int, default=16)
    p.add_argument("--repeats", type=int, default=5)
    args = p.parse_args()
    config = json.loads((pathlib.Path(args.model) / "config.json").read_text())
    expert_bytes = 3 * config["hidden_size"] * config["moe_intermediate_size"]
    slots = int(args.pool_gib * 2**30) // (expert_bytes + 3 * 4096)  # an unaligned part may need a page more
    ids = [int(x) for x in (pathlib.Path(args.model) / "routing_tokens.txt").read_text().replace(",", " ").split()]
    runs = []
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as work:
        for _ in range(args.repeats):
            runs.append(one(args, slots, ids, pathlib.Path(work)))
            print(f"# {runs[-1]}", flush=True)
    print(f"{args.repeats} repeats, {args.tokens} forced tokens after a prompt of 4; median (min-max)\n")
    print("| start to first answer, s | tokens/s | time to first token, s | pool GiB | resident weights GiB | "
          "peak memory of all processes GiB |\n|---|---|---|---|---|---|")
    print("| " + " | ".join([spread([r["ready"] for r in runs], 1, 1), spread([r["tokens_per_s"] for r in runs]),
                             spread([r["first"] for r in runs]), spread([r["pool"] for r in runs], 2**30),
                             spread([r["weights"] for r in runs], 2**30), spread([r["peak"] for r in runs], 2**30)]) + " |")


if __name__ == "__main__":
    main()
