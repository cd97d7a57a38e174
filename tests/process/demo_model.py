#!/usr/bin/env python3
"""models/demo through the real stack, against what transformers said about it (models/demo/evaluation.json):
perplexity on held-out text, greedy answers, and a routing trace that shows a router that is alive."""

import json
import sys
from xml.etree import ElementTree

import harness
from cli_rig import REPOSITORY, Rig
from harness import expect

MODEL = REPOSITORY / "models/demo"
GREEDY_CASES = 6


def output(rig, *args):
    done = rig.run(*args, timeout=600)
    expect(done.code == 0, f"stoker {' '.join(map(str, args[:2]))}: {done}")
    return done.out


def perplexity(rig, want):
    short = want["short"]
    got = json.loads(output(rig, "perplexity", MODEL, MODEL / "heldout.txt", "--window", want["window"],
                            "-n", short["max_tokens"], "--json"))
    expect(got["tokens"] == short["max_tokens"] - 1, f"{got}")
    ratio = got["nats_per_token"] / short["nats_per_token"]
    expect(abs(ratio - 1) < 1e-3, f"nats/token {got['nats_per_token']}, transformers {short['nats_per_token']}")
    # Windows are cut where they are; other windows give another, still sane, figure.
    other = json.loads(output(rig, "perplexity", MODEL, MODEL / "heldout.txt", "--window", 64, "-n", 640, "--json"))
    expect(other["windows"] == 11 and other["tokens"] == 639, f"{other}")
    expect(other["nats_per_token"] < want["nats_per_token_bigram"] + 0.5, f"{other}")
    print(f"perplexity: {got['nats_per_token']:.5f} nats/token, transformers {short['nats_per_token']:.5f}", flush=True)


def greedy(rig, want):
    for case in want["greedy"][:GREEDY_CASES]:
        prompt = ",".join(map(str, case["prompt"]))
        answer = json.loads(output(rig, "run", MODEL, "--tokens", prompt, "-n", len(case["tokens"]), "--temperature", 0,
                                   "--repetition-penalty", 1, "--ignore-eos", "--json"))
        expect(answer["tokens"] == case["tokens"], f"greedy: {answer['tokens']}, transformers {case['tokens']} "
                                                   f"(smallest gap of its logits {case['smallest_gap']})")
    print(f"greedy: {GREEDY_CASES} answers as transformers gives them", flush=True)


def trace(rig, work):
    path = work / "routing.trace"
    output(rig, "trace", "record", MODEL, "--text", MODEL / "heldout.txt", "-n", 600, "--window", 200, "--out", path)
    report = json.loads(output(rig, "trace", "report", path, "--json"))
    config = json.loads((MODEL / "config.json").read_text())
    layers = report["per_layer"]
    # Of each window, the first token is prefilled and the last one is not fed.
    expect(report["tokens"] == 3 * 198, f"{report['tokens']} tokens recorded, not {3 * 198}")
    expect(len(layers) == config["num_hidden_layers"] and report["experts"] == config["num_experts"], f"{report}")
    for index, layer in enumerate(layers):
        expect(layer["entropy_bits"] > 4 and layer["experts_used"] > config["num_experts"] / 2,
               f"layer {index}: the router has collapsed: {layer}")
        expect((layer["recall_k"] is None) == (index == 0), f"layer {index}: {layer}")
        expect(index == 0 or 0.25 < layer["recall_k"] <= layer["recall_2k"] <= layer["recall_all"], f"{index}: {layer}")
    table = output(rig, "trace", "report", path)
    expect(len(table.splitlines()) == 2 + 2 + len(layers) + 1, f"not a table: {table}")
    print("routing trace: every token, every layer alive", flush=True)


def replayed(rig, work):
    """The engine's own hit rate, and what a replay of its trace through the same policy says."""
    path = work / "small.trace"
    output(rig, "trace", "record", MODEL, "--text", MODEL / "heldout.txt", "-n", 1500, "--out", path, "--no-predictor",
           "--pool-slots", 96)
    report = json.loads(output(rig, "trace", "report", path, "--json"))
    uses = report["uses"]
    engine = uses["pool"] / sum(uses.values())
    replay = json.loads(output(rig, "trace", "replay", path, "--policy", "stoker", "--slots-per-layer",
                               96 // report["layers"], "--json"))["replays"][0]
    expect(replay["hits"] + replay["misses"] == sum(uses.values()), f"{replay} {uses}")
    expect(abs(replay["hit_rate"] - engine) < 0.01, f"engine {engine:.4f}, replay {replay['hit_rate']:.4f}")
    print(f"replay: {100 * replay['hit_rate']:.1f} % hits, the engine counted {100 * engine:.1f} %", flush=True)


TOY = """event_index,scheduler_step,layer,requested_experts,misses,hits
0,0,0,0 1,2,0
1,0,1,0 1,2,0
2,1,0,0 2,1,1
3,1,1,0 2,1,1
4,2,0,0 1,1,1
5,2,1,0 1,1,1
"""


def html(rig, path, timed, *replay):
    """The page of `trace report --html`: XML, nothing from elsewhere, the numbers of `trace replay`."""
    page = rig.work / "report.html"
    output(rig, "trace", "report", path, "--html", page, *replay)
    text = page.read_text()
    root = ElementTree.fromstring(text)
    name = "{http://www.w3.org/1999/xhtml}"
    rows = root.find(f".//{name}table[@id='hit-rates']").findall(f"{name}tr")[1:]
    shown = {row.find(f"{name}th").text: [(int(cell.get("data-hits")), int(cell.get("data-misses")), cell.text.strip())
                                          for cell in row.findall(f"{name}td")] for row in rows}
    want = {}
    for r in json.loads(output(rig, "trace", "replay", path, "--json", *replay))["replays"]:
        want.setdefault(r["policy"], []).append((r["hits"], r["misses"], f"{100 * r['hit_rate']:.1f}"))
    expect(shown == want and len(want) == 5, f"the page shows {shown}, the replay says {want}")
    tags = {element.tag.rsplit("}", 1)[-1] for element in root.iter()}
    expect(not tags & {"script", "link", "img", "iframe", "object"}, f"{tags}")
    outside = [v for e in root.iter() for k, v in e.attrib.items() if "://" in v or k in ("src", "href")]
    expect(not outside and "url(" not in text, f"not self-contained: {outside}")
    expect(("no timings" in text) != timed and ("The slowest step" in text) == timed, f"timings: {text[-600:]}")
    expect(len(text) < 1_000_000, f"{len(text)} bytes")
    return len(text)


def pages(rig):
    size = html(rig, rig.work / "small.trace", True, "--slots-per-layer", "8,16,24", "--skip", 100)
    toy = rig.work / "toy & <odd>.csv"
    toy.write_text(TOY)
    html(rig, toy, False, "--slots-per-layer", "2", "--per-layer")
    done = rig.run("trace", "report", toy, "--html", rig.work / "missing" / "x.html")
    expect(done.code == 1 and "missing/x.html" in done.err, f"a page that cannot be written: {done}")
    expect(rig.run("trace", "report", toy, "--skip", 1).code == 2, "--skip without --html")
    expect(rig.run("trace", "report", toy, "--html", rig.work / "x.html", "--skip", 3).code == 2, "--skip of all")
    print(f"report --html: well-formed, self-contained, the replay's numbers; {size} bytes with timings", flush=True)


def tiers(rig):
    """Device memory before the pool: two slots per layer, and a pool that holds all three experts."""
    toy = rig.work / "toy & <odd>.csv"
    how = ("trace", "replay", toy, "--vram-slots", 4, "--slots-per-layer", 3)
    r = json.loads(output(rig, *how, "--expert-bytes", 30, "--json"))["tiers"][0]
    expect([r[k] for k in ("tokens", "vram", "pool", "disk", "copied", "promoted")] == [3, 4, 8, 0, 8, 8], f"{r}")
    moved = {edge: round(count) for edge, count in r["bytes_per_token"].items()}
    expect(moved == {"vram": 200, "pcie": 80, "pcie_promoted": 80, "cpu": 0, "disk": 0}, f"{r}")
    expect(r["events"] == [[0, 2, 0, 2, 2, 2], [1, 1, 0, 1, 1, 4]], f"{r}")
    # The CPU is faster than PCIe: it computes everything.
    r = json.loads(output(rig, *how, "--lanes", "9,1", "--json"))["tiers"][0]
    expect((r["vram"], r["pool"], r["copied"]) == (0, 12, 0) and "bytes_per_token" not in r, f"{r}")
    expect(len(output(rig, *how).splitlines()) == 3, "not a table of one row")
    for bad in (("--policy", "lru"), ("--lanes", "9"), ("--copies", "x")):
        expect(rig.run(*how, *bad).code == 2, f"{bad} with --vram-slots")
    print("replay --vram-slots: tiers, bytes, events", flush=True)


def test(args, work):
    rig = Rig(args.bin, work)
    expect(rig.run("verify", MODEL).code == 0, "stoker verify models/demo")
    want = json.loads((MODEL / "evaluation.json").read_text())
    perplexity(rig, want)
    greedy(rig, want)
    trace(rig, rig.work)
    replayed(rig, rig.work)
    pages(rig)
    tiers(rig)


if __name__ == "__main__":
    sys.exit(harness.main(test))
