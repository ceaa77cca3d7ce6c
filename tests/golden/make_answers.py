"""Answers with thoughts and calls as transformers takes them apart: python make_answers.py

Writes answers.json: for each of our formats that transformers has a response template for (those that its server falls back to), answers
as models write them, and the message that `parse_response` makes of each with the tools beside them. Made with transformers 5.24.0.
"""

import json
from pathlib import Path

import transformers
from transformers.cli.serving.utils import _RESPONSE_TEMPLATE_FALLBACKS as FALLBACKS
from transformers.utils.chat_parsing import parse_response

TEMPLATES = {name: next(t for types, t in FALLBACKS.items() if model in types)
             for name, model in [("hermes", "qwen3"), ("qwen3-xml", "qwen3_5"), ("gemma4", "gemma4")]}

TOOLS = [
    {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {
        "text": {"type": "string"}, "count": {"type": "integer"}, "ratio": {"type": "number"}, "exact": {"type": "boolean"},
        "where": {"type": "object"}, "names": {"type": "array"}, "limit": {"type": ["integer", "null"]},
        "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]}}}}},
    {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}},
]

ARGUMENTS = [
    {},
    {"text": "Zürich"},
    {"text": "12", "count": 12, "ratio": 0.5},
    {"text": "a \"quoted\" word, {braces} and [brackets]", "exact": True},
    {"text": "two\nlines", "where": {"city": "Bern", "deep": {"list": [1, None, False, "x"]}}, "names": ["a", "b, c"]},
    {"count": -3, "ratio": -1.25e-3, "limit": None},
    {"either": 7, "limit": 9},
    {"either": "seven", "names": []},
    {"text": "日本語 🌍 \\ backslash"},
]


def hermes(calls):
    return "\n".join("<tool_call>\n" + json.dumps({"name": n, "arguments": a}, ensure_ascii=False) + "\n</tool_call>" for n, a in calls)


def xml(calls):
    def value(x):
        return x if isinstance(x, str) else json.dumps(x, ensure_ascii=False)
    return "\n".join(f"<tool_call>\n<function={n}>\n" + "".join(f"<parameter={k}>\n{value(v)}\n</parameter>\n" for k, v in a.items())
                     + "</function>\n</tool_call>" for n, a in calls)


def gemma(calls):
    def value(x):
        if isinstance(x, str):
            return f'<|"|>{x}<|"|>'
        if isinstance(x, dict):
            return "{" + ",".join(f"{k}:{value(v)}" for k, v in x.items()) + "}"
        if isinstance(x, list):
            return "[" + ",".join(map(value, x)) + "]"
        return json.dumps(x)
    return "".join(f"<|tool_call>call:{n}{value(a)}<tool_call|>" for n, a in calls)


FORMATS = {
    "hermes": ("<think>\n", "\n</think>\n\n", hermes, "<|im_end|>"),
    "qwen3-xml": ("<think>\n", "\n</think>\n\n", xml, "<|im_end|>"),
    "gemma4": ("<|channel>thought\n", "<channel|>", gemma, "<turn|>"),
}


def answers(name):
    opens, closes, write, end = FORMATS[name]
    thought = opens + "First this, then that: 1 < 2." + closes
    yield "Just an answer, with <b>tags</b>." + end
    yield "Without an end"
    yield thought + "The answer is 42." + end
    for arguments in ARGUMENTS:
        yield write([("look_up", arguments)]) + end
        yield thought + write([("look_up", arguments), ("clock", {})]) + end
    if name == "qwen3-xml":  # Values that are written as text, not as JSON.
        for key, value in [("count", "3.0"), ("count", " 7 "), ("count", "many"), ("exact", "True"), ("exact", "0"), ("exact", "no"),
                           ("ratio", "2"), ("ratio", "2.0"), ("limit", "None"), ("text", "true"), ("text", "[1]"), ("either", "x 1"),
                           ("where", "not JSON"), ("names", '["a"]'), ("unknown", "plain")]:
            yield f"<tool_call>\n<function=look_up>\n<parameter={key}>\n{value}\n</parameter>\n</function>\n</tool_call>" + end
    yield "I look it up.\n\n" + write([("look_up", {"text": "x"})]) + end
    yield thought + "I look it up.\n" + write([("clock", {}), ("look_up", {"count": 2}), ("clock", {})]) + end


items = []
for name, template in TEMPLATES.items():
    for text in answers(name):
        message = parse_response(text, template, prefix="", tools=TOOLS)
        items.append({"format": name, "end": FORMATS[name][3], "text": text, "message": message})
out = {"transformers": transformers.__version__, "tools": TOOLS, "items": items}
Path(__file__).with_name("answers.json").write_text(json.dumps(out, ensure_ascii=False, indent=1) + "\n")
