#!/usr/bin/env python3
"""Clients that would be a burden to others: a huge prompt, and one that stops reading."""

import os
import signal
import subprocess
import sys

import harness
from cli_rig import Rig, one_clear_line, wait_for
from harness import Stack, expect

# More than the worker keeps for one client (limits::kClientSendQueue) and what sockets hold besides.
ANSWERS = 40000
CONTEXT = 2 * ANSWERS
HUGE_BYTES = 48 << 20  # many seconds of tokenising


def requests(stack):
    status = stack.status()
    expect(status is not None, f"the worker does not answer:\n{stack.log_tail()}")
    return status["requests"]


def client(rig, stack, *args):
    return rig.popen("run", "--run-dir", stack.run_dir, *args)


def end_of(process):
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise harness.Failure(f"a client did not end: {err.decode(errors='replace')[-1500:]}")
    return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")


def huge_prompt(rig, stack):
    """While it is tokenised the worker answers others, and Ctrl-C ends it without waiting for the tokenizer."""
    path = rig.work / "huge.txt"
    path.write_text("the quick brown fox jumps over it all, 12345. " * (HUGE_BYTES // 46))
    before = requests(stack)
    running = client(rig, stack, "--tokens", "1,5,9", "--ignore-eos", "--max-tokens", CONTEXT - 10)
    wait_for("a running request", lambda: requests(stack)["decoding"] == 1)
    huge = client(rig, stack, "--raw", "-f", path)
    # The scheduler knows nothing of it before it is tokenised, and then refuses it: too long for the context.
    wait_for("the prompt at the tokenizer", lambda: requests(stack)["queued"] == 1)
    running.send_signal(signal.SIGINT)
    code, _, err = end_of(running)
    expect(code == 130, f"Ctrl-C beside a huge prompt: exit code {code}: {err}")
    huge.send_signal(signal.SIGINT)
    code, _, err = end_of(huge)
    expect(code == 130, f"Ctrl-C of the huge prompt: exit code {code}: {err}")
    after = requests(stack)
    expect(after["cancelled"] == before["cancelled"] + 2 and after["refused"] == before["refused"],
           f"the huge prompt was not cancelled while it was tokenised: {before} {after}")
    print("a huge prompt: others are answered, and its cancel does not wait", flush=True)


def stopped(rig, stack):
    """SIGSTOP until the worker has given up on the client: after SIGCONT it must end, and say why."""
    before = requests(stack)["cancelled"]
    process = client(rig, stack, "--tokens", "1,5,9", "--ignore-eos", "--max-tokens", ANSWERS, "--json")
    wait_for("the first token", lambda: requests(stack)["decoding"] == 1)
    os.kill(process.pid, signal.SIGSTOP)
    wait_for("the worker to give up", lambda: requests(stack)["cancelled"] > before, 800)
    os.kill(process.pid, signal.SIGCONT)
    code, out, err = end_of(process)
    expect(code == 1 and not out, f"after SIGCONT: exit code {code}: {out[-500:]} {err}")
    line = one_clear_line(type("Done", (), {"err": err, "__repr__": lambda self: err})())
    expect("cancelled" in line and "send them again" in line, f"after SIGCONT: {line}")
    expect(stack.ask("--tokens", "1,5,9", "--max-tokens", 3, "--ignore-eos")["finish_reason"] == "length",
           "no answer after a slow client")
    print("a client that was stopped for too long hears of it", flush=True)


def test(args, work):
    rig = Rig(args.bin, work)
    # One layer without attention: as many answers as a client may leave unread take seconds, not minutes.
    model = rig.model("model", "--context", CONTEXT, "--layers", 1, "--full-attention-every", 2)
    stack = Stack(args.bin, model, work, predictor=False,
                  extra_worker=("--context", str(CONTEXT))).start_all()
    try:
        huge_prompt(rig, stack)
        stopped(rig, stack)
    finally:
        stack.stop()


if __name__ == "__main__":
    sys.exit(harness.main(test))
