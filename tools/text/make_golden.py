#!/usr/bin/env python3
"""Writes the golden files of tests/unit/text: expected ids from Hugging Face tokenizers, expected prompts from Jinja2.

    python3 make_golden.py DATA_DIRECTORY

DATA_DIRECTORY holds tokenizer.json and the two templates. Needs: pip install tokenizers jinja2.
"""
import json
import os
import random
import sys

from tokenizers import Tokenizer

from sample_conversation import compile_template, conversation, render
from sample_text import COMPOSING, CONTRACTIONS, EMOJI, SPACES, random_text, real_texts

HAND_PICKED = ["", " ", "Hello world", " Hello world", "<|im_start|>system\nYou are", "can't I'LL we've 'ſ", "1234567890",
               "x = [1, 2.5]\n\n\n    return x\n", "<|im_start", "<|im_end|><|im_end|>", "<tool_call>\n<function=f>\n",
               "\u31350\U00031350\U0002ebf0a", "a\U0001e08f\u0301", "\u0b92\u0bd7 \u1112\u1161\u11ab", "q\u07fd\u0323", "\u0000",
               "a\u180eb \u180e c", "a\u0085b\u2028c", "\u1e9b\u0323 \u212b \u2126", "👩‍👩‍👧‍👦 👍🏽 🇩🇪", "中文，字符。煤炭", "   \n \t\n  x"]


def write_lines(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=True, separators=(",", ":")) + "\n")


def tokens(directory, rng):
    path = os.path.join(directory, "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    with open(path, encoding="utf-8") as file:
        file = json.load(file)
    added = [token["content"] for token in file["added_tokens"]]
    file["added_tokens"] = []
    plain = Tokenizer.from_str(json.dumps(file))
    texts = HAND_PICKED + added + COMPOSING + EMOJI + CONTRACTIONS + [f"a{s}b {s}\n{s}{s}1" for s in SPACES]
    while len(texts) < 330:
        texts.append(random_text(rng, added)[:80])
    repository = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "unit")
    texts += [text[:150] for text in real_texts(rng, 60, repository)]
    for text in texts:
        row = {"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids}
        without_added = plain.encode(text, add_special_tokens=False).ids
        if without_added != row["ids"]:
            row["plain"] = without_added
        yield row


def prompts(directory, rng):
    for name in ["chat_template.jinja", "chat_template_older.jinja"]:
        with open(os.path.join(directory, name), encoding="utf-8") as file:
            template = compile_template(file.read())
        made = 0
        while made < 40:
            case, generate = conversation(rng), rng.random() < 0.5
            rendered = render(template, case, generate)
            if len(rendered) < 1800:
                made += 1
                yield {"template": name, "conversation": json.dumps(case, ensure_ascii=False), "generate": generate,
                       "text": rendered}


def main():
    directory = sys.argv[1]
    rng = random.Random(7)
    write_lines(os.path.join(directory, "golden_tokens.jsonl"), tokens(directory, rng))
    write_lines(os.path.join(directory, "golden_prompts.jsonl"), prompts(directory, rng))


if __name__ == "__main__":
    main()
