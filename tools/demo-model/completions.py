#!/usr/bin/env python3
"""Lets the demo model complete held-out function headers and asks Python's parser what it thinks.

    python3 completions.py WORK_DIR MODEL_DIR [--bin build/release/bin] [--count 100] [--show 10] > docs/part.md

A prompt is a function's header (top level, with its docstring's first line if it has one) from a held-out file.
The answer is sampled with the checkpoint's own settings, --seed N for the N-th prompt. Judged by ast.parse:
- first statement: the first complete statement of the body, i.e. the fewest whole lines after the header that parse;
- whole block: everything up to the next line that begins at column 0, or, when the answer was cut off before that,
  up to its last whole line.
"""
import argparse
import ast
import json
import pathlib
import random

from stoker import serving

TOKENS = 120


def parses(text):
    try:
        ast.parse(text)
        return True
    except (SyntaxError, ValueError):
        return False


def headers(path):
    """(source, prompt) of every top-level function in the held-out Python files."""
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if not row["path"].endswith(".py"):
            continue
        lines = row["text"].splitlines()
        for node in ast.parse(row["text"]).body:
            if not isinstance(node, ast.FunctionDef) or node.decorator_list or not node.body:
                continue
            end = node.body[0].lineno - 1
            prompt = "\n".join(lines[node.lineno - 1:end]) + "\n"
            docstring = ast.get_docstring(node)
            if docstring:
                prompt += f'    """{docstring.splitlines()[0]}"""\n'
            # What it asks for must be the function and nothing odd (comments between, one-line bodies).
            if end >= node.lineno and 20 < len(prompt) < 240 and parses(prompt + "    pass\n"):
                yield row["source"] + "/" + row["path"], prompt


def block(prompt, answer, finished):
    lines = answer.split("\n")
    for i, line in enumerate(lines):
        if line and not line[0].isspace():
            return prompt + "\n".join(lines[:i])
    return prompt + "\n".join(lines if finished else lines[:-1])


def judge(prompt, answer, finished):
    """(first statement valid, whole block valid)."""
    whole = block(prompt, answer, finished)
    body = whole[len(prompt):].split("\n")
    # The prompt alone must not count: a docstring is a body already.
    first = any(body[:i][-1].strip() and parses(prompt + "\n".join(body[:i])) for i in range(1, len(body) + 1))
    some = any(line.strip() for line in body)
    return first and some, some and parses(whole)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--bin", default="build/release/bin")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--show", type=int, default=10)
    arguments = parser.parse_args()
    cases = list(headers(arguments.work / "heldout.jsonl"))
    random.Random(20261125).shuffle(cases)
    cases = cases[:arguments.count]
    shown, first, whole = [], [], []
    with serving(arguments.bin, arguments.model) as stack:
        for seed, (source, prompt) in enumerate(cases):
            done = stack.json("run", prompt, "--raw", "-n", TOKENS, "--seed", seed)
            verdict = judge(prompt, done["text"], done["finish_reason"] == "stop")
            first.append(verdict[0])
            whole.append(verdict[1])
            if seed < arguments.show:
                words = ["does not parse", "parses"]
                shown.append(f"`{source}`, seed {seed}; first statement {words[verdict[0]]}, whole block "
                             f"{words[verdict[1]]}\n\n````python\n{prompt}{done['text']}\n````\n")
    n = arguments.show
    print(f"Of these {n}: first statement valid {sum(first[:n])}, whole block valid {sum(whole[:n])}. "
          f"Of {len(cases)}: first statement valid {sum(first)}, whole block valid {sum(whole)}.\n")
    print("\n".join(shown))


if __name__ == "__main__":
    main()
