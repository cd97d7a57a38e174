#!/usr/bin/env python3
"""Chooses the part of the held-out files that is kept in the repository, with their licences.

    python3 heldout.py WORK_DIR MODEL_DIR

Writes MODEL_DIR/heldout.txt (files joined by <|endoftext|>), heldout.json (which files, from which packages, under
which licences) and licenses/PACKAGE.txt (the licence texts as the packages carry them).
"""
import collections
import json
import pathlib
import sys
import zipfile

from corpus import digest

BYTES = 100_000
FILE_BYTES_MAX = 8_000
FILES_PER_PACKAGE = 3


def licence_text(archives, package):
    wheel = next((archives / package).glob("*.whl"), None)
    if wheel is None:
        return None
    with zipfile.ZipFile(wheel) as files:
        names = [n for n in files.namelist() if ".dist-info/" in n and
                 pathlib.PurePath(n).name.upper().startswith(("LICENSE", "LICENCE", "COPYING", "NOTICE"))]
        return "\n\n".join(files.read(n).decode("utf-8", "replace") for n in sorted(names)) or None


def main():
    work, out = map(pathlib.Path, sys.argv[1:3])
    record = {r["package"]: r for r in json.loads((work / "sources.json").read_text())}
    rows = [json.loads(line) for line in (work / "heldout.jsonl").read_text().splitlines()]
    rows.sort(key=lambda r: digest(r["source"] + r["path"]))
    (out / "licenses").mkdir(parents=True, exist_ok=True)
    chosen, total, per_package = [], 0, collections.Counter()
    for row in rows:
        package = row["source"]
        if len(row["text"]) > FILE_BYTES_MAX or per_package[package] == FILES_PER_PACKAGE:
            continue
        licence = licence_text(work / "archives", package)
        if licence is None or len(licence) > 20_000:
            continue
        (out / "licenses" / f"{package}.txt").write_text(licence)
        per_package[package] += 1
        chosen.append(row)
        total += len(row["text"])
        if total > BYTES:
            break
    (out / "heldout.txt").write_text("<|endoftext|>".join(r["text"] for r in chosen))
    listing = [{"package": r["source"], "version": record[r["source"]]["version"],
                "licence": record[r["source"]]["licence"], "path": r["path"], "bytes": len(r["text"])} for r in chosen]
    (out / "heldout.json").write_text(json.dumps(listing, indent=1) + "\n")
    print(f"{len(chosen)} files of {len(per_package)} packages, {total} bytes")


if __name__ == "__main__":
    main()
