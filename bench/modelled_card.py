#!/usr/bin/env python3
"""What a small card could do, by arithmetic: decode of Qwen3-Coder-Next-FP8 with experts in VRAM, RAM and on NVMe.

Nothing is measured here but hit rates: `stoker trace replay --vram-slots` plays a routing trace through the worker's
VRAM cache and the loader's policy, and its counts are divided by stated bandwidths. Prints a Markdown table and, under
it, every formula and assumption. Standard library only.

    bench/modelled_card.py --bin build/release/bin --trace ../shared/traces/synthetic512_diverse.mtrc
                           [--vram 8GiB] [--reserve 0GB] [--context 8192] [--pools 33%,28GiB,100%] [--pcie 12,25]
                           [--nvme 3.5,7] [--cpu 25] [--vram-bandwidth 448] [--layer-us 30] [--skip 100]
                           [--second-touch N] [--pool-hears misses|all-uses|exclusive] [--json FILE]

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


def replay(args, slots, pools):
    command = [f"{args.bin}/stoker", "trace", "replay", args.trace, "--vram-slots", str(slots), "--slots-per-layer",
               ",".join(map(str, pools)), "--skip", str(args.skip), "--expert-bytes", str(EXPERT), "--json"]
    if args.second_touch is not None:
        command += ["--second-touch", str(args.second_touch)]
    if args.pool_hears:
        command += ["--pool-hears", args.pool_hears]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def limit(r, args, pcie, nvme):
    """Seconds per token if all edges are busy all the time, and the bytes over each edge."""
    vram, promoted, disk = (r[k] / r["tokens"] for k in ("vram", "promoted", "disk"))
    elsewhere = (r["pool"] + r["disk"]) / r["tokens"]
    # Who was promoted went over PCIe already; beyond that, as many as make both lanes end together.
    copied = min(elsewhere, max(promoted, elsewhere * pcie / (pcie + args.cpu)))
    steps = r["steps"] / r["tokens"]
    bytes_of = {
        "disk": disk * EXPERT,
        "PCIe": copied * EXPERT,
        "CPU": (elsewhere - copied) * EXPERT,
        "VRAM": steps * (WEIGHTS + STATE + args.context * KV_POSITION) + (vram + 2 * copied) * EXPERT,
    }
    bandwidth = {"disk": nvme, "PCIe": pcie, "CPU": args.cpu, "VRAM": args.vram_bandwidth}
    seconds = {edge: bytes_of[edge] / (bandwidth[edge] * 1e9) for edge in bytes_of}
    slowest = max(seconds, key=seconds.get)
    return seconds[slowest], slowest, bytes_of


def lanes(experts, promoted, args, pcie):
    """Seconds for one layer's experts that are not in VRAM: whole experts, CPU and PCIe side by side."""
    copy = EXPERT / (pcie * 1e9) + EXPERT / (args.vram_bandwidth * 1e9)
    compute = EXPERT / (args.cpu * 1e9)
    return min(max(x * copy, (experts - x) * compute) for x in range(promoted, experts + 1))


def serial(r, layers, args, pcie, nvme):
    """Seconds per token if nothing overlaps but the two lanes of one layer."""
    resident = (WEIGHTS + STATE + args.context * KV_POSITION) / (args.vram_bandwidth * 1e9)
    total = r["steps"] * (resident + layers * args.layer_us * 1e-6)
    for vram, pool, disk, promoted, count in r["events"]:
        total += count * (vram * EXPERT / (args.vram_bandwidth * 1e9) + disk * EXPERT / (nvme * 1e9) +
                          lanes(pool + disk, promoted, args, pcie))
    return total / r["tokens"]


def row(name, r, trace, args, pcie, nvme):
    seconds, slowest, moved = limit(r, args, pcie, nvme)
    slow = serial(r, trace["layers"], args, pcie, nvme)
    tiers = " / ".join(f"{100 * r[t] / r['uses']:.1f}" for t in ("vram", "pool", "disk"))
    edges = " | ".join(f"{moved[e] / 1e6:.0f}" for e in ("disk", "PCIe", "CPU", "VRAM"))
    host = sum(moved[e] for e in ("disk", "PCIe", "CPU")) / seconds / 1e9
    text = (f"| {name}: {r['pool_slots']} slots | {pcie:g} + {nvme:g} | {tiers} | {edges} | {1e3 * seconds:.1f} ({slowest}) | "
            f"**{1 / seconds:.1f}** | {1e3 * slow:.1f} | **{1 / slow:.1f}** | {host:.0f} |")
    return text, {"pool": name, "pcie": pcie, "nvme": nvme, "limit": 1 / seconds, "serial": 1 / slow}


HEAD = """| pool | PCIe + NVMe, GB/s | found in VRAM / pool / disk, % | disk, MB per token | PCIe | CPU lane | VRAM | limit, ms (edge) | \
tokens/s at the limit | serial, ms | tokens/s serial | host memory GB/s at the limit |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


def formula(args, slots, trace, r):
    kv = args.context * KV_POSITION
    return f"""
VRAM slots: ({args.vram / 1e9:.2f} GB - {args.reserve / 1e9:.2f} reserved - {WEIGHTS / 1e9:.2f} weights - {kv / 1e9:.2f} KV cache of \
{args.context} positions - {WORKSPACE / 1e9:.2f} workspace) / {EXPERT:,} bytes = {slots}, {slots / trace['layers']:.1f} per layer. \
Promoted per token: {r['promoted'] / r['tokens']:.1f} experts. First use of an expert: {100 * r['compulsory'] / r['uses']:.2f} % of uses \
in the smallest pool (part of *disk*).

    n = experts per token not in VRAM, p of them promoted, x = max(p, n * PCIe / (PCIe + CPU)) copied, n - x computed on the CPU
    limit  = max(disk bytes / NVMe, x * E / PCIe, (n - x) * E / {args.cpu:g}, VRAM bytes / {args.vram_bandwidth:g}),  E = {EXPERT:,} bytes
             VRAM bytes = {WEIGHTS / 1e9:.2f} GB weights + {STATE / 1e9:.2f} state + {kv / 1e9:.2f} KV + E * (hits + 2 x)
    serial = ({WEIGHTS / 1e9:.2f} + {STATE / 1e9:.2f} + {kv / 1e9:.2f}) GB / {args.vram_bandwidth:g} + sum over the {trace['layers']} layers of
             ({args.layer_us:g} us + hits * E / {args.vram_bandwidth:g} + disk * E / NVMe
              + min over whole x >= p of max(x * E / PCIe + x * E / {args.vram_bandwidth:g}, (n - x) * E / {args.cpu:g}))
    GB/s throughout. Serial: nothing of a layer overlaps but its two lanes, and no layer overlaps another.
"""


def goals(results):
    lines = []
    for (pcie, nvme), goal in GOALS.items():
        for r in results:
            if (r["pcie"], r["nvme"]) == (pcie, nvme):
                verdict = {k: "reached" if r[k] >= goal else "missed" for k in ("limit", "serial")}
                lines.append(f"- {pcie:g} + {nvme:g} GB/s, pool {r['pool']}: goal {goal} tokens/s; limit {r['limit']:.1f} ({verdict['limit']}), "
                             f"serial {r['serial']:.1f} ({verdict['serial']})")
    return "\n".join(lines)


def main():
    args = arguments()
    slots = vram_slots(args)
    names = args.pools.split(",")
    # The shape is the model's; a trace of another one would be divided by the wrong bytes.
    layers, experts = 48, 512
    trace = replay(args, slots, [pool_slots_per_layer(name, layers, experts) for name in names])
    if (trace["layers"], trace["experts"]) != (layers, experts):
        sys.exit(f"{args.trace}: {trace['layers']} x {trace['experts']} experts; this model has {layers} x {experts}")
    print(HEAD)
    results = []
    for name, r in zip(names, trace["tiers"]):
        for pcie in args.pcie:
            for nvme in args.nvme:
                text, result = row(name, r, trace, args, pcie, nvme)
                print(text)
                results.append(result)
    smallest = min(trace["tiers"], key=lambda r: r["pool_slots"])
    print(formula(args, slots, trace, smallest))
    print(goals(results))
    if args.json:
        with open(args.json, "w") as out:
            json.dump({"arguments": vars(args), "replay": trace, "results": results}, out)


if __name__ == "__main__":
    main()
