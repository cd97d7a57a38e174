#!/usr/bin/env python3
"""Reads ctest's JUnit report for test.sh: prints "passed N", "failed name", "skipped name: reason".

A whole test is skipped with exit code 77. A part of a test is skipped by printing a line that contains
"skipped: REASON" (Catch2: WARN("skipped: ...")); both are counted as skipped, the test itself by its result.
"""

import re
import sys
import xml.etree.ElementTree as tree

REASON = re.compile(r"skipped: (.+)")


def results(suite, root):
    passed, lines = 0, []
    for case in root.iter("testcase"):
        name = f"{suite}: {case.get('name')}"
        output = case.findtext("system-out") or ""
        reasons = sorted(set(REASON.findall(output)))
        status = case.get("status")
        if case.find("failure") is not None or status == "fail":
            lines.append(f"failed {name}")
            continue
        if case.find("skipped") is not None or status in ("notrun", "disabled"):
            said = output.strip().splitlines()
            lines.append(f"skipped {name}: {'; '.join(reasons) or (said[-1] if said else 'no reason given')}")
            continue
        passed += 1
        lines += [f"skipped {name} (part): {reason}" for reason in reasons]
    return [f"passed {passed}", *lines]


def main():
    try:
        root = tree.parse(sys.argv[2]).getroot()
    except (OSError, tree.ParseError) as error:
        print(f"{sys.argv[2]}: {error}", file=sys.stderr)
        return 1
    print("\n".join(results(sys.argv[1], root)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
