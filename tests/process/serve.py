#!/usr/bin/env python3
"""`stoker serve`: ready, restarts, gives up, stops; `status`, `run` and `cache drop` beside it."""

import json
import os
import pathlib
import signal
import socket
import sys
import threading

import harness
from cli_rig import Rig, wait_for
from harness import expect

QUESTION = ("--tokens", "1,5,9", "--max-tokens", 8, "--temperature", 0, "--ignore-eos", "--json")


class Serve:
    """`stoker serve` with its stderr collected as it comes."""

    def __init__(self, rig, model, *args, run_dir=None, env=None):
        self.rig, self.run_dir = rig, run_dir or rig.runtime / "stoker"
        self.process = rig.popen("serve", model, "--run-dir", self.run_dir, *args, env=env)
        self.lines = []
        self.reader = threading.Thread(target=self.collect, daemon=True)
        self.reader.start()

    def collect(self):
        for line in self.process.stderr:
            self.lines.append(line.decode(errors="replace").rstrip())

    def says(self, text, count=1):
        return sum(text in line for line in list(self.lines)) >= count

    def ready(self):
        wait_for("ready", lambda: self.says("stoker: ready") or self.process.poll() is not None, 120)
        expect(self.process.poll() is None, "serve ended: " + "\n".join(self.lines[-10:]))
        return self

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(timeout=60)
        self.reader.join(timeout=10)
        return self.process.returncode


def ask(rig, *extra):
    done = rig.run("run", *QUESTION, *extra)
    expect(done.code == 0, f"run beside serve: {done}")
    return json.loads(done.out)


def used_and_restarted(rig, model):
    serve = Serve(rig, model, "--pool-slots", 40).ready()
    names = rig.shared_names()
    try:
        status = rig.run("status", "--json")
        expect(status.code == 0 and isinstance(json.loads(status.out), dict), f"status: {status}")
        expect(rig.run("status").out.strip(), "status prints nothing")
        before = set(rig.processes())
        reference = ask(rig)["tokens"]
        expect(ask(rig, model)["tokens"] == reference, "MODEL_DIR given: other tokens")
        expect(not list(rig.runtime.glob("stoker-run-*")), "run started a private stack beside the running one")
        for name in ("gateway", "predictor", "loader", "worker"):
            old = rig.daemon(name)
            os.kill(old, signal.SIGKILL)
            wait_for(f"another {name}", lambda: rig.daemon(name) not in (None, old))
            wait_for("an answer", lambda: rig.run("status").code == 0)
            expect(ask(rig)["tokens"] == reference, f"other tokens after the {name}'s death")
        expect(all(serve.says(f"{name} was killed by signal 9") for name in ("gateway", "predictor", "loader", "worker")),
               "not every death is reported: " + "\n".join(serve.lines))
        expect(before - set(rig.processes()), "nothing was restarted")
    finally:
        code = serve.stop()
    expect(code == 0, f"SIGTERM: exit code {code}")
    wait_for("the end of all", lambda: not rig.processes())
    expect(any(pathlib.Path("/dev/shm", n).exists() for n in names), "the pool did not stay warm")
    drop = rig.run("cache", "drop", "--json")
    expect(drop.code == 0 and json.loads(drop.out)["bytes"] > 0, f"cache drop: {drop}")
    rig.expect_nothing_left(names)
    expect(json.loads(rig.run("cache", "drop", "--json").out)["bytes"] == 0, "a second drop freed something")
    print("serve: used, three deaths survived, same tokens, stopped, pool dropped", flush=True)


def gives_up(rig, model):
    serve = Serve(rig, model, "--pool-slots", 40, "--unlink-on-exit").ready()
    old = None
    for _ in range(6):
        pid = wait_for("a predictor", lambda: rig.daemon("predictor") not in (None, old) and rig.daemon("predictor")
                       or serve.process.poll() is not None)
        if serve.process.poll() is not None:
            break
        os.kill(pid, signal.SIGKILL)
        old = pid
    code = wait_for("the end", lambda: serve.process.poll() is not None and (serve.process.returncode,))[0]
    serve.reader.join(timeout=10)
    expect(code == 1 and serve.says("giving up"), f"exit code {code}: " + "\n".join(serve.lines[-10:]))
    rig.expect_nothing_left(set())
    print("serve: gives up after the sixth death in a minute, exit 1", flush=True)


def no_restart(rig, model):
    serve = Serve(rig, model, "--pool-slots", 40, "--no-restart", "--unlink-on-exit").ready()
    os.kill(rig.daemon("predictor"), signal.SIGKILL)
    wait_for("the end", lambda: serve.process.poll() is not None)
    serve.reader.join(timeout=10)
    expect(serve.process.returncode == 1, f"--no-restart: exit code {serve.process.returncode}")
    rig.expect_nothing_left(set())
    print("serve --no-restart: ends with the first death", flush=True)


def killed(rig, model):
    serve = Serve(rig, model, "--pool-slots", 40, "--unlink-on-exit").ready()
    names = rig.shared_names()
    serve.stop(signal.SIGKILL)
    rig.expect_nothing_left(names)
    serve = Serve(rig, model, "--pool-slots", 40, "--unlink-on-exit").ready()
    expect(serve.stop(signal.SIGINT) == 130, "SIGINT of serve is not 130")
    rig.expect_nothing_left(names)
    print("serve: SIGKILL and SIGINT leave nothing", flush=True)


def notify(rig, model):
    path = rig.work / "notify.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        receiver.settimeout(120)
        serve = Serve(rig, model, "--pool-slots", 40, "--unlink-on-exit", env={"NOTIFY_SOCKET": str(path)})
        message = receiver.recv(4096).decode()
        code = serve.stop()
    expect("READY=1" in message, f"first notification: {message!r}")
    expect(code == 0, f"exit code {code}")
    print("serve: READY=1 once the worker answers", flush=True)


def other_model(rig, model):
    """A stack that serves another model is left alone."""
    serve = Serve(rig, model, "--pool-slots", 40, "--unlink-on-exit").ready()
    try:
        other = rig.model("other", "--seed", 2)
        done = rig.run("run", other, *QUESTION)
        expect(done.code == 0, f"run with another model: {done}")
        expect("private" in done.err, f"no word about the private stack: {done}")
        expect(json.loads(done.out)["tokens"] != ask(rig)["tokens"], "both models give the same tokens")
    finally:
        serve.stop()
    rig.expect_nothing_left(set())
    print("another model: a private stack beside the running one", flush=True)


def test(args, work):
    rig = Rig(args.bin, work)
    model = rig.model()
    for part in (used_and_restarted, gives_up, no_restart, killed, notify, other_model):
        part(rig, model)


if __name__ == "__main__":
    sys.exit(harness.main(test))
