#!/usr/bin/env python3
"""The installed units under a real systemd (boot.sh): start, use by CLI and HTTP, deaths, a second worker, stop and start,
a closed home, a bad model. The pool stays warm through all of it, until it is dropped.

usage: lifecycle.py --build build/release
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
sys.path.insert(0, str(HERE.parent / "process"))

from harness import SKIP, Failure, expect  # noqa: E402

MODEL = "/var/lib/stoker/models/demo"
PROMPT = "def read_file(path):\n"
UNITS = {"loader": "stoker-loader", "worker": "stoker-worker@default", "predictor": "stoker-predictor",
         "gateway": "stoker-gateway"}
TOOLS = ("cmake", "chroot", "curl", "mount", "nsenter", "setpriv", "systemctl", "systemd-sysusers", "systemd-tmpfiles", "tar",
         "unshare", "useradd")


def reason_to_skip():
    if os.geteuid() != 0:
        return "needs root (namespaces, mounts)"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or not os.path.exists("/lib/systemd/systemd"):
        return "not installed: " + " ".join(missing or ["systemd"])
    if not any(line.split()[2] == "cgroup2" for line in pathlib.Path("/proc/self/mounts").read_text().splitlines()):
        return "no cgroup2 is mounted"
    probe = subprocess.run(["unshare", "-m", "-p", "-n", "-u", "-i", "-C", "-f", "mount", "-t", "tmpfs", "probe", "/mnt"],
                           stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return "namespaces are forbidden: " + probe.stderr.strip() if probe.returncode != 0 else None


def wait_for(what, condition, timeout=30):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise Failure(f"waited {timeout} s for {what}")


class Machine:
    """A booted systemd, with Stoker installed. Everything in it ends with the keeper, which ends with its stdin: also when we are killed."""

    def __init__(self, build):
        self.work = tempfile.mkdtemp(prefix="stoker-systemd-")
        install = ["cmake", "--install", str(build), "--prefix", "/usr"]
        self.keeper = subprocess.Popen([HERE / "boot.sh", self.work, *install], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        first = self.keeper.stdout.readline().decode().split()
        self.pid = first[1] if first[:1] == ["pid"] else None

    def boot(self):
        expect(self.pid, "boot.sh could not begin; its reason stands above")
        wait_for("systemd", lambda: self.keeper.poll() is not None
                 or self.attempt("systemctl", "is-active", "basic.target").stdout.strip() == "active")
        expect(self.keeper.poll() is None, "systemd ended; its reason stands above")

    def close(self):
        self.keeper.stdin.close()
        self.keeper.wait()
        expect(not os.path.exists(self.work), f"{self.work} is left")

    def attempt(self, *command, stdin=""):
        return subprocess.run(["nsenter", "-t", self.pid, "-m", "-p", "-n", "-u", "-i", "-C", "-r", "-w", *command],
                              input=stdin, capture_output=True, text=True, timeout=120)

    def run(self, *command, stdin=""):
        done = self.attempt(*command, stdin=stdin)
        expect(done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def login(self, user, *command):
        """As somebody who has logged in: the groups of the user database, and a runtime directory of their own."""
        return self.attempt("setpriv", "--reuid", user, "--regid", user, "--init-groups", "env", "-i", "PATH=/usr/bin",
                            f"HOME=/home/{user}", "XDG_RUNTIME_DIR=/run/user/1", *command)

    def show(self, unit, key):
        return self.run("systemctl", "show", "-P", key, unit).strip()

    def stop(self):
        # The target alone would not wait for its services.
        self.run("systemctl", "stop", "stoker*")
        left = self.run("systemctl", "list-units", "--state=active,activating,deactivating", "--plain", "--no-legend", "stoker*")
        expect(left == "", f"after stop: {left}")

    def journal(self, unit):
        return self.run("journalctl", "-u", unit, "--no-pager", "-o", "cat")

    def set(self, name, text):
        self.run("mkdir", "-p", "/etc/stoker/conf.d")
        self.run("tee", f"/etc/stoker/conf.d/{name}.toml", stdin=text)

    def add_model(self):
        # Through a pipe: the repository need not be visible in there.
        files = subprocess.run(["tar", "-C", REPOSITORY / "models", "-c", "demo"], check=True, capture_output=True).stdout
        subprocess.run(["nsenter", "-t", self.pid, "-m", "-r", "tar", "-C", "/var/lib/stoker/models", "-x", "--no-same-owner"],
                       input=files, check=True)


class Service:
    """Stoker on that machine."""

    def __init__(self, machine):
        self.machine = machine
        self.reference = None

    def ask(self, *extra):
        done = self.machine.login("member", "stoker", "run", "--json", "--raw", "-n", "24", "--temperature", "0", *extra, PROMPT)
        expect(done.returncode == 0, f"run by a member of the group: {done.returncode} {done.stderr}")
        return json.loads(done.stdout)["tokens"]

    def status(self):
        return json.loads(self.machine.run("stoker", "status", "--json"))

    def expect_same_answer(self, when, *extra):
        """The same tokens, and none of the experts that they need was read again."""
        before = self.status()["loader"]["demand_fills"]
        expect(self.ask(*extra) == self.reference, f"other tokens {when}")
        again = self.status()["loader"]["demand_fills"] - before
        expect(again == 0, f"{again} experts were read again {when}")

    def healthy(self):
        return self.machine.attempt("curl", "-sf", "http://127.0.0.1:8642/health").returncode == 0

    def http(self, *headers):
        """(status, body)"""
        body = json.dumps({"prompt": PROMPT, "max_tokens": 24, "temperature": 0})
        out = self.machine.run("curl", "-sS", "-w", "\n%{http_code}", "-d", body, *headers,
                               "http://127.0.0.1:8642/v1/completions")
        text, code = out.rsplit("\n", 1)
        return int(code), json.loads(text)

    def expect_failed(self, unit, status, *reasons):
        """Once, not again and again, with the reason in the journal."""
        show = self.machine.show
        wait_for(f"{unit} to fail", lambda: show(unit, "ActiveState") == "failed")
        result = show(unit, "Result"), show(unit, "ExecMainStatus"), show(unit, "NRestarts")
        expect(result == ("exit-code", str(status), "0"), f"{unit}: {result}\n{self.machine.journal(unit)[-2000:]}")
        journal = self.machine.journal(unit)
        for reason in reasons:
            expect(reason in journal, f"{unit} does not say \"{reason}\":\n{journal[-2000:]}")


def installed(service):
    """What docs/service.md tells to do first; then a start without having chosen a model."""
    machine = service.machine
    machine.run("systemd-sysusers")
    machine.run("systemd-tmpfiles", "--create", "stoker.conf")
    for name, groups in (("member", ["-G", "stoker"]), ("stranger", [])):
        machine.run("useradd", "-U", "-m", *groups, name)
    machine.run("systemctl", "start", "stoker.target")
    service.expect_failed(UNITS["loader"], 2, "no checkpoint directory", "model.dir")
    service.expect_failed(UNITS["worker"], 2, "no checkpoint directory")
    expect(not service.healthy(), "/health is 200 without a worker")
    print("without a model: loader and worker fail and say why, the gateway says 503", flush=True)


def closed_home(service):
    machine = service.machine
    machine.run("mkdir", "/home/stranger/model")
    machine.run("chmod", "700", "/home/stranger")
    machine.set("model", '[model]\ndir = "/home/stranger/model"\n')
    machine.run("systemctl", "restart", "stoker.target")
    for unit in (UNITS["loader"], UNITS["worker"]):
        service.expect_failed(unit, 5, "user stoker may not enter /home/stranger", "Move the model", "chmod o+x /home/stranger")
    print("a model in a closed home: the journal says so, and what to do", flush=True)


def used(service):
    machine = service.machine
    machine.add_model()
    machine.set("model", f'[model]\ndir = "{MODEL}"\n')
    machine.run("systemctl", "restart", "stoker.target")
    for unit in UNITS.values():
        expect(machine.show(unit, "ActiveState") == "active", f"{unit} is not active:\n{machine.journal(unit)[-2000:]}")
        expect(machine.show(unit, "StatusText"), f"{unit} has no status text")
    service.reference = service.ask()
    expect(len(service.reference) == 24, f"{len(service.reference)} tokens")
    expect("engine: io_uring" in machine.journal(UNITS["loader"]), "the sandboxed loader reads without io_uring")
    wait_for("the gateway to find the worker", service.healthy)
    code, answer = service.http()
    expect(code == 200, f"HTTP {code}: {answer}")
    told = machine.login("member", "stoker", "run", "--raw", "-n", "24", "--temperature", "0", PROMPT).stdout
    expect(answer["choices"][0]["text"].strip() == told.strip(), f"HTTP and CLI differ: {answer} {told}")
    doctor = json.loads(machine.login("member", "stoker", "doctor", "--json").stdout)
    services = [check for check in doctor["checks"] if check["group"] == "Services"]
    expect([check["name"] for check in services] == ["run directory", "stack", "HTTP API"]
           and all(check["level"] == "OK" for check in services), f"a member's doctor: {services}")
    stranger = machine.login("stranger", "stoker", "status")
    expect(stranger.returncode == 4 and "Join the group" in stranger.stderr, f"a stranger's status: {stranger}")
    wait_for("the predictor's report", lambda: service.status()["predictor"])
    print("used by a member of the group and by HTTP, closed to others", flush=True)


def api_key(service):
    machine = service.machine
    machine.run("install", "-m", "640", "-g", "stoker", "/dev/stdin", "/etc/stoker/api-key", stdin="secret-of-this-test\n")
    machine.set("gateway", '[gateway]\napi_key_file = "/etc/stoker/api-key"\n')
    machine.run("systemctl", "restart", UNITS["gateway"])
    wait_for("the gateway", service.healthy)
    expect(service.http()[0] == 401, "no key is needed")
    code, answer = service.http("-H", "Authorization: Bearer secret-of-this-test")
    expect(code == 200, f"with the key: HTTP {code}: {answer}")
    print("an API key that stoker may read and others not", flush=True)


def deaths(service):
    machine = service.machine
    for name, unit in UNITS.items():
        old, restarts = machine.show(unit, "MainPID"), int(machine.show(unit, "NRestarts"))
        machine.run("kill", "-KILL", old)
        wait_for(f"another {name}", lambda unit=unit, restarts=restarts: machine.show(unit, "ActiveState") == "active"
                 and int(machine.show(unit, "NRestarts")) == restarts + 1)
        others = [u for u in UNITS.values() if u != unit and machine.show(u, "ActiveState") != "active"]
        expect(not others, f"the {name}'s death took along {others}")
        wait_for("the gateway to find the worker", service.healthy)
        service.expect_same_answer(f"after the {name}'s death")
    expect("pool: adopted warm" in machine.journal(UNITS["loader"]), "the second loader did not adopt the pool")
    print("kill -9 of each: restarted, the same tokens, nothing read again", flush=True)


def restarts(service):
    machine = service.machine
    for name, unit in UNITS.items():
        machine.run("systemctl", "restart", unit)
        service.expect_same_answer(f"after a restart of the {name}")
    machine.stop()
    expect(machine.run("ls", "/dev/shm").count("stoker.") == 3, "the pool does not outlive the target")
    machine.run("systemctl", "start", "stoker.target")
    service.expect_same_answer("after stop and start of the target")
    print("restart of each, stop and start of all: the same tokens, nothing read again", flush=True)


def second_worker(service):
    machine = service.machine
    machine.run("systemctl", "start", "stoker-worker@second")
    service.expect_same_answer("from the second worker", "--run-dir", "/run/stoker/second")
    pools = machine.run("ls", "/dev/shm").count("stoker.")
    expect(pools == 3, f"{pools} shared-memory objects, not one pool's three")
    machine.stop()
    print("a second worker on the same pool", flush=True)


def dropped(service):
    machine = service.machine
    member = machine.login("member", "stoker", "cache", "drop")
    expect(member.returncode == 1 and "sudo stoker cache drop" in member.stderr, f"a member's cache drop: {member}")
    freed = json.loads(machine.run("stoker", "cache", "drop", "--json"))["bytes"]
    expect(freed > 1 << 20, f"{freed} bytes freed")
    expect(machine.run("ls", "/dev/shm") == "", "something is left in /dev/shm")
    machine.run("systemctl", "start", "stoker.target")
    expect(service.ask() == service.reference, "other tokens after cache drop")
    wait_for("the warm manifest", lambda: service.status()["loader"]["warm_planned"])
    print("cache drop frees all; the next start knows from /var/lib/stoker what was hot", flush=True)


def bad_model(service):
    machine = service.machine
    machine.run("cp", "-r", MODEL, "/srv/cut")
    machine.run("truncate", "-s", "-1", "/srv/cut/model-00002-of-00004.safetensors")
    machine.set("model", '[model]\ndir = "/srv/cut"\n')
    machine.run("systemctl", "restart", "stoker.target")
    for unit in (UNITS["loader"], UNITS["worker"]):
        service.expect_failed(unit, 5, "/srv/cut/model-00002-of-00004.safetensors")
    print("a truncated model: the units fail, the journal names the file", flush=True)


def test(build):
    machine = Machine(build)
    try:
        machine.boot()
        service = Service(machine)
        for part in (installed, closed_home, used, api_key, deaths, restarts, second_worker, dropped, bad_model):
            # More starts in a minute than the units allow; the limit is not what is tested.
            machine.attempt("systemctl", "reset-failed", "stoker*")
            part(service)
    finally:
        machine.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True, type=pathlib.Path, help="build directory; what it has is installed")
    args = parser.parse_args()
    reason = reason_to_skip()
    if reason:
        print(f"skipped: {reason}")
        return SKIP
    try:
        test(args.build.resolve())
    except Failure as failure:
        print(f"FAILED: {failure}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
