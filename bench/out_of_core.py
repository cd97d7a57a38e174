#!/usr/bin/env python3
"""Out-of-core decode on a synthetic checkpoint with real expert shapes: the honest starting line.

For each repeat, interleaved: raw O_DIRECT bandwidth at expert size and best depth, then one decode run per pool size
(fraction of all experts) in a fresh private stack with forced token ids (so every run does the same work). Prints one
Markdown table: median (min-max) of tokens/s, bytes read per token, GB/s, share of the raw bandwidth, share of time the
CPU waited for weights, hit rate, and peak memory against budget. Standard library only.

    bench/out_of_core.py --bin build/release/bin --model DIR [--fractions 0.25,0.12] [--tokens 64] [--repeats 5]
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "process"))
from harness import Stack  # noqa: E402


def open_model(path):
    """config.json and the recorded ids of a synthetic checkpoint."""
    config = json.loads((path / "config.json").read_text())
    return config, [int(x) for x in (path / "routing_tokens.txt").read_text().replace(",", " ").split()]


def pss_bytes(pid):
    """Proportional set size: memory shared by the processes is counted once over all of them."""
    try:
        for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


class PeakMemory(threading.Thread):
    def __init__(self, pids):
        super().__init__(daemon=True)
        self.pids, self.peak, self.stopped = pids, 0, threading.Event()

    def run(self):
        while not self.stopped.wait(1.0):
            self.peak = max(self.peak, sum(pss_bytes(p) for p in self.pids))

    def stop(self):
        self.stopped.set()
        self.join()
        return self.peak


def raw_bandwidth(args):
    """Random reads of expert size over all shards, at the best of five depths, in bytes per second."""
    shards = sorted(str(p) for p in pathlib.Path(args.model).glob("*.safetensors"))
    done = subprocess.run([f"{args.bin}/raw_read", "--json", "--size", str(args.expert_bytes), "--seconds",
                           str(args.raw_seconds), *shards], check=True, capture_output=True, stdin=subprocess.DEVNULL)
    report = json.loads(done.stdout)
    if not report["direct"]:
        sys.exit("the file system has no O_DIRECT: nothing to compare with")
    return max(point["gb_per_second"] for point in report["points"]) * 1e9


def counters(status):
    return {k: v for k, v in status["loader"].items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


def decode(args, fraction, ids, work, config, extra_worker=(), settle=0):
    slots = max(config["num_experts_per_tok"], int(fraction * config["num_hidden_layers"] * config["num_experts"]))
    stack = Stack(args.bin, args.model, work, slots=slots, predictor=not args.no_predictor,
                  extra_worker=("--kept-sequences", "0", *extra_worker)).start_all(timeout=1800)
    try:
        warm, measured = ids[:args.warm], ids[args.warm:args.warm + args.tokens]
        forced = work / "forced.txt"

        def run(prompt, tokens):
            forced.write_text(",".join(map(str, tokens)))
            return stack.ask("--tokens", ",".join(map(str, prompt)), "--forced", forced, timeout=3600)
        run(ids[:4], warm)  # fills the pool with the working set; not measured
        memory = PeakMemory([p.pid for p in stack.processes.values()])
        memory.start()
        before = stack.status()
        answer = run(warm[-4:], measured)
        time.sleep(settle)  # the predictor reports once a second
        after = stack.status()
        peak = memory.stop()
        stats = answer["stats"]
        delta = {k: counters(after)[k] - counters(before)[k] for k in counters(after)}
        seconds = stats["decode_seconds"]
        tokens = stats["generated_tokens"] - 1
        uses = stats["experts_pool"] + stats["experts_prefetched"] + stats["experts_disk"]
        return {"tokens_per_s": tokens / seconds, "bytes_per_token": delta["read_bytes"] / (tokens + 1 + len(warm[-4:])),
                "read_bytes": delta["read_bytes"],
                "seconds": seconds + stats["prefill_seconds"], "stall_share": stats["stall_seconds"] /
                (seconds + stats["prefill_seconds"]), "hit": 1 - stats["experts_disk"] / uses, "peak": peak,
                "stall_seconds": stats["stall_seconds"], "delta": delta,
                "used": {k: after["experts"][k] - before["experts"][k] for k in ("pool_hinted", "disk_late_hint", "disk")},
                "predictor": (after["predictor"] or {}).get("score"),
                "budget": after["pool"]["bytes"] + after["memory"]["weights_bytes"]}
    finally:
        stack.stop()


def spread(values, unit=1.0, digits=2):
    v = sorted(x / unit for x in values)
    return f"{statistics.median(v):.{digits}f} ({v[0]:.{digits}f}-{v[-1]:.{digits}f})"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", default="build/release/bin")
    p.add_argument("--model", required=True)
    p.add_argument("--fractions", default="0.25,0.12")
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--warm", type=int, default=96)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--raw-seconds", type=float, default=1.0)
    p.add_argument("--no-predictor", action="store_true")
    p.add_argument("--json", help="also append raw results to this file, one line per run")
    args = p.parse_args()
    model = pathlib.Path(args.model)
    config, ids = open_model(model)
    args.expert_bytes = 3 * config["hidden_size"] * config["moe_intermediate_size"]
    if len(ids) < args.warm + args.tokens:
        sys.exit(f"routing_tokens.txt has {len(ids)} ids, {args.warm + args.tokens} are needed")
    fractions = [float(f) for f in args.fractions.split(",")]
    runs = {f: [] for f in fractions}
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as work:
        for repeat in range(args.repeats):
            for fraction in fractions:
                raw = raw_bandwidth(args)
                result = decode(args, fraction, ids, pathlib.Path(work), config)
                result.update(fraction=fraction, raw=raw, share=result["read_bytes"] / result["seconds"] / raw)
                runs[fraction].append(result)
                print(f"# {time.strftime('%H:%M:%S')} repeat {repeat + 1} pool {fraction:.0%}: "
                      f"{result['tokens_per_s']:.2f} tokens/s, raw {raw / 1e9:.2f} GB/s", file=sys.stderr, flush=True)
                if args.json:
                    with open(args.json, "a") as out:
                        out.write(json.dumps(result) + "\n")
    cores = os.cpu_count()
    print(f"{args.repeats} interleaved repeats, {args.tokens} forced tokens after {args.warm} to warm the pool, {cores} cores; "
          "median (min-max)\n")
    print("| pool | tokens/s | MB read per token | GB/s read | raw GB/s in the same run | share of raw | CPU waited | "
          "experts found in the pool | peak memory GiB | pool + weights GiB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for f in fractions:
        r = runs[f]
        print(f"| {f:.0%} | {spread([x['tokens_per_s'] for x in r])} | {spread([x['bytes_per_token'] for x in r], 1e6, 0)} | "
              f"{spread([x['read_bytes'] / x['seconds'] for x in r], 1e9)} | {spread([x['raw'] for x in r], 1e9)} | "
              f"{spread([100 * x['share'] for x in r], 1, 0)} % | {spread([100 * x['stall_share'] for x in r], 1, 0)} % | "
              f"{spread([100 * x['hit'] for x in r], 1, 1)} % | {spread([x['peak'] for x in r], 2**30)} | "
              f"{spread([x['budget'] for x in r], 2**30)} |")


if __name__ == "__main__":
    main()
