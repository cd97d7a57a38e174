"""Real Stoker processes for tests, standard library only: start, kill, restart, ask.

The test is the supervisor, so that it decides who dies when. Everything lives under one temporary
directory, which is also the run directory's parent.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

SKIP = 77


class Failure(Exception):
    """An expectation that did not hold; the message says which."""


def expect(condition, message):
    if not condition:
        raise Failure(message)


class Stack:
    """Loader, worker and predictor of one run directory."""

    def __init__(self, bin_dir, model, work, slots=None, engine=None, predictor=True, extra_worker=(), extra_loader=(),
                 env=None):
        self.bin = pathlib.Path(bin_dir)
        self.model = str(model)
        self.run_dir = pathlib.Path(tempfile.mkdtemp(prefix="run-", dir=work))
        self.log = open(self.run_dir / "test.log", "ab")
        # A state directory of its own: every stack begins cold unless the test says otherwise.
        self.env = {**os.environ, "XDG_STATE_HOME": str(self.run_dir / "state"), **(env or {})}
        self.env.pop("STATE_DIRECTORY", None)
        self.loader_args = ["--model", self.model, *extra_loader]
        if slots is not None:
            self.loader_args += ["--pool-slots", str(slots)]
        if engine is not None:
            self.loader_args += ["--engine", engine]
        self.worker_args = ["--model", self.model, *extra_worker]
        self.with_predictor = predictor
        self.processes = {}

    def start(self, name):
        args = {"loader": self.loader_args, "worker": self.worker_args, "predictor": []}[name]
        self.processes[name] = subprocess.Popen(
            [self.bin / f"stoker-{name}", "--run-dir", self.run_dir, *args],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, env=self.env)

    def start_all(self, timeout=60):
        for name in self.names():
            self.start(name)
        try:
            self.wait_ready(timeout)
        except BaseException:
            self.stop()  # nobody else has it yet
            raise
        return self

    def names(self):
        return ["loader", "worker"] + (["predictor"] if self.with_predictor else [])

    def revive(self):
        """Restarts whoever is not running."""
        for name in self.names():
            if self.processes[name].poll() is not None:
                self.start(name)

    def kill(self, name):
        process = self.processes[name]
        process.kill()
        process.wait()

    def wait_ready(self, timeout=60):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.status() is not None:
                return
            for name in self.names():
                code = self.processes[name].poll()
                expect(code is None or code < 0, f"{name} ended with {code}:\n{self.log_tail()}")
            time.sleep(0.02)
        raise Failure(f"the stack was not ready in {timeout} s:\n{self.log_tail()}")

    def status(self):
        done = subprocess.run([self.bin / "stoker", "status", "--json", "--run-dir", self.run_dir],
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def client(self, *args):
        """A client process; its answer is read with communicate()."""
        return subprocess.Popen([self.bin / "stoker", "run", "--run-dir", self.run_dir, "--json", *map(str, args)],
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def ask(self, *args, timeout=300):
        client = self.client(*args)
        out, err = client.communicate(timeout=timeout)
        expect(client.returncode == 0, f"run ended with {client.returncode}: {err.decode()}\n{self.log_tail()}")
        return json.loads(out)

    def log_text(self):
        return (self.run_dir / "test.log").read_text(errors="replace")

    def log_tail(self):
        return self.log_text()[-4000:]

    def stop(self):
        for name in reversed(self.names()):
            process = self.processes.get(name)
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        subprocess.run([self.bin / "stoker", "cache", "drop", "--run-dir", self.run_dir],
                       stdin=subprocess.DEVNULL, capture_output=True)
        self.log.close()


def make_model(bin_dir, work, *args, name="model"):
    path = pathlib.Path(work) / name
    if not path.exists():
        subprocess.run([pathlib.Path(bin_dir) / "stoker", "synth", "--out", path, *args], check=True,
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return path


def main(test, argv=None):
    """Runs test(args, work) with a fresh temporary directory; 0 passed, 1 failed, 77 skipped."""
    import argparse
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", required=True, help="directory with the stoker binaries")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--keep", action="store_true", help="keep the temporary directory")
    args = parser.parse_args(argv)
    print(f"seed {args.seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # not without stopping the processes
    work = pathlib.Path(tempfile.mkdtemp(prefix="stoker-test-"))
    try:
        test(args, work)
    except Failure as failure:
        print(f"FAILED: {failure}", flush=True)
        return 1
    finally:
        if not args.keep:
            shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit("this is a module; run chaos.py or same_bits.py")
