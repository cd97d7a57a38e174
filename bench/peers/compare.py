#!/usr/bin/env python3
"""Stoker against peers: same tensors, same forced ids, same memory, same machine, interleaved.

Every repeat decodes the same ids with each engine in turn, in the opposite order every other time. Memory: Stoker's own
measured peak at that pool size is the cap of everybody else, by a memory cgroup. A cgroup of version 1 does not count
huge pages, so for peers the table shows what the cgroup counted plus their anonymous huge pages, and for Stoker (whose
pool is huge pages of shared memory) the proportional set size of its processes. Files are dropped from the page cache
before each run; read-ahead of the disk is set for the run of a mapping peer and put back.

This script builds and fetches nothing. A peer is named by the program that runs it:
  --mmap PROGRAM     forced_decode built against llama.cpp: the file is mapped, the kernel decides what stays
  --stream PROGRAM   forced_decode built with -DEXPERT_STREAM against a fork with --slots
  --bmoe PROGRAM     bmoe-cli with qwen3next in its list of architectures and BMOE_FORCED_IDS (docs/peers.md)

    bench/peers/compare.py --bin build/release/bin --model DIR --gguf FILE --mmap ./forced_decode
        [--stream ./forced_decode_stream] [--bmoe ./bmoe-cli] [--fractions 0.25,0.12] [--repeats 5] [--resident 8]

--resident K adds a setting in which K ids repeat, so that after warming nothing is read: speed with everything in
memory without needing memory for everything. A fraction of 1 is the real thing (21 GiB of memory, no cap).
Standard library only. Root is needed for the cgroup and the read-ahead.
"""

import argparse
import contextlib
import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import out_of_core  # noqa: E402

GIB = 2 ** 30


class Cap:
    """A memory cgroup (version 1 or 2) of its own with a limit; None for a limit makes one without."""

    def __init__(self, limit):
        root = pathlib.Path("/sys/fs/cgroup")
        self.v1 = (root / "memory" / "memory.limit_in_bytes").exists()
        self.path = (root / "memory" if self.v1 else root) / f"stoker-peers-{os.getpid()}"
        self.limit = limit

    def __enter__(self):
        self.path.mkdir(exist_ok=True)
        if self.limit:
            (self.path / ("memory.limit_in_bytes" if self.v1 else "memory.max")).write_text(str(int(self.limit)))
        return self

    def __exit__(self, *_):
        for attempt in range(50):
            try:
                return self.path.rmdir()
            except OSError:
                time.sleep(0.1)  # the last process is still leaving
        print(f"# {self.path} could not be removed", file=sys.stderr)

    def join(self):
        (self.path / "cgroup.procs").write_text("0")

    def peak(self):
        file = self.path / ("memory.max_usage_in_bytes" if self.v1 else "memory.peak")
        return int(file.read_text()) if file.exists() else 0


def disk_queue(path):
    """The queue directory of the disk that holds the file."""
    device = os.stat(path).st_dev
    node = pathlib.Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    return (node if (node / "queue").exists() else node.parent) / "queue"


@contextlib.contextmanager
def read_ahead(path, kib):
    file = disk_queue(path) / "read_ahead_kb"
    try:
        before = file.read_text()
        file.write_text(str(kib))
    except OSError as error:
        print(f"# READ-AHEAD NOT SET: {error}; the numbers of a mapping peer are not comparable", file=sys.stderr)
        yield
        return
    try:
        yield
    finally:
        file.write_text(before)


def drop_pages(files):
    for file in files:
        with open(file, "rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class HugePages(threading.Thread):
    """Largest sum of anonymous huge pages seen in a process."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.peak, self.stopped = pid, 0, threading.Event()

    def run(self):
        while not self.stopped.wait(1.0):
            with contextlib.suppress(OSError):
                for line in pathlib.Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("AnonHugePages:"):
                        self.peak = max(self.peak, int(line.split()[1]) * 1024)


def capped(command, cap, env=None):
    """Runs a peer inside the cap; its standard output, and the peak of its memory."""
    with Cap(cap) as group:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 preexec_fn=group.join, env={**os.environ, **(env or {})})
        huge = HugePages(child.pid)
        huge.start()
        try:
            out, err = child.communicate()
        finally:
            child.kill()
            child.wait()
            huge.stopped.set()
        peak = group.peak()
    if child.returncode != 0:
        sys.exit(f"{command[0]} ended with {child.returncode}: {err.decode(errors='replace')[-2000:]}")
    return out.decode(), peak + (huge.peak if group.v1 else 0)


class Setting:
    """What is compared in one row group: a pool size, the ids, and (once Stoker ran) the cap of the others."""

    def __init__(self, name, fraction, ids, work):
        self.name, self.fraction, self.ids, self.cap = name, fraction, ids, None
        self.file = work / f"{name.replace(' ', '-').replace('%', '')}.txt"
        self.file.write_text("\n".join(map(str, ids)))

    @property
    def in_memory(self):
        return self.fraction >= 1


class Stoker:
    name = "Stoker"

    def __init__(self, args):
        self.args = args

    def run(self, setting, work):
        drop_pages(pathlib.Path(self.args.model).glob("*.safetensors"))
        result = out_of_core.decode(self.args, setting.fraction, setting.ids, work, self.args.config)
        if not setting.in_memory:
            setting.cap = max(setting.cap or 0, result["peak"])
        return {"tokens_per_s": result["tokens_per_s"], "bytes_per_token": result["bytes_per_token"],
                "peak": result["peak"]}


class Mapped:
    """llama.cpp: the file is mapped and the kernel's page cache is the expert cache."""

    name = "llama.cpp, mmap"

    def __init__(self, args):
        self.args = args

    def command(self, setting):
        a = self.args
        return [a.mmap, a.gguf, str(setting.file), "--warm", str(a.warm), "--tokens", str(a.tokens), "--threads",
                str(a.threads)]

    def run(self, setting, work):
        if not setting.in_memory:
            drop_pages([self.args.gguf])
        with read_ahead(self.args.gguf, self.args.read_ahead_kib):
            out, peak = capped(self.command(setting), setting.cap)
        return {**json.loads(out.strip().splitlines()[-1]), "peak": peak}


def expert_slots(args, cap):
    """How many experts of each layer fit under the cap beside everything else of the model."""
    if cap is None:
        return args.config["num_experts"]
    experts = args.config["num_experts"] * args.config["num_hidden_layers"] * args.gguf_expert_bytes
    resident = os.path.getsize(args.gguf) - experts + args.peer_workspace
    return int((cap - resident) / args.config["num_hidden_layers"] / args.gguf_expert_bytes)


class Streaming(Mapped):
    """The fork of llama.cpp with its own expert cache and O_DIRECT reads."""

    name = "llama.cpp + moe-stream"

    def command(self, setting):
        a = self.args
        return [a.stream, *super().command(setting)[1:], "--slots", str(expert_slots(a, setting.cap)), "--io-threads",
                str(a.io_threads), "--direct"]


class Bmoe(Mapped):
    """BigMoeOnEdge: per-token CSV, of which the last --tokens - 1 rows are measured."""

    name = "BigMoeOnEdge"

    def run(self, setting, work):
        a = self.args
        rows_file = work / "bmoe.csv"
        drop_pages([a.gguf])
        slots = expert_slots(a, setting.cap)
        cache = slots * a.config["num_hidden_layers"] * a.gguf_expert_bytes >> 20
        command = [a.bmoe, "-m", a.gguf, "-p", "x", "-n", str(a.warm + a.tokens - 5), "-t", str(a.threads), "-c", "512",
                   "--ubatch", "64", "--moe-stream", "--cache-mb", str(cache), "--io-threads", str(a.io_threads),
                   "--overlap", "--csv", str(rows_file)]
        _, peak = capped(command, setting.cap, {"BMOE_FORCED_IDS": str(setting.file)})
        with open(rows_file) as lines:
            rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))[1 - a.tokens:]
        seconds = sum(float(row["wall_ms"]) + float(row["loop_overhead_ms"]) for row in rows) / 1e3
        return {"tokens_per_s": len(rows) / seconds, "peak": peak,
                "bytes_per_token": sum(float(row["read_bytes"]) for row in rows) / len(rows)}


def settings(args, work):
    ids = [int(x) for x in (pathlib.Path(args.model) / "routing_tokens.txt").read_text().replace(",", " ").split()]
    ids = ids[:args.warm + args.tokens]
    if len(ids) < args.warm + args.tokens:
        sys.exit(f"routing_tokens.txt has {len(ids)} ids, {args.warm + args.tokens} are needed")
    made = [Setting("in memory" if f >= 1 else f"{f:.0%}", f, ids, work) for f in args.fractions]
    if args.resident:
        few = [ids[i % args.resident] for i in range(len(ids))]
        made.append(Setting(f"{args.resident} ids", args.resident_fraction, few, work))
    return made


def report(made, engines, runs):
    print("| memory | engine | tokens/s | Stoker / it, pairs | MB read per token | peak memory GiB |\n"
          "|---|---|---|---|---|---|")
    for setting in made:
        ours = [r["tokens_per_s"] for r in runs[setting.name, "Stoker"]]
        for engine in engines:
            r = runs[setting.name, engine.name]
            ratio = [a / b["tokens_per_s"] for a, b in zip(ours, r)]
            print(f"| {setting.name} | {engine.name} | {out_of_core.spread([x['tokens_per_s'] for x in r])} | "
                  f"{out_of_core.spread(ratio) if engine.name != 'Stoker' else ''} | "
                  f"{out_of_core.spread([x['bytes_per_token'] for x in r], 1e6, 0)} | "
                  f"{out_of_core.spread([x['peak'] for x in r], GIB)} |")


def parsed():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", default="build/release/bin")
    p.add_argument("--model", required=True)
    p.add_argument("--gguf", required=True, help="the same tensors, made by make_gguf.py")
    p.add_argument("--mmap", help="forced_decode of llama.cpp")
    p.add_argument("--stream", help="forced_decode of the fork that streams experts")
    p.add_argument("--bmoe", help="bmoe-cli")
    p.add_argument("--fractions", default="0.25,0.12", type=lambda s: [float(f) for f in s.split(",") if f])
    p.add_argument("--resident", type=int, default=0, help="also a setting of this many ids that repeat")
    p.add_argument("--resident-fraction", type=float, default=0.2)
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--warm", type=int, default=96)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--threads", type=int, default=os.cpu_count(), help="compute threads of the peers")
    p.add_argument("--io-threads", type=int, default=4, help="read threads of the streaming peers")
    p.add_argument("--read-ahead-kib", type=int, default=128)
    p.add_argument("--peer-workspace", type=float, default=0.3, help="GiB a streaming peer needs besides weights")
    p.add_argument("--no-predictor", action="store_true")
    p.add_argument("--json", help="also append raw results to this file, one line per run")
    args = p.parse_args()
    args.config = json.loads((pathlib.Path(args.model) / "config.json").read_text())
    args.peer_workspace *= GIB
    weights = 3 * args.config["hidden_size"] * args.config["moe_intermediate_size"]
    args.gguf_expert_bytes = weights // 32 * 34  # Q8_0
    return args


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that read-ahead and cgroup are put back
    args = parsed()
    engines = [Stoker(args)]
    engines += [kind(args) for kind, program in ((Mapped, args.mmap), (Streaming, args.stream), (Bmoe, args.bmoe)) if program]
    with tempfile.TemporaryDirectory(prefix="stoker-peers-") as folder:
        work = pathlib.Path(folder)
        made = settings(args, work)
        runs = {(s.name, e.name): [] for s in made for e in engines}
        for repeat in range(args.repeats):
            for setting in made:
                for engine in engines if repeat % 2 == 0 else reversed(engines):
                    result = engine.run(setting, work)
                    runs[setting.name, engine.name].append(result)
                    print(f"# {time.strftime('%H:%M:%S')} repeat {repeat + 1}, {setting.name}: {engine.name} "
                          f"{result['tokens_per_s']:.2f} tokens/s, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
                    if args.json:
                        with open(args.json, "a") as out:
                            out.write(json.dumps({"setting": setting.name, "engine": engine.name, "cap": setting.cap,
                                                  **result}) + "\n")
    print(f"{args.repeats} interleaved repeats, {args.tokens} forced tokens after {args.warm} to warm up, "
          f"{os.cpu_count()} cores; median (min-max)\n")
    report(made, engines, runs)


if __name__ == "__main__":
    main()
