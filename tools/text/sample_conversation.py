"""Seeded conversations with tools, and Jinja2's rendering of them as Hugging Face transformers sets it up."""
import copy
import json

from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sample_text import COMPOSING, EMOJI, SCRIPTS, SPACES

WORDS = ["path", "limit", "query", "items", "name", "type", "description", "properties", "required", "enum", "default",
         "format", "values", "keys", "get", "maximum", "$ref", "x-note", "ünïcode", "日本", "a b", "strict", "parameters",
         "function", "arguments", "<tag>", "'quoted'", 'dou"ble']
TAGS = ["<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_response>", "</parameter>", "{{ x }}", "{% if %}", "\\n", "&amp;<b>"]


def text(rng, parts=4):
    out = []
    for _ in range(rng.randrange(parts + 1)):
        kind = rng.randrange(8)
        if kind <= 2:
            script = rng.choice(SCRIPTS)
            out.append("".join(rng.choice(script) for _ in range(rng.randrange(1, 10))))
        elif kind == 3:
            out.append(rng.choice(SPACES) * rng.randrange(1, 3))
        elif kind == 4:
            out.append(rng.choice(EMOJI + COMPOSING))
        elif kind == 5:
            out.append(rng.choice(TAGS))
        elif kind == 6:
            out.append(chr(rng.randrange(1, 0x80)))
        else:
            out.append(rng.choice(["word", "it's", 'say "x"', "both ' and \"", "back\\slash", "\x00", "\x7f", "\u2028", "\ue000"]))
    return "".join(out)


def number(rng):
    return rng.choice([
        rng.randrange(-5, 200), 10**rng.randrange(0, 40) * rng.choice([1, -1]), 2**63, 2**64, -2**63 - 1, 0, -0.0, 0.1, 1.0,
        1e16, 1e15, 123456789012345680.0, 1e-4, 1e-5, 5e-324, 1.7976931348623157e308, rng.random(),
        rng.uniform(-1, 1) * 10.0**rng.randrange(-30, 30)])


def value(rng, depth=0):
    kind = rng.randrange(8 if depth < 3 else 5)
    if kind == 0:
        return None
    if kind == 1:
        return rng.random() < 0.5
    if kind == 2:
        return number(rng)
    if kind <= 4:
        return text(rng)
    if kind <= 5:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(WORDS): value(rng, depth + 1) for _ in range(rng.randrange(4))}


def schema(rng):
    """One parameter's schema; now and then something that is no schema at all."""
    if rng.random() < 0.05:
        return value(rng)
    fields = {}
    if rng.random() < 0.9:
        fields["type"] = rng.choice(["string", "integer", "number", "boolean", "object", "array", None, 5, True,
                                     ["array", "null"], ["string", "it's", 'a "b"', "\n\u200b'\""], {"a": [1.5, None]}])
    if rng.random() < 0.7:
        fields["description"] = rng.choice([text(rng), "  " + text(rng) + "\n", None, 3])
    for _ in range(rng.randrange(4)):
        fields[rng.choice(WORDS)] = value(rng)
    if rng.random() < 0.2:
        fields["properties"] = {"inner": schema(rng), "other": {"type": "string", "enum": ["a", "b"]}}
    keys = list(fields)
    rng.shuffle(keys)
    return {key: fields[key] for key in keys}


def tool(rng):
    function = {"name": rng.choice(["count_lines", "run", "f<x>", "werkzeug_ü"])}
    if rng.random() < 0.8:
        function["description"] = rng.choice([text(rng), " " + text(rng) + " \n\t", None])
    if rng.random() < 0.9:
        parameters = {"type": "object"}
        if rng.random() < 0.9:
            parameters["properties"] = {rng.choice(WORDS): schema(rng) for _ in range(rng.randrange(5))}
        for _ in range(rng.randrange(3)):
            parameters[rng.choice(["required", "additionalProperties", "$defs", "title", "x"])] = value(rng)
        function["parameters"] = rng.choice([parameters] * 8 + [None, {}, {"properties": None}, {"properties": []}])
    for _ in range(rng.randrange(3)):
        function[rng.choice(["strict", "returns", "x-more", "type"])] = value(rng)
    return {"type": "function", "function": function} if rng.random() < 0.8 else function


def tool_call(rng):
    call = {"name": rng.choice(["count_lines", "run", "f<x>"])}
    if rng.random() < 0.9:
        arguments = {rng.choice(WORDS): value(rng) for _ in range(rng.randrange(4))}
        kind = rng.randrange(10)
        if kind < 4:
            arguments = json.dumps(arguments, ensure_ascii=rng.random() < 0.5)
        elif kind == 4:
            arguments = rng.choice(["", " \n", None, '{"a": 1, "b": 2, "a": [3]}', '{"n": 1E2, "m": -0, "k": 1.50}'])
        call["arguments"] = arguments
    return {"id": "call_1", "type": "function", "function": call} if rng.random() < 0.8 else call


def content(rng):
    if rng.random() < 0.1:
        return [{"type": "text", "text": text(rng)} for _ in range(rng.randrange(4))]
    return None if rng.random() < 0.08 else text(rng, 8)


def message(rng):
    role = rng.choice(["user"] * 4 + ["assistant"] * 4 + ["tool"] * 4 + ["system", "developer", "observer ü"])
    out = {"role": role, "content": content(rng)}
    if rng.random() < 0.05:
        del out["content"]
    if role == "assistant" and rng.random() < 0.6:
        out["tool_calls"] = [tool_call(rng) for _ in range(rng.randrange(4))] if rng.random() < 0.95 else None
    if role == "tool":
        out["tool_call_id"] = "call_1"
    return out


def conversation(rng):
    messages = [message(rng) for _ in range(rng.randrange(1, 8))]
    if rng.random() < 0.4:
        messages.insert(0, {"role": "system", "content": content(rng)})
    out = {"messages": messages}
    if rng.random() < 0.7:
        out["tools"] = [tool(rng) for _ in range(rng.randrange(4))] if rng.random() < 0.95 else None
    return out


def prepare(given):
    """What docs/tokenizer.md says happens to a conversation before it is rendered."""
    out = copy.deepcopy(given)
    for item in out["messages"]:
        held = item.get("content")
        item["content"] = "\n".join(p["text"] for p in held) if isinstance(held, list) else held or ""
        for call in item.get("tool_calls") or []:
            inner = call.get("function") or call
            arguments = inner.get("arguments")
            if isinstance(arguments, str):
                arguments = json.loads(arguments) if arguments.strip() else {}
            inner["arguments"] = arguments or {}
    if out.get("tools") is None:
        out.pop("tools", None)
    return out


def compile_template(source):
    """As transformers.utils.chat_template_utils does it."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda x, **options: json.dumps(x, ensure_ascii=False, **options)
    return environment.from_string(source)


def render(template, given, generate):
    return template.render(**prepare(given), add_generation_prompt=generate)
