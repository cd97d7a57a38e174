#!/usr/bin/env python3
"""Stoker's real stack against transformers, live: fresh prompts, checkpoints written by Python, logits and greedy tokens.

    tools/oracle/live.py --bin build/release/bin [--seed N] [--only a_fp8 ...]

For every golden model (configs.py): logits at every position of all cases, the prompt also fed in two pieces, and greedy
continuations, through `stoker logits` and `stoker run` with a private stack and a pool of the smallest size that works.
Exits 1 when a logit is off by 1e-3 of its position's largest or a greedy token differs.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import cases
import checkpoint
import configs
import generator
import hf

TOLERANCE = 1e-3  # design.md 9.1


class Stoker:
    def __init__(self, bin_dir: Path, model_dir: Path, slots: int, work: Path):
        self.bin, self.model, self.slots, self.work = bin_dir, model_dir, slots, work
        self.env = {**os.environ, "XDG_RUNTIME_DIR": str(work)}

    def _run(self, verb: str, tokens: list[int], *args) -> bytes:
        command = [self.bin / "stoker", verb, self.model, "--tokens", ",".join(map(str, tokens)),
                   "--pool-slots", self.slots, *args]  # fmt: skip
        done = subprocess.run([str(a) for a in command], stdin=subprocess.DEVNULL, capture_output=True, env=self.env)
        if done.returncode != 0:
            raise SystemExit(f"{verb}: exit code {done.returncode}: {done.stderr.decode()}")
        return done.stdout

    def logits(self, tokens: list[int], split: int) -> np.ndarray:
        """[len(tokens), vocab]; with split > 0 the prompt goes in as two pieces."""
        out = self.work / "logits.f32"
        self._run("logits", tokens, "--all-positions", "--out", out, *(["--split", split] if split else []))
        return np.fromfile(out, dtype="<f4").reshape(len(tokens), -1)

    def greedy(self, tokens: list[int], count: int) -> list[int]:
        return json.loads(self._run("run", tokens, "--temperature", 0, "--max-tokens", count, "--ignore-eos", "--json"))["tokens"]


def check(model: configs.GoldenModel, stoker: Stoker, net) -> tuple[int, float, float, list[str]]:
    """(logit rows compared, worst relative error, transformers' own worst noise, what was wrong)."""
    rows, worst, noise, wrong = 0, 0.0, 0.0, []
    for case in cases.make(model, net):
        noise = max(noise, case.self_noise)
        split = case.splits[-1][0] if len(case.splits[-1]) > 1 else 0
        for first in {0, split}:
            error = cases.relative_error(stoker.logits(case.tokens, first), case.logits)
            rows, worst = rows + len(case.tokens), max(worst, error)
            if not error < TOLERANCE:
                wrong.append(f"{case.name} split {first}: logits off by {error:.2e}, tokens {case.tokens}")
        if case.greedy:
            got = stoker.greedy(case.tokens[: case.prompt], len(case.greedy))
            if got != case.greedy:
                wrong.append(f"{case.name}: greedy {got}, transformers {case.greedy}")
    return rows, worst, noise, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", type=Path, default=Path("build/release/bin"))
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "little"))
    parser.add_argument("--only", action="append", help="name of a golden model; may be given several times")
    args = parser.parse_args()
    generator.self_check()
    hf.prepare()
    print(f"seed {args.seed}, {hf.versions()}", flush=True)
    failed = False
    for published in configs.MODELS if not args.only else [configs.by_name(n) for n in args.only]:
        # Prompts are drawn from the name: another name, other prompts for the same weights.
        model = dataclasses.replace(published, name=f"{published.name}/{args.seed}")
        with tempfile.TemporaryDirectory(prefix="stoker-oracle-") as work:
            checkpoint.write(published, Path(work) / "model")
            slots = published.config["num_experts_per_tok"]
            stoker = Stoker(args.bin.resolve(), Path(work) / "model", slots, Path(work))
            rows, worst, noise, wrong = check(model, stoker, hf.load(published))
        print(f"{published.name}: {rows} rows of logits, worst {worst:.1e} of the largest (limit {TOLERANCE:.0e}; "
              f"transformers against itself {noise:.1e}), {len(published.greedy_prompts)} greedy continuations of "
              f"{configs.GREEDY_TOKENS} tokens, {len(wrong)} wrong", flush=True)  # fmt: skip
        for line in wrong:
            print("  " + line, flush=True)
        failed = failed or bool(wrong)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
