"""The programs of the documentation run, one after another, at the top of the repository."""

from __future__ import annotations

import contextlib
import io
import os
import re
import unittest
from typing import Any

from common import ANSWER, ROOT, Case


class Documentation(Case):
    def run_snippets(self, path: str) -> str:
        text = (ROOT / path).read_text(encoding="utf-8")
        snippets = re.findall(r"^```python\n(.*?)^```", text, flags=re.S | re.M)
        self.assertTrue(snippets, path)
        names: dict[str, Any] = {"__name__": "__main__"}
        output, before = io.StringIO(), os.getcwd()
        os.chdir(ROOT)
        try:
            with contextlib.redirect_stdout(output):
                for snippet in snippets:
                    exec(compile(snippet, path, "exec"), names)
        finally:
            os.chdir(before)
            names.clear()
        return output.getvalue()

    def test_the_package_s_readme(self) -> None:
        output = self.run_snippets("python/README.md")
        self.assertEqual(output.count(ANSWER), 2)
        self.assertIn('{"kind"', output)
        self.assertIn("stopped", output)
        self.assertIn("[1]", output)

    def test_the_first_page(self) -> None:
        self.assertIn(ANSWER, self.run_snippets("README.md"))


if __name__ == "__main__":
    unittest.main()
