#!/usr/bin/env python3
"""How many instructions a weight costs in the decode kernels of libstoker-cuda.so, counted in the machine code.

    bench/gpu_instructions.py build/release/bin/libstoker-cuda.so [--cuobjdump PATH]

No GPU needed, only cuobjdump of the CUDA Toolkit. Beside it stands what a card has: the instructions that all lanes
together issue while one byte comes from memory. A kernel that needs more than that is bound by instructions. Counts the
longest path through the main loop (what is rarely executed is in it), so it is an upper bound. Standard library only.
"""

import argparse
import re
import subprocess
import sys

# Kernel, type of the weights in its mangled name (device_api.h: Code), bytes of a weight, weights per lane in one round
# of the main loop: few_rows.cuh, kDepth chunks of four rows; rounds of an inner loop in it.
KERNELS = [("gate and up of experts", "inner_few", 0, 1, 256, 2), ("down of experts", "down_few", 0, 1, 256, 2),
           ("projections", "matmul_few", 0, 1, 256, 2), ("projections, lm_head", "matmul_few", 1, 2, 128, 1)]
CODES = ["FP8", "BF16"]
# Lanes that issue per clock (128 per multiprocessor), boost clock in GHz, memory in GB/s: published data sheets.
CARDS = {"sm_75": ("RTX 2070 Super", 40 * 128 * 1.77, 448), "sm_86": ("RTX 3070 Laptop", 40 * 128 * 1.62, 448),
         "sm_89": ("RTX 4060 Laptop", 24 * 128 * 2.37, 256), "sm_90": ("H200", 132 * 128 * 1.98, 4800)}


def instructions(tool, module, arch, function):
    text = subprocess.run([tool, "-arch", arch, "-sass", "-fun", function, module], capture_output=True, text=True).stdout
    found = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\d\s+)?([A-Z0-9_.]+)(.*?);", text)
    return [(int(at, 16), name, rest) for at, name, rest in found]


def loops(code):
    """(begin, end) of every backward branch, by begin."""
    out = []
    for at, name, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if name.startswith("BRA") and target and int(target.group(1), 16) < at:
            out.append((int(target.group(1), 16), at))
    return sorted(out)


def main_loop_cost(code, inner_rounds):
    """Instructions of one round of the first loop that does the work, its own inner loops `inner_rounds` times."""
    all_loops = loops(code)
    count = lambda begin, end: sum(begin <= at <= end for at, _, _ in code)
    if inner_rounds == 1:
        return count(*all_loops[0])
    nested = lambda o: [i for i in all_loops if o != i and o[0] <= i[0] and i[1] <= o[1]]
    outer = next(o for o in all_loops if len(nested(o)) == 4)
    return count(*outer) + (inner_rounds - 1) * sum(count(*i) for i in nested(outer))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module")
    parser.add_argument("--cuobjdump", default="cuobjdump")
    args = parser.parse_args()
    try:
        table = subprocess.run([args.cuobjdump, "--dump-resource-usage", args.module], capture_output=True, text=True)
    except FileNotFoundError:
        sys.exit(f"{args.cuobjdump} is missing: it is part of the CUDA Toolkit, give its path with --cuobjdump")
    listing = table.stdout + table.stderr
    have = sorted(set(re.findall(r"arch = (sm_\d+)", listing)))
    if not have:
        sys.exit(f"{args.module}: no device code found")
    print("| kernel, one row of x | weights | card | instructions per byte | the card has | share of them |\n"
          "|---|---|---|---|---|---|")
    for name, kernel, code, size, weights, rounds in KERNELS:
        function = re.search(rf"_ZN[^ :]*\d{kernel}ILNS0_4CodeE{code}E(?:LS\d_{code}E)?Li1E[^ :]*", listing).group(0)
        for arch in have:
            if arch not in CARDS:
                continue
            card, lanes, bandwidth = CARDS[arch]
            cost = main_loop_cost(instructions(args.cuobjdump, args.module, arch, function), rounds) / weights / size
            print(f"| {name} | {CODES[code]} | {arch}, {card} | {cost:.1f} | {lanes / bandwidth:.1f} | "
                  f"{100 * cost * bandwidth / lanes:.0f} % |")


if __name__ == "__main__":
    main()
