"""Token sequences of a golden model, chosen so that the right answer is unambiguous, and what transformers says."""

from dataclasses import dataclass

import numpy as np

import configs
import generator
import hf
from configs import GoldenModel

# Two right fp32 implementations differ by summation order, about 1e-5 here. A router whose ranks k and k+1 are
# closer than this, or a greedy choice closer than this share of the largest logit, would be a coin toss.
ROUTER_GAP_MIN = 1e-4
GREEDY_MARGIN_MIN = 4e-3
PROBES = 32


@dataclass
class Case:
    name: str
    tokens: list[int]
    splits: list[list[int]]  # how to feed the tokens; every split must give the same logits
    prompt: int  # greedy cases: tokens[prompt:] are what greedy decoding gives (one more follows); else len(tokens)
    logits: np.ndarray  # one forward, [len(tokens), vocab]
    greedy: list[int]
    router_gap: float
    greedy_margin: float  # smallest top-1 margin over largest |logit| of a greedy case
    self_noise: float  # transformers against itself over the splits, relative to the largest |logit| of a position


def prompt_tokens(model: GoldenModel, label: str, attempt: int, count: int) -> list[int]:
    u = generator.uniform(generator.fnv1a32(f"{model.name}/{label}/{attempt}".encode()), count)
    return np.floor((u + 0.5) * model.config["vocab_size"]).astype(int).tolist()


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Largest difference at any position, relative to that position's largest |logit|."""
    return float((np.abs(got - want).max(axis=-1) / np.abs(want).max(axis=-1)).max())


def margins(logits: np.ndarray) -> np.ndarray:
    top = np.sort(logits, axis=-1)[:, -2:]
    return (top[:, 1] - top[:, 0]) / np.abs(logits).max(axis=-1)


def _case(model, net, gap, label, splits, count, greedy_count=0) -> Case:
    for attempt in range(1000):
        tokens = prompt_tokens(model, label, attempt, count)
        chosen, margin = [], 1.0
        if greedy_count:
            chosen = hf.greedy(net, tokens, greedy_count, GREEDY_MARGIN_MIN)
            # A sampler ends at eos; a prompt that gets there is of no use here.
            if chosen is None or model.config["eos_token_id"] in chosen:
                continue
            tokens = tokens + chosen[:-1]
        gap.take()
        logits = hf.forward(net, tokens)
        smallest = gap.take()
        if greedy_count:
            margin = float(margins(logits[count - 1 :]).min())
            assert logits[count - 1 :].argmax(axis=-1).tolist() == chosen or margin < GREEDY_MARGIN_MIN
        if smallest >= ROUTER_GAP_MIN and margin >= GREEDY_MARGIN_MIN:
            break
    else:
        raise SystemExit(f"{model.name}/{label}: no unambiguous prompt in 1000 attempts")
    if greedy_count:
        splits = [[count] + [1] * (greedy_count - 1)]
    noise = max((relative_error(hf.forward_split(net, tokens, s), logits) for s in splits), default=0.0)
    return Case(label, tokens, splits, count, logits, chosen, smallest, margin, noise)


def make(model: GoldenModel, net) -> list[Case]:
    gap = hf.RouterGap(net)
    out = [_case(model, net, gap, f"length_{n}", [[n]], n) for n in model.lengths]
    for prompt, decoded in model.decode:
        n = prompt + decoded
        out.append(_case(model, net, gap, f"decode_{prompt}_{decoded}", [[n], [prompt] + [1] * decoded], n))
    for chunks in model.continuations:
        n = sum(chunks)
        out.append(_case(model, net, gap, "continue_" + "_".join(map(str, chunks)), [[n], list(chunks)], n))
    for prompt in model.greedy_prompts:
        out.append(_case(model, net, gap, f"greedy_{prompt}", [], prompt, configs.GREEDY_TOKENS))
    return out


def probe_ids(position: int, vocab: int) -> np.ndarray:
    """The vocabulary entries whose logits are kept for every position (also in tests/golden/golden_file.cc)."""
    x = (np.arange(PROBES, dtype=np.uint64) + np.uint64(position * PROBES)) * np.uint64(2654435761)
    return ((x & np.uint64(0xFFFFFFFF)) >> np.uint64(8)) % np.uint64(vocab)
