#!/usr/bin/env python3
"""What it saves that the beginning of conversations is kept: new conversations with one long system message, by HTTP, with and
without `--kept-sequences`, in turns. On the demo model, whose prompts take milliseconds: the ratio is what carries over.

usage: bench/beginnings.py --bin build/release/bin [--repeats 7]"""

import argparse
import pathlib
import sys
import tempfile

from out_of_core import spread

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests/process"))
from gateway import MODEL, Gateway  # noqa: E402
from harness import Stack  # noqa: E402

SYSTEM = "You write Python. " + " ".join(f"Rule {i}: name things well and test what you write." for i in range(130))


def first_token(gateway, question):
    """Milliseconds to the first token, prompt tokens, and how many of them were not computed."""
    answer = gateway.ok("/v1/chat/completions", {"max_tokens": 2, "temperature": 0, "messages": [
        {"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]})
    usage = answer["usage"]
    return answer["timings"]["ttft_ms"], usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        stacks = [Stack(args.bin, MODEL, work, slots=300, extra_worker=["--kept-sequences", str(kept)]).start_all() for kept in (8, 0)]
        gateways = [Gateway(stack) for stack in stacks]
        try:
            # Cold experts, then the conversation that makes the beginning known.
            early = [first_token(gateways[0], f"Question {i}?") for i in range(2)]
            for i in range(2):
                first_token(gateways[1], f"Question {i}?")
            pairs = [[first_token(gateway, f"Write function {i}.") for gateway in gateways] for i in range(args.repeats)]
        finally:
            for gateway, stack in zip(gateways, stacks):
                gateway.stop()
                stack.stop()
    print(f"prompt: {pairs[0][0][1]} tokens, of which kept: {pairs[0][0][2]}")
    print(f"first token, ms: {spread([kept[0] for kept, _ in pairs])} with its beginning kept, "
          f"{spread([anew[0] for _, anew in pairs])} computed anew; "
          f"the second such conversation, which keeps it: {early[1][0]:.1f}")
    print(f"ratio: {spread([anew[0] / kept[0] for kept, anew in pairs])}")


if __name__ == "__main__":
    main()
