#!/usr/bin/env python3
"""Compares text_driver's chat rendering with Jinja2 on generated conversations.

    python3 check_template.py DRIVER TEMPLATE.jinja [--seed 1] [--count 10000]

Exits 1 and prints the first differences if there are any. Needs: pip install jinja2.
"""
import argparse
import json
import random
import sys

import jinja2

from driver import ask
from sample_conversation import compile_template, conversation, render


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("driver")
    parser.add_argument("template")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=10000)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with open(arguments.template, encoding="utf-8") as file:
        template = compile_template(file.read())
    cases = [(conversation(rng), rng.random() < 0.5) for _ in range(arguments.count)]
    requests = [{"op": "render", "generate": generate, "conversation": json.dumps(case, ensure_ascii=False)}
                for case, generate in cases]
    answers = ask(arguments.driver, ["--template", arguments.template], requests)
    differ = 0
    for (case, generate), answer in zip(cases, answers):
        want = render(template, case, generate)
        got = answer.get("text", answer)
        if want != got:
            differ += 1
            if differ <= 3:
                print(f"conversation {json.dumps(case)}\nwant {want!r}\ngot  {got!r}")
    print(f"jinja2 {jinja2.__version__}, seed {arguments.seed}, {arguments.template}: {len(cases)} conversations, "
          f"{sum('tools' in case for case, _ in cases)} with tools, {differ} differ")
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
