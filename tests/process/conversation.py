#!/usr/bin/env python3
"""A conversation of several turns: each goes on from the state of the one before, bit for bit as if computed anew.

Where its last answer comes back as other tokens, it goes on from the end of the prompt before.
"""

import hashlib
import os
import random
import sys

import harness
from cli_rig import Rig
from harness import Stack, expect

TURNS = 2 if "STOKER_TEST_SANITIZER" in os.environ else 4


def talk(stack, work, rand, prompt=200, answer=40, turns=TURNS, edit=False):
    """What each turn said, a hash of its logits, and how much of its prompt was there already."""
    ids, said = [], []
    for turn in range(turns):
        ids += [rand.randrange(5, 400) for _ in range(prompt if turn == 0 else 30)]
        if edit and turn > 0:
            ids[said[-1][3] + 1] ^= 1  # within the last answer
        logits = work / "logits.bin"
        told = stack.ask("--tokens", ",".join(map(str, ids)), "--temperature", 0.8, "--seed", 7 + turn, "-n", answer,
                         "--ignore-eos", "--logits-out", logits)
        said.append((told["tokens"], hashlib.sha256(logits.read_bytes()).hexdigest(), told["stats"]["cached_tokens"], len(ids)))
        ids += told["tokens"]
    return said


def compare(kept, fresh, answer, edit=False):
    for turn, (one, other) in enumerate(zip(kept, fresh)):
        expect(one[:2] == other[:2], f"turn {turn} is another one than without kept sequences")
        expect(other[2] == 0, f"turn {turn} took {other[2]} tokens from somewhere")
        # The last token of an answer has not been through the model.
        want = 0 if turn == 0 else kept[turn - 1][3] + (-1 if edit else answer - 1)
        expect(one[2] == want, f"turn {turn} computed all but {one[2]} tokens; {want} were there")


def test(args, work):
    model = Rig(args.bin, work).model("model")
    said = {}
    for name, options in (("kept", []), ("fresh", ["--kept-sequences", "0"])):
        stack = Stack(args.bin, model, work, extra_worker=options).start_all()
        try:
            said[name] = talk(stack, work, random.Random(args.seed))
            status = stack.status()
            expect((status["memory"]["sequences_kept"] > 0) == (name == "kept"), f"{name}: {status['memory']}")
            expect(status["tokens"]["prompt_cached"] == sum(turn[2] for turn in said[name]), f"{name}: {status['tokens']}")
            # Back over the end of a block of 256 positions.
            said[name, "edited"] = talk(stack, work, random.Random(args.seed + 1), prompt=240, edit=True)
            expect(stack.status()["memory"]["sequence_reserved_bytes"] == 0, "memory is still reserved")
        finally:
            stack.stop()
    compare(said["kept"], said["fresh"], 40)
    compare(said["kept", "edited"], said["fresh", "edited"], 40, edit=True)

    # A new worker has nothing kept, and gives the same answer.
    stack = Stack(args.bin, model, work).start_all()
    try:
        first = talk(stack, work, random.Random(args.seed), turns=2)
        stack.kill("worker")
        stack.revive()
        stack.wait_ready()
        again = talk(stack, work, random.Random(args.seed), turns=1)
        expect(again[0] == first[0] == said["kept"][0], "the answer after a restart is another one")
    finally:
        stack.stop()
    print(f"{TURNS} turns, {sum(turn[2] for turn in said['kept'])} tokens not computed again, the same bits", flush=True)


if __name__ == "__main__":
    sys.exit(harness.main(test))
