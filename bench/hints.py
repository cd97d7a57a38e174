#!/usr/bin/env python3
"""Are hints worth it? Decode with hints on and off, interleaved, same forced tokens, fresh private stacks.

"Off" is a stack without predictor whose worker does not look ahead either. Prints three Markdown tables: wall time and
stall (median, min-max, and the median of the pairs' ratios); what was read; and the predictor's own score (recall on
experts that were not resident at 10, 16, 24 guesses, precision, state). Standard library only.

    bench/hints.py --bin build/release/bin --model DIR [--ids FILE | --text FILE] [--fractions 0.12,0.25]
                   [--tokens 64] [--warm 96] [--repeats 5] [--hints on|auto|off] [--json FILE]

--ids: token ids to decode, separated by commas (default: routing_tokens.txt of a synthetic checkpoint);
--hints auto: as shipped, where the first 256 steps are a trial; give --warm 300 or more. Default on: always.
--hints off: the predictor runs and learns but sends nothing: what the machinery alone costs.
--text: a text, tokenised with the model's own tokenizer. For models/demo: --text models/demo/heldout.txt.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from out_of_core import decode, spread

OFF = ("--predictor-samples=false",)


def token_ids(args, model):
    if args.text:
        done = subprocess.run([f"{args.bin}/stoker", "tokenize", model, "-"], input=pathlib.Path(args.text).read_bytes(),
                              capture_output=True, check=True)
        text = done.stdout.decode()
    else:
        text = pathlib.Path(args.ids or model / "routing_tokens.txt").read_text()
    ids = [int(x) for x in text.replace(",", " ").split()]
    if len(ids) < args.warm + args.tokens:
        sys.exit(f"{len(ids)} token ids, {args.warm + args.tokens} are needed")
    return ids


def measure(args, model, config, ids, fraction, work):
    runs = {True: [], False: []}
    for repeat in range(args.repeats):
        for on in ((True, False) if repeat % 2 == 0 else (False, True)):
            args.no_predictor = not on
            result = decode(args, fraction, ids, work, config, () if on else OFF, settle=1.5)
            runs[on].append(result)
            if args.json:
                with open(args.json, "a") as out:
                    out.write(json.dumps({"fraction": fraction, "on": on, **result}) + "\n")
        print(f"# {time.strftime('%H:%M:%S')} pool {fraction:.0%} pair {repeat + 1}: "
              f"{runs[True][-1]['seconds']:.2f} s on, {runs[False][-1]['seconds']:.2f} s off", file=sys.stderr, flush=True)
    return runs


def both(runs, value, unit=1.0, digits=2, after=""):
    return " | ".join(spread([value(r) for r in runs[on]], unit, digits) + after for on in (True, False))


def print_times(results):
    print("| pool | wall s, hints on | off | on / off | stall s, on | off | tokens/s, on | off |\n|---|---|---|---|---|---|---|---|")
    for fraction, runs in results.items():
        ratio = [a["seconds"] / b["seconds"] for a, b in zip(runs[True], runs[False])]
        print(f"| {fraction:.1%} | {both(runs, lambda r: r['seconds'])} | {spread(ratio, 1, 3)} | "
              f"{both(runs, lambda r: r['stall_seconds'], 1, 3)} | {both(runs, lambda r: r['tokens_per_s'])} |")


def print_reads(results):
    print("\n| pool | found in the pool, on | off | MB/token, on | off | hinted reads | used | joined late | wasted | "
          "wasted bytes per useful byte | bytes, on / off |\n|---|---|---|---|---|---|---|---|---|---|---|")
    for fraction, runs in results.items():
        on = runs[True]

        def mid(value):
            return statistics.median(value(r) for r in on)
        useful = max(1, mid(lambda r: r["used"]["pool_hinted"] + r["used"]["disk_late_hint"]))
        ratio = [a["bytes_per_token"] / b["bytes_per_token"] for a, b in zip(on, runs[False])]
        print(f"| {fraction:.1%} | {both(runs, lambda r: r['hit'], 0.01, 1, ' %')} | "
              f"{both(runs, lambda r: r['bytes_per_token'], 1e6)} | {mid(lambda r: r['delta']['hints_issued']):.0f} | "
              f"{mid(lambda r: r['used']['pool_hinted']):.0f} | {mid(lambda r: r['used']['disk_late_hint']):.0f} | "
              f"{mid(lambda r: r['delta']['hints_wasted']):.0f} | "
              f"{mid(lambda r: r['delta']['hints_wasted']) / useful:.2f} | {spread(ratio, 1, 2)} |")


def print_scores(results):
    print("\n| pool | recall on non-resident experts at 10 / 16 / 24: next layer | layers ahead | precision | state | "
          "demands keep the disk busy | threshold |\n|---|---|---|---|---|---|---|")
    for fraction, runs in results.items():
        scores = [r["predictor"] for r in runs[True] if r["predictor"]]
        if not scores:
            continue

        def recall(kind):
            return " / ".join(f"{100 * statistics.median(s[kind][f'cold_recall_{n}'] for s in scores):.1f}"
                              for n in (10, 16, 24)) + " %"
        states = sorted({s["state"] for s in scores})
        print(f"| {fraction:.1%} | {recall('near')} | {recall('far')} | "
              f"{100 * statistics.median(s['near']['precision'] for s in scores):.1f} % | {', '.join(states)} | "
              f"{100 * statistics.median(s['demand_busy'] for s in scores):.0f} % | "
              f"{statistics.median(s['threshold'] for s in scores):.2f} |")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", default="build/release/bin")
    p.add_argument("--model", required=True)
    p.add_argument("--ids")
    p.add_argument("--text")
    p.add_argument("--fractions", default="0.12,0.25")
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--warm", type=int, default=96)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--hints", choices=("on", "auto", "off"), default="on")
    p.add_argument("--json", help="also append raw results to this file, one line per run")
    args = p.parse_args()
    os.environ["STOKER_PREDICTOR_HINTS"] = args.hints
    model = pathlib.Path(args.model)
    config = json.loads((model / "config.json").read_text())
    ids = token_ids(args, model)
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as work:
        results = {f: measure(args, model, config, ids, f, pathlib.Path(work))
                   for f in (float(x) for x in args.fractions.split(","))}
    print(f"{args.repeats} interleaved pairs, {args.tokens} forced tokens after {args.warm}, hints {args.hints}; median (min-max); "
          "recall and precision include the warming up\n")
    print_times(results)
    print_reads(results)
    print_scores(results)


if __name__ == "__main__":
    main()
