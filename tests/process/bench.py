#!/usr/bin/env python3
"""`stoker bench` on a tiny model: rows that are consistent in themselves, a history, nothing left behind.

No speed is asserted, only what must hold at any speed.
"""

import csv
import io
import json
import signal
import sys

import harness
from cli_rig import Rig, one_clear_line, wait_for
from harness import expect

SLOW_S = 600  # a dozen stacks on a busy machine
LAYERS, TOP_K, SLOTS, WARM_UP = 4, 2, 12, 3
QUICK = ("-r", 2, "--warm-up", WARM_UP, "--pool-slots", SLOTS, "--raw-seconds", 0.01)


def near(a, b):
    return abs(a - b) <= 1e-6 * max(abs(a), abs(b), 1e-9)


def in_order(spread):
    return spread["min"] <= spread["median"] <= spread["max"] and spread["stddev"] >= 0 and \
        spread["min"] * (1 - 1e-9) <= spread["mean"] <= spread["max"] * (1 + 1e-9)


def spreads(value, path=""):
    if isinstance(value, dict) and "stddev" in value and "median" in value:
        yield path, value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from spreads(child, f"{path}.{key}")


def check_row(row):
    name = f"{row['test']} {row['pool_state']}"
    for path, spread in spreads(row):
        expect(in_order(spread), f"{name}: {path} is no spread: {spread}")
    mean = lambda spread: spread["mean"]
    hits, bytes_ = row["hit_rate"], row["bytes_per_token"]
    expect(near(sum(map(mean, hits.values())), 1), f"{name}: shares of the tiers: {hits}")
    speed = row["tokens_per_second"]
    expect(len(speed["samples"]) == row["repetitions"] == 2 and speed["min"] > 0, f"{name}: {speed}")

    # Decoding one sequence uses top-k experts per layer and token, wherever they come from.
    if row["test"].startswith("tg"):
        experts = LAYERS * TOP_K * row["expert_bytes"]
        weights = row["resident_bytes"] + row["head_bytes"] + 2 * row["state_bytes"]
        expect(near(mean(bytes_["memory"]), experts + weights), f"{name}: {bytes_} is not {experts} + {weights}")
        found = mean(hits["pool"]) * experts
        expect(near(mean(bytes_["pool"]), found), f"{name}: {bytes_['pool']} is not {found}")
        # Each miss was read in the test or was under way when it began; hints read more.
        missed = mean(hits["disk"]) * experts
        expect(mean(bytes_["disk"]) >= missed * (1 - 1e-9), f"{name}: read {bytes_['disk']}, but {missed} were missing")
    limit = row["limit"]
    expect(limit["by"] in ("disk", "memory") and limit["percent"]["max"] > 0, f"{name}: {limit}")
    for part in ("percent_of_disk", "percent_of_memory"):
        expect(mean(limit["percent"]) >= mean(limit[part]) * (1 - 1e-9), f"{name}: the limit is not the larger: {limit}")
    expect(row["pool_slots"] == SLOTS and near(row["pool_share"], SLOTS / (LAYERS * row["experts"])), f"{name}: pool")
    expect(row["peak_bytes"]["min"] > row["budget_bytes"], f"{name}: peak {row['peak_bytes']} of {row['budget_bytes']}")
    expect(row["warm_up_tokens"] == (WARM_UP if row["pool_state"] == "warm" else 0), f"{name}: warm-up")
    if row["pool_state"] == "cold":
        expect(mean(hits["disk"]) > 0, f"{name}: nothing was missing from an empty pool: {hits}")


def formats(rig, model):
    history = rig.work / "history.jsonl"
    done = rig.run("bench", model, "-p", 5, "-n", 4, *QUICK, "-o", "json", "--history", history, timeout=SLOW_S)
    expect(done.code == 0, f"bench: {done}")
    rows = json.loads(done.out)
    tests = [(row["test"], row["pool_state"]) for row in rows]
    expect(tests == [("pp5", "cold"), ("pp5", "warm"), ("tg4", "cold"), ("tg4", "warm")], f"{tests}")
    for row in rows:
        check_row(row)
    expect(done.err.count("repetition") == 8, f"progress: {done}")
    kept = [json.loads(line) for line in history.read_text().splitlines()]
    expect(kept == rows, "the history is not what was printed")
    rig.expect_nothing_left(set())

    ids = rig.work / "ids.txt"
    ids.write_text(" ".join(str(i) for i in range(20)) + "\n")
    one = ("-p", 0, "-n", 4, *QUICK, "-r", 1, "--state", "warm", "--tokens-file", ids)
    done = rig.run("bench", model, *one, "-o", "csv", "--history", history, "--compare", timeout=SLOW_S)
    expect(done.code == 0, f"bench csv: {done}")
    table = list(csv.DictReader(io.StringIO(done.out)))
    expect(len(table) == 1 and table[0]["test"] == "tg4" and table[0]["ids_from"] == str(ids), f"csv: {done}")
    ratio = float(table[0]["tokens_per_second_mean"]) / rows[3]["tokens_per_second"]["mean"]
    expect(near(float(table[0]["change_ratio"]), ratio), f"change: {table[0]['change_ratio']} is not {ratio}")
    expect("ids_from" in table[0]["change_text"], f"other ids are not mentioned: {table[0]['change_text']}")
    kept = [json.loads(line) for line in history.read_text().splitlines()]
    expect(len(kept) == 5 and "change" not in kept[4], "the history did not grow by one plain row")

    done = rig.run("bench", model, *one, "--compare", history, timeout=SLOW_S)
    expect(done.code == 0 and " change |" in done.out and "tg4" in done.out, f"bench md: {done}")
    expect(len(history.read_text().splitlines()) == 5, "--compare alone wrote to the history")
    rig.expect_nothing_left(set())
    print("json, csv, md; history and change", flush=True)


def refusals(rig, model):
    bad = rig.work / "bad.jsonl"
    bad.write_text("\n{\n")
    short = rig.work / "short.txt"
    short.write_text("1,2,3")
    alien = rig.work / "alien.txt"
    alien.write_text("1 99999999 " * 30)
    words = rig.work / "words.txt"
    words.write_text("once upon a time")
    for args, code, names in (
            (("--run-dir", rig.work), 2, "--run-dir"),
            (("--compare", bad), 2, f"{bad} line 2"),
            (("--compare", rig.work / "nowhere.jsonl"), 1, "nowhere.jsonl"),
            (("--compare",), 2, "--history FILE"),
            (("--history", rig.work / "no/history"), 1, "no/history"),
            (("--tokens-file", short), 2, "has 3 ids"),
            (("--tokens-file", alien), 2, "99999999"),
            (("--tokens-file", words), 2, str(words)),
            (("-n", 0, "-p", 0), 2, "no test"),
            (("-o", "xml"), 2, "xml"),
            (("-n", "4,x"), 2, "x")):
        done = rig.run("bench", model, *QUICK, *(() if "-n" in args else ("-p", 5, "-n", 4)), *args)
        expect(done.code == code and done.out == "", f"{args}: {done}")
        expect(names in one_clear_line(done), f"{args}: {names} is not named: {done}")
    done = rig.run("bench", rig.work / "nowhere", *QUICK)
    expect(done.code == 5 and "nowhere" in one_clear_line(done), f"no model: {done}")
    done = rig.run("bench", model, "-p", 5, "-n", 0, *QUICK, "--state", "cold", "--context", 4, timeout=SLOW_S)
    expect(done.code == 6, f"a context that is too short: {done}")
    one_clear_line(done)
    rig.expect_nothing_left(set())
    print("bad input: one clear line", flush=True)


def interrupted(rig, model):
    """Ctrl-C while a stack runs: exit 130, no rows, nothing left."""
    history = rig.work / "unfinished.jsonl"
    process = rig.popen("bench", model, "-p", 0, "-n", 2000, *QUICK, "--context", 4096, "--state", "cold",
                        "--history", history)
    names = wait_for("the private stack", lambda: rig.daemon("predictor") and rig.shared_names(), SLOW_S)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SLOW_S)
    expect(process.returncode == 130 and out == b"", f"SIGINT: exit {process.returncode}: {err.decode()[-1000:]}")
    expect(history.read_text() == "", "an unfinished benchmark is in the history")
    rig.expect_nothing_left(names)
    print("SIGINT: exit 130, nothing left", flush=True)


def test(args, work):
    rig = Rig(args.bin, work)
    model = rig.model("model", "--layers", LAYERS, "--experts", 8, "--experts-per-token", TOP_K,
                      "--context", 4096)
    formats(rig, model)
    refusals(rig, model)
    interrupted(rig, model)


if __name__ == "__main__":
    sys.exit(harness.main(test))
