#!/usr/bin/env python3
"""Two answers that outgrow the memory together: the later one gives way, goes on later, and says the same as alone."""

import json
import random
import sys

import harness
from cli_rig import Rig, wait_for
from harness import Stack, expect

PROMPT = 250
TOKENS = 1040  # with the prompt one block of positions more than what is reserved as a request begins


def ask(stack, prompt):
    return stack.client("--tokens", ",".join(map(str, prompt)), "--temperature", 0, "--max-tokens", TOKENS, "--ignore-eos")


def tokens_of(client):
    out, err = client.communicate(timeout=600)
    expect(client.returncode == 0, f"run ended with {client.returncode}: {err.decode()}")
    return json.loads(out)["tokens"]


def test(args, work):
    model = Rig(args.bin, work).model("model", "--context", 4096)
    random.seed(args.seed)
    prompts = [[random.randrange(5, 400) for _ in range(PROMPT)] for _ in range(2)]
    # Nothing kept, hence no marks: what is reserved is what two answers need.
    roomy = Stack(args.bin, model, work, predictor=False, extra_worker=["--kept-sequences", "0"]).start_all()
    try:
        clients = [ask(roomy, prompts[0])]
        wait_for("the first token", lambda: roomy.status()["requests"]["decoding"] == 1)
        reserved = roomy.status()["memory"]["sequence_reserved_bytes"]
        clients.append(ask(roomy, prompts[1]))
        want = [tokens_of(c) for c in clients]
        expect(roomy.status()["requests"]["gave_way"] == 0, "somebody gave way although there was room")
    finally:
        roomy.stop()

    tight = Stack(args.bin, model, work, predictor=False,
                  extra_worker=["--sequence-memory", str(2 * reserved + 1)]).start_all()
    try:
        got = [tokens_of(c) for c in [ask(tight, p) for p in prompts]]
        status = tight.status()
        expect(status["requests"]["gave_way"] > 0, f"nobody gave way: {status['requests']}")
        expect(got == want, "an answer that gave way is another one than with room for both")
        expect(status["memory"]["sequence_reserved_bytes"] == 0, "memory is still reserved")
    finally:
        tight.stop()
    print(f"gave way {status['requests']['gave_way']} times, the same {2 * TOKENS} tokens", flush=True)


if __name__ == "__main__":
    sys.exit(harness.main(test))
