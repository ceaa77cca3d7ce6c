#!/usr/bin/env python3
"""Writes the notices of everything that is linked into the library: packaging/third-party-licenses.py [--target TARGET]
[--features A,B] OUT

What is given to others holds some two hundred crates and Rust's standard library, most of whose licences ask for their text beside them.
Cargo says which crates a target and its features take, and where their sources lie: what has been compiled needs no network. A text that
several have is written once. A crate that comes without one gets the text of its licence, if it is one that we have here and
whose words leave nothing to fill in but who wrote it; any other is an error, so that nobody gives away what nobody has read.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
NAMED = re.compile(r"^(licen[cs]e|unlicense|copying|copyright|notice|patents)", re.IGNORECASE)
# What is not compiled into a library, and sources that are named so.
NOT_IN = {"tests", "test", "benches", "examples", "fuzz", "target", "src"}
NO_TEXT = {".rs", ".py", ".toml", ".html"}

MIT = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files (the
"Software"), to deal in the Software without restriction, including without limitation the rights to use, copy, modify, merge, publish,
distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to
the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR
ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE
SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


class Part(NamedTuple):
    """Something that is linked in, with its notices."""

    name: str
    licence: str
    home: str
    texts: list[str]


def cargo(*arguments: str) -> str:
    result = subprocess.run([*os.environ.get("CARGO", "cargo").split(), *arguments], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return result.stdout.decode()


def linked(target: str, features: str) -> set[tuple[str, str]]:
    """Names and versions of the crates whose code is in the library: none that only compile it."""
    lines = cargo("tree", "--locked", "--edges", "normal,no-proc-macro", "--target", target, "--features", features, "--prefix", "none",
                  "--format", "{p}", "--package", "metal-candle").splitlines()  # fmt: skip
    found = {(words[0], words[1].lstrip("v")) for words in map(str.split, lines) if words}
    return {crate for crate in found if crate[0] != "metal-candle"}


def alternatives(expression: str) -> list[set[str]]:
    """Sets of licences, each of which is enough: of `A OR B` one, of `A AND B` both. Cargo once wrote `A/B`."""
    tokens = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))

    def either() -> list[set[str]]:
        found = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            found = found + both()
        return found

    def both() -> list[set[str]]:
        found = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            found = [a | b for b in one() for a in found]
        return found

    def one() -> list[set[str]]:
        if tokens[0] == "(":
            tokens.pop(0)
            found = either()
            tokens.pop(0)
            return found
        name = tokens.pop(0)
        if tokens and tokens[0] == "WITH":
            name += " WITH " + tokens[1]
            del tokens[:2]
        return [{name}]

    return either()


def files(folder: Path) -> list[str]:
    """The notices in a crate's sources, those of parts that it took from elsewhere too."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in NOT_IN)
        for name in sorted(names):
            path = Path(place, name)
            if NAMED.match(name) and path.suffix not in NO_TEXT:
                text = path.read_text(encoding="utf-8", errors="replace").strip()
                if text:
                    found.append(text)
    return found


def standard_text(package: dict[str, Any]) -> list[str] | None:
    """For a crate without a file: whose licence is one that we know the words of."""
    apache = (ROOT / "LICENSE").read_text(encoding="utf-8").strip()
    for choice in alternatives(package["license"] or "?"):
        if choice == {"Apache-2.0"}:
            return [apache]
    holders = ", ".join(re.sub(r"\s*<.*>", "", author) for author in package["authors"]) or f"the authors of {package['name']}"
    if {"MIT"} in alternatives(package["license"] or "?"):
        return [f"MIT License\n\nCopyright (c) {holders}\n\n{MIT.strip()}"]
    return None


def crates(target: str, features: str) -> list[Part]:
    wanted = linked(target, features)
    metadata = json.loads(cargo("metadata", "--format-version", "1", "--locked", "--filter-platform", target, "--features", features))
    parts, without = [], []
    for package in metadata["packages"]:
        crate = (package["name"], package["version"])
        if crate not in wanted:
            continue
        wanted.remove(crate)
        texts = files(Path(package["manifest_path"]).parent) or standard_text(package)
        name = " ".join(crate)
        if texts:
            parts.append(Part(name, package["license"] or "see its text", package["repository"] or "", texts))
        else:
            without.append(f"{name}: expected the text of its licence among its files, found none of {package['license'] or 'a licence without a name'}")
    without += [f"{name} {version}: expected its sources, found none" for name, version in sorted(wanted)]
    if without:
        sys.exit("\n".join(without))
    return parts


def standard_library() -> Part:
    """Rust's own, of which rustup's documentation has the notices."""
    sysroot = subprocess.run([os.environ.get("RUSTC", "rustc"), "--print", "sysroot"], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    page = Path(sysroot.decode().strip(), "share", "doc", "rust", "COPYRIGHT-library.html")
    texts = [(ROOT / "LICENSE").read_text(encoding="utf-8").strip()]
    if page.is_file():  # Rust of distributions may have it elsewhere; its licence by itself is enough then
        source = page.read_text(encoding="utf-8")
        in_tree, _, others = source.partition('<h2 id="out-of-tree-dependencies">')
        words = html.unescape(re.sub(r"<[^>]+>", "", in_tree.partition('<h2 id="longer-version">')[2]))
        texts = [re.sub(r"\n\s*\n+", "\n", re.sub(r"(?m)^[ \t]+", "", words)).strip(), *texts]
        texts += [html.unescape(text).strip() for text in re.findall(r"<pre>(.*?)</pre>", others, re.DOTALL)]
    return Part("Rust's standard library, and the crates that it takes on one system or another", "MIT OR Apache-2.0", "https://github.com/rust-lang/rust", texts)


def written(parts: list[Part]) -> str:
    texts: dict[str, tuple[int, str]] = {}  # by their words: some differ in how lines are broken
    lines = [
        "metal-candle is licensed under Apache-2.0. It holds the following, each under its own licence, whose text stands below under the",
        "numbers that are given here. Of licences with OR between them, one is enough.",
        "",
    ]
    for part in sorted(parts, key=lambda part: part.name.lower()):
        numbers = []
        for text in part.texts:
            number, _ = texts.setdefault(" ".join(text.split()), (len(texts) + 1, text))
            numbers.append(number)
        lines.append(f"{part.name}: {part.licence}; {part.home}; {', '.join(map(str, sorted(set(numbers))))}")
    for number, text in texts.values():
        lines += ["", "=" * 100, str(number), "", text]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--target", action="append", help="Rust's name of what is compiled for, this machine without it; may be repeated")
    parser.add_argument("--features", default="reserve", help="those of cargo that the library is built with")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    host = subprocess.run([os.environ.get("RUSTC", "rustc"), "-vV"], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout.decode()
    targets = arguments.target or re.findall(r"(?m)^host: (.*)$", host)
    parts = {part.name: part for target in targets for part in crates(target, arguments.features)}
    text = written([*parts.values(), standard_library()])
    new = arguments.out.with_name(f"{arguments.out.name}.new{os.getpid()}")
    new.write_text(text, encoding="utf-8")
    os.replace(new, arguments.out)


if __name__ == "__main__":
    main()
