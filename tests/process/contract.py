#!/usr/bin/env python3
"""The CLI's contract where no stack is needed: help, usage, text verbs, doctor, config, version, synth, chat's pipes."""

import json
import pathlib
import shutil
import stat
import sys

import harness
from cli_rig import Rig, one_clear_line
from harness import expect

VERBS = ["run", "chat", "serve", "status", "doctor", "verify", "tokenize", "detokenize", "template", "logits", "bench", "synth",
         "cache", "config", "version"]


def helps(rig):
    done = rig.run("--help")
    expect(done.code == 0 and done.err == "" and all(verb in done.out for verb in VERBS), f"--help: {done}")
    for verb in VERBS:
        done = rig.run(verb, "--help")
        expect(done.code == 0 and done.err == "" and verb in done.out, f"{verb} --help: {done}")
    for bad in ((), ("nonsense",), ("run", "--top-p", "2"), ("run", "--logprobs", "21"), ("cache",), ("logits", "x")):
        done = rig.run(*bad)
        expect(done.code == 2 and done.out == "", f"{bad}: {done}")
        one_clear_line(done)
    # Refused before anything starts: the model directory is not even looked at.
    done = rig.run("run", rig.work / "nowhere", "hello", "--logprobs", 2)
    expect(done.code == 2 and done.out == "" and "add --json" in one_clear_line(done), f"--logprobs alone: {done}")
    done = rig.run("chat", rig.work / "nowhere", "--logprobs", 2)
    expect(done.code == 2 and done.out == "" and "--logprobs" in one_clear_line(done), f"chat --logprobs: {done}")
    print("help and usage errors", flush=True)


def texts(rig, model):
    samples = ["hello world", "a  b\n\tc", "für Ωß漢字🙂", "<|im_start|>user\nhi<|im_end|>", " ", "'s 12345 !!"]
    for text in samples:
        ids = rig.run("tokenize", model, text)
        expect(ids.code == 0 and ids.err == "", f"tokenize: {ids}")
        as_json = json.loads(rig.run("tokenize", model, text, "--json").out)["tokens"]
        expect(ids.out == ",".join(map(str, as_json)) + "\n", f"{ids.out!r} is not {as_json}")
        back = rig.run("detokenize", model, ids.out.strip())
        expect(back.code == 0 and back.out == text, f"{text!r} came back as {back.out!r}")
        piped = rig.run("detokenize", model, "-", stdin=ids.out)
        expect(piped.out == text, f"{text!r} came back through a pipe as {piped.out!r}")
    marked = json.loads(rig.run("tokenize", model, "<|im_end|>", "--json").out)["tokens"]
    plain = json.loads(rig.run("tokenize", model, "<|im_end|>", "--json", "--no-added-tokens").out)["tokens"]
    expect(marked == [4098] and len(plain) > 1, f"added token: {marked} {plain}")
    expect(rig.run("detokenize", model, "4098", "--skip-special").out == "", "--skip-special shows a special token")
    bad = rig.run("detokenize", model, "1,x")
    expect(bad.code == 2, f"{bad}")
    done = rig.run("template", model, "-", stdin="{}")
    expect(done.code != 0, f"an empty conversation was rendered: {done}")
    one_clear_line(done)
    print("tokenize and detokenize: there and back", flush=True)


def repeated(rig, model):
    """Scripts put the user's options after their own: the last one counts; lists collect; positionals do not."""
    done = rig.run("run", model, "--tokens", "1,5", "--temperature", 0, "--ignore-eos", "--json", "-n", 9, "-n", 2)
    expect(done.code == 0 and len(json.loads(done.out)["tokens"]) == 2, f"-n 9 -n 2: {done}")
    expect(rig.run("run", "a", "b", "c").code == 2, "three positionals")
    print("repeated options: the last one counts", flush=True)


def templates(rig, model):
    found = [p for p in pathlib.Path(__file__).resolve().parents[2].glob("tests/**/chat_template.jinja")]
    if not found:
        print("template: skipped, no chat_template.jinja among the test data")
        return
    chat = rig.copy_of(model, "chat")
    shutil.copy(found[0], chat / "chat_template.jinja")
    conversation = json.dumps({"messages": [{"role": "user", "content": "hi"}]})
    done = rig.run("template", chat, "-", stdin=conversation)
    expect(done.code == 0 and done.err == "" and "<|im_start|>user\nhi<|im_end|>" in done.out, f"template: {done}")
    path = rig.work / "conversation.json"
    path.write_text(conversation)
    expect(rig.run("template", chat, path).out == done.out, "file and stdin differ")
    bare = rig.run("template", chat, path, "--no-generation-prompt").out
    expect(done.out == bare + "<|im_start|>assistant\n", f"generation prompt: {bare!r} {done.out!r}")
    print("template", flush=True)


def information(rig, model):
    version = json.loads(rig.run("version", "--json").out)
    expect(version["backends"] == ["cpu"] and rig.run("version").out == f"stoker {version['version']}\n", f"{version}")
    config = json.loads(rig.run("config", "show", "--json", env={"STOKER_WORKER_THREADS": "3"}).out)
    expect(config["worker.threads"] == {"value": 3, "origin": "STOKER_WORKER_THREADS"}, f"{config['worker.threads']}")
    expect("worker.threads = 0  (default)" in rig.run("config", "show").out, "config show")
    doctor = rig.run("doctor", model, "--json")
    checks = json.loads(doctor.out)["checks"]
    groups = {c["group"] for c in checks}
    expect(groups == {"System", "Memory", "io_uring", "GPU", "Storage", "Model", "Services"}, f"groups: {groups}")
    failed = [c for c in checks if c["level"] == "FAIL"]
    expect((doctor.code == 1) == bool(failed) and doctor.code in (0, 1), f"doctor: {doctor.code} {failed}")
    expect(all(c.get("fix") for c in checks if c["level"] != "OK"), "a warning without a remedy")
    expect(not [c for c in failed if c["group"] == "Model"], f"a good model fails: {failed}")
    (broken := rig.copy_of(model, "broken")).joinpath("config.json").unlink()
    done = rig.run("doctor", broken)
    expect(done.code == 1 and "FAIL" in done.out and "config.json" in done.out, f"doctor on a broken model: {done}")
    expect(not list(rig.runtime.iterdir()), "doctor made something in the run directory")
    print(f"version, config show, doctor ({len(checks)} checks)", flush=True)


def verify(rig, model):
    done = rig.run("verify", model, "--json")
    expect(done.code == 0, f"verify: {done}")
    json.loads(done.out)
    expect(rig.run("verify", rig.work / "nowhere").code == 5, "verify of nothing")
    sums = rig.work / "checksums"
    done = rig.run("verify", model, "--checksums", sums)
    expect(done.code == 0 and sums.exists(), f"verify --checksums: {done}")
    print("verify", flush=True)


def synth(rig, model):
    again = rig.run("synth", "--out", model, "--preset", "tiny")
    expect(again.code != 0, f"synth replaced a checkpoint without --force: {again}")
    one_clear_line(again)
    plan = rig.run("synth", "--out", rig.work / "never", "--like", "Qwen3-Coder-Next-FP8", "--dry-run", "--json")
    report = json.loads(plan.out)
    expect(report["tensors"] == 148383 and report["tensor_bytes"] == 80362904064 and report["files"] == 40, f"{report}")
    expect(not (rig.work / "never").exists(), "--dry-run wrote something")
    for args, planted in ((("--preset", "bench"), True), (("--preset", "bench", "--no-locality"), False),
                          (("--preset", "tiny"), False), (("--preset", "tiny", "--locality"), True)):
        plan = json.loads(rig.run("synth", "--out", rig.work / "never", *args, "--dry-run", "--json").out)
        expect(plan["planted_locality"] == planted, f"synth {args}: {plan}")
    one = rig.run("synth", "--out", rig.work / "one", "--preset", "tiny", "--seed", 7)
    two = rig.run("synth", "--out", rig.work / "two", "--preset", "tiny", "--seed", 7)
    expect(one.code == 0 and two.code == 0, f"synth: {one} {two}")
    for path in sorted((rig.work / "one").iterdir()):
        expect(path.read_bytes() == (rig.work / "two" / path.name).read_bytes(), f"{path.name}: same seed, other bytes")
    print("synth: published counts, same seed same bytes", flush=True)


def piped_chat(rig, model):
    """Chat without a terminal: needs a template; commands answer on stderr; the history is not touched."""
    bare = rig.copy_of(model, "bare")
    (bare / "chat_template.jinja").unlink()
    done = rig.run("chat", bare, stdin="hello\n")
    expect(done.code == 5 and "template" in one_clear_line(done), f"chat without a template: {done}")
    found = [p for p in pathlib.Path(__file__).resolve().parents[2].glob("tests/**/chat_template.jinja")]
    if not found:
        print("chat: only without a template, no chat_template.jinja among the test data")
        return
    chat = rig.copy_of(model, "chat")
    shutil.copy(found[0], chat / "chat_template.jinja")
    saved = rig.work / "saved.json"
    lines = ["/system Be brief.", "/set temperature 0", "hello", '"""two', 'lines"""', "/stats", f"/save {saved}", "/nonsense", "/bye"]
    done = rig.run("chat", chat, "--max-tokens", 5, stdin="\n".join(lines) + "\n")
    expect(done.code == 0, f"chat: {done}")
    messages = json.loads(saved.read_text())["messages"]
    expect([m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant"], f"{messages}")
    expect(messages[3]["content"] == "two\nlines", f"{messages[3]}")
    expect(done.out == messages[2]["content"] + "\n" + messages[4]["content"] + "\n", f"stdout is not the answers: {done}")
    expect("/nonsense is not a command" in done.err, f"{done}")
    expect(not (rig.work / "state").exists(), "a piped chat touched the history")
    print("chat through pipes", flush=True)


def test(args, work):
    rig = Rig(args.bin, work)
    model = rig.model()
    mode = stat.S_IMODE(model.stat().st_mode)
    expect(mode & 0o700 == 0o700, f"the model directory has mode {mode:o}")
    helps(rig)
    for part in (texts, repeated, templates, information, verify, synth, piped_chat):
        part(rig, model)
    rig.expect_nothing_left(set())


if __name__ == "__main__":
    sys.exit(harness.main(test))
