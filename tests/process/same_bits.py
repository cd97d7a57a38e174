#!/usr/bin/env python3
"""Same bits (design.md 9.2): logits of a 200-token generation must not depend on the pool's size, the
predictor (on, off, killed half-way), a cold or warm pool, other requests, or the engine.

Every variant is a real stack; the logits of all 200 steps are compared byte for byte with the first one.
"""

import hashlib
import random
import sys
import time

import harness
from harness import Stack, expect

TOKENS = 200


def generate(stack, prompt, out, kill_predictor=False, beside=0):
    args = ["--tokens", ",".join(map(str, prompt)), "--temperature", 0, "--max-tokens", TOKENS, "--ignore-eos"]
    others = [stack.client("--tokens", f"{7 + i},3,{11 + i}", "--temperature", 1, "--seed", i, "--max-tokens", TOKENS,
                           "--ignore-eos") for i in range(beside)]
    client = stack.client(*args, "--logits-out", out)
    if kill_predictor:
        end = time.monotonic() + 60
        while time.monotonic() < end and stack.status()["tokens"]["generated"] < 20:
            pass
        stack.kill("predictor")
    for other in others:
        _, err = other.communicate(timeout=600)
        expect(other.returncode == 0, f"a request beside failed: {err.decode()}")
    _, err = client.communicate(timeout=600)
    expect(client.returncode == 0, f"run failed: {err.decode()}\n{stack.log_tail()}")
    data = out.read_bytes()
    expect(len(data) > TOKENS * 4 and len(data) % (TOKENS * 4) == 0, f"{out.name}: {len(data)} bytes of logits")
    return hashlib.sha256(data).hexdigest()


def test(args, work):
    model = harness.make_model(args.bin, work, "--preset", "tiny")
    random.seed(1)
    prompt = [random.randrange(5, 400) for _ in range(70)]
    import json
    config = json.loads((model / "config.json").read_text())
    everything = config["num_hidden_layers"] * config["num_experts"]
    minimum = config["num_experts_per_tok"]
    results = {}

    def variant(name, again=None, **options):
        run = {k: options.pop(k) for k in ("kill_predictor", "beside") if k in options}
        stack = Stack(args.bin, model, work, **options).start_all()
        try:
            results[name] = generate(stack, prompt, work / f"{len(results)}.f32", **run)
            if again:
                results[again] = generate(stack, prompt, work / f"{len(results)}.f32")
        finally:
            stack.stop()

    variant("pool: all experts, cold", again="pool: all experts, warm", slots=everything)
    variant("pool: half", slots=everything // 2)
    variant("pool: minimum", slots=minimum)
    variant("predictor off", slots=everything // 2, predictor=False)
    variant("predictor killed half-way", slots=everything // 2, kill_predictor=True)
    variant("beside three other requests", slots=everything // 2, beside=3)
    variant("pread engine", slots=everything // 2, engine="pread")
    variant("one thread", slots=everything // 2, extra_worker=["--threads", "1"])
    variant("prefill in chunks of 7", slots=everything // 2, extra_worker=["--chunk", "7"])
    reference = next(iter(results.values()))
    for name, digest in results.items():
        print(f"{'same' if digest == reference else 'DIFFERENT':10} {digest[:16]}  {name}", flush=True)
    expect(set(results.values()) == {reference}, "logits differ between variants")
    print(f"{len(results)} variants, {TOKENS} tokens each: the same bits")


if __name__ == "__main__":
    sys.exit(harness.main(test))
