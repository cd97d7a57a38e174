#!/usr/bin/env python3
"""The warm manifest: a stack whose pool is gone begins with the experts of the last one, and answers the same.

Everything is judged by counters, nothing by time.
"""

import os
import pathlib
import sys

import harness
from cli_rig import Rig, wait_for
from harness import Stack, expect

SLOTS = 128  # all of the model: what is missed is missed because the pool was empty
QUESTION = ("--tokens", "1,5,9", "--max-tokens", 24, "--temperature", 0, "--ignore-eos")


class Life:
    """One stack from an empty pool to its end, with a state directory that outlives it."""

    def __init__(self, args, work, model, manifest="auto", slots=SLOTS, state="state"):
        self.work, self.state = pathlib.Path(work), pathlib.Path(work) / state
        self.stack = Stack(args.bin, model, work, slots=slots, predictor=False,
                           extra_loader=("--warm-manifest", manifest), env={"XDG_STATE_HOME": str(self.state)})
        self.stack.start_all()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stack.stop()

    def restored(self):
        """Waits until all that is planned has come back; how many that are."""
        loader = wait_for("the experts", lambda: (s := self.stack.status()["loader"])["warm_fills"] >= s["warm_planned"]
                          and s)
        return loader["warm_fills"]

    def ask(self):
        """Tokens and the hit rate of this one request."""
        before = self.stack.status()["experts"]
        tokens = self.stack.ask(*QUESTION)["tokens"]
        after = self.stack.status()["experts"]
        used = after["used"] - before["used"]
        return tokens, (after["pool"] - before["pool"]) / used

    def manifests(self):
        return sorted((self.state / "stoker" / "warm").glob("*"))

    def says(self, text):
        return text in self.stack.log_text()


def comes_back(args, work, model):
    with Life(args, work, model) as life:
        tokens, cold = life.ask()
        _, settled = life.ask()  # the same again: as warm as this pool gets
        expect(life.stack.status()["loader"]["warm_planned"] == 0, "a first start restores something")
        ready = life.stack.status()["pool"]["ready"]
        expect(life.manifests() == [], "a manifest before the end of the first minute")
    with Life(args, work, model) as life:
        expect(len(life.manifests()) == 1, f"not one manifest: {life.manifests()}")
        count = life.restored()
        expect(count == ready, f"{count} experts came back, not {ready}")
        wait_for("the log line", lambda: life.says(f"warm start: {count} experts, "))
        again, warm = life.ask()
        expect(again == tokens, f"other tokens after a warm start: {again} {tokens}")
        expect(cold < 1 and settled == warm == 1, f"hit rate {warm:.3f}; cold {cold:.3f}, settled {settled:.3f}")
        expect(life.stack.status()["loader"]["demand_fills"] == 0, "something was read for a demand")
    print(f"warm start: {count} experts; hit rate of the first request {warm:.3f}, cold {cold:.3f}; same tokens", flush=True)
    return tokens, cold


def other_pools(args, work, model, tokens, cold):
    """A smaller pool takes the most valuable, a larger one everything that is known."""
    with Life(args, work, model, slots=12) as life:
        expect(life.restored() == 12, "a smaller pool is not full")
        expect(life.ask()[0] == tokens, "other tokens in a smaller pool")
    with Life(args, work, model) as life:
        count = life.restored()
        expect(count > SLOTS / 2, f"{count} experts came back after a small pool")
        again, warm = life.ask()  # what only the prompt used has no history, and is forgotten by a small pool
        expect(again == tokens and warm > cold, f"a larger pool after a small one: {again}, hit rate {warm:.3f}")
    print(f"a pool of 12 slots is filled; one of {SLOTS} after it gets {count}", flush=True)


def ignored(args, work, model, tokens):
    """Damaged, foreign and odd manifests: one log line that names the file, and a cold start that works."""
    other = harness.make_model(args.bin, work, "--preset", "tiny", "--seed", "9", name="other")
    with Life(args, work, other, manifest=str(work / "foreign")) as life:
        life.ask()
    good = (work / "foreign").read_bytes()
    (work / "torn").write_bytes(good[:-5])
    (work / "altered").write_bytes(good[:40] + bytes([good[40] ^ 1]) + good[41:])
    (work / "empty").write_bytes(b"")
    (work / "huge").write_bytes(b"STKWARM1" + bytes(5_000_000))
    (work / "directory").mkdir()
    os.mkfifo(work / "fifo")
    for name in ("foreign", "torn", "altered", "empty", "huge", "directory", "fifo"):
        with Life(args, work, model, manifest=str(work / name)) as life:
            expect(life.says(f"ignoring the warm manifest {work / name}: "), f"{name}: not a word:\n{life.stack.log_tail()}")
            expect(life.stack.log_text().count("ignoring") == 1, f"{name}: more than one line")
            expect(life.stack.status()["loader"]["warm_planned"] == 0, f"{name}: something was restored")
            expect(life.ask()[0] == tokens, f"{name}: other tokens")
        if name in ("foreign", "torn"):  # replaced by a good one at the end
            with Life(args, work, model, manifest=str(work / name)) as life:
                expect(life.restored() > SLOTS / 2, f"{name}: was not replaced")
    print("foreign, torn, altered, empty, huge, no file at all: ignored with one line", flush=True)


def killed(args, work, model, tokens):
    """A loader that is killed in the middle of a start forgets nothing: the file stays until a better one is there."""
    manifest = work / "kept"
    with Life(args, work, model, manifest=str(manifest)) as life:
        life.ask()
    before = manifest.read_bytes()
    for _ in range(3):
        with Life(args, work, model, manifest=str(manifest)) as life:
            life.stack.kill("loader")
            expect(manifest.read_bytes() == before, "a killed loader touched the manifest")
            life.stack.revive()
            life.stack.wait_ready()
            expect(life.ask()[0] == tokens, "other tokens after a loader's death")
            for name in ("loader", "worker"):
                life.stack.kill(name)
    print("kill -9: the manifest stays", flush=True)


def off(args, work, model):
    with Life(args, work, model, manifest="off", state="none") as life:
        life.ask()
    expect(not life.state.exists(), "off: a state directory was made")
    stack = Stack(args.bin, model, work, slots=SLOTS, extra_loader=("--warm-manifest", "atuo"))
    try:
        stack.start("loader")
        code = stack.processes["loader"].wait(timeout=60)
        expect(code == 2 and "atuo" in stack.log_tail(), f"a bad setting: exit code {code}: {stack.log_tail()}")
    finally:
        stack.stop()
    print("off leaves nothing; a bad setting is refused", flush=True)


def private_stacks(args, work, model):
    """`stoker run` begins cold and leaves nothing, unless it is told to."""
    rig = Rig(args.bin, work / "rig")
    state = rig.work / "state"

    def ask(*extra, env=None):
        done = rig.run("run", model, *QUESTION, "--pool-slots", SLOTS, "--json", *extra, env=env)
        expect(done.code == 0, f"run: {done}")
        return done.out
    ask()
    expect(not state.exists(), "run left state behind")
    ask("--warm-manifest", "auto")
    expect(len(list((state / "stoker/warm").glob("*"))) == 1, "--warm-manifest auto wrote nothing")
    ask(env={"STOKER_LOADER_WARM_MANIFEST": str(rig.work / "by-configuration")})
    expect((rig.work / "by-configuration").exists(), "the configuration was not heard")
    print("run: leaves no state unless told to", flush=True)


def test(args, work):
    (work / "rig").mkdir()
    model = harness.make_model(args.bin, work, "--preset", "tiny")
    tokens, cold = comes_back(args, work, model)
    other_pools(args, work, model, tokens, cold)
    ignored(args, work, model, tokens)
    killed(args, work, model, tokens)
    off(args, work, model)
    private_stacks(args, work, model)


if __name__ == "__main__":
    sys.exit(harness.main(test))
