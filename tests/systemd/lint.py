#!/usr/bin/env python3
"""What `cmake --install` leaves, without a running systemd: units that systemd understands, as closed as they claim to be,
users and directories that it would make, and a configuration file that is valid and never overwritten.

usage: lint.py --build build/release
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "process"))

from harness import SKIP, Failure, expect  # noqa: E402

# Unit -> the exposure it may have, in tenths ("systemd-analyze security"; 100 is wide open). The worker needs the GPUs'
# devices and the gateway a network.
EXPOSURE = {"stoker-loader.service": 10, "stoker-predictor.service": 10, "stoker-gateway.service": 16,
            "stoker-worker@default.service": 17, "stoker-worker@gpu1.service": 17}
TOOLS = ("cmake", "systemd-analyze", "systemd-sysusers", "systemd-tmpfiles")


def run(*command, env=None):
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env={**os.environ, **(env or {})})


def succeed(*command, env=None):
    done = run(*command, env=env)
    expect(done.returncode == 0, f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def install(build, tree, prefix="/usr"):
    succeed("cmake", "--install", build, "--prefix", prefix, env={"DESTDIR": str(tree)})


def verify(tree, unit):
    return run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", f"--root={tree}", unit)


def exposed(tree, unit, most):
    return run("systemd-analyze", "security", "--offline=true", "--no-pager", f"--root={tree}", f"--threshold={most}", unit)


def units(tree):
    for unit in ("stoker.target", *EXPOSURE):
        done = verify(tree, unit)
        expect(done.returncode == 0 and not done.stderr.strip(), f"{unit}: {done.stderr}")
    for unit, most in EXPOSURE.items():
        done = exposed(tree, unit, most)
        expect(done.returncode == 0, f"{unit} is open wider than {most / 10}:\n{done.stdout[-3000:]}")
    # Neither check is worth anything if it cannot fail.
    loader = tree / "usr/lib/systemd/system/stoker-loader.service"
    good = loader.read_text()
    loader.write_text(good.replace("[Service]", "[Service]\nNoNewPrivilege=yes"))
    expect(verify(tree, loader.name).returncode != 0, "verify does not see a planted unknown key")
    loader.write_text(good.replace("CapabilityBoundingSet=\n", ""))
    expect(exposed(tree, loader.name, EXPOSURE[loader.name]).returncode != 0, "security does not see planted capabilities")
    loader.write_text(good)
    print("units: understood, and closed", flush=True)


def programs(tree):
    """The units name programs without a path: systemd looks for them in /usr/bin."""
    for unit in (tree / "usr/lib/systemd/system").glob("*.service"):
        for program in re.findall(r"^ExecStart=(\S+)", unit.read_text(), re.M):
            expect(os.access(tree / "usr/bin" / program, os.X_OK), f"{unit.name}: {program} is not installed")
    print(f"programs: {len(list((tree / 'usr/bin').iterdir()))} installed, those of the units among them", flush=True)


def configuration(build, tree):
    example = tree / "etc/stoker/config.toml"
    text = example.read_text()
    settings, keys = re.subn(r"^# (?=\w+ = )", "", text, flags=re.M)
    expect(keys >= 5, "the example shows no settings")
    chosen = tree / "all.toml"
    for variant in (text, settings):
        chosen.write_text(variant)
        succeed(tree / "usr/bin/stoker", "config", "show", env={"STOKER_CONFIG": str(chosen)})
    example.write_text("# mine\n")
    install(build, tree)
    expect(example.read_text() == "# mine\n", "installing again replaces /etc/stoker/config.toml")
    elsewhere = tree / "elsewhere"
    install(build, elsewhere, "/opt/stoker")
    expect(not (elsewhere / "etc").exists(), "with prefix /opt/stoker something is installed to /etc")
    shutil.rmtree(elsewhere)
    print("configuration: valid, also with all settings; never overwritten", flush=True)


def users_and_directories(tree):
    if os.geteuid() != 0:
        print("skipped: users and directories are made by root only")
        return
    succeed("systemd-sysusers", f"--root={tree}", "stoker.conf")
    user = next((line.split(":") for line in (tree / "etc/passwd").read_text().splitlines() if line.startswith("stoker:")), None)
    expect(user is not None and user[5:] == ["/var/lib/stoker", "/usr/sbin/nologin"], f"user stoker: {user}")
    groups = {line.split(":")[0]: line.split(":")[3] for line in (tree / "etc/group").read_text().splitlines()}
    expect(groups.get("render") == "stoker" and groups.get("video") == "stoker", f"groups: {groups}")
    succeed("systemd-tmpfiles", f"--root={tree}", "--create", "stoker.conf")
    for path, mode, uid in (("run/stoker", 0o750, int(user[2])), ("var/lib/stoker", 0o755, int(user[2])),
                            ("var/lib/stoker/models", 0o755, 0)):
        info = (tree / path).stat()
        expect((info.st_mode & 0o7777, info.st_uid) == (mode, uid), f"{path}: {info}")
    print("users and directories: made as described", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True, type=pathlib.Path, help="build directory; what it has is installed")
    build = parser.parse_args().build.resolve()
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        print("skipped: not installed: " + " ".join(missing))
        return SKIP
    work = pathlib.Path(tempfile.mkdtemp(prefix="stoker-install-"))
    try:
        install(build, work)
        units(work)
        programs(work)
        users_and_directories(work)
        configuration(build, work)
    except Failure as failure:
        print(f"FAILED: {failure}", flush=True)
        return 1
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
