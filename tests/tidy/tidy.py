#!/usr/bin/env python3
"""House rules that compilers and formatters do not enforce. Prints one line per finding; exit 1 if any.

usage: tidy.py [--root DIR]

Reads the files git knows of (tracked, or new and not ignored), or all files where there is no git.
Every rule and its reason is in docs/testing.md, "House rules".
"""

import argparse
import pathlib
import re
import subprocess
import sys

from source_text import functions, without_comments_and_strings

LINE_MAX = 110
FUNCTION_MAX = 70
BLOB_MAX = 1 << 20
SOURCE = (".h", ".cc", ".cu", ".cuh")
CODE_FOLDERS = ("shm", "checkpoint", "predictor", "trace", "io-worker", "gpu-worker", "daemons", "cli")

# Folder -> what it may include of ours, folders or single files, besides itself. The first entry that fits a path counts.
MAY_INCLUDE = {
    "shm/base": [],
    "shm": [],
    "checkpoint": ["shm/base"],
    "predictor": ["shm/base"],
    "trace": ["shm", "io-worker", "predictor", "gpu-worker/cuda/lanes.h", "gpu-worker/cuda/vram_cache.h"],
    "io-worker": ["shm", "checkpoint"],
    "gpu-worker": ["shm", "checkpoint"],
    "proto": [],
    "daemons/common": ["shm", "proto", "checkpoint"],
    "daemons": ["shm", "checkpoint", "predictor", "io-worker", "gpu-worker", "proto", "daemons/common"],
    "cli": ["shm", "checkpoint", "predictor", "trace", "proto", "daemons/common", "gpu-worker/text",
            "gpu-worker/cuda/device.h", "gpu-worker/cuda/device_module.h"],
}
WIRE_HEADERS = re.compile(r"^(zmq\.hpp|zmq_addon\.hpp|zmq\.h|google/protobuf/.*|.*\.pb\.h)$")
# Kernel sources and what they include are read by nvcc as C++17: nothing of ours that is not.
CUDA_FILES = re.compile(r"^gpu-worker/cuda/(.*\.cuh?|kernels/.*\.h|(device_api|module|kernel_language)\.h)$")
CUDA_HEADERS = re.compile(r"^(gpu-worker/cuda/.*|gpu-worker/scalar_math\.h|cuda_\w+\.h|c?[a-z_]+)$")
WIRE_FOLDERS = ("daemons/", "cli/", "tests/", "bench/", "tools/")

# (what, pattern, files where it is allowed, remedy)
BANNED = [
    ("clock", r"\b(steady_clock|system_clock|high_resolution_clock)::now\b|\bclock_gettime\s*\(|\bgettimeofday\s*\(",
     r"^shm/base/clock\.h$", "take a const Clock& (shm/base/clock.h)"),
    ("getenv", r"\b(secure_)?getenv\s*\(",
     r"^daemons/common/|^daemons/[^/]+/config|^cli/|^tests/|^bench/", "configuration is read in daemons/common"),
    ("sleep", r"\b(sleep_for|sleep_until|usleep|nanosleep)\s*\(|(?<![\w:.>])(::)?sleep\s*\(",
     r"^$", "wait for the event itself (poll, reap, condition variable)"),
    # Not placement new, nor new straight into a unique_ptr (OWNED_NEW).
    ("new/delete", r"(?<!\w)new\s+[\w:<]|(?<!=)\s\bdelete\s*(\[\s*\])?\s+[\w(*]|"
                   r"(?<![\w.])(malloc|calloc|realloc)\s*\(",
     r"^$", "use an owner: make_unique, vector, unique_ptr with a deleter"),
    ("rand", r"(?<![\w:.])(std::)?s?rand\s*\(|\brandom_device\b", r"^daemons/|^cli/",
     "take a seeded engine; only daemons and cli choose seeds"),
    ("exit", r"(?<![\w.>:])(std::|::)?(exit|quick_exit|abort)\s*\(",
     r"^shm/base/check\.h$|^tests/|^bench/", "return an error; only main decides how to end"),
    ("unsafe C", r"(?<![\w.>:])(strcpy|strcat|sprintf|vsprintf|gets|atoi|atol|atof|strtok)\s*\(", r"^$",
     "use std::string, from_chars or snprintf"),
    ("volatile", r"(?<!asm )\bvolatile\b", r"^$", "use std::atomic"),
    ("shared mutex", r"\b(managed_shared_memory|interprocess_mutex|named_mutex|interprocess_condition)\b", r"^$",
     "Boost's mutexes do not survive their owner's death (design.md 4)"),
]

# The way to make what has a private constructor.
OWNED_NEW = re.compile(r"(unique_ptr<[^;()]*>\s*\w*\(\s*)new\b")

# (file, rule): reason. A rule that no longer fires in its file is reported, so that the list only shrinks.
ALLOWED_FILE = "allowed.txt"
# (file, function, lines). An entry must be exact: a function may shrink (then so must the entry), never grow.
LONG_FUNCTIONS_FILE = "long_functions.txt"


class Tidy:
    def __init__(self, root):
        self.root = root
        self.findings = []
        self.allowed = self._table(ALLOWED_FILE, 2)
        self.long_functions = {(f, n): int(c) for f, n, c in self._table(LONG_FUNCTIONS_FILE, 3)}
        self.used_allowances = set()
        self.used_long_functions = set()

    def _table(self, name, columns):
        path = self.root / "tests" / "tidy" / name
        lines = path.read_text().splitlines() if path.exists() else []
        rows = [line.split("#")[0].split() for line in lines]
        rows = [tuple(row) for row in rows if row]
        for row in rows:
            if len(row) != columns:
                sys.exit(f"{path}: {' '.join(row)}: {columns} columns expected")
        return rows

    def report(self, file, line, rule, message):
        if (file, rule) in self.allowed:
            self.used_allowances.add((file, rule))
            return
        self.findings.append(f"{file}:{line}: [{rule}] {message}")

    def run(self, files):
        cmake = {f: (self.root / f).read_text() for f in files if f.endswith(("CMakeLists.txt", ".cmake"))}
        for file in files:
            path = self.root / file
            if path.stat().st_size > BLOB_MAX:
                self.report(file, 1, "blob", f"{path.stat().st_size} bytes; files over 1 MiB are made by scripts, not kept")
                continue
            if file.endswith(SOURCE):
                self.check_source(file, path.read_text(), cmake)
            elif file.endswith((".py", ".sh", ".cmake", "CMakeLists.txt", ".proto", ".md")):
                self.check_markers(file, path.read_text())
        self.check_allowances()
        return self.findings

    def check_source(self, file, text, cmake):
        code = without_comments_and_strings(text)
        self.check_lines(file, text)
        self.check_markers(file, text)
        self.check_includes(file, text)
        self.check_banned(file, code)
        self.check_functions(file, code)
        # Highway includes an -inl.h once per instruction set.
        if file.endswith(".h") and not file.endswith("-inl.h") and "#pragma once" not in text:
            self.report(file, 1, "pragma", "a header begins with #pragma once")
        if file.endswith((".cc", ".cu")) and not self.is_listed(file, cmake):
            self.report(file, 1, "unlisted", "no CMakeLists.txt names this file")

    def check_lines(self, file, text):
        for number, line in enumerate(text.splitlines(), 1):
            if len(line) > LINE_MAX:
                self.report(file, number, "line", f"{len(line)} columns; at most {LINE_MAX}")
            if "\t" in line and '"' not in line:
                self.report(file, number, "tab", "indent with blanks")

    def check_markers(self, file, text):
        if file.startswith("tests/tidy/"):
            return
        for number, line in enumerate(text.splitlines(), 1):
            if re.search(r"\b(FIXME|TODO|XXX|HACK)\b(?!-)", line) and "mkstemp" not in line and "XXXXXX" not in line:
                self.report(file, number, "marker", "finish it, or say in a sentence what is not done and why")

    def check_includes(self, file, text):
        for number, line in enumerate(text.splitlines(), 1):
            match = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
            if not match:
                continue
            target = match.group(2)
            if target.startswith("../") or "/../" in target:
                self.report(file, number, "include", "paths start at the repository root")
            if WIRE_HEADERS.match(target) and not file.startswith(WIRE_FOLDERS):
                self.report(file, number, "include", f"{target}: protobuf and ZeroMQ stay in daemons/ and cli/")
            if CUDA_FILES.match(file) and not CUDA_HEADERS.match(target):
                self.report(file, number, "include", f"{target}: kernel sources include CUDA and gpu-worker/cuda only")
            self.check_direction(file, number, target)

    def check_direction(self, file, number, target):
        folder = next((f for f in MAY_INCLUDE if file.startswith(f + "/")), None)
        if folder is None or not target.startswith(CODE_FOLDERS + ("proto",)) or "/" not in target:
            return
        # A process never includes another process: daemons/loader only itself and what is shared.
        own = "/".join(file.split("/")[:2]) if folder == "daemons" and file.count("/") > 1 else folder
        if any((target + "/").startswith(prefix + "/") for prefix in [own, *MAY_INCLUDE[folder]]):
            return
        self.report(file, number, "include", f"{folder}/ may not include {target} (ARCHITECTURE.md, include direction)")

    def check_banned(self, file, code):
        code = OWNED_NEW.sub(lambda m: m.group(1) + "   ", code)
        for rule, pattern, allowed_files, remedy in BANNED:
            if re.search(allowed_files, file):
                continue
            for match in re.finditer(pattern, code):
                number = code.count("\n", 0, match.start() + len(match.group(0)) - len(match.group(0).lstrip())) + 1
                self.report(file, number, rule, f"{' '.join(match.group(0).split())}: {remedy}")

    def check_functions(self, file, code):
        for name, first, last in functions(code):
            lines = last - first + 1
            if lines <= FUNCTION_MAX:
                continue
            limit = self.long_functions.get((file, name))
            if limit is not None and lines == limit:
                self.used_long_functions.add((file, name))
            else:
                listed = "" if limit is None else f", listed with {limit}"
                self.report(file, first, "function", f"{name} has {lines} lines{listed}; a screen is {FUNCTION_MAX}")

    def is_listed(self, file, cmake):
        """Named by a CMakeLists.txt of its own folder or of one above (or by path from the root anywhere).

        Kernels (.cu) may be named by a pattern, folder/*.cu, since two modules take the same list.
        """
        path = pathlib.PurePosixPath(file)
        for folder in path.parents:
            text = cmake.get(str(folder / "CMakeLists.txt") if str(folder) != "." else "CMakeLists.txt")
            names = [path.relative_to(folder)]
            if file.endswith(".cu"):
                names.append(names[0].with_name("*.cu"))
            if text and any(re.search(rf"(?<![\w./-]){re.escape(str(name))}(?![\w.-])", text) for name in names):
                return True
        return any(re.search(rf"(?<![\w.-]){re.escape(file)}(?![\w.-])", text) for text in cmake.values())

    def check_allowances(self):
        for file, rule in self.allowed:
            if (file, rule) not in self.used_allowances:
                self.findings.append(f"tests/tidy/{ALLOWED_FILE}: {file} {rule} is not needed any more: remove it")
        for file, name in self.long_functions:
            if (file, name) not in self.used_long_functions:
                self.findings.append(
                    f"tests/tidy/{LONG_FUNCTIONS_FILE}: {file} {name} is gone, short now, or has another length: update it")


def list_files(root):
    # safe.directory: a checkout owned by somebody else (containers) is only read here.
    git = ["git", "-c", "safe.directory=*", "-C", str(root)]
    try:
        known = subprocess.run([*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                               capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        known = [str(p.relative_to(root)) for p in root.rglob("*") if "build" not in p.parts and ".git" not in p.parts]
    return sorted({f for f in known if f and (root / f).is_file() and not (root / f).is_symlink()})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[2])
    root = parser.parse_args().root
    files = list_files(root)
    findings = Tidy(root).run(files)
    for finding in findings:
        print(finding)
    print(f"tidy: {len(files)} files, {len(findings)} findings", file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
