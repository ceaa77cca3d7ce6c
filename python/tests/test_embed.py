"""Embeddings, with the reference's vectors, and the search for the nearest."""

from __future__ import annotations

import unittest

import metal_candle as mc
import numpy as np
from common import CODER, EMBED, Case, golden

# As in tests/embed.rs.
TOLERANCE = 2e-6


class Embedding(Case):
    def setUp(self) -> None:
        super().setUp()
        self.model = mc.Model.load(EMBED)

    def tearDown(self) -> None:
        del self.model
        super().tearDown()

    def test_vectors_equal_the_reference_and_answer_its_questions(self) -> None:
        reference = golden("tiny_embed.json")
        vectors = self.model.embed(reference["texts"])
        self.assertEqual((vectors.dtype, vectors.shape), (np.float32, (len(reference["texts"]), reference["dim"])))
        np.testing.assert_allclose(vectors, np.array(reference["embeddings"]), atol=TOLERANCE, rtol=0)
        search = reference["search"]
        documents = self.model.embed([document["text"] for document in search["docs"]])
        queries = self.model.embed([query["query"] for query in search["queries"]])
        found = self.model.nearest(queries, documents, 3)
        self.assertEqual(found.indices.tolist(), [query["top3"] for query in search["queries"]])
        np.testing.assert_allclose(found.scores, [query["scores"] for query in search["queries"]], atol=5e-6, rtol=0)
        self.assertEqual(self.model.similarity, mc.Similarity.COSINE)

    def test_one_text_has_the_bits_that_it_has_in_a_batch(self) -> None:
        texts = ["Vec", "", "日本語\0x", "a longer text than the others"]
        vectors = self.model.embed(texts, batch_size=2)
        for text, vector in zip(texts, vectors):
            np.testing.assert_array_equal(self.model.embed(text), vector)
        self.assertEqual(self.model.embed([]).shape, (0, self.model.embedding_dim()))

    def test_options_change_the_vectors(self) -> None:
        text = "append an element"
        plain = self.model.embed(text)
        self.assertEqual(self.model.embed(text, dimensions=64).shape, (64,))
        self.assertEqual(self.model.embedding_dim(dimensions=64), 64)
        for options in (
            mc.EmbedOptions(pooling=mc.Pooling.CLS),
            mc.EmbedOptions(prefix="query: "),
            mc.EmbedOptions(max_length=3),
        ):
            self.assertTrue((self.model.embed(text, **options) != plain).any(), options)
        self.assertAlmostEqual(float(np.linalg.norm(self.model.embed(text, normalize=True))), 1.0, places=5)
        with self.assertRaisesRegex(mc.InvalidArgumentError, "no such prompt"):
            self.model.embed(text, prompt_name="no such prompt")
        with self.assertRaisesRegex(ValueError, "expected one of them"):
            self.model.embed(text, prompt_name="query", prefix="query: ")

    def test_progress_and_cancel(self) -> None:
        texts = ["text"] * 64
        events: list[mc.ProgressEvent] = []
        self.model.embed(texts, batch_size=4, progress=events.append)
        self.assertEqual((events[-1].stage, events[-1].done, events[-1].total), (mc.Stage.EMBED, 64, 64))
        with self.assertRaises(mc.Cancelled):
            self.model.embed(texts, batch_size=4, progress=lambda event: False)
        with self.assertRaises(ZeroDivisionError):
            self.model.embed(texts, batch_size=4, progress=lambda event: 1 / 0)
        cancel = mc.Cancel()
        cancel.trigger()
        with self.assertRaisesRegex(mc.Cancelled, "embedding was cancelled"):
            self.model.embed(texts, cancel=cancel)

    def test_text_that_is_no_utf8_is_named(self) -> None:
        with self.assertRaisesRegex(mc.InvalidUtf8Error, "1"):
            self.model.embed(["good", "\udcff"])

    def test_a_model_that_generates_embeds_too(self) -> None:
        model = mc.Model.load(CODER)
        self.assertEqual(model.embed("fn main").shape, (model.embedding_dim(),))


class Nearest(Case):
    def test_the_nearest_are_those_of_numpy(self) -> None:
        random = np.random.default_rng(7)
        queries, documents = random.normal(size=(5, 16)).astype(np.float32), random.normal(size=(50, 16)).astype(np.float32)
        for similarity, scores in (
            (mc.Similarity.DOT, queries @ documents.T),
            (mc.Similarity.EUCLIDEAN, -np.linalg.norm(queries[:, None] - documents[None], axis=-1)),
        ):
            found = mc.nearest(queries, documents, 4, similarity)
            order = np.argsort(-scores, axis=1)[:, :4]
            np.testing.assert_array_equal(found.indices, order)
            np.testing.assert_allclose(found.scores, np.take_along_axis(scores, order, 1), rtol=1e-5)
        one = mc.nearest(queries[0], documents, 2)
        self.assertEqual((one.indices.shape, one.scores.shape), ((2,), (2,)))
        fortran = mc.nearest(np.asfortranarray(queries), documents[::1].astype(np.float64), 4)
        np.testing.assert_array_equal(fortran.indices, mc.nearest(queries, documents, 4).indices)

    def test_shapes_and_counts_are_checked(self) -> None:
        with self.assertRaisesRegex(ValueError, r"found \(2, 3\) and \(4, 5\)"):
            mc.nearest(np.zeros((2, 3), np.float32), np.zeros((4, 5), np.float32), 1)
        for k in (0, 5):
            with self.assertRaises(mc.InvalidArgumentError):
                mc.nearest(np.zeros((2, 3), np.float32), np.zeros((4, 3), np.float32), k)


if __name__ == "__main__":
    unittest.main()
