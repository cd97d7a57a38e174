"""A `stoker serve` of one model, for as long as the `with` block lasts, and what the tools here ask of it."""

import contextlib
import json
import subprocess
import tempfile
import time


class Stoker:
    def __init__(self, binary, run_dir):
        self.binary, self.run_dir = binary, run_dir

    def json(self, *arguments):
        command = [self.binary, *map(str, arguments), "--run-dir", self.run_dir, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command[:3])}: {done.stderr.strip()}")
        return json.loads(done.stdout)


@contextlib.contextmanager
def serving(bin_dir, model_dir):
    binary = f"{bin_dir}/stoker"
    with tempfile.TemporaryDirectory(prefix="stoker-demo.") as run_dir:
        log = open(f"{run_dir}/serve.log", "w+")
        stack = subprocess.Popen([binary, "serve", model_dir, "--run-dir", run_dir, "--no-gateway"], stdout=log, stderr=log)
        try:
            while subprocess.run([binary, "status", "--run-dir", run_dir], capture_output=True).returncode != 0:
                if stack.poll() is not None:
                    raise SystemExit("stoker serve ended:\n" + open(log.name).read())
                time.sleep(0.1)
            yield Stoker(binary, run_dir)
        finally:
            stack.terminate()
            stack.wait()
