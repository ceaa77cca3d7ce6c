"""Makes src/metal_candle/_abi.py of include/metal_candle.h: every enum, struct, callback and function of the C ABI, as the header says.

The build calls it, so that names, numbers and types stand in the header alone. By hand: python3 python/declarations.py
"""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "include" / "metal_candle.h"
MODULE = Path(__file__).resolve().parent / "src" / "metal_candle" / "_abi.py"

SCALARS = {
    "bool": "bool",
    "float": "float",
    "double": "double",
    "size_t": "size_t",
    "int32_t": "int32",
    "int64_t": "int64",
    "uint8_t": "uint8",
    "uint32_t": "uint32",
    "uint64_t": "uint64",
}


def python_name(name: str) -> str:
    """mc_finish_reason: FinishReason."""
    return "".join(word.capitalize() for word in name[len("mc_") :].split("_"))


def sentence(comment: str) -> str:
    """A comment as one line that can stand in a docstring, without the name of its section."""
    words = re.sub(r"^\s*\*(\s*@ingroup.*)?", "", comment[len("/**") : -len("*/")], flags=re.M).split()
    return " ".join(words).replace("\\", "\\\\").replace('"""', "'''")


def documented(body: str, pattern: str) -> list[tuple[str, ...]]:
    """What the pattern finds in the body of an enum or struct, each with the comment in front of it."""
    found = re.findall(r"(/\*\*.*?\*/)\s*" + pattern, body, flags=re.S)
    return [(sentence(comment), *groups) for comment, *groups in found]


def declaration(text: str) -> tuple[str, str]:
    """The type and the name of "const mc_model *model"."""
    match = re.fullmatch(r"(.*?)\s*(\w+)", text.strip(), flags=re.S)
    assert match, text
    return " ".join(match[1].replace("*", " * ").split()).replace("* *", "**").replace("* const *", "*const *"), match[2]


def parameters(text: str) -> list[tuple[str, str]]:
    return [] if text.strip() in ("", "void") else [declaration(part) for part in text.split(",")]


class Header:
    """What the header declares; a type is C's own words, "const mc_model *"."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"MC_(NULLABLE|NONNULL|NODISCARD)\b", "", text)
        self.numbers = {name: int(value) for name, value in re.findall(r"^#define MC_(\w+) (\d+)$", text, flags=re.M)}
        self.enums: dict[str, tuple[str, list[tuple[str, ...]]]] = {}  # name: (comment, [(comment, name, value)])
        for comment, body, name in re.findall(r"(/\*\*(?:(?!\*/).)*\*/)\s*typedef enum \{(.*?)\} (\w+);", text, flags=re.S):
            members = [m for m in documented(body, r"(\w+) = (\d+),") if not m[1].endswith("_FORCE32")]
            self.enums[name] = (sentence(comment), members)
        self.structs: dict[str, tuple[str, list[tuple[str, str, str]]]] = {}  # name: (comment, [(comment, type, name)])
        for comment, body, name in re.findall(r"(/\*\*(?:(?!\*/).)*\*/)\s*typedef struct \{(.*?)\} (\w+);", text, flags=re.S):
            fields = [(doc, *declaration(field)) for doc, field in documented(body, r"([^;/]+);")]
            self.structs[name] = (sentence(comment), fields)
        code = re.sub(r"/\*.*?\*/|^\s*#.*?$", "", text, flags=re.S | re.M)
        self.handles = re.findall(r"typedef struct (\w+) \1;", code)
        self.callbacks = {
            name: (" ".join(result.split()), parameters(arguments))
            for result, name, arguments in re.findall(r"typedef ([\w ]+?)\s*\(\*\s*(\w+)\)\((.*?)\);", code, flags=re.S)
        }
        code = re.sub(r"typedef enum \{.*?\} \w+;|typedef [^;{]*;|typedef struct \{.*?\} \w+;", "", code, flags=re.S)
        self.functions: dict[str, tuple[str, list[tuple[str, str]]]] = {}
        for declared, arguments in re.findall(r"([\w\s*]+?)\(([^()]*)\);", code):
            result, name = declaration(declared)
            self.functions[name] = (result, parameters(arguments))

    def ctype(self, c: str) -> str:
        """The ctypes type of a C type; every pointer is an address."""
        if c == "void":
            return "None"
        if c in self.enums:
            return "ctypes.c_int"
        if c in self.callbacks:
            return python_name(c)
        return f"ctypes.c_{SCALARS[c]}" if c in SCALARS else "ctypes.c_void_p"

    def python_type(self, c: str) -> str:
        """What a field of a struct is for Python."""
        if c in self.enums:
            return python_name(c)
        return {"bool": "bool", "float": "float", "double": "float"}.get(c, "int")

    def module(self) -> str:
        """The text of _abi.py."""
        lines = [
            '"""Made by declarations.py of include/metal_candle.h: do not edit, and do not commit."""',
            "",
            "from __future__ import annotations",
            "",
            "import ctypes",
            "from enum import IntEnum",
            "from typing import Dict, NamedTuple, Tuple",
            "",
            *(f"{name} = {self.numbers[name]}" for name in ("ABI_VERSION", "STOP", "CONTINUE")),
            "",
            "",
            "class _Number(IntEnum):",
            '    """A number of C that prints as its name."""',
            "",
            "    def __str__(self) -> str:",
            "        return self.name",
            "",
            "    def __format__(self, spec: str) -> str:",
            "        return format(self.name, spec)",
        ]
        for name, (doc, members) in self.enums.items():
            prefix = os.path.commonprefix([member for _, member, _ in members]).rpartition("_")[0] + "_"
            lines += ["", "", f"class {python_name(name)}(_Number):", f'    """{doc}"""', ""]
            for comment, member, value in members:
                lines += [f"    {member[len(prefix) :]} = {value}", f'    """{comment}"""']
        for name, (doc, fields) in self.structs.items():
            struct, public = f"_{python_name(name)}", python_name(name)
            lines += ["", "", f"class {struct}(ctypes.Structure):"]
            lines += [f"    {field}: {self.python_type(c) if c not in self.enums else 'int'}" for _, c, field in fields]
            lines += ["    _fields_ = [", *(f'        ("{field}", {self.ctype(c)}),' for _, c, field in fields), "    ]"]
            values = [field for field in fields if field[2] != "struct_size"]
            if any("*" in c for _, c, _ in values):
                continue  # with a text in it: it is made by hand
            lines += ["", "", f"class {public}(NamedTuple):", f'    """{doc}"""', ""]
            for comment, c, field in values:
                lines += [f"    {field}: {self.python_type(c)}", f'    """{comment}"""']
            lines += ["", "    @classmethod", f"    def of(cls, event: {struct}) -> {public}:", '        """A copy of what C has."""']
            copies = [f"{self.python_type(c)}(event.{field})" if c in self.enums else f"event.{field}" for _, c, field in values]
            lines += ["        return cls(", *(f"            {copy}," for copy in copies), "        )"]
        lines += ["", ""]
        for name, (result, arguments) in self.callbacks.items():
            types = [self.ctype(result)]
            for c, _ in arguments:
                struct = c.replace("const ", "").replace(" *", "")
                types.append(f"ctypes.POINTER(_{python_name(struct)})" if struct in self.structs else self.ctype(c))
            lines.append(f"{python_name(name)} = ctypes.CFUNCTYPE({', '.join(types)})")
        lines += ["", f"HANDLES = {tuple(self.handles)!r}", f"ENUMS = {tuple(self.enums)!r}", ""]
        lines.append("# name: (type of the result, ((type, name of a parameter), …))")
        lines.append("FUNCTIONS: Dict[str, Tuple[str, Tuple[Tuple[str, str], ...]]] = {")
        lines += [f"    {name!r}: ({result!r}, {tuple(arguments)!r})," for name, (result, arguments) in self.functions.items()]
        lines += ["}", ""]
        return "\n".join(lines)


def write() -> None:
    new = MODULE.with_suffix(f".new{os.getpid()}")
    new.write_text(Header(HEADER.read_text(encoding="utf-8")).module(), encoding="utf-8")
    os.replace(new, MODULE)  # never half of it, for a build that runs beside this one


if __name__ == "__main__":
    write()
