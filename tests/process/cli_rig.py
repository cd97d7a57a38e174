"""What the tests of the CLI share: run it, look at what it leaves behind, break models. Standard library only."""

import json
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import tempfile
import time

from harness import Failure, expect

# A model with this many ids and eos fits the test tokenizer (tests/unit/text/data: 4122 ids, <|im_end|> 4098).
VOCAB, EOS = 4160, 4098
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


class Done:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def __repr__(self):
        return f"exit {self.code}\n--- stdout\n{self.out[-1500:]!r}\n--- stderr\n{self.err[-1500:]}"


class Rig:
    """One temporary directory: models, run directories, and an environment that touches nothing else."""

    def __init__(self, bin_dir, work):
        self.bin, self.work = pathlib.Path(bin_dir).resolve(), pathlib.Path(work)
        self.runtime = self.work / "runtime"
        self.runtime.mkdir(mode=0o700, exist_ok=True)
        # The path of the driver is no setting of Stoker's: tests/gpu/bundle.sh.
        self.env = {k: v for k, v in os.environ.items()
                    if k == "STOKER_DRIVER_PATH" or not k.startswith(("STOKER_", "XDG_"))}
        self.env.update(XDG_RUNTIME_DIR=str(self.runtime), XDG_CONFIG_HOME=str(self.work / "config"),
                        XDG_STATE_HOME=str(self.work / "state"), TERM="dumb",
                        STOKER_GATEWAY_LISTEN="none")  # tests run beside each other
        self.env.pop("NOTIFY_SOCKET", None)

    def popen(self, *args, stdin=subprocess.DEVNULL, env=None, **kwargs):
        return subprocess.Popen([self.bin / "stoker", *map(str, args)], stdin=stdin, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, env={**self.env, **(env or {})}, **kwargs)

    def run(self, *args, stdin=None, timeout=180, env=None):
        process = self.popen(*args, stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE, env=env)
        try:
            out, err = process.communicate(None if stdin is None else stdin.encode(), timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise Failure(f"stoker {' '.join(map(str, args))} did not end in {timeout} s: {err.decode()[-1500:]}")
        return Done(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))

    def model(self, name="model", *args):
        path = self.work / name
        if not path.exists():
            done = self.run("synth", "--out", path, "--preset", "tiny", "--vocab", VOCAB, "--eos", EOS,
                            "--tokenizer", REPOSITORY / "tests/unit/text/data", *args)
            expect(done.code == 0, f"synth failed: {done}")
        return path

    def copy_of(self, model, name):
        target = self.work / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(model, target)
        return target

    def processes(self):
        """pid -> command line of every process that mentions our runtime directory."""
        found = {}
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue
            if str(self.runtime) in line and state != "Z":
                found[int(entry.name)] = line
        return found

    def daemon(self, name):
        pids = [pid for pid, line in self.processes().items() if f"stoker-{name} " in line]
        return pids[0] if pids else None

    @staticmethod
    def parent(pid):
        return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])

    def shared_names(self):
        """The pool's names, as mapped by our loader (other stacks on this machine have their own)."""
        pid = self.daemon("loader")
        if pid is None:
            return set()
        try:
            maps = pathlib.Path(f"/proc/{pid}/maps").read_text()
        except OSError:
            return set()
        return set(re.findall(r"/dev/shm/(stoker[^\s]*)", maps))

    def expect_nothing_left(self, names, within=20):
        """No process, no private run directory, none of the shared memory `names`."""
        end = time.monotonic() + within
        while True:
            processes = self.processes()
            directories = [p.name for p in self.runtime.glob("stoker-run-*")]
            shared = [n for n in names if pathlib.Path("/dev/shm", n).exists()]
            if not (processes or directories or shared):
                return
            if time.monotonic() > end:
                raise Failure(f"left behind: processes {processes}, directories {directories}, shared memory {shared}")
            time.sleep(0.02)


def wait_for(what, probe, timeout=60):
    """The first true value of probe(); a bounded poll of a fact, not a sleep."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = probe()
        if value:
            return value
        time.sleep(0.01)
    raise Failure(f"waited {timeout} s for {what}")


def one_clear_line(done):
    """The contract of errors: the last line of stderr is `stoker: <what>: <why>`, and nothing looks like a crash."""
    lines = [line for line in done.err.splitlines() if line.strip()]
    expect(lines, f"no message: {done}")
    expect(re.match(r"stoker: .+: .+", lines[-1]), f"the last line is not `stoker: what: why`: {done}")
    for ugly in ("terminate called", "what():", "Segmentation", "internal check failed", "AddressSanitizer", "Traceback"):
        expect(ugly not in done.err, f"looks like a crash: {done}")
    return lines[-1]


# ---- safetensors, to break them -------------------------------------------------------------------------------

def read_header(path):
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        return json.loads(file.read(size)), 8 + size


def write_header(path, header):
    """Replaces the JSON header; the data moves along behind it."""
    data = pathlib.Path(path).read_bytes()
    old = struct.unpack("<Q", data[:8])[0]
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 8)
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + old:])


def shard_with(model, pattern):
    """(path, tensor name) of the first tensor whose name matches."""
    for path in sorted(pathlib.Path(model).glob("*.safetensors")):
        for name in sorted(read_header(path)[0]):
            if name != "__metadata__" and re.search(pattern, name):
                return path, name
    raise Failure(f"no tensor matches {pattern}")


def overwrite(path, name, data, at=0):
    """Overwrites bytes of one tensor."""
    header, base = read_header(path)
    with open(path, "r+b") as file:
        file.seek(base + header[name]["data_offsets"][0] + at)
        file.write(data)


def edit_json(path, **changes):
    path = pathlib.Path(path)
    content = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            content.pop(key, None)
        else:
            content[key] = value
    path.write_text(json.dumps(content))
