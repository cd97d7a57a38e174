#!/usr/bin/env python3
"""What the HTTP gateway costs: the same greedy answers by `stoker run` and by streams through the gateway, in turns, on the
demo model (whose tokens take less than a millisecond, so that costs show).

usage: bench/gateway.py --bin build/release/bin [--repeats 7]"""

import argparse
import contextlib
import pathlib
import resource
import sys
import tempfile
import time

from out_of_core import spread

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests/process"))
from gateway import MODEL, Gateway, completion_text, greedy, stream  # noqa: E402
from harness import Stack  # noqa: E402

TOKENS = 400


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def resident_mib(pid):
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def by_cli(stack, prompt):
    stats = stack.ask("--raw", "--temperature", 0, "-n", TOKENS, prompt)["stats"]
    return stats["ttft_seconds"], stats["decode_seconds"]


def by_http(gateway, prompt):
    """As the client sees it: from the first byte sent."""
    with contextlib.closing(gateway.connect()) as connection:
        connection.connect()
        began = time.monotonic()
        response = stream(connection, "/v1/completions", greedy(prompt, TOKENS))
        while not response.readline().startswith(b"data: "):
            pass
        first = time.monotonic() - began
        completion_text(response)
        return first, time.monotonic() - began - first


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        stack = Stack(args.bin, MODEL, work, slots=300, extra_worker=["--kept-sequences", "0"]).start_all()
        gateway = Gateway(stack)
        try:
            by_cli(stack, "import os\n")
            time.sleep(2.5)  # until the gateway has seen the worker
            pairs, cpu, pid = [], cpu_seconds(gateway.process.pid), gateway.process.pid
            for i in range(args.repeats):
                prompt = f"def f{i}(x):\n"
                pairs.append((by_cli(stack, prompt), by_http(gateway, prompt)))
            cpu = cpu_seconds(pid) - cpu
            memory = resident_mib(pid)
        finally:
            gateway.stop()
            stack.stop()
    print(f"first token, ms:   {spread([1e3 * c[0] for c, _ in pairs])} of the worker's own time by `stoker run`, "
          f"{spread([1e3 * h[0] for _, h in pairs])} at an HTTP client")
    print(f"each token, ms:    {spread([1e3 * c[1] / (TOKENS - 1) for c, _ in pairs])} by `stoker run`, "
          f"{spread([1e3 * h[1] / (TOKENS - 1) for _, h in pairs])} at an HTTP client")
    print(f"ratio of the two:  {spread([h[1] / c[1] for c, h in pairs])}")
    print(f"gateway: {1e6 * cpu / (args.repeats * TOKENS):.0f} us of CPU per token, {memory:.1f} MiB resident")


if __name__ == "__main__":
    main()
