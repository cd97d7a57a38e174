#!/usr/bin/env python3
"""The GPU worker as a process: the same bits as the CPU worker, and a pool that stays warm when it is killed.

On the emulated device; with STOKER_TEST_DEVICE=cuda on a real one. Logits are compared byte for byte.
"""

import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import harness
from cli_rig import Rig
from conversation import compare, talk
from harness import Stack, expect

TOKENS = 24


def ask(stack, prompt, out, **options):
    started = time.monotonic()
    stack.ask("--tokens", ",".join(map(str, prompt)), "--temperature", 0, "--max-tokens", TOKENS, "--ignore-eos",
              "--logits-out", out, timeout=300, **options)
    return out.read_bytes(), time.monotonic() - started


def kill_in_mid_decode(stack, prompt):
    client = stack.client("--tokens", ",".join(map(str, prompt)), "--temperature", 0, "--max-tokens", 400, "--ignore-eos")
    before = stack.status()["tokens"]["generated"]
    end = time.monotonic() + 120
    while stack.status()["tokens"]["generated"] < before + 5:
        expect(time.monotonic() < end, "the request to be killed generates nothing")
    stack.kill("worker")
    _, err = client.communicate(timeout=60)
    expect(client.returncode != 0, "a client whose worker was killed says that all is well")
    expect(err.decode().strip() != "", "a client whose worker was killed says nothing")


def check_lanes(worker, lane):
    """Every expert that VRAM does not hold goes through one of the lanes, and the worker knows their rates."""
    copied, on_cpu = worker["experts_copied"], worker["experts_on_cpu_lane"]
    expect(copied + on_cpu > 0, "no expert went through a lane")
    # Prefill copies whatever the lane.
    expect(lane != "gpu" or copied > 0, f"--expert-lane gpu: {copied} copied")
    expect(lane != "cpu" or on_cpu > 0, f"--expert-lane cpu: {on_cpu} experts on the CPU")
    expect(lane != "gpu" or on_cpu == 0, f"--expert-lane gpu: {on_cpu} experts on the CPU")
    for rate in ("vram", "copy") + (() if lane == "gpu" else ("cpu_lane",)):
        expect(worker[rate + "_bytes_per_second"] > 0, f"the worker did not measure its {rate} bandwidth")


def bench(args, work, model, device):
    """`stoker bench` on a GPU: tiers and lanes add up, and each resource has its share of the limit."""
    done = Rig(args.bin, work).run("bench", model, "--device", device, "--vram", "1GiB", "--pool-slots", 64, "-p", 0, "-n", 8,
                                   "-r", 1, "--warm-up", 8, "--state", "warm", "--raw-seconds", 0.02, "-o", "jsonl",
                                   timeout=300)
    expect(done.code == 0, f"bench ended with {done.code}: {done.err}")
    row = json.loads(done.out)
    size, uses = row["expert_bytes"], row["layers"] * row["experts_per_token"]
    served = sum(row["bytes_per_token"][tier]["mean"] for tier in ("vram", "pcie", "cpu_lane")) / size
    expect(abs(served - uses) < 1e-6, f"{served} experts per token went through VRAM and the lanes, {uses} were used")
    shares = [row["limit"]["percent_of_" + name]["mean"] for name in ("disk", "memory", "pcie", "cpu_lane")]
    expect(abs(max(shares) - row["limit"]["percent"]["mean"]) < 1e-6 and max(shares) > 0, f"limit of {shares}")
    expect(row["raw_pcie_bytes_per_second"]["mean"] > 0, "no bandwidth of copies")
    print(f"bench: limit by {row['limit']['by']}, shares of disk, memory, PCIe, CPU lane: {shares}", flush=True)


def two_workers(args, work, model, device, prompt, want):
    """A GPU worker beside a CPU worker: one loader, one pool, the same answers at the same time."""
    cpu = Stack(args.bin, model, work, slots=64, extra_worker=["--device", "cpu"]).start_all()
    gpu = Stack(args.bin, model, work, predictor=False,
                extra_worker=["--device", device, "--vram", "1GiB", "--loader-dir", cpu.run_dir])
    gpu.names = lambda: ["worker"]
    try:
        gpu.start_all(120)
        ids = ",".join(map(str, prompt))
        more = ("--temperature", 0, "--max-tokens", TOKENS, "--ignore-eos", "--logits-out")
        clients = [s.client("--tokens", ids, *more, work / f"two{i}.f32") for i, s in enumerate((cpu, gpu, cpu))]
        for i, client in enumerate(clients):
            _, err = client.communicate(timeout=300)
            expect(client.returncode == 0, f"client {i}: {err.decode()}")
            expect((work / f"two{i}.f32").read_bytes() == want, f"client {i}: logits differ")
        gpu.kill("worker")
        got, _ = ask(cpu, prompt, work / "after.f32")
        expect(got == want, "after the GPU worker was killed the CPU worker's logits differ")
        expect(cpu.status()["pool"]["leased"] == 0, "the killed worker's leases are still there")
    finally:
        gpu.stop()
        cpu.stop()
    print("GPU and CPU worker on one pool, at the same time: the same bits; one killed, the other goes on", flush=True)


def lost_device(args, work, model, prompt):
    """A kernel that breaks the device in mid-answer: the clients hear of it, and the worker ends to be restarted."""
    stack = Stack(args.bin, model, work, slots=128, extra_worker=["--device", "emulation", "--vram", "1GiB"],
                  env={"STOKER_EMULATION_TROUBLE": "kernel:600"}).start_all()
    try:
        ids = ",".join(map(str, prompt))
        clients = [stack.client("--tokens", ids, "--max-tokens", 400, "--ignore-eos") for _ in range(2)]
        for client in clients:
            _, err = client.communicate(timeout=120)
            expect(client.returncode == 4, f"a client of a lost GPU ended with {client.returncode}: {err.decode()}")
            expect("cannot be used any more" in err.decode(), f"a client of a lost GPU hears: {err.decode()}")
        code = stack.processes["worker"].wait(timeout=60)
        expect(code == 4, f"the worker of a lost GPU ended with {code}")
        expect("GPU 0 (emulated GPU) cannot be used any more" in stack.log_tail(), "the log does not say so")
    finally:
        stack.stop()
    print("GPU lost in mid-answer: clients and log say so, the worker ends", flush=True)


def old_driver(args, work, model, prompt, want):
    """A driver that is too old for the module: with auto the CPU computes, and a warning says why; with cuda it is an error."""
    programs = work / "old-driver"
    programs.mkdir()
    for name in ("stoker", "stoker-loader", "stoker-worker", "stoker-predictor"):
        shutil.copy(pathlib.Path(args.bin) / name, programs)
    # auto looks for the module of this name.
    shutil.copy(pathlib.Path(args.bin) / "libstoker-emulation.so", programs / "libstoker-cuda.so")
    env = {"STOKER_EMULATION_TROUBLE": "driver"}
    says = "the driver supports CUDA 12.2, this module needs 13.0"
    auto = Stack(programs, model, work, slots=128, env=env).start_all()
    try:
        got, _ = ask(auto, prompt, work / "auto.f32")
        expect(got == want, "without a usable GPU the logits differ")
        warnings = [line for line in auto.log_text().splitlines() if "worker warning: no GPU is used" in line]
        expect(len(warnings) == 1 and says in warnings[0], f"the log does not warn of the driver: {auto.log_tail()}")
    finally:
        auto.stop()
    wanted = Stack(programs, model, work, slots=128, env=env, extra_worker=["--device", "cuda"])
    wanted.start("loader")
    wanted.start("worker")
    code = wanted.processes["worker"].wait(timeout=60)
    expect(code != 0 and says in wanted.log_tail(), f"--device cuda with an old driver ended with {code}: {wanted.log_tail()}")
    wanted.stop()
    doctor = subprocess.run([programs / "stoker", "doctor", "--json"], capture_output=True, env={**os.environ, **env}, timeout=60)
    checks = [c for c in json.loads(doctor.stdout)["checks"] if says in c["value"]]
    expect([c["level"] for c in checks] == ["WARN"], f"doctor says of an old driver: {checks}")
    print("driver too old: auto warns and computes on the CPU, cuda ends, doctor warns", flush=True)


def test(args, work):
    device = os.environ.get("STOKER_TEST_DEVICE", "emulation")
    model = harness.make_model(args.bin, work, "--preset", "tiny")
    random.seed(2)
    prompt = [random.randrange(5, 400) for _ in range(20)]

    def stack(*worker):
        return Stack(args.bin, model, work, slots=128, extra_worker=list(worker))

    def turns(at):
        return talk(at, work, random.Random(args.seed), prompt=20, answer=6, turns=2)

    reference = stack("--device", "cpu", "--kept-sequences", "0").start_all()
    try:
        want, _ = ask(reference, prompt, work / "cpu.f32")
        fresh = turns(reference)
    finally:
        reference.stop()

    for lane in ("auto", "gpu", "cpu"):
        ahead = ["--copy-ahead"] if lane == "auto" else []
        gpu = stack("--device", device, "--vram", "1GiB", "--expert-lane", lane, *ahead).start_all()
        try:
            backend = gpu.status()["worker"]["backend"]
            expect(backend.startswith(device), f"the backend is {backend}")
            got, _ = ask(gpu, prompt, work / f"{lane}.f32")
            vram = gpu.status()["worker"]["experts_from_vram"]
            # auto: how many depends on the machine's rates
            expect(lane == "auto" or (vram > 0) == (lane == "gpu"), f"--expert-lane {lane}: {vram} experts came from VRAM")
            expect(got == want, f"--expert-lane {lane}: logits differ from the CPU's")
            check_lanes(gpu.status()["worker"], lane)
            print(f"same bits, --expert-lane {lane}: {backend}", flush=True)
            if lane == "auto":
                compare(turns(gpu), fresh, 6)
                kill_in_mid_decode(gpu, prompt)
                gpu.start("worker")
                started = time.monotonic()
                gpu.wait_ready(120)
                reads = gpu.status()["loader"]["demand_fills"]
                again, seconds = ask(gpu, prompt, work / "again.f32")
                reads = gpu.status()["loader"]["demand_fills"] - reads
                expect(again == want, "after kill -9 and a restart the logits differ")
                expect(reads == 0, f"the pool was warm, but {reads} experts were read again")
                print(f"killed in mid-decode: a new worker had answered {time.monotonic() - started:.1f} s later "
                      f"({seconds:.1f} s of them the answer), nothing was read again", flush=True)
        finally:
            gpu.stop()

    two_workers(args, work, model, device, prompt, want)
    bench(args, work, model, device)
    if device == "emulation":
        lost_device(args, work, model, prompt)
        old_driver(args, work, model, prompt, want)

    refused = stack("--device", device, "--vram", "1MiB")
    refused.start("loader")
    refused.start("worker")
    code = refused.processes["worker"].wait(timeout=120)
    tail = refused.log_tail()
    refused.stop()
    expect(code != 0, "a worker with a megabyte of VRAM started")
    expect("--vram" in tail, f"the refusal does not say what to do: {tail}")
    print("too little --vram: refused with its reason")


if __name__ == "__main__":
    sys.exit(harness.main(test))
