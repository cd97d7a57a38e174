#!/usr/bin/env python3
"""Measures the demo model: against transformers, against a bigram model, before and after FP8.

    python3 evaluate.py WORK_DIR MODEL_DIR [--bin build/release/bin]

Prints the figures and writes MODEL_DIR/evaluation.json; tests/process/demo_model.py compares Stoker with it later.
Exits 1 if Stoker and transformers differ by more than 0.1 % in nats/token, or in a greedy token.
"""
import argparse
import json
import math
import pathlib
import sys

import numpy as np
import tokenizers
import torch
import transformers

import oracle
from stoker import serving

WINDOW = 512
SHORT = 4096  # what the test in test.sh scores
PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 24, 40, 32


class Bigram:
    """Interpolated Kneser-Ney bigrams (discount 0.75) over the training tokens; Chen & Goodman 1999, eq. 5."""

    DISCOUNT = 0.75

    def __init__(self, tokens, vocabulary):
        keys, counts = np.unique(tokens[:-1].astype(np.int64) * vocabulary + tokens[1:], return_counts=True)
        self.vocabulary = vocabulary
        self.counts = dict(zip(keys.tolist(), counts.tolist()))
        first, second = keys // vocabulary, keys % vocabulary
        self.followed = np.bincount(first, weights=counts, minlength=vocabulary)
        self.kinds = np.bincount(first, minlength=vocabulary)
        continuation = np.bincount(second, minlength=vocabulary).astype(float)
        # A token that never follows anything gets the discount's share of a uniform distribution.
        seen = np.maximum(continuation - self.DISCOUNT, 0)
        self.unigram = seen / continuation.sum() + (1 - seen.sum() / continuation.sum()) / vocabulary

    def nats(self, ids):
        total = 0.0
        for a, b in zip(ids, ids[1:]):
            if self.followed[a] == 0:
                p = self.unigram[b]
            else:
                count = self.counts.get(a * self.vocabulary + b, 0)
                rest = self.DISCOUNT * self.kinds[a] * self.unigram[b]
                p = (max(count - self.DISCOUNT, 0) + rest) / self.followed[a]
            total -= math.log(p)
        return total


def prompts(ids):
    """Spread over the held-out text."""
    step = (len(ids) - PROMPT_TOKENS) // PROMPTS
    return [ids[i * step:i * step + PROMPT_TOKENS] for i in range(PROMPTS)]


def stoker_greedy(stack, prompt):
    return stack.json("run", "--tokens", ",".join(map(str, prompt)), "-n", ANSWER_TOKENS, "--temperature", 0,
                      "--repetition-penalty", 1, "--ignore-eos")["tokens"]


def compare_greedy(stack, net, cases):
    """How many answers are the same; of those that are not, the smallest gap between the two best logits."""
    same, gaps, answers = 0, [], []
    for prompt in cases:
        want, gap = oracle.greedy(net, prompt, ANSWER_TOKENS)
        answers.append({"prompt": prompt, "tokens": want, "smallest_gap": gap})
        if stoker_greedy(stack, prompt) == want:
            same += 1
        else:
            gaps.append(gap)
    return same, gaps, answers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--bin", default="build/release/bin")
    parser.add_argument("--trained", default="final.pt", help="file in WORK_DIR")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    tokenizer = tokenizers.Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    text = (arguments.model / "heldout.txt").read_text()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    scored = len(ids) - 1
    bits = scored / math.log(2) / len(text.encode())  # nats/token to bits/byte

    net = oracle.exact(arguments.model)
    exact = oracle.nats(net, ids, WINDOW) / scored
    short = oracle.nats(net, ids[:SHORT], WINDOW) / (SHORT - 1)
    trained = torch.load(arguments.work / arguments.trained, map_location="cpu")
    before = oracle.nats(oracle.unquantised(arguments.model, trained["net"]), ids, WINDOW) / scored
    train_tokens = np.fromfile(arguments.work / "train.bin", dtype="<u2").astype(np.int64)
    bigram = Bigram(train_tokens, tokenizer.get_vocab_size()).nats(ids) / scored
    with serving(arguments.bin, arguments.model) as stack:
        ours = stack.json("perplexity", arguments.model / "heldout.txt", "--window", WINDOW)
        same, gaps, answers = compare_greedy(stack, net, prompts(ids))
        same_published, gaps_published, _ = compare_greedy(stack, oracle.as_published(arguments.model), prompts(ids))
    if ours["tokens"] != scored:
        raise SystemExit(f"Stoker scored {ours['tokens']} tokens, transformers {scored}")

    for name, value in [("Stoker", ours["nats_per_token"]), ("transformers, fp32, same weights", exact),
                        ("transformers, fp32, weights before FP8", before), ("Kneser-Ney bigram", bigram)]:
        print(f"{name}: {value:.5f} nats/token, perplexity {math.exp(value):.3f}, {value * bits:.4f} bits/byte")
    difference = abs(ours["nats_per_token"] / exact - 1)
    print(f"Stoker against transformers: {100 * difference:.5f} %")
    print(f"greedy, {PROMPTS} prompts x {ANSWER_TOKENS} tokens: {same} the same as transformers' fp32 {gaps}, "
          f"{same_published} as from_pretrained's {gaps_published}")
    (arguments.model / "evaluation.json").write_text(json.dumps({
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__,
                     "tokenizers": tokenizers.__version__},
        "window": WINDOW, "tokens": scored, "bytes": len(text.encode()), "nats_per_token": exact,
        "short": {"max_tokens": SHORT, "nats_per_token": short},
        "nats_per_token_before_fp8": before, "nats_per_token_bigram": bigram, "greedy": answers}) + "\n")
    sys.exit(difference > 1e-3 or same < PROMPTS)


if __name__ == "__main__":
    main()
