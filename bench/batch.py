#!/usr/bin/env python3
"""Several sequences at once: aggregate tokens/s and bytes per token for 1, 2, 4, 8 clients of one stack.

Each client decodes its own stretch of forced token ids; a step takes one token of each, and every distinct expert of
the step is read once. Tokens/s = tokens / time the worker spent in decode steps. For each repeat all counts in turn,
each in a fresh private stack. Prints one Markdown row per count: median (min-max). Standard library only.

    bench/batch.py --bin build/release/bin --model DIR [--sequences 1,2,4,8] [--fraction 0.25] [--tokens 64] [--repeats 5]
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time

from out_of_core import counters, open_model, spread
from harness import Stack  # noqa: E402  (out_of_core adds its folder to the path)


def decode(args, count, ids, work, config):
    slots = int(args.fraction * config["num_hidden_layers"] * config["num_experts"])
    stack = Stack(args.bin, args.model, work, slots=slots, extra_worker=("--kept-sequences", "0")).start_all(timeout=1800)
    try:
        def client(prompt, tokens, name):
            forced = work / f"forced-{name}.txt"
            forced.write_text(",".join(map(str, tokens)))
            return stack.client("--tokens", ",".join(map(str, prompt)), "--forced", forced)

        def together(first, tokens):
            # Stretches far apart: other topics, so the sequences share what strangers share.
            stride = len(ids) // count
            clients = [client(ids[i * stride + first:i * stride + first + 4],
                              ids[i * stride + first + 4:i * stride + first + 4 + tokens], i) for i in range(count)]
            for c in clients:
                out, err = c.communicate(timeout=3600)
                if c.returncode != 0:
                    sys.exit(f"run ended with {c.returncode}: {err.decode()}")
                yield json.loads(out)["stats"]

        list(together(0, args.warm))
        before = stack.status()
        stats = list(together(args.warm, args.tokens))
        after = stack.status()
        totals = {k: after["tokens"][k] - before["tokens"][k] for k in ("decode_steps", "decode_seconds")}
        tokens = sum(s["generated_tokens"] - 1 for s in stats)
        loaded = counters(after)["read_bytes"] - counters(before)["read_bytes"]
        return {"tokens_per_s": tokens / totals["decode_seconds"], "per_step": tokens / totals["decode_steps"],
                "bytes_per_token": loaded / tokens,
                "slowest": min(s["tokens_per_second"] for s in stats)}
    finally:
        stack.stop()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", default="build/release/bin")
    p.add_argument("--model", required=True)
    p.add_argument("--sequences", default="1,2,4,8")
    p.add_argument("--fraction", type=float, default=0.25)
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--warm", type=int, default=48)
    p.add_argument("--repeats", type=int, default=5)
    args = p.parse_args()
    model = pathlib.Path(args.model)
    config, ids = open_model(model)
    counts = [int(x) for x in args.sequences.split(",")]
    runs = {c: [] for c in counts}
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as work:
        for repeat in range(args.repeats):
            for count in counts:
                runs[count].append(decode(args, count, ids, pathlib.Path(work), config))
                print(f"# {time.strftime('%H:%M:%S')} repeat {repeat + 1}, {count} sequences: "
                      f"{runs[count][-1]['tokens_per_s']:.2f} tokens/s", file=sys.stderr, flush=True)
    print(f"{args.repeats} interleaved repeats, pool of {args.fraction:.0%}, {args.tokens} forced tokens per sequence after "
          f"{args.warm}; median (min-max)\n")
    print("| sequences | tokens per step | tokens/s, all | tokens/s, slowest sequence | MB read per token |")
    print("|---|---|---|---|---|")
    for c in counts:
        r = runs[c]
        print(f"| {c} | {spread([x['per_step'] for x in r])} | {spread([x['tokens_per_s'] for x in r])} | "
              f"{spread([x['slowest'] for x in r])} | {spread([x['bytes_per_token'] for x in r], 1e6, 0)} |")


if __name__ == "__main__":
    main()
