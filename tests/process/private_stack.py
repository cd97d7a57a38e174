#!/usr/bin/env python3
"""`stoker run` with a stack of its own: the answer on stdout, and nothing left behind however it ends."""

import json
import os
import re
import signal
import sys

import harness
from cli_rig import Rig, one_clear_line, wait_for
from harness import expect

LONG = ("--tokens", "1,5,9", "--ignore-eos", "--temperature", 0, "--max-tokens", 3000, "--pool-slots", 40)
ENDLESS_S = 120


def start(rig, model, *extra):
    """A long answer under way: (process, names of its shared memory)."""
    process = rig.popen("run", model, *LONG, *extra)
    def streaming():
        expect(process.poll() is None, f"run ended early: {process.poll()}")
        return rig.daemon("worker") and rig.shared_names()
    names = wait_for("the private stack", streaming, ENDLESS_S)
    if "--json" not in extra:
        expect(process.stdout.read(1), "no first byte on stdout")
    return process, names


def end(rig, process, names, code, what):
    out, err = process.communicate(timeout=60)
    expect(process.returncode == code, f"{what}: exit code {process.returncode}, not {code}: {err.decode()[-1000:]}")
    rig.expect_nothing_left(names)
    print(f"{what}: exit {process.returncode}, nothing left", flush=True)
    return out, err.decode()


def plain(rig, model):
    done = rig.run("run", model, "--tokens", "1,5,9", "--max-tokens", 6, "--temperature", 0, "--ignore-eos")
    expect(done.code == 0, f"run: {done}")
    lines = done.err.strip().splitlines()
    expect(len(lines) == 1, f"stderr is not one line: {done}")
    expect(re.fullmatch(r"6 tok( · [\d.]+ tok/s)? · ttft [\d.]+ s · experts: pool \d+ %( \(prefetched \d+ %\))? disk \d+ %",
                        lines[0]), f"not a statistics line: {lines[0]}")
    rig.expect_nothing_left(set())

    again = rig.run("run", model, "--tokens", "1,5,9", "--max-tokens", 6, "--temperature", 0, "--ignore-eos", "--json",
                    "--logprobs", 2)
    expect(again.code == 0, f"run --json: {again}")
    answer = json.loads(again.out)
    expect(answer["text"] == done.out, f"the streamed text differs from --json: {done.out!r} {answer['text']!r}")
    expect(len(answer["tokens"]) == 6 and answer["finish_reason"] == "length", f"{answer}")
    expect(len(answer["logprobs"]) == 6 and len(answer["logprobs"][0]["top"]) == 2, f"{answer}")
    best = answer["logprobs"][0]
    expect(best["id"] == answer["tokens"][0] and best["id"] == best["top"][0]["id"], f"greedy is not the likeliest: {best}")
    expect(answer["stats"]["prompt_tokens"] == 3 and answer["stats"]["generated_tokens"] == 6, f"{answer['stats']}")
    rig.expect_nothing_left(set())
    print("plain answer: streamed text = --json text, one statistics line, nothing left", flush=True)


def seeds(rig, model):
    def ask(seed):
        done = rig.run("run", model, "--tokens", "3,4", "--max-tokens", 12, "--temperature", 1.5, "--ignore-eos", "--json",
                       *(["--seed", seed] if seed is not None else []))
        expect(done.code == 0, f"run --seed: {done}")
        return json.loads(done.out)
    first = ask(None)
    expect(ask(first["seed"])["tokens"] == first["tokens"], "the reported seed does not give the same tokens")
    print("a reported seed repeats the answer", flush=True)


def input_forms(rig, model):
    """Argument, file and stdin are joined; the prompt of all forms is the same."""
    text = "hello\nworld\n"
    path = rig.work / "prompt.txt"
    path.write_text(text)
    common = ("--raw", "--max-tokens", 4, "--temperature", 0, "--ignore-eos", "--json")
    answers = []
    for args, stdin in ((("hello\nworld\n",), None), (("-f", path), None), ((), text), (("hello",), "world\n"),
                        (("-f", "-"), text)):
        done = rig.run("run", model, *args, *common, stdin=stdin)
        expect(done.code == 0, f"run {args}: {done}")
        answers.append(json.loads(done.out))
    expect(len({a["stats"]["prompt_tokens"] for a in answers}) == 1 and len({tuple(a["tokens"]) for a in answers}) == 1,
           f"forms of input differ: {[a['stats'] for a in answers]}")
    print("argument, file, stdin and both: the same prompt", flush=True)


def stop_strings(rig, model):
    common = ("--tokens", "1,5,9", "--max-tokens", 40, "--temperature", 0, "--ignore-eos", "--json")
    whole = json.loads(rig.run("run", model, *common).out)["text"]
    stop = whole[10:13]
    done = json.loads(rig.run("run", model, *common, "--stop", stop).out)
    expect(done["text"] == whole[:whole.index(stop)], f"{done['text']!r} is not {whole!r} before {stop!r}")
    expect(done["finish_reason"] == "stop", done["finish_reason"])
    print("stop string: cut before it", flush=True)


def signals(rig, model):
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process, names = start(rig, model)
        process.send_signal(number)
        end(rig, process, names, code, f"{number.name} while answering")

    process = rig.popen("run", model, *LONG)
    wait_for("a process", lambda: rig.daemon("loader"))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    expect(process.returncode == 130, f"SIGINT while starting: exit code {process.returncode}")
    rig.expect_nothing_left(set())
    print("SIGINT while starting: exit 130, nothing left", flush=True)

    process, names = start(rig, model)
    process.kill()
    end(rig, process, names, -signal.SIGKILL, "SIGKILL of the command")

    process, names = start(rig, model)
    keeper = rig.parent(rig.daemon("loader"))
    expect(keeper != process.pid, "the daemons are the command's own children: nothing would outlive it")
    os.kill(keeper, signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    expect(process.returncode != 0, f"killed keeper: exit code {process.returncode}")
    one_clear_line(type("Done", (), {"err": err.decode(), "out": "", "code": process.returncode})())
    rig.expect_nothing_left(names)
    print("SIGKILL of the keeper: clear error, nothing left", flush=True)


def closed_stdout(rig, model):
    process, names = start(rig, model)
    process.stdout.close()
    process.wait(timeout=60)
    expect(process.returncode == 1, f"closed stdout: exit code {process.returncode}")
    rig.expect_nothing_left(names)
    process.stderr.close()
    print("reader of stdout gone: exit 1, nothing left", flush=True)


def timeouts(rig, model):
    done = rig.run("run", model, *LONG, "--timeout", 4)
    expect(done.code == 124, f"--timeout: {done}")
    expect("--timeout" in one_clear_line(done), f"{done}")
    rig.expect_nothing_left(set())
    print("--timeout: exit 124, nothing left", flush=True)


def deaths(rig, model):
    process, names = start(rig, model)
    os.kill(rig.daemon("worker"), signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    expect(process.returncode == 4, f"killed worker: exit code {process.returncode}: {err.decode()}")
    expect("worker" in err.decode().strip().splitlines()[-1], f"the worker is not named: {err.decode()}")
    rig.expect_nothing_left(names)
    print("SIGKILL of the worker: exit 4, nothing left", flush=True)

    process, names = start(rig, model)
    os.kill(rig.daemon("predictor"), signal.SIGKILL)
    process.send_signal(0)
    wait_for("another predictor", lambda: rig.daemon("predictor"))
    expect(process.poll() is None, "the answer stopped with the predictor")
    process.send_signal(signal.SIGINT)
    end(rig, process, names, 130, "SIGKILL of the predictor, then SIGINT")


def test(args, work):
    rig = Rig(args.bin, work)
    model = rig.model("model", "--context", 4096)
    for part in (plain, seeds, input_forms, stop_strings, signals, closed_stdout, timeouts, deaths):
        part(rig, model)


if __name__ == "__main__":
    sys.exit(harness.main(test))
