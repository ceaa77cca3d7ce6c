"""What the tests share: the repository's small models, and that every test frees everything without the garbage collector's help."""

from __future__ import annotations

import gc
import json
import tempfile
import unittest
from pathlib import Path
from typing import Any

import metal_candle as mc

ROOT = Path(__file__).resolve().parent.parent.parent
CODER = ROOT / "models" / "tiny-coder"
EMBED = ROOT / "models" / "tiny-embed"
GGUF = ROOT / "tests" / "golden" / "gguf" / "qwen2-Q8_0.gguf"
FACTS = ROOT / "examples" / "data" / "facts.jsonl"
QUESTION = "What does `Vec::push` do?"
ANSWER = "Appends an element to the back of a collection."


def golden(name: str) -> Any:
    return json.loads((ROOT / "tests" / "golden" / name).read_text(encoding="utf-8"))


class Case(unittest.TestCase):
    def setUp(self) -> None:
        gc.disable()  # a cycle would hide a leak that programs have
        self.addCleanup(gc.enable)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def tearDown(self) -> None:
        self.assertEqual(mc.live_objects(), 0)
