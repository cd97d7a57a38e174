#!/usr/bin/env python3
"""Builds the training text from the packages that sources.txt names.

    python3 corpus.py WORK_DIR

Writes WORK_DIR/train.jsonl and heldout.jsonl ({"source", "path", "text"} per line; the split is by file, from a
hash of its path, so it never changes) and sources.json (package, version, licence, archive SHA-256, files, bytes).
Needs pip and, for the deb: lines, apt-get and dpkg-deb; downloads about 250 MB once, into WORK_DIR/archives.
"""
import ast
import concurrent.futures
import email
import hashlib
import json
import pathlib
import re
import subprocess
import sys
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
PACKAGE_BYTES_MAX = 2_500_000  # so that no project's habits dominate
FILE_BYTES = range(400, 60_000)
HELDOUT_OF_256 = 5
DOC_PARTS = ("tutorial", "howto", "faq", "library", "reference")
SKIPPED = re.compile(r"(^|/)(encodings|pydoc_data|_vendor|vendor|locale|locales|migrations)/|_pb2\.py$|/(_?version)\.py$")
TESTS = re.compile(r"(^|/)(tests?|testing)/|(^|/)test_|_test\.py$|conftest")


def read_sources():
    for line in (HERE / "sources.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, version, licence = line.split(None, 2)
            yield name, version, licence.strip()


def fetch(name, version, archives):
    """Path of the wheel or .deb, downloaded if it is not there."""
    directory = archives / name.replace(":", "-")
    found = list(directory.glob("*.whl")) + list(directory.glob("*.deb"))
    if not found:
        directory.mkdir(parents=True, exist_ok=True)
        if name.startswith("deb:"):
            command = ["apt-get", "-q", "download", name[4:]]
        else:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:",
                       f"{name}=={version}"]
        subprocess.run(command, cwd=directory, check=True, capture_output=True)
        found = list(directory.glob("*.whl")) + list(directory.glob("*.deb"))
    return found[0]


def stated_licence(metadata):
    classifiers = [c.split("::")[-1].strip() for c in metadata.get_all("Classifier", []) if c.startswith("License")]
    return metadata.get("License-Expression") or " | ".join(classifiers) or (metadata.get("License") or "").strip()


def wheel_files(path, name, version, licence):
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        metadata_name = next(n for n in names if n.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(wheel.read(metadata_name))
        stated = stated_licence(metadata)
        if (metadata["Version"], stated) != (version, licence):
            raise SystemExit(f"{name}: sources.txt says {version}, {licence!r}; the wheel {metadata['Version']}, {stated!r}")
        yield from ((n, wheel.read(n)) for n in names if n.endswith(".py"))


def deb_files(path, unpacked):
    if not unpacked.exists():
        subprocess.run(["dpkg-deb", "-x", path, unpacked], check=True)
    for file in sorted(unpacked.rglob("*")):
        name = str(file.relative_to(unpacked))
        doc = "/_sources/" in name and name.endswith(".rst.txt") and name.split("_sources/")[1].split("/")[0] in DOC_PARTS
        if file.is_file() and (doc or name.endswith(".py")):
            yield name, file.read_bytes()


def clean(name, data):
    """The text, or None if it does not read like something a person wrote."""
    if len(data) not in FILE_BYTES or SKIPPED.search(name):
        return None
    try:
        text = data.decode("utf-8").replace("\r\n", "\n").expandtabs(4)
    except UnicodeDecodeError:
        return None
    lines = [line.rstrip() for line in text.split("\n")]
    if name.endswith(".py"):
        # Licence headers are kept in the archives; here they would be learnt by heart.
        while lines and (lines[0].startswith("#") or not lines[0]):
            lines.pop(0)
    text = "\n".join(lines).strip("\n") + "\n"
    if len(text) < FILE_BYTES.start or max(map(len, lines), default=0) > 160 or sum(c > "~" for c in text) * 200 > len(text):
        return None
    if sum(c.isdigit() for c in text) * 8 > len(text):  # tables of numbers
        return None
    if name.endswith(".py"):
        try:
            ast.parse(text)
        except (SyntaxError, ValueError):
            return None
    return text


def digest(text):
    return hashlib.sha256(text.encode()).digest()


def chosen(name, files, seen):
    """Cleaned files in an order that depends on nothing but their names, up to the package's share."""
    total = 0
    for path, data in sorted(files, key=lambda f: digest(f"{name}/{f[0]}")):
        if TESTS.search(path) and digest(path)[1] % 4:
            continue
        text = clean(path, data)
        if text is None or digest(text) in seen:
            continue
        seen.add(digest(text))
        total += len(text)
        if total > PACKAGE_BYTES_MAX:
            return
        yield path, text


def main():
    work = pathlib.Path(sys.argv[1])
    archives = work / "archives"
    sources = list(read_sources())
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda s: fetch(s[0], s[1], archives), sources))
    seen, record = set(), []
    with open(work / "train.jsonl", "w") as train, open(work / "heldout.jsonl", "w") as heldout:
        for (name, version, licence), archive in zip(sources, paths):
            if name.startswith("deb:"):
                version = archive.name.split("_")[1].replace("%3a", ":")
                files = deb_files(archive, archive.parent / "unpacked")
            else:
                files = wheel_files(archive, name, version, licence)
            count = size = 0
            for path, text in chosen(name, files, seen):
                out = heldout if digest(f"{name}/{path}")[0] < HELDOUT_OF_256 else train
                out.write(json.dumps({"source": name, "path": path, "text": text}) + "\n")
                count, size = count + 1, size + len(text)
            record.append({"package": name, "version": version, "licence": licence, "files": count, "bytes": size,
                           "archive_sha256": hashlib.sha256(archive.read_bytes()).hexdigest()})
            print(f"{name} {version}: {count} files, {size / 1e6:.2f} MB", flush=True)
    (work / "sources.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"total {sum(r['bytes'] for r in record) / 1e6:.1f} MB in {sum(r['files'] for r in record)} files")


if __name__ == "__main__":
    main()
