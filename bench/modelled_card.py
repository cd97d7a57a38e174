#!/usr/bin/env python3
"""What a small card could do, by arithmetic: decode of Qwen3-Coder-Next-FP8 with experts in VRAM, RAM and on NVMe.

Nothing is measured here but hit rates: `stoker trace replay --vram-slots` plays a routing trace through the worker's
VRAM cache, its choice of lanes and the loader's policy, and what it counts is divided by stated bandwidths. Prints a
Markdown table and, under it, every formula and assumption. Standard library only.

    bench/modelled_card.py --bin build/release/bin --trace ../shared/traces/synthetic512_diverse.mtrc
                           [--vram 8GiB] [--reserve 0GB] [--context 8192] [--pools 33%,28GiB,100%] [--pcie 12,25]
                           [--nvme 3.5,7] [--cpu 25] [--vram-bandwidth 448] [--layer-us 30] [--skip 100]
                           [--second-touch N] [--copies in-order|hottest] [--pool-hears misses|all-uses|exclusive]
                           [--json FILE]

--reserve: VRAM that something else holds (driver context, display). --layer-us: cost of starting and joining a layer's
work, in the serial figure only. --json: also writes what the table was made from.
"""

import argparse
import json
import subprocess
import sys

EXPERT = 3_145_728  # bytes: three F8 matrices of 2048 x 512
WEIGHTS = 2.42e9  # resident weights that every token reads, lm_head among them; the embedding stays in host memory
STATE = 0.15e9  # recurrent state, read and written
KV_POSITION = 48 * 1024  # fp32: 12 attention layers x (k, v) x 2 heads x 256 x 4 bytes
WORKSPACE = 0.4e9
UNITS = {"GiB": 2**30, "MiB": 2**20, "GB": 1e9, "MB": 1e6}
# (PCIe GB/s, NVMe GB/s): tokens/s
GOALS = {(12, 3.5): 10, (25, 7): 15}


def size(text):
    for unit, factor in UNITS.items():
        if text.endswith(unit):
            return float(text[: -len(unit)]) * factor
    raise argparse.ArgumentTypeError(f"{text}: give a unit, one of {', '.join(UNITS)}")


def numbers(text):
    return [float(x) for x in text.split(",")]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="build/release/bin")
    parser.add_argument("--trace", required=True)
    parser.add_argument("--vram", type=size, default=size("8GiB"))
    parser.add_argument("--reserve", type=size, default=0)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--pools", default="33%,28GiB,100%")
    parser.add_argument("--pcie", type=numbers, default=[12, 25])
    parser.add_argument("--nvme", type=numbers, default=[3.5, 7])
    parser.add_argument("--cpu", type=float, default=25)
    parser.add_argument("--vram-bandwidth", type=float, default=448)
    parser.add_argument("--layer-us", type=float, default=30)
    parser.add_argument("--skip", type=int, default=100)
    parser.add_argument("--second-touch", type=int)
    parser.add_argument("--copies")
    parser.add_argument("--pool-hears")
    parser.add_argument("--json")
    return parser.parse_args()


def vram_slots(args):
    rest = args.vram - args.reserve - WEIGHTS - WORKSPACE - args.context * KV_POSITION
    if rest < 0:
        sys.exit(f"nothing is left of {args.vram / 1e9:.2f} GB of VRAM: {rest / 1e9:.2f} GB")
    return int(rest // EXPERT)


def pool_slots_per_layer(text, layers, experts):
    if text.endswith("%"):
        return max(1, round(float(text[:-1]) / 100 * experts))
    return min(experts, int(size(text) // EXPERT // layers))


def replay(args, slots, pools, pcie):
    command = [f"{args.bin}/stoker", "trace", "replay", args.trace, "--vram-slots", str(slots), "--slots-per-layer",
               ",".join(map(str, pools)), "--skip", str(args.skip), "--expert-bytes", str(EXPERT), "--lanes",
               f"{args.cpu:g},{pcie:g}", "--json"]
    for option in ("second_touch", "copies", "pool_hears"):
        value = getattr(args, option)
        if value is not None:
            command += [f"--{option.replace('_', '-')}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def resident_bytes(args):
    """What every step reads and writes in VRAM, whatever its experts."""
    return WEIGHTS + STATE + args.context * KV_POSITION


def limit(r, args, pcie, nvme):
    """Seconds per token if all edges are busy all the time, the slowest edge, and the bytes over each."""
    moved = {"disk": r["disk"] * EXPERT,
             "PCIe": r["copied"] * EXPERT,
             "CPU": (r["pool"] + r["disk"] - r["copied"]) * EXPERT,
             "VRAM": r["steps"] * resident_bytes(args) + (r["vram"] + 2 * r["copied"]) * EXPERT}
    moved = {edge: count / r["tokens"] for edge, count in moved.items()}
    bandwidth = {"disk": nvme, "PCIe": pcie, "CPU": args.cpu, "VRAM": args.vram_bandwidth}
    seconds = {edge: moved[edge] / (bandwidth[edge] * 1e9) for edge in moved}
    slowest = max(seconds, key=seconds.get)
    return seconds[slowest], slowest, moved


def serial(r, layers, args, pcie, nvme):
    """Seconds per token if nothing overlaps but the two lanes of one layer."""
    on_card, over_pcie, on_cpu, from_disk = (EXPERT / (x * 1e9) for x in (args.vram_bandwidth, pcie, args.cpu, nvme))
    total = r["steps"] * (resident_bytes(args) / (args.vram_bandwidth * 1e9) + layers * args.layer_us * 1e-6)
    for vram, pool, disk, copied, _, count in r["events"]:
        lanes = max(copied * (over_pcie + on_card), (pool + disk - copied) * on_cpu)
        total += count * (vram * on_card + disk * from_disk + lanes)
    return total / r["tokens"]


def row(name, r, layers, args, pcie, nvme):
    seconds, slowest, moved = limit(r, args, pcie, nvme)
    slow = serial(r, layers, args, pcie, nvme)
    tiers = " / ".join(f"{100 * r[t] / r['uses']:.1f}" for t in ("vram", "pool", "disk"))
    edges = " | ".join(f"{moved[e] / 1e6:.0f}" for e in ("disk", "PCIe", "CPU", "VRAM"))
    host = sum(moved[e] for e in ("disk", "PCIe", "CPU")) / seconds / 1e9
    text = (f"| {name}: {r['pool_slots']} slots | {pcie:g} + {nvme:g} | {tiers} | {edges} | "
            f"{1e3 * seconds:.1f} ({slowest}) | **{1 / seconds:.1f}** | {1e3 * slow:.1f} | **{1 / slow:.1f}** | {host:.0f} |")
    return text, {"pool": name, "pcie": pcie, "nvme": nvme, "limit": 1 / seconds, "serial": 1 / slow}


HEAD = """| pool | PCIe + NVMe, GB/s | found in VRAM / pool / disk, % | disk, MB per token | PCIe | CPU lane | VRAM | \
limit, ms (edge) | tokens/s at the limit | serial, ms | tokens/s serial | host memory GB/s at the limit |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


def formula(args, slots, layers, r):
    kv = args.context * KV_POSITION
    resident = f"{WEIGHTS / 1e9:.2f} weights + {STATE / 1e9:.2f} state + {kv / 1e9:.2f} KV"
    return f"""
VRAM slots: ({args.vram / 1e9:.2f} GB - {args.reserve / 1e9:.2f} reserved - {WEIGHTS / 1e9:.2f} weights - {kv / 1e9:.2f} KV \
cache of {args.context} positions - {WORKSPACE / 1e9:.2f} workspace) / {EXPERT:,} bytes = {slots}, {slots / layers:.1f} per \
layer. In the smallest pool the first use of an expert is {100 * r['compulsory'] / r['uses']:.2f} % of all uses (part of \
*disk*).

    E = {EXPERT:,} bytes; hits, disk, copied (PCIe) and computed (CPU): experts per token, as replayed
    limit  = max(disk * E / NVMe, copied * E / PCIe, computed * E / {args.cpu:g}, VRAM bytes / {args.vram_bandwidth:g})
             VRAM bytes = {resident} GB + (hits + 2 * copied) * E
    serial = ({resident}) GB / {args.vram_bandwidth:g} + sum over {layers} layers of
             ({args.layer_us:g} us + hits * E / {args.vram_bandwidth:g} + disk * E / NVMe
              + max(copied * E * (1 / PCIe + 1 / {args.vram_bandwidth:g}), computed * E / {args.cpu:g}))
    Serial: no layer overlaps another, and within a layer nothing overlaps but its two lanes.
"""


def goals(results):
    lines = []
    for (pcie, nvme), goal in GOALS.items():
        for r in results:
            if (r["pcie"], r["nvme"]) == (pcie, nvme):
                figures = ", ".join(f"{k} {r[k]:.1f} ({'reached' if r[k] >= goal else 'missed'})" for k in ("limit", "serial"))
                lines.append(f"- {pcie:g} + {nvme:g} GB/s, pool {r['pool']}: goal {goal} tokens/s; {figures}")
    return "\n".join(lines)


def main():
    args = arguments()
    slots = vram_slots(args)
    names = args.pools.split(",")
    layers, experts = 48, 512
    pools = [pool_slots_per_layer(name, layers, experts) for name in names]
    replays = {pcie: replay(args, slots, pools, pcie) for pcie in args.pcie}
    for trace in replays.values():
        # A trace of another model would be divided by the wrong bytes.
        if (trace["layers"], trace["experts"]) != (layers, experts):
            sys.exit(f"{args.trace}: {trace['layers']} x {trace['experts']} experts; this model: {layers} x {experts}")
    print(HEAD)
    results = []
    for at, name in enumerate(names):
        for pcie in args.pcie:
            for nvme in args.nvme:
                text, result = row(name, replays[pcie]["tiers"][at], layers, args, pcie, nvme)
                print(text)
                results.append(result)
    smallest = min(replays[args.pcie[0]]["tiers"], key=lambda r: r["pool_slots"])
    print(formula(args, slots, layers, smallest))
    print(goals(results))
    if args.json:
        with open(args.json, "w") as out:
            json.dump({"arguments": vars(args), "replays": replays, "results": results}, out)


if __name__ == "__main__":
    main()
