"""What the checks need to know about C++ text: code without comments and strings, and where functions are."""

import re

_TOKEN = re.compile(
    r'//[^\n]*|/\*.*?\*/|R"(?P<mark>[^()\s\\]{0,16})\(.*?\)(?P=mark)"|"(?:\\.|[^"\\\n])*"'
    r"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'",
    re.DOTALL,
)


def without_comments_and_strings(text):
    """Same length and line breaks; comments become blanks, strings and characters become quotes around blanks."""

    def blank(match):
        body = match.group(0)
        if body.startswith("/"):
            return re.sub(r"[^\n]", " ", body)
        return '"' + re.sub(r"[^\n]", " ", body[1:-1]) + '"'

    return _TOKEN.sub(blank, text)


_SCOPE = re.compile(r"\b(namespace|class|struct|union|enum)\b|\bextern\s+\"")
_NAME = re.compile(r"([\w:~]+|operator\s*\S+?)\s*\(")


def functions(code):
    """(name, first line, last line) of every function defined at namespace or class level.

    `code` comes from without_comments_and_strings. The text between the last ; { or } and an opening
    brace says what the brace opens: a scope, a function (it has a parameter list), or an initialiser.
    """
    code = re.sub(r"^[ \t]*#(?:[^\n\\]|\\.|\\\n)*", lambda m: re.sub(r"[^\n]", " ", m.group(0)), code, flags=re.M)
    found = []
    stack = []  # "scope", "other", "member" (of an initialiser list), or (name, first line) of a function
    head_start = 0
    line = 1
    parentheses = 0
    for at, char in enumerate(code):
        if char == "\n":
            line += 1
        elif char == "(":
            parentheses += 1
        elif char == ")":
            parentheses -= 1
        elif char == ";" and parentheses == 0:
            head_start = at + 1
        elif char == "{":
            kind = _kind_of(code[head_start:at], stack, line)
            stack.append(kind)
            if kind != "member":
                head_start = at + 1
        elif char == "}" and stack:
            top = stack.pop()
            if isinstance(top, tuple):
                found.append((top[0], top[1], line))
            if top != "member":
                head_start = at + 1
    return found


def _kind_of(head, stack, line):
    if any(entry != "scope" for entry in stack):
        return "other"
    stripped = re.sub(r"\btemplate\s*<[^{}]*?>(?=\s*(class|struct|requires|\w))", "", head)
    name = _NAME.search(stripped)
    is_scope = _SCOPE.search(stripped) and not (name and _SCOPE.search(stripped).start() > name.start())
    if is_scope and "(" not in stripped:
        return "scope"
    if is_scope and re.match(r"\s*(class|struct|union)\s+alignas\s*\(", stripped):
        return "scope"
    if not name or re.search(r"(?<![=!<>])=(?!=)\s*$", stripped):
        return "other"
    if re.search(r"\)[^()]*(?<!:):(?!:)", stripped) and re.search(r"[\w>]\s*$", stripped):
        return "member"
    first = line - head[len(head) - len(head.lstrip()):].count("\n")
    return (name.group(1), first)
