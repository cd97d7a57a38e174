#!/usr/bin/env python3
"""Turns of a conversation: seconds to the first token with and without the state of earlier turns.

Each repeat, interleaved: a private stack per variant (kept sequences on, off), and in it, with --answer forced ids each:

    first turn    --prompt recorded ids
    second turn   all that was before and --more new ids
    edited        the same again, but the last answer has come back as other ids
    again         the same prompt once more

Markdown table: median (min-max). Standard library only.

    bench/conversation.py --bin build/release/bin --model DIR [--slots 737] [--prompt 1000] [--answer 32] [--more 100]
                          [--repeats 5]
"""

import argparse
import pathlib
import sys
import tempfile

from out_of_core import open_model, spread
from harness import Stack, expect  # out_of_core has put it on the path

VARIANTS = {"kept": [], "anew": ["--kept-sequences", "0"]}


def turns(args, ids, work, options):
    """Seconds to the first token, by turn."""
    stack = Stack(args.bin, args.model, work, slots=args.slots, extra_worker=options).start_all(timeout=1800)
    try:
        def turn(prompt, answer, cached):
            forced = work / "forced.txt"
            forced.write_text(",".join(map(str, answer)))
            stats = stack.ask("--tokens", ",".join(map(str, prompt)), "--forced", forced, timeout=1800)["stats"]
            want = 0 if options else cached
            expect(stats["cached_tokens"] == want, f"{stats['cached_tokens']} cached tokens, not {want}, with {options}")
            return stats["ttft_seconds"]

        rest = iter(ids)

        def some(count):
            return [next(rest) for _ in range(count)]

        first, said = some(args.prompt), some(args.answer)
        second = first + said + some(args.more)
        edited = second + some(args.answer) + some(args.more)
        return {"first turn": turn(first, said, 0),
                "second turn": turn(second, some(args.answer), len(first) + len(said) - 1),
                "edited": turn(edited, some(args.answer), len(second) - 1),
                "again": turn(edited, some(args.answer), len(edited) - 1)}
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
    seconds = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as work:
        for repeat in range(args.repeats):
            for name in list(VARIANTS)[::1 if repeat % 2 == 0 else -1]:
                seconds[name].append(turns(args, ids, pathlib.Path(work), VARIANTS[name]))
                print(f"{name}: {seconds[name][-1]}", file=sys.stderr, flush=True)

    print("| turn | seconds to the first token, kept | computed anew | ratio, in the same repeat |\n|---|---|---|---|")
    for turn in seconds["kept"][0]:
        kept, anew = ([run[turn] for run in seconds[name]] for name in VARIANTS)
        print(f"| {turn} | {spread(kept)} | {spread(anew)} | {spread([b / a for a, b in zip(kept, anew)])} |")


if __name__ == "__main__":
    main()
