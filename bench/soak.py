#!/usr/bin/env python3
"""Decode for an hour at a small pool: does speed, memory or the accounting of hits drift?

One private stack; request after request decodes the same forced token ids in the same order, so that every round does
the same work. A line per round to --log (JSON). At the end one Markdown table over thirds of the time, and checks that
fail the run (exit code 1):
  - the pool's counters agree with the work: uses = tokens x layers x experts per token, uses = hits + hinted + disk + late,
    bytes read = fills x bytes per fill, no read error, no slot left leased or filling between rounds
  - memory of the last third at most 1 % + 16 MiB above the first third's (proportional set size of all processes)
Speed is reported, with the spread of the rounds; a busy neighbour is not a failure. Standard library only.

    bench/soak.py --bin build/release/bin --model DIR [--fraction 0.12] [--minutes 60] [--tokens 256] [--log FILE]
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time

from out_of_core import open_model, pss_bytes, spread
from harness import Stack  # noqa: E402  (out_of_core adds its folder to the path)


def one_round(stack, ids, work):
    forced = work / "forced.txt"
    forced.write_text(",".join(map(str, ids[4:])))
    before = stack.status()
    stats = stack.ask("--tokens", ",".join(map(str, ids[:4])), "--forced", forced, timeout=3600)["stats"]
    after = stack.status()
    experts = {k: after["experts"][k] - before["experts"][k] for k in ("used", "pool", "pool_hinted", "disk",
                                                                       "disk_late_hint")}
    loader = {k: after["loader"][k] - before["loader"][k] for k in ("read_bytes", "demand_fills", "hint_fills",
                                                                    "read_errors", "hints_wasted", "evictions")}
    return {"tokens_per_s": stats["tokens_per_second"], "tokens": stats["generated_tokens"] + len(ids[:4]) - 1,
            "stall_s": stats["stall_seconds"], "experts": experts, "loader": loader,
            "leased": after["pool"]["leased"], "filling": after["pool"]["filling"],
            "memory": sum(pss_bytes(p.pid) for p in stack.processes.values())}


def faults(row, config, bytes_per_fill):
    e, l, found = row["experts"], row["loader"], []
    if e["used"] != e["pool"] + e["pool_hinted"] + e["disk"] + e["disk_late_hint"]:
        found.append(f"uses {e['used']} are not the sum of their tiers")
    # The prompt's four tokens are one step: its distinct experts count once, so it may be a little less.
    whole = row["tokens"] * config["num_hidden_layers"] * config["num_experts_per_tok"]
    least = whole - 3 * config["num_hidden_layers"] * config["num_experts_per_tok"]
    if not least <= e["used"] <= whole:
        found.append(f"{e['used']} uses, {least} to {whole} are due")
    if l["read_errors"]:
        found.append(f"{l['read_errors']} read errors")
    fills = l["demand_fills"] + l["hint_fills"]
    if abs(l["read_bytes"] / max(fills, 1) / bytes_per_fill - 1) > 0.005:
        found.append(f"{l['read_bytes']} bytes read for {fills} fills")
    if row["leased"] or row["filling"] > 16:  # a few hints may still be landing
        found.append(f"{row['leased']} slots leased and {row['filling']} filling between rounds")
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", default="build/release/bin")
    p.add_argument("--model", required=True)
    p.add_argument("--fraction", type=float, default=0.12)
    p.add_argument("--minutes", type=float, default=60)
    p.add_argument("--tokens", type=int, default=256)
    p.add_argument("--log")
    args = p.parse_args()
    model = pathlib.Path(args.model)
    config, ids = open_model(model)
    ids = ids[:args.tokens + 4]
    slots = int(args.fraction * config["num_hidden_layers"] * config["num_experts"])
    # An expert lies in one extent that is rounded out to whole blocks, at most one block more than its slot.
    bytes_per_fill = 3 * config["hidden_size"] * config["moe_intermediate_size"] * 1.0013
    rows, bad = [], 0
    with tempfile.TemporaryDirectory(prefix="stoker-soak-") as work:
        stack = Stack(args.bin, args.model, work, slots=slots, extra_worker=("--kept-sequences", "0")).start_all(timeout=1800)
        try:
            one_round(stack, ids, pathlib.Path(work))  # fills the pool
            started = time.monotonic()
            while time.monotonic() - started < args.minutes * 60:
                row = one_round(stack, ids, pathlib.Path(work))
                row["minute"] = (time.monotonic() - started) / 60
                for fault in faults(row, config, bytes_per_fill):
                    bad += 1
                    print(f"minute {row['minute']:.1f}: {fault}", file=sys.stderr, flush=True)
                rows.append(row)
                if args.log:
                    with open(args.log, "a") as out:
                        out.write(json.dumps(row) + "\n")
        finally:
            stack.stop()
    third = max(1, len(rows) // 3)
    parts = {"first third": rows[:third], "middle": rows[third:-third], "last third": rows[-third:]}
    print(f"{rows[-1]['minute']:.0f} minutes, {len(rows)} rounds of {args.tokens} tokens, pool of {args.fraction:.0%}; "
          "median (min-max) over rounds\n")
    print("| | tokens/s | stall s per round | found in the pool | MB read per token | memory MiB |\n|---|---|---|---|---|---|")
    for name, r in parts.items():
        if not r:
            continue
        hit = [100 * (x["experts"]["pool"] + x["experts"]["pool_hinted"]) / x["experts"]["used"] for x in r]
        print(f"| {name} | {spread([x['tokens_per_s'] for x in r])} | {spread([x['stall_s'] for x in r])} | "
              f"{spread(hit, 1, 1)} % | {spread([x['loader']['read_bytes'] / x['tokens'] for x in r], 1e6, 1)} | "
              f"{spread([x['memory'] for x in r], 2**20, 0)} |")
    first, last = (statistics.median(x["memory"] for x in parts[k]) for k in ("first third", "last third"))
    if last > first * 1.01 + (16 << 20):
        bad += 1
        print(f"memory grew from {first / 2**20:.0f} to {last / 2**20:.0f} MiB", file=sys.stderr)
    print(f"\n{bad} faults" if bad else "\nno fault: counters agree in every round, memory is steady")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
