#!/usr/bin/env python3
"""Trains the demo model's tokenizer on WORK_DIR/train.jsonl and encodes both splits.

    python3 tokens.py WORK_DIR

Writes WORK_DIR/tokenizer.json (the Qwen2 family's pipeline and its 26 added tokens) and train.bin, heldout.bin:
uint16 ids, little endian, <|endoftext|> after every file; the training files in a shuffled, fixed order.
"""
import json
import pathlib
import random
import sys

import numpy as np
from tokenizers import Tokenizer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "text"))
import make_tokenizer  # noqa: E402

VOCAB = 4096  # with the added tokens
TRAINING_BYTES = 40_000_000  # more changes no merge that matters


def texts(path):
    with open(path) as file:
        return [json.loads(line)["text"] for line in file]


def encode(tokenizer, documents, path):
    end = tokenizer.token_to_id("<|endoftext|>")
    total = 0
    with open(path, "wb") as out:
        for first in range(0, len(documents), 256):
            for encoding in tokenizer.encode_batch(documents[first:first + 256], add_special_tokens=False):
                out.write(np.array(encoding.ids + [end], dtype="<u2").tobytes())
                total += len(encoding.ids) + 1
    size = sum(len(d) for d in documents)
    print(f"{path.name}: {len(documents)} files, {size} characters, {total} tokens, {size / total:.2f} per token")


def main():
    work = pathlib.Path(sys.argv[1])
    documents = texts(work / "train.jsonl")
    random.Random(20261125).shuffle(documents)
    sample, size = [], 0
    for document in documents:
        sample.append(document)
        size += len(document)
        if size > TRAINING_BYTES:
            break
    added = len(make_tokenizer.SPECIAL) + len(make_tokenizer.PLAIN)
    make_tokenizer.write(make_tokenizer.train(sample, VOCAB - added), work / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == VOCAB
    encode(tokenizer, texts(work / "heldout.jsonl"), work / "heldout.bin")
    encode(tokenizer, documents, work / "train.bin")


if __name__ == "__main__":
    main()
