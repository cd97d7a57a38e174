#!/usr/bin/env python3
"""Deaths (design.md 9.6): kill -9 of predictor, loader, worker and client at random moments of a generation.

In every round the generation goes on to the right tokens or ends with the documented error; afterwards the
dead are restarted, the next request's tokens are right, the pool's slots add up, and no lease is left.
"""

import json
import random
import sys
import time

import harness
from harness import Stack, expect

VICTIMS = ["predictor", "loader", "worker", "client"]
TOKENS = 60


def ask_args(prompt):
    return ["--tokens", ",".join(map(str, prompt)), "--temperature", 0, "--max-tokens", TOKENS, "--ignore-eos"]


def check_client(client, expected, victim, stack):
    out, err = client.communicate(timeout=180)
    err = err.decode()
    if client.returncode == 0:
        expect(json.loads(out)["tokens"] == expected, f"wrong tokens after the death of the {victim}")
        return "right"
    expect(victim == "worker", f"a request failed ({client.returncode}) after the death of the {victim}: {err}\n"
                               f"{stack.log_tail()}")
    expect(client.returncode in (1, 4) and err.strip().startswith("stoker:"), f"undocumented end {client.returncode}: {err}")
    return "error"


def check_idle(stack, when):
    """No request is running: slots add up, nothing is leased, in flight or quarantined."""
    end = time.monotonic() + 60
    while True:
        status = stack.status()
        expect(status is not None, f"no status {when}\n{stack.log_tail()}")
        pool, requests = status["pool"], status["requests"]
        states = {k: pool[k] for k in ("free", "filling", "ready", "retiring", "quarantined")}
        active = requests["queued"] + requests["prefilling"] + requests["decoding"]
        if pool["leased"] + states["filling"] + states["retiring"] + states["quarantined"] + active == 0:
            break
        expect(time.monotonic() < end, f"the pool did not settle {when}: {pool}, {requests}\n{stack.log_tail()}")
        time.sleep(0.02)
    expect(sum(states.values()) == pool["slots"], f"slots do not add up {when}: {pool}")


def one_round(stack, rng, prompts, expected, duration):
    victim = rng.choice(VICTIMS)
    first, second = rng.sample(range(len(prompts)), 2)
    client = stack.client(*ask_args(prompts[first]))
    other = stack.client(*ask_args(prompts[second]))
    time.sleep(rng.uniform(0, duration))
    if victim == "client":
        client.kill()
        client.communicate()
        outcome = check_client(other, expected[second], victim, stack)
    else:
        stack.kill(victim)
        if rng.random() < 0.5:
            time.sleep(rng.uniform(0, 0.3))  # dead for a while
        stack.revive()
        outcome = check_client(client, expected[first], victim, stack)
        check_client(other, expected[second], victim, stack)
    stack.revive()
    stack.wait_ready()
    probe = rng.randrange(len(prompts))
    expect(stack.ask(*ask_args(prompts[probe]))["tokens"] == expected[probe], f"wrong tokens in the request after {victim}")
    check_idle(stack, f"after the death of the {victim}")
    return victim, outcome


def test(args, work):
    model = harness.make_model(args.bin, work, "--preset", "tiny")
    rounds = args.rounds if args.rounds is not None else 200
    rng = random.Random(args.seed)
    prompts = [[rng.randrange(5, 400) for _ in range(n)] for n in (1, 5, 20, 64, 130)]
    config = json.loads((model / "config.json").read_text())
    slots = config["num_hidden_layers"] * config["num_experts"] // 3
    stack = Stack(args.bin, model, work, slots=slots).start_all()
    tally = {}
    try:
        started = time.monotonic()
        expected = [stack.ask(*ask_args(p))["tokens"] for p in prompts]
        duration = (time.monotonic() - started) / len(prompts) * 1.5
        for _ in range(rounds):
            victim, outcome = one_round(stack, rng, prompts, expected, duration)
            tally[victim, outcome] = tally.get((victim, outcome), 0) + 1
        if rounds >= 40:
            expect({v for v, _ in tally} == set(VICTIMS), "not every process was killed: more rounds are needed")
    finally:
        stack.stop()
    print(f"{rounds} rounds: " + ", ".join(f"{v} killed, request {o}: {n}" for (v, o), n in sorted(tally.items())))


if __name__ == "__main__":
    sys.exit(harness.main(test))
