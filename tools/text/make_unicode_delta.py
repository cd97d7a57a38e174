#!/usr/bin/env python3
"""Writes gpu-worker/text/unicode_delta_tables.inc: where Hugging Face tokenizers' Unicode differs from Debian's.

tokenizers 0.23 normalises with tables of Unicode 9 and splits with those of Unicode 16; utf8proc 2.8 is
Unicode 15 and PCRE2 10.42 is Unicode 14. This asks the tokenizers library about every code point.

    python3 make_unicode_delta.py OUT.inc

Needs Python 3.11 (whose unicodedata is Unicode 14, like PCRE2's) and: pip install tokenizers unicodedata2.
"""
import sys
import unicodedata

import tokenizers
import unicodedata2
from tokenizers import Regex, normalizers, pre_tokenizers

POINTS = [p for p in range(0x110000) if not 0xD800 <= p < 0xE000]


def reorders(normalize, point):
    """Does the library know that this is a combining mark?"""
    mark, kind = chr(point), unicodedata2.combining(chr(point))
    before, after = ("\u0301", "") if kind < 230 else ("", "\u0334")  # classes 230 and 1
    text = "q" + before + mark + after
    return normalize(text) != text


def inert_points():
    """Code points whose combining class or decomposition the library's NFC does not know."""
    normalize = normalizers.NFC().normalize_str
    inert = set()
    for point in POINTS:
        character = chr(point)
        decomposition = unicodedata2.decomposition(character)
        if unicodedata2.combining(character) and not reorders(normalize, point):
            inert.add(point)
        if decomposition and not decomposition.startswith("<"):
            parts = "".join(chr(int(part, 16)) for part in decomposition.split())
            known = normalize(character) == unicodedata2.normalize("NFC", character)
            composes = normalize(parts) == unicodedata2.normalize("NFC", parts)
            if not known or not composes:
                # Its parts must not compose either; those beyond U+FFFF are all in blocks newer than Unicode 9.
                inert.add(point)
                inert.update(ord(c) for c in parts if ord(c) > 0xFFFF)
    return inert


def class_of(name):
    """The code points that the library's regex engine puts in \\p{name}."""
    splitter = pre_tokenizers.Split(Regex("\\p{" + name + "}"), behavior="removed", invert=True)
    found = set()
    for begin in range(0, len(POINTS), 4096):
        text = "".join(chr(p) for p in POINTS[begin:begin + 4096])
        for piece, _ in splitter.pre_tokenize_str(text):
            found.update(ord(c) for c in piece)
    return found


def ranges(points):
    out = []
    for point in sorted(points):
        if out and out[-1][1] == point - 1:
            out[-1][1] = point
        else:
            out.append([point, point])
    return out


def main():
    assert unicodedata.unidata_version.startswith("14."), "run with Python 3.11"
    lines = [f"// Made by tools/text/make_unicode_delta.py from tokenizers {tokenizers.__version__} and unicodedata2 "
             f"{unicodedata2.unidata_version}."]
    lines.append("constexpr Range kInertInNfc[] = {")
    lines += [f"    {{0x{a:X}, 0x{b:X}}}," for a, b in ranges(inert_points())]
    lines.append("};")
    rows = []
    for name in "LMN":
        library = class_of(name)
        debian = {p for p in POINTS if unicodedata.category(chr(p))[0] == name}
        # A character that changed sides would need a stand-in of no class; there is none so far.
        lost = {p for p in debian - library}
        print(f"class {name}: {len(library - debian)} more, {len(lost)} fewer", ranges(lost)[:5])
        rows += [(a, b, name) for a, b in ranges(library - debian)]
    lines.append("constexpr ClassRange kNewerClasses[] = {")
    lines += [f"    {{0x{a:X}, 0x{b:X}, '{name}'}}," for a, b, name in sorted(rows)]
    lines.append("};")
    with open(sys.argv[1], "w", encoding="ascii") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
