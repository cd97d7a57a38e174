#!/usr/bin/env python3
"""Trains the demo model on WORK_DIR/train.bin for a given time, with checkpoints it goes on from.

    python3 train.py WORK_DIR --minutes 100

The learning rate follows the share of the time that is used up (warm-up, constant, linear to zero over the last
40 %), so a run ends well trained whatever the machine; an interrupted run goes on with its own clock. On a GPU if
there is one, else on the CPU in bf16 autocast with fp32 master weights. Every line it prints also goes to
WORK_DIR/log.jsonl. WORK_DIR/final.pt is written when the time is used up.
"""
import argparse
import json
import os
import pathlib
import time

import numpy as np
import torch

import net as demo
from muon import Muon

SEQUENCE = 512


class Sampler:
    """Sequences of the token stream in a fixed random order, every one once per epoch."""

    def __init__(self, path):
        self.tokens = np.memmap(path, dtype="<u2", mode="r")
        self.count = (len(self.tokens) - 1) // SEQUENCE

    def batch(self, first, size):
        rows = []
        for i in range(first, first + size):
            epoch, place = divmod(i, self.count)
            if getattr(self, "epoch", None) != epoch:
                self.epoch, self.order = epoch, np.random.default_rng(epoch).permutation(self.count)
            begin = int(self.order[place]) * SEQUENCE
            rows.append(self.tokens[begin:begin + SEQUENCE + 1].astype(np.int64))
        return torch.from_numpy(np.stack(rows))


def optimizers(net, scale):
    matrices, rest = [], []
    for name, p in net.named_parameters():
        outer = "embed_tokens" in name or "lm_head" in name or "conv1d" in name or ".gate.weight" in name
        (rest if p.dim() < 2 or outer or "shared_expert_gate" in name or "in_proj_ba" in name else matrices).append(p)
    return [Muon(matrices, lr=0.02 * scale, weight_decay=0.05),
            torch.optim.AdamW(rest, lr=3e-3 * scale, betas=(0.9, 0.95), weight_decay=0.01, fused=True)]


def rate(progress, steps):
    return min(1.0, (steps + 1) / 60) * min(1.0, max(0.0, 1 - progress) / 0.4)


def forward(net, probe, batch, device):
    batch = batch.to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        hidden = net.model(input_ids=batch[:, :-1], use_cache=False).last_hidden_state
        logits = net.lm_head(hidden).flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits.float(), batch[:, 1:].flatten())
    balance, shares = probe.take()
    return loss, balance, shares


@torch.no_grad()
def validate(net, probe, heldout, device):
    net.eval()
    losses = [forward(net, probe, heldout.batch(i, 16), device)[0].item() for i in range(0, 128, 16)]
    net.train()
    return sum(losses) / len(losses)


def save(path, **state):
    torch.save(state, str(path) + ".partial")
    os.replace(str(path) + ".partial", path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--batch", type=int, default=16, help=f"sequences of {SEQUENCE} tokens per step")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the learning rates")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    work, budget = arguments.work, arguments.minutes * 60
    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(20261125)
    net = demo.build()
    demo.initialise(net)
    net.to(device).train()
    probe = demo.RouterProbe(net)
    if device == "cpu":
        demo.compile_parts(net)
    opts = optimizers(net, arguments.rate)
    base = [opt.param_groups[0]["lr"] for opt in opts]
    train, heldout = Sampler(work / "train.bin"), Sampler(work / "heldout.bin")
    step, used, seen = 0, 0.0, 0
    checkpoint = work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device)
        net.load_state_dict(state["net"])
        for opt, saved in zip(opts, state["opts"]):
            opt.load_state_dict(saved)
        step, used, seen = state["step"], state["used"], state["seen"]
        print(f"going on at step {step}, {used / 60:.1f} of {arguments.minutes} minutes used")
    log = open(work / "log.jsonl", "a", buffering=1)

    def note(**entry):
        print(" ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in entry.items()), flush=True)
        log.write(json.dumps(entry) + "\n")

    def snapshot(name):
        save(work / name, net=net.state_dict(), opts=[o.state_dict() for o in opts], step=step, used=used, seen=seen)

    saved_at, mean = time.monotonic(), None
    while used < budget:
        started = time.monotonic()
        factor = rate(used / budget, step)
        for opt, lr in zip(opts, base):
            opt.param_groups[0]["lr"] = lr * factor
        loss, balance, shares = forward(net, probe, train.batch(seen, arguments.batch), device)
        (loss + net.config.router_aux_loss_coef * balance).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for opt in opts:
            opt.step()
        net.zero_grad(set_to_none=True)
        value = loss.item()
        if value != value:
            raise SystemExit(f"step {step}: the loss is not a number; lower --rate and start from an earlier checkpoint")
        mean = value if mean is None else 0.95 * mean + 0.05 * value
        step, seen = step + 1, seen + arguments.batch
        seconds = time.monotonic() - started
        used += seconds
        if step % 20 == 0:
            note(step=step, minutes=used / 60, tokens=seen * SEQUENCE, loss=mean, balance=balance.item(),
                 busiest=shares.max().item() * net.config.num_experts, rate=factor,
                 tokens_per_s=arguments.batch * SEQUENCE / seconds)
        if step % 200 == 0:
            note(step=step, heldout=validate(net, probe, heldout, device))
        if time.monotonic() - saved_at > 300:
            snapshot("checkpoint.pt")
            saved_at = time.monotonic()
    note(step=step, tokens=seen * SEQUENCE, heldout=validate(net, probe, heldout, device), done=True)
    snapshot("checkpoint.pt")
    save(work / "final.pt", net=net.state_dict(), step=step, used=used, seen=seen)


if __name__ == "__main__":
    main()
