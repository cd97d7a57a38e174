#!/usr/bin/env python3
"""Compares text_driver with Hugging Face tokenizers: ids, pieces, decoding, streaming, invalid UTF-8.

    python3 check_tokenizer.py DRIVER TOKENIZER.json [--seed 1] [--count 20000] [--every-code-point]

Prints one line per kind of check and exits 1 at the first kind with a difference. Needs: pip install tokenizers.
"""
import argparse
import json
import os
import random
import sys

import tokenizers
from tokenizers import Tokenizer

from driver import ask
from sample_text import any_code_point, every_code_point, random_text, real_texts


def report(name, total, differences):
    print(f"{name}: {total} cases, {len(differences)} differ", flush=True)
    for case, want, got in differences[:3]:
        print(f"  case {case!r}\n  want {str(want)[:600]}\n  got  {str(got)[:600]}")
    if differences:
        sys.exit(1)


def compare(name, cases, wants, gots):
    report(name, len(cases), [row for row in zip(cases, wants, gots) if row[1] != row[2]])


def check_encode(run, tokenizer, texts):
    answers = run([{"op": "encode", "text": text} for text in texts])
    wants = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    compare("ids", texts, wants, [answer.get("ids", answer) for answer in answers])


def check_plain(run, path, texts):
    """Encoding without added tokens, against the same file with the added tokens taken out."""
    with open(path, encoding="utf-8") as file:
        plain = json.load(file)
    plain["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(plain))
    answers = run([{"op": "encode", "text": text, "added": False} for text in texts])
    wants = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    compare("ids, added tokens ignored", texts, wants, [answer.get("ids", answer) for answer in answers])


def check_pieces(run, tokenizer, texts):
    answers = run([{"op": "pieces", "text": text} for text in texts])
    wants = []
    for text in texts:
        normal = tokenizer.normalizer.normalize_str(text)
        wants.append([normal[a:b] for _, (a, b) in tokenizer.pre_tokenizer.pre_tokenize_str(normal)])
    compare("NFC and pieces", texts, wants, [answer.get("pieces", answer) for answer in answers])


def check_decode(run, tokenizer, rng, texts):
    lists = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    size = tokenizer.get_vocab_size()
    lists += [[rng.randrange(size) for _ in range(rng.randrange(1, 30))] for _ in range(len(texts))]
    for skip in (False, True):
        answers = run([{"op": "decode", "ids": ids, "skip": skip} for ids in lists])
        wants = tokenizer.decode_batch(lists, skip_special_tokens=skip)
        name = "decode, skip special" if skip else "decode"
        compare(name, lists, wants, [bytes.fromhex(a["hex"]).decode("utf-8", errors="replace") for a in answers])
        compare(name + ", streamed", lists, wants, [a["stream"] for a in answers])


def check_invalid(run, rng, texts):
    """Invalid UTF-8 is refused with the offset that Python's strict decoder gives."""
    cases = []
    for text in texts:
        data = bytearray(text.encode()[:300] or b"x")
        for _ in range(rng.randrange(1, 3)):
            at = rng.randrange(len(data))
            data[at:at + rng.randrange(2)] = bytes(rng.randrange(0x80, 0x100) for _ in range(rng.randrange(1, 3)))
        cases.append(bytes(data))
    wants = []
    for data in cases:
        try:
            data.decode()
            wants.append("valid")
        except UnicodeDecodeError as error:
            wants.append(f"at byte {error.start}")
    gots = []
    for answer in run([{"op": "encode", "hex": data.hex()} for data in cases]):
        text = answer.get("error", "valid")
        gots.append(" ".join(text.split("UTF-8 ")[1].split(";")[0].split()[:3]) if "error" in answer else text)
    compare(f"invalid UTF-8 ({sum(w != 'valid' for w in wants)} invalid)", cases, wants, gots)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("driver")
    parser.add_argument("tokenizer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--every-code-point", action="store_true")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    tokenizer = Tokenizer.from_file(arguments.tokenizer)
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    print(f"tokenizers {tokenizers.__version__}, seed {arguments.seed}")

    def run(requests):
        return ask(arguments.driver, ["--tokenizer", arguments.tokenizer], requests)

    repository = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
    half = arguments.count // 2
    texts = real_texts(rng, half, repository)
    texts += [random_text(rng, added) for _ in range(half)]
    texts += added + ["", "a" * 100000, " " * 50000 + "x", "".join(any_code_point(rng) for _ in range(20000))]
    check_encode(run, tokenizer, texts)
    check_plain(run, arguments.tokenizer, texts[half - 2000:half + 2000])
    check_pieces(run, tokenizer, texts)
    check_decode(run, tokenizer, rng, texts[half - 2000:half + 2000])
    check_invalid(run, rng, texts[half - 2000:half + 2000])
    if arguments.every_code_point:
        sweep = list(every_code_point())
        check_pieces(run, tokenizer, sweep)
        check_encode(run, tokenizer, sweep)


if __name__ == "__main__":
    main()
