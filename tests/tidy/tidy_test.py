#!/usr/bin/env python3
"""Plants one violation of each rule in a small tree and expects exactly that finding."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

from source_text import functions, without_comments_and_strings
from tidy import Tidy, list_files

CLEAN = {
    "CMakeLists.txt": "add_subdirectory(shm)\n",
    "shm/CMakeLists.txt": "add_library(x pool.cc base/clock.cc)\n",
    "shm/pool.cc": '#include "shm/pool.h"\n// new thing; steady_clock::now() in a comment is fine\nconst char* t = "getenv(";\n',
    "shm/pool.h": '#pragma once\n#include "shm/base/clock.h"\n',
    "shm/base/clock.h": "#pragma once\nauto t() { return std::chrono::steady_clock::now(); }\n",
    "shm/base/clock.cc": "struct A { A(const A&) = delete; };\nauto a = std::unique_ptr<A>(new A(1)); auto b = new (p) A;\n",
    "io-worker/CMakeLists.txt": "add_library(y loader.cc)\n",
    "io-worker/loader.cc": '#include "shm/pool.h"\n#include "checkpoint/config.h"\n',
    "gpu-worker/cuda/CMakeLists.txt": "file(GLOB kernels kernels/*.cu)\n",
    "gpu-worker/cuda/kernels/norm.cu": '#include <cstdint>\n#include "gpu-worker/cuda/kernel_language.h"\n',
    "trace/CMakeLists.txt": "add_library(z replay.cc)\n",
    "trace/replay.cc": '#include "io-worker/residency.h"\n#include "gpu-worker/cuda/vram_cache.h"\n',
}


def long_function(lines):
    return "int f(int a) {\n" + "  ++a;\n" * (lines - 3) + "  return a;\n}\n"


# rule -> (file, text added to it)
PLANTED = {
    "include": [("shm/pool.cc", '#include "io-worker/loader.h"\n'),
                ("shm/base/clock.cc", '#include "shm/pool.h"\n'),
                ("io-worker/loader.cc", '#include "gpu-worker/decode.h"\n'),
                ("trace/replay.cc", '#include "gpu-worker/cuda/device_api.h"\n'),
                ("gpu-worker/cuda/kernels/norm.cu", '#include "shm/base/result.h"\n'),
                ("io-worker/loader.cc", '#include "../shm/pool.h"\n'),
                ("io-worker/loader.cc", "#include <zmq.hpp>\n"),
                ("io-worker/loader.cc", '#include "stoker.pb.h"\n')],
    "clock": [("shm/pool.cc", "auto now = std::chrono::steady_clock::now();\n")],
    "getenv": [("io-worker/loader.cc", 'auto home = std::getenv("HOME");\n')],
    "sleep": [("shm/pool.cc", "void f() { std::this_thread::sleep_for(1s); }\n"),
              ("shm/pool.cc", "void f() { sleep(1); }\n")],
    "new/delete": [("shm/pool.cc", "auto* p = new Pool;\n"), ("shm/pool.cc", "void f(int* p) { delete p; }\n"),
                   ("shm/pool.cc", "auto* p = malloc(3);\n")],
    "rand": [("shm/pool.cc", "int r = rand();\n")],
    "exit": [("shm/pool.cc", "void f() { std::exit(1); }\n")],
    "unsafe C": [("shm/pool.cc", "void f(char* a) { strcpy(a, a); }\n")],
    "volatile": [("shm/pool.cc", "volatile int x;\n")],
    "line": [("shm/pool.cc", "// " + "x" * 108 + "\n")],
    "tab": [("shm/pool.cc", "\tint x;\n")],
    "marker": [("shm/pool.cc", "// TO" "DO later\n")],
    "function": [("shm/pool.cc", long_function(71))],
    "pragma": [("shm/other.h", "int x;\n")],
    "unlisted": [("shm/forgotten.cc", "int x;\n"), ("gpu-worker/cuda/forgotten.cu", "int x;\n")],
    "blob": [("docs/picture.png", "x" * ((1 << 20) + 1))],
}


class TidyTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.root = pathlib.Path(self.folder.name)
        for name, text in CLEAN.items():
            self.write(name, text)

    def tearDown(self):
        self.folder.cleanup()

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def findings(self):
        return Tidy(self.root).run(list_files(self.root))

    def test_a_clean_tree_has_no_findings(self):
        self.assertEqual(self.findings(), [])

    def test_every_planted_violation_is_found(self):
        for rule, cases in PLANTED.items():
            for name, text in cases:
                with self.subTest(rule=rule, text=text[:60]):
                    self.write(name, CLEAN.get(name, "") + text)
                    findings = self.findings()
                    self.assertEqual(len(findings), 1, findings)
                    self.assertIn(f"[{rule}]", findings[0])
                    self.assertTrue(findings[0].startswith(name + ":"), findings[0])
                    (self.root / name).unlink()
                    if name in CLEAN:
                        self.write(name, CLEAN[name])

    def test_seventy_lines_are_a_screen(self):
        self.write("shm/pool.cc", long_function(70))
        self.assertEqual(self.findings(), [])

    def test_a_listed_function_may_not_grow_nor_stay_listed(self):
        self.write("shm/pool.cc", long_function(80))
        self.write("tests/tidy/long_functions.txt", "shm/pool.cc f 80  # reason\n")
        self.assertEqual(self.findings(), [])
        self.write("shm/pool.cc", long_function(81))
        self.assertIn("listed with 80", "\n".join(self.findings()))
        self.write("shm/pool.cc", long_function(20))
        self.assertIn("update it", "\n".join(self.findings()))

    def test_an_allowance_counts_only_while_needed(self):
        self.write("tests/tidy/allowed.txt", "shm/pool.cc volatile  # reason\n")
        self.assertIn("remove it", "\n".join(self.findings()))
        self.write("shm/pool.cc", "volatile int x;\n")
        self.assertEqual(self.findings(), [])

    def test_git_ignored_files_do_not_count(self):
        try:
            subprocess.run(["git", "init", "-q", str(self.root)], check=True)
        except (OSError, subprocess.CalledProcessError):
            self.skipTest("no git")
        self.write(".gitignore", "made/\n")
        self.write("made/x.cc", "volatile int x;\n")
        self.assertEqual(self.findings(), [])


class FunctionsTest(unittest.TestCase):
    def names(self, code):
        return functions(without_comments_and_strings(code))

    def test_finds_definitions_of_every_shape(self):
        code = """
namespace a {
struct B {
  explicit B(int x) : x_{x}, y_(1) {
  }
  [[nodiscard]] int get() const noexcept {
    return [this] { return x_; }();
  }
  int x_{};
};
template <class T>
void C<T>::run(const std::function<void(int)>& f)
{
  for (;;) { f('{'); }
}
const int kTable[] = {1, 2};
auto lambda = [](int v) { return v; };
enum class E { one, two };
class alignas(64) D {};
TEST_CASE("a { brace", "[x]") {
}
}  // namespace a
"""
        found = [(name, last - first + 1) for name, first, last in self.names(code)]
        self.assertIn(("B", 2), found)
        self.assertIn(("get", 3), found)
        self.assertIn(("run", 5), [(n.split("::")[-1], c) for n, c in found])
        self.assertIn(("TEST_CASE", 2), found)

    def test_raw_strings_and_separators(self):
        code = 'void f() {\n  auto s = R"x(}}}{)x"; int n = 1\'000;\n}\nvoid g() {\n}\n'
        self.assertEqual(self.names(code), [("f", 1, 3), ("g", 4, 5)])


if __name__ == "__main__":
    sys.exit(unittest.main())
