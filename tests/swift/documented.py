"""Fails unless every public symbol of a symbol graph has a documentation comment: documented.py MetalCandle.symbols.json"""

import json
import sys

with open(sys.argv[1], encoding="utf-8") as file:
    symbols = json.load(file)["symbols"]
own = [symbol for symbol in symbols if "::SYNTHESIZED::" not in symbol["identifier"]["precise"]]
bare = [".".join(symbol["pathComponents"]) for symbol in own if "docComment" not in symbol]
print(f"{len(own)} public symbols", *(f"without a comment: {name}" for name in bare), sep="\n")
sys.exit(1 if bare or len(own) < 100 else 0)
