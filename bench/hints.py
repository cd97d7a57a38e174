#!/usr/bin/env python3
"""Are hints worth it? Decode with the predictor on and off, interleaved, same forced tokens, fresh private stacks.

Prints one Markdown row per pool size: tokens/s with and without (median, min-max), the median of the pairs' ratios,
share of time that compute waited, MB read per token, and the predictor's own score (precision; recall on experts that
were not resident; hinted reads that were wasted). Standard library only.

    bench/hints.py --bin build/release/bin --model DIR [--ids FILE] [--fractions 0.12,0.25] [--tokens 64] [--repeats 5]

--ids: token ids to decode, separated by commas (default: routing_tokens.txt of a synthetic checkpoint).
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time

from out_of_core import decode, spread


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", default="build/release/bin")
    p.add_argument("--model", required=True)
    p.add_argument("--ids")
    p.add_argument("--fractions", default="0.12,0.25")
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--warm", type=int, default=96)
    p.add_argument("--repeats", type=int, default=5)
    args = p.parse_args()
    model = pathlib.Path(args.model)
    config = json.loads((model / "config.json").read_text())
    text = pathlib.Path(args.ids or model / "routing_tokens.txt").read_text()
    ids = [int(x) for x in text.replace(",", " ").split()]
    if len(ids) < args.warm + args.tokens:
        sys.exit(f"{len(ids)} token ids, {args.warm + args.tokens} are needed")
    print(f"{args.repeats} interleaved pairs, {args.tokens} forced tokens after {args.warm}; median (min-max)\n")
    print("| pool | tokens/s, hints on | off | on / off | waited, on | off | MB/token, on | off | pool hits, on | off | "
          "hinted reads | wasted |\n|---|---|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as work:
        for fraction in (float(f) for f in args.fractions.split(",")):
            runs = {True: [], False: []}
            for repeat in range(args.repeats):
                for on in ((True, False) if repeat % 2 == 0 else (False, True)):
                    args.no_predictor = not on
                    runs[on].append(decode(args, fraction, ids, pathlib.Path(work), config))
                print(f"# {time.strftime('%H:%M:%S')} pool {fraction:.0%} pair {repeat + 1}: "
                      f"{runs[True][-1]['tokens_per_s']:.2f} on, {runs[False][-1]['tokens_per_s']:.2f} off",
                      file=sys.stderr, flush=True)
            on, off = runs[True], runs[False]
            ratio = [a["tokens_per_s"] / b["tokens_per_s"] for a, b in zip(on, off)]

            def both(key, unit=1.0, digits=2, after=""):
                return " | ".join(spread([r[key] for r in side], unit, digits) + after for side in (on, off))
            print(f"| {fraction:.0%} | {both('tokens_per_s')} | {spread(ratio, 1, 3)} | {both('stall_share', 0.01, 0, ' %')} | "
                  f"{both('bytes_per_token', 1e6)} | {both('hit', 0.01, 1, ' %')} | "
                  f"{statistics.median(r['hints_issued'] for r in on):.0f} | "
                  f"{statistics.median(r['hints_wasted'] for r in on):.0f} |", flush=True)


if __name__ == "__main__":
    main()
