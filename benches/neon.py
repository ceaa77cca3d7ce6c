#!/usr/bin/env python3
"""How many instructions the kernels' inner loops take on ARM, told from their code: benches/neon.py PROGRAM

Without such a processor nothing is timed: a loop's instructions are counted, and the multiplications that they do. PROGRAM is what
.ci/aarch64-test has compiled (target/cross/aarch64-unknown-linux-gnu/release/deps/metal_candle-…), OBJDUMP one for aarch64.
"""
import collections
import os
import re
import statistics
import subprocess
import sys

# Multiplications with addition that an instruction does, of registers of 128 bits.
LANES = {"4s": 4, "8h": 8, "2d": 2, "2s": 2}
PRODUCTS = {"sdot": 16, "udot": 16, "usdot": 16, "smmla": 32, "usmmla": 32, "ummla": 32}
FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)$")
BRANCHES = {"b", "cbz", "cbnz", "tbz", "tbnz"}


def products(name: str, operands: str) -> int:
    if name in PRODUCTS:
        return PRODUCTS[name]
    if name in ("fmla", "fmls"):
        arrangement = re.match(r"v\d+\.(\w+)", operands)
        return LANES.get(arrangement[1], 0) if arrangement else 0
    return 0


def loops(code: list[tuple[int, str, str]]):
    """Those that hold no other: from the target of a branch backwards to the branch."""
    places = {address: at for at, (address, _, _) in enumerate(code)}
    found = []
    for at, (_, name, operands) in enumerate(code):
        target = re.search(r"\b([0-9a-f]+) <", operands)
        if (name in BRANCHES or name.startswith("b.")) and target and places.get(int(target[1], 16), len(code)) <= at:
            found.append((places[int(target[1], 16)], at + 1))
    return [loop for loop in found if not any(other != loop and loop[0] <= other[0] and other[1] <= loop[1] for other in found)]


def functions(program: str):
    text = subprocess.Popen([os.environ.get("OBJDUMP", "aarch64-linux-gnu-objdump"), "-d", "--no-show-raw-insn", "-C", program], stdout=subprocess.PIPE, text=True)
    name, code = "", []
    for line in text.stdout:
        if begins := FUNCTION.match(line):
            yield name, code
            name, code = begins[1], []
        elif instruction := INSTRUCTION.match(line):
            code.append((int(instruction[1], 16), instruction[2], instruction[3]))
    yield name, code
    if text.wait() != 0:
        sys.exit("objdump failed")


def main() -> None:
    found = collections.defaultdict(list)
    for name, code in functions(sys.argv[1]):
        level = next((level for level in ("run_neon", "run_dotprod", "run_i8mm") if name.endswith(level)), None)
        for start, end in loops(code) if level else []:
            done = collections.Counter()
            for _, instruction, operands in code[start:end]:
                done[instruction] += products(instruction, operands)
            by, most = done.most_common(1)[0]
            # Loops of a tile: the rest are what is left over at its edges.
            if most >= 64:
                found[level, by].append((end - start, most, sum(name.startswith("ld") for _, name, _ in code[start:end])))
    print("| level | products by | loops | instructions a multiply-add: least | median | instructions for each product's: least | median |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for (level, by), rows in sorted(found.items()):
        each = sorted(instructions / done for instructions, done, _ in rows)
        own = PRODUCTS.get(by, 4)
        least, median = each[0], statistics.median(each)
        print(f"| {level} | {by} | {len(rows)} | {least:.3f} | {median:.3f} | {least * own:.2f} | {median * own:.2f} |")


if __name__ == "__main__":
    main()
