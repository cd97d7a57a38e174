"""Talks to the text_driver binary of tests/unit/text: JSON lines in, JSON lines out."""
import json
import subprocess


def ask(binary, options, requests):
    """Answers of the driver to `requests`, in order."""
    lines = "".join(json.dumps(request, ensure_ascii=True) + "\n" for request in requests)
    done = subprocess.run([binary, *options], input=lines.encode(), stdout=subprocess.PIPE, check=True)
    answers = [json.loads(line) for line in done.stdout.decode().split("\n") if line]
    if len(answers) != len(requests):
        raise SystemExit(f"{binary} gave {len(answers)} answers to {len(requests)} requests")
    return answers
