#!/usr/bin/env python3
"""The second turn of a conversation: seconds to its first token with and without the state of the first turn.

Each repeat, interleaved and in turns first: a private stack per variant (kept sequences on, off), one turn of --prompt
recorded ids and --answer forced ones, then all of these ids and --more new ones. Markdown table: median (min-max).
Standard library only.

    bench/conversation.py --bin build/release/bin --model DIR [--slots 737] [--prompt 1000] [--answer 32] [--more 100]
                          [--repeats 5]
"""

import argparse
import pathlib
import statistics
import sys
import tempfile

from out_of_core import open_model
from harness import Stack, expect  # out_of_core has put it on the path

VARIANTS = {"kept": [], "computed again": ["--kept-sequences", "0"]}


def second_turn(args, ids, work, options):
    stack = Stack(args.bin, args.model, work, slots=args.slots, extra_worker=options).start_all(timeout=1800)
    try:
        def turn(prompt, answer):
            forced = work / "forced.txt"
            forced.write_text(",".join(map(str, answer)))
            return stack.ask("--tokens", ",".join(map(str, prompt)), "--forced", forced, timeout=1800)["stats"]

        first = ids[:args.prompt + args.answer]
        turn(first[:args.prompt], first[args.prompt:])
        stats = turn(ids[:len(first) + args.more], ids[len(first) + args.more:][:2])
        expect((stats["cached_tokens"] > 0) == (not options), f"cached {stats['cached_tokens']} tokens with {options}")
        return stats["ttft_seconds"]
    finally:
        stack.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True)
    parser.add_argument("--model", required=True, type=pathlib.Path)
    for name, default in (("slots", 737), ("prompt", 1000), ("answer", 32), ("more", 100), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    _, ids = open_model(args.model)
    need = args.prompt + args.answer + args.more + 2
    expect(len(ids) >= need, f"{args.model} has {len(ids)} recorded ids, {need} are needed")
    seconds = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as work:
        for repeat in range(args.repeats):
            for name in list(VARIANTS)[::1 if repeat % 2 == 0 else -1]:
                seconds[name].append(second_turn(args, ids, pathlib.Path(work), VARIANTS[name]))
                print(f"{name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)

    def spread(values, digits):
        return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"

    print("| second turn | seconds to the first token |\n|---|---|")
    for name, values in seconds.items():
        print(f"| {name} | {spread(values, 2)} |")
    print(f"| ratio, in the same repeat | {spread([b / a for a, b in zip(*seconds.values())], 1)} |")


if __name__ == "__main__":
    main()
