"""Seeded strings that are hard on tokenizers, and real text found on a Debian system."""
import glob
import os

SPACES = [" ", "  ", "\t", "\n", "\r\n", "\r", "\v", "\f", "\x1c", "\x1f", "\x85", "\xa0", "\u1680", "\u180e", "\u2000",
          "\u2003", "\u200a", "\u200b", "\u200d", "\u2028", "\u2029", "\u202f", "\u205f", "\u2060", "\u3000", "\ufeff"]
MARKS = ["\u0301", "\u0300", "\u0308", "\u0327", "\u0323", "\u20dd", "\u3099", "\u093c", "\u0345", "\u1dfe", "\U0001d165"]
SCRIPTS = ["abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", "äöüßéèçñøåœÅΩŁ", "абвгдежзийё",
           "αβγδεζηθ", "中文字符煤炭机器学习", "ひらがなカタカナ", "한국어가각힣", "العربية", "עברית", "हिन्दीक़", "ไทยภาษา",
           "٠١٢٣४५६Ⅷ½²①𝟘", "🔥🚂😀🎉👍🏽🇩🇪", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", "—“”…€£→√π≠",
           "ªºǅʰƻſKÅﬁﬀﬆ", "가각힣", "豈更車", "𐐀𝒜𠀀"]
CONTRACTIONS = ["'s", "'S", "'ſ", "'t", "'RE", "'ve", "'M", "'ll", "'D", "'x", "’s", "''s", " 's", "can't", "I'LLx"]
EMOJI = ["👩‍👩‍👧‍👦", "👩🏽‍💻", "🏳️‍🌈", "❤️", "1️⃣", "🇩🇪🇫🇷", "\U000e0001", "🤷‍♂️"]
COMPOSING = ["e\u0301", "A\u030a", "\u212b", "\u0958", "\u1100\u1161\u11a8", "q\u0323\u0307", "q\u0307\u0323", "\u0344",
             "\u2126", "\uf900", "\u0f73", "\u1e9b\u0323", "a\u0327\u0301\u0323\u0308", "\U0001d15e", "\u0340", "ọ\u0302"]


def random_text(rng, added_tokens):
    """One string of 0 to about 60 parts of every kind."""
    parts = []
    for _ in range(rng.choice([1, 2, 5, 10, 20, 60])):
        kind = rng.randrange(12)
        if kind <= 2:
            script = rng.choice(SCRIPTS)
            parts.append("".join(rng.choice(script) for _ in range(rng.randrange(1, 12))))
        elif kind == 3:
            parts.append("".join(rng.choice(SPACES) for _ in range(rng.randrange(1, 5))))
        elif kind == 4:
            parts.append(rng.choice(CONTRACTIONS))
        elif kind == 5:
            parts.append(rng.choice(EMOJI))
        elif kind == 6:
            parts.append(rng.choice(COMPOSING))
        elif kind == 7:
            parts.append("".join(rng.choice(MARKS) for _ in range(rng.randrange(1, 6))))
        elif kind == 8:
            token = rng.choice(added_tokens)
            cut = rng.randrange(4)
            parts.append(token if cut else token[:rng.randrange(1, len(token))])
        elif kind == 9:
            parts.append(chr(rng.randrange(0, 0x20)))
        elif kind == 10:
            parts.append(rng.choice(SPACES + ["a", "1", "-", "é"]) * rng.randrange(1, 200))
        else:
            parts.append(any_code_point(rng))
    return "".join(parts)


def any_code_point(rng):
    while True:
        point = rng.randrange(0x110000) if rng.randrange(2) else rng.randrange(0x3000)
        if not 0xD800 <= point < 0xE000:
            return chr(point)


PATTERNS = ["/usr/lib/python3*/*.py", "/usr/lib/python3*/json/*.py", "/usr/share/common-licenses/*", "/usr/include/*.h",
            "/usr/include/c++/*/*", "/usr/share/perl/*/*.pm", "/usr/share/perl/*/unicore/*.txt", "/usr/bin/*.sh",
            "/etc/*.conf", "/usr/share/doc/*/copyright", "/usr/share/doc/*/*.html", "/usr/share/nodejs/*/*.js",
            "/usr/share/i18n/locales/*", "/usr/share/zoneinfo/*.tab", "/usr/share/vim/*/*/*.vim", "/usr/share/cmake*/Modules/*",
            "/usr/share/xml/*/*", "/usr/share/iso-codes/json/*.json", "/usr/lib/go*/src/*/*.go", "/usr/share/javascript/*/*.js"]


def real_texts(rng, count, repository):
    """`count` slices, 20 to 4000 characters long, of the files of a Debian system and of this repository."""
    names = []
    for pattern in PATTERNS:
        names += sorted(glob.glob(pattern))[:400]
    for folder, folders, files in os.walk(repository):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "build"]
        names += [os.path.join(folder, name) for name in files if name.endswith((".cc", ".h", ".py", ".md", ".txt", ".json"))]
    names = [name for name in names if os.path.isfile(name) and os.path.getsize(name) > 0]
    texts = []
    while len(texts) < count:
        with open(rng.choice(names), "rb") as file:
            text = file.read(400000).decode("utf-8", errors="ignore")
        if text:
            begin = rng.randrange(len(text))
            texts.append(text[begin:begin + rng.choice([20, 100, 500, 4000])])
    return texts


def every_code_point():
    """All of Unicode in contexts that show its class: beside letters, digits, blanks, punctuation and itself."""
    points = [chr(p) for p in range(0x110000) if not 0xD800 <= p < 0xE000]
    for begin in range(0, len(points), 64):
        block = points[begin:begin + 64]
        yield "".join(f"a{c}b{c}{c} {c}" for c in block)
        yield "".join(f"1{c}!{c}\n{c}'{c}" for c in block)
        yield "".join(f"{c}\u0301\n" for c in block)
