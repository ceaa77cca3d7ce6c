"""Renders chat/templates over conversations with Jinja2, as transformers 5.24 does; writes chat/cases.json. Needs jinja2 3.1 only.

    python3 tests/golden/make_chat.py
"""
import json
from datetime import datetime
from pathlib import Path

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = Path(__file__).parent / "chat"
NOW = datetime(2025, 7, 4, 12, 34, 56)


class Generation(Extension):
    """The block with which transformers marks the assistant's text; transparent."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller):
        return caller()


class Refused(Exception):
    pass


def refuse(message):
    raise Refused(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = NOW.strftime
    return env


CALL = {
    "id": "call-1",
    "type": "function",
    "function": {"name": "look_up", "arguments": {"topic": "Größe", "limit": 3, "exact": True, "after": None, "weight": 2.0, "tags": ["a", "ß"]}},
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Looks a topic up.\nReturns \"text\" & <links>.",
            "parameters": {
                "type": "object",
                "properties": {
                    "topic": {"type": "string", "description": "what's wanted"},
                    "limit": {"type": ["integer", "null"], "default": 10},
                    "tags": {"type": "array", "items": {"type": "string"}},
                    "order": {"type": "string", "enum": ["asc", "desc"], "default": "asc"},
                    "range": {"type": "object", "properties": {"low": {"type": "number", "default": 1e-07}, "high": {"type": "number"}}, "required": ["low"]},
                },
                "required": ["topic"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}}},
]


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


CONVERSATIONS = {
    "question": {"messages": [turn("user", "  How tall is the tower?\n")]},
    "system": {"messages": [turn("system", "Answer in one line."), turn("user", "How tall is the tower?")]},
    "turns": {
        "messages": [
            turn("user", "One?"), turn("assistant", "Two."), turn("user", "Three?"), turn("assistant", "\n Four. "), turn("user", "Five — “six”, 七?"),
        ]
    },
    "with_tools": {"messages": [turn("system", "Use tools."), turn("user", "Look up sizes.")], "tools": TOOLS},
    "no_tools": {"messages": [turn("user", "Look up sizes.")], "tools": []},
    "call": {
        "messages": [
            turn("user", "Look up sizes."), turn("assistant", None, tool_calls=[CALL]),
            turn("tool", "{\"found\": 2}", name="look_up", tool_call_id="call-1"), turn("tool", "twice"), turn("assistant", "Two sizes."),
        ],
        "tools": TOOLS,
    },
    "string_arguments": {
        "messages": [
            turn("user", "Look."),
            turn("assistant", "Looking.", tool_calls=[{"type": "function", "function": {"name": "now", "arguments": "{\"zone\": \"UTC\"}"}}]),
        ],
    },
    "thoughts": {
        "messages": [
            turn("user", "1 + 1?"), turn("assistant", "2", reasoning_content="Count.\nTwice."), turn("user", "2 + 2?"),
            turn("assistant", "<think>\nAgain.\n</think>\n\n4 /think", name=None), turn("assistant", "4!", reasoning_content="\nDone.\n"),
        ]
    },
    "no_thinking": {"messages": [turn("user", "1 + 1?"), turn("assistant", "2", reasoning_content="Count.")], "kwargs": {"enable_thinking": False, "extra": {"k": [1, "v"]}}},
    "parts": {
        "messages": [
            turn("user", [{"type": "text", "text": "What is "}, {"type": "image"}, {"type": "text", "text": "this?"}]),
            turn("assistant", "A tower.", weight=0.1, score=1e-05, big=12345678901234567890),
        ]
    },
    "unknown_part": {"messages": [turn("user", [{"type": "smell", "strength": 3.0}])]},
    "variables": {"messages": [turn("user", "Hi.")], "kwargs": {"date_string": "yesterday", "bos_token": "<other>", "documents": [{"title": "T"}]}},
    "white_space": {"messages": [turn("user", " \t a\u00a0b\u2003c\x1d \x0b"), turn("assistant", ""), turn("user", "ÀÉ ß İ ﬁ x2y")]},
    "unknown_role": {"messages": [turn("critic", "No.")]},
}
FAILURES = [
    "raise", "raise with quotes", "undefined attribute", "string plus number", "string plus none", "string plus undefined", "undefined is not json",
    "no such method", "no such function", "not iterable", "none cannot be sliced", "append", "division", "recursion",
    "undefined method", "items of a list",
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def render(template, conversation, add_generation_prompt):
    messages = []
    for message in conversation["messages"]:
        message = {name: value for name, value in message.items() if value is not None}
        reasoning = next((message[name] for name in ("reasoning_content", "thinking", "reasoning") if name in message), None)
        if reasoning is not None:
            message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
        messages.append(message)
    variables = {**TOKENS, "tools": conversation.get("tools"), "documents": None, **conversation.get("kwargs", {})}
    return template.render(messages=messages, add_generation_prompt=add_generation_prompt, **variables)


def case(name, template, conversation, label, prompt):
    result = {"template": name, "conversation": label, "add_generation_prompt": prompt}
    try:
        result["expected"] = render(template, conversation, prompt)
    except Refused as error:
        result.update(error=str(error), error_kind="raise_exception")
    except RecursionError as error:
        result.update(error=str(error), error_kind="recursion")
    except Exception as error:
        result.update(error=f"{type(error).__name__}: {error}", error_kind="python")
    return result


def main():
    env = environment()
    templates, cases = {}, []
    for path in sorted((HERE / "templates").glob("*.jinja")):
        templates[path.stem] = {"file": f"templates/{path.name}", **TOKENS}
        template = env.from_string(path.read_text(encoding="utf-8"))
        if path.stem == "errors":
            for failure in FAILURES:
                label = f"failure: {failure}"
                CONVERSATIONS[label] = {"messages": [turn("user", failure)]}
                cases.append(case(path.stem, template, CONVERSATIONS[label], label, True))
            continue
        for label, conversation in CONVERSATIONS.items():
            if label.startswith("failure"):
                continue
            for prompt in [False, True]:
                cases.append(case(path.stem, template, conversation, label, prompt))
    golden = {
        "source": f"jinja2 {jinja2.__version__}, tests/golden/make_chat.py",
        "now": NOW.isoformat(),
        "templates": templates,
        "conversations": CONVERSATIONS,
        "cases": cases,
    }
    text = json.dumps(golden, ensure_ascii=False, indent=1)
    (HERE / "cases.json").write_text(text + "\n", encoding="utf-8")
    kinds = {kind: sum(case.get("error_kind") == kind for case in cases) for kind in [None, "raise_exception", "recursion", "python"]}
    print(len(cases), "cases", kinds)


main()
