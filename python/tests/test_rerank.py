"""Scores of documents, against sentence-transformers."""

from __future__ import annotations

import asyncio
import unittest

import metal_candle as mc
import numpy as np
from common import EMBED, ROOT, Case, golden

# As in tests/rerank.rs.
TOLERANCE = 5e-5


class Reranking(Case):
    def setUp(self) -> None:
        super().setUp()
        self.reference = golden("rerankers/bert/golden.json")
        self.model = mc.Model.load(ROOT / "tests" / "golden" / "rerankers" / "bert")

    def tearDown(self) -> None:
        del self.model
        super().tearDown()

    def test_scores_are_those_of_the_reference(self) -> None:
        documents = self.reference["documents"]
        for i, query in enumerate(self.reference["queries"]):
            rows = slice(i * len(documents), (i + 1) * len(documents))
            scores = self.model.rerank(query, documents)
            np.testing.assert_allclose(scores, self.reference["scores"][rows], atol=TOLERANCE, rtol=0)
            logits = self.model.rerank(query, documents, activation=mc.ScoreActivation.IDENTITY, batch_size=1)
            np.testing.assert_allclose(logits, self.reference["logits"][rows], atol=TOLERANCE, rtol=0)
        self.assertEqual(self.model.rerank("a", []).shape, (0,))
        np.testing.assert_array_equal(asyncio.run(self.model.rerank_async(query, documents)), scores)

    def test_bad_input_is_named(self) -> None:
        self.assertTrue(self.model.supports(mc.Capability.RERANK))
        with self.assertRaisesRegex(mc.InvalidArgumentError, "nobody"):
            self.model.rerank("a", ["b"], prompt_name="nobody")
        with self.assertRaisesRegex(mc.InvalidArgumentError, "max_length"):
            self.model.rerank("a", ["b"], max_length=2)
        with self.assertRaisesRegex(ValueError, "prompt_name and prompt"):
            self.model.rerank("a", ["b"], prompt_name="query", prompt="query: ")
        with self.assertRaisesRegex(TypeError, "documents"):
            self.model.rerank("a", "b")
        with self.assertRaisesRegex(mc.UnsupportedError, "rerank"):
            mc.Model.load(EMBED).rerank("a", ["b"])


if __name__ == "__main__":
    unittest.main()
