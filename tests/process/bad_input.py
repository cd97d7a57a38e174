#!/usr/bin/env python3
"""Every kind of bad input ends in one clear line that names the thing, and in the documented exit code."""

import json
import os
import pathlib
import re
import shutil
import struct
import sys

import cli_rig
import harness
from cli_rig import Rig, edit_json, one_clear_line, overwrite, read_header, shard_with, write_header
from harness import expect

GENERATE = ("--tokens", "1,5,9", "--max-tokens", 2, "--temperature", 0)


def truncated(model):
    path = sorted(model.glob("*.safetensors"))[-1]
    os.truncate(path, path.stat().st_size - 1000)
    return path.name


def missing_tensor(model):
    path, name = shard_with(model, r"mlp\.gate\.weight$")
    header, _ = read_header(path)
    del header[name]
    write_header(path, header)
    index = model / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"].pop(name, None)
    index.write_text(json.dumps(content))
    return name


def wrong_shape(model):
    path, name = shard_with(model, r"input_layernorm\.weight$")
    header, _ = read_header(path)
    header[name]["shape"] = [2, header[name]["shape"][0] // 2]
    write_header(path, header)
    return name


def wrong_dtype(model):
    path, name = shard_with(model, r"input_layernorm\.weight$")
    header, _ = read_header(path)
    header[name]["dtype"] = "I16"
    write_header(path, header)
    return name


def nan_scale(model):
    path, name = shard_with(model, r"experts\.0\.gate_proj\.weight_scale_inv$")
    overwrite(path, name, struct.pack("<H", 0x7FC0))
    return name


def nan_resident_scale(model):
    path, name = shard_with(model, r"(in_proj|q_proj|out_proj|o_proj)[a-z_]*\.weight_scale_inv$")
    overwrite(path, name, struct.pack("<H", 0x7FC0))
    return name


def overlapping(model):
    path, name = shard_with(model, r"input_layernorm\.weight$")
    header, _ = read_header(path)
    other = next(n for n in header if n not in (name, "__metadata__")
                 and header[n]["data_offsets"][1] - header[n]["data_offsets"][0]
                 >= header[name]["data_offsets"][1] - header[name]["data_offsets"][0])
    length = header[name]["data_offsets"][1] - header[name]["data_offsets"][0]
    begin = header[other]["data_offsets"][0]
    header[name]["data_offsets"] = [begin, begin + length]
    write_header(path, header)
    return path.name


def garbage_header(model):
    path = sorted(model.glob("*.safetensors"))[0]
    with open(path, "r+b") as file:
        file.write(struct.pack("<Q", 1 << 60))
    return path.name


def missing_file(model):
    path = sorted(model.glob("*.safetensors"))[-1]
    path.unlink()
    return path.name


def unknown_architecture(model):
    edit_json(model / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])
    return "llama"


def missing_config(model):
    (model / "config.json").unlink()
    return "config.json"


def broken_config(model):
    (model / "config.json").write_text("{\"model_type\": ")
    return "config.json"


def no_merges(model):
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"].pop("merges")
    path.write_text(json.dumps(content))
    return "merges"


MODEL_CASES = [truncated, missing_tensor, wrong_shape, wrong_dtype, nan_scale, nan_resident_scale, overlapping,
               garbage_header, missing_file, unknown_architecture, missing_config, broken_config]


def check_model(rig, good, breakage):
    model = rig.copy_of(good, "broken")
    thing = breakage(model)
    done = rig.run("run", model, *GENERATE)
    expect(done.code == 5, f"{breakage.__name__}: exit code {done.code}, not 5: {done}")
    expect(done.out == "", f"{breakage.__name__}: stdout is not empty: {done}")
    line = one_clear_line(done)
    expect(thing in line, f"{breakage.__name__}: the message does not name {thing}: {line}")
    print(f"{breakage.__name__:22} {line}", flush=True)


def check_case(name, done, code, *words):
    expect(done.code == code, f"{name}: exit code {done.code}, not {code}: {done}")
    line = one_clear_line(done)
    for word in words:
        expect(re.search(word, line), f"{name}: /{word}/ is not in: {line}")
    print(f"{name:22} {line}", flush=True)


def check_tokenizer(rig, good):
    model = rig.copy_of(good, "broken")
    no_merges(model)
    check_case("tokenizer, run", rig.run("run", model, "hello", "--raw", "--max-tokens", 1), 5, "merges")
    check_case("tokenizer, tokenize", rig.run("tokenize", model, "hello"), 5, "merges")


def check_requests(rig, good):
    long = ",".join(["7"] * 60)
    check_case("context", rig.run("run", good, "--tokens", long, "--context", 50), 6, r"\b60\b", r"\b50\b")
    check_case("token id", rig.run("run", good, "--tokens", "1,999999", "--max-tokens", 1), 2, "999999")
    check_case("not an id", rig.run("run", good, "--tokens", "1,x"), 2, '"x"')
    check_case("small pool", rig.run("run", good, *GENERATE, "--pool-slots", 1), 1, r"\b1\b", "pool")
    check_case("no model", rig.run("run", rig.work / "nowhere", "hello"), 5, "nowhere")
    check_case("not UTF-8", rig.run("run", good, b"ab\xff".decode(errors="surrogateescape"), "--raw"), 2, "byte 2")
    config = json.loads((good / "config.json").read_text())
    negative = rig.copy_of(good, "negative")
    (negative / "config.json").write_text(json.dumps({**config, "num_hidden_layers": -1}))
    check_case("bad dimension", rig.run("run", negative, *GENERATE), 5, "num_hidden_layers")
    check_case("bad size", rig.run("run", good, *GENERATE, "--ram", "lots"), 2, "lots")
    check_case("bad flag", rig.run("run", good, "--no-such-flag"), 2, "no-such-flag")
    check_case("no prompt", rig.run("run", good), 2, "prompt")
    check_case("no stack", rig.run("status"), 4, "serve")
    check_case("no stack, run", rig.run("run", "hello"), 4, "MODEL_DIR")
    check_case("temperature", rig.run("run", good, *GENERATE[:-1], "-3"), 2, "temperature")
    config = rig.work / "config/stoker"
    config.mkdir(parents=True)
    (config / "config.toml").write_text("[worker]\nthread = 3\n")
    check_case("unknown key", rig.run("config", "show"), 2, r"config\.toml:2", r"worker\.threads")
    shutil.rmtree(config)


def check_run_dir(rig, good):
    blocked = rig.work / "blocked"
    blocked.write_text("a file, not a directory")
    check_case("run directory", rig.run("serve", good, "--run-dir", blocked), 1, "blocked")
    if os.geteuid() == 0:
        print("read-only run directory: skipped, root may write anywhere")
    else:
        locked = rig.work / "locked"
        locked.mkdir(mode=0o500)
        check_case("read-only run dir", rig.run("serve", good, "--run-dir", locked / "sub"), 1, "locked")


def check_second_loader(rig, good):
    run_dir = rig.runtime / "shared"
    first = rig.popen("serve", good, "--run-dir", run_dir, "--pool-slots", 32, "--unlink-on-exit")
    try:
        cli_rig.wait_for("the stack", lambda: rig.run("status", "--run-dir", run_dir).code == 0)
        second = rig.run("serve", good, "--run-dir", run_dir)
        check_case("second loader", second, 1, "giving up")
        # Its loader, worker and gateway all find the place taken; the first to say so ends the stack.
        expect(re.search(r"another (loader|worker|gateway)", second.err), f"nobody says that a stack runs: {second}")
        check_case("drop while running", rig.run("cache", "drop", "--run-dir", run_dir), 1, "loader")
        expect(rig.run("status", "--run-dir", run_dir).code == 0, "the first stack suffered")
    finally:
        first.terminate()
        first.communicate(timeout=60)


def test(args, work):
    rig = Rig(args.bin, work)
    good = rig.model()
    done = rig.run("run", good, *GENERATE, "--json")
    expect(done.code == 0, f"the unbroken model does not run: {done}")
    for breakage in MODEL_CASES:
        check_model(rig, good, breakage)
    check_tokenizer(rig, good)
    check_requests(rig, good)
    check_run_dir(rig, good)
    check_second_loader(rig, good)
    rig.expect_nothing_left(set())


if __name__ == "__main__":
    sys.exit(harness.main(test))
