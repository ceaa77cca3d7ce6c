"""Datasets, training with events and checkpoints, adapters."""

from __future__ import annotations

import math
import unittest

import metal_candle as mc
import numpy as np
from common import CODER, FACTS, QUESTION, Case


class Datasets(Case):
    def test_examples_are_added_and_loaded(self) -> None:
        dataset = mc.Dataset()
        dataset.add_text("text")
        dataset.add_completion("prompt", " completion")
        dataset.add_chat(mc.Chat([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]))
        self.assertEqual(len(dataset), 3)
        self.assertEqual(len(mc.Dataset.load_jsonl(FACTS)), len(FACTS.read_text(encoding="utf-8").splitlines()))
        (self.folder / "bad.jsonl").write_text('{"text": "a"}\n{"tex": "b"}\n')
        with self.assertRaisesRegex(mc.FormatError, "2"):
            mc.Dataset.load_jsonl(self.folder / "bad.jsonl")


class Training(Case):
    def setUp(self) -> None:
        super().setUp()
        self.model, self.facts = mc.Model.load(CODER), mc.Dataset.load_jsonl(FACTS)

    def tearDown(self) -> None:
        del self.model, self.facts
        super().tearDown()

    def test_a_training_is_heard_and_learns(self) -> None:
        events: list[mc.TrainEvent] = []
        trainer = mc.Trainer(
            self.model,
            mc.LoraConfig(rank=4, alpha=8, targets=["q_proj", "v_proj"]),
            learning_rate=5e-3,
            epochs=9,
            total_steps=6,
            eval_every=3,
        )
        trainer.train(self.facts, self.facts, on_step=events.append)
        self.assertEqual([event.step for event in events], [1, 2, 3, 4, 5, 6])
        self.assertEqual((trainer.step_count, events[-1].total_steps), (6, 6))
        self.assertEqual([math.isnan(event.eval_loss) for event in events], [True, True, False] * 2)
        self.assertLess(events[5].eval_loss, events[2].eval_loss)
        self.assertTrue(events[5].is_best)
        self.assertTrue(all(event.learning_rate == np.float32(5e-3) and event.grad_norm > 0 for event in events))
        lora = trainer.adapter()
        self.assertEqual((lora.rank, lora.alpha, sorted(lora.config()["target_modules"])), (4, 8.0, ["q_proj", "v_proj"]))

    def test_options_reach_the_library(self) -> None:
        rates: list[float] = []
        trainer = mc.Trainer(
            self.model,
            learning_rate=1e-3,
            schedule=mc.Schedule.LINEAR,
            warmup_steps=2,
            total_steps=4,
            batch_size=2,
            adam_betas=(0.8, 0.9),
            weighting=mc.Weighting.TOKENS,
            grad_accumulation=2,
        )
        trainer.train(self.facts, on_step=lambda event: rates.append(event.learning_rate))
        np.testing.assert_allclose(rates, [5e-4, 1e-3, 1e-3, 5e-4], rtol=1e-3)
        with self.assertRaisesRegex(mc.InvalidArgumentError, "beta2|adam_betas"):
            mc.Trainer(self.model, adam_betas=(0.9, 1.0))
        with self.assertRaisesRegex(mc.InvalidArgumentError, "no_proj"):
            mc.Trainer(self.model, {"targets": ["no_proj"]})
        small = mc.Trainer.estimate_memory(self.model, {"rank": 2}, batch_size=1, max_length=16)
        self.assertTrue(0 < small < mc.Trainer.estimate_memory(self.model, {"rank": 64}, batch_size=8, max_length=512))

    def test_a_resumed_training_has_the_bits_of_an_uninterrupted_one(self) -> None:
        def losses(trainer: mc.Trainer, stop: int = 99) -> list[float]:
            heard: list[float] = []

            def on_step(event: mc.TrainEvent) -> bool:
                heard.append(event.loss)
                return event.step != stop

            trainer.train(self.facts, on_step=on_step)
            return heard

        options = mc.TrainOptions(learning_rate=5e-3, total_steps=6)
        whole = losses(mc.Trainer(self.model, **options))
        written: mc.TrainOptions = {**options, "checkpoint_dir": self.folder / "auto", "checkpoint_every": 2}
        first = mc.Trainer(self.model, **written)
        begun = losses(first, stop=3)
        first.save(self.folder / "saved")
        self.assertEqual(begun + losses(mc.Trainer.resume(self.model, self.folder / "saved")), whole)
        self.assertEqual(begun + losses(mc.Trainer.resume(self.model, self.folder / "auto", **options)), whole)
        self.assertEqual(begun + losses(first), whole)

    def test_steps_of_own_tokens(self) -> None:
        trainer = mc.Trainer(self.model, learning_rate=1e-2)
        texts = ("fn main() { }", "let x = 1;")
        rows = [np.array(self.model.tokenizer.encode(text)) for text in texts]
        before = trainer.eval_step(rows)
        self.assertEqual(trainer.train_step(rows), before)
        self.assertLess(trainer.eval_step(rows), before)
        self.assertEqual(trainer.step_count, 1)
        update = trainer.last_update()
        assert update is not None
        self.assertEqual((update.step, update.learning_rate), (1, 1e-2))
        self.assertGreater(update.grad_norm, 0)
        self.assertIsNone(mc.Trainer(self.model).last_update())
        mask = [[False] * len(row) for row in rows]
        mask[1][-1] = True
        session = self.model.session()
        session.append(rows[1][:-1])
        fresh = mc.Trainer(self.model)
        self.assertAlmostEqual(fresh.eval_step(rows, mask), -float(session.score(rows[1][-1:])[0]), places=4)
        self.assertEqual(fresh.eval_step([row.tolist() for row in rows], mask), fresh.eval_step(rows, mask))
        with self.assertRaisesRegex(ValueError, "loss_mask: expected"):
            trainer.train_step(rows, [[True]])
        cancel = mc.Cancel()
        cancel.trigger()
        with self.assertRaises(mc.Cancelled):
            trainer.train_step(rows, cancel=cancel)
        self.assertLess(trainer.train_step(rows), before)

    def test_targets_are_a_list_or_one_name(self) -> None:
        for targets, names in (("v_proj", {"v_proj"}), (["v_proj", "o_proj"], {"v_proj", "o_proj"})):
            lora = mc.Trainer(self.model, {"targets": targets}).adapter()
            self.assertEqual(set(lora.config()["target_modules"]), names)
        all_of_them = mc.Trainer(self.model, {"targets": "all-linear"}).adapter()
        self.assertEqual(all_of_them.config(), mc.Trainer(self.model).adapter().config())

    def test_a_value_of_another_type_is_said_by_its_name(self) -> None:
        for options, text in (
            ({"schedule": "cosine"}, "schedule: expected one of .*Schedule.COSINE, found 'cosine'"),
            ({"batch_size": 2.5}, "batch_size: expected a whole number, found float"),
            ({"learning_rate": [1e-3]}, "learning_rate: expected a number, found list"),
        ):
            with self.assertRaisesRegex(TypeError, f"^{text}$"):
                mc.Trainer(self.model, **options)

    def test_betas_are_two(self) -> None:
        with self.assertRaisesRegex(ValueError, "adam_betas: expected 2 numbers, found 1"):
            mc.Trainer(self.model, adam_betas=(0.9,))  # type: ignore[arg-type]

    def test_many_sequences_of_a_step_take_no_square_of_their_number(self) -> None:
        trainer = mc.Trainer(self.model, {"rank": 1}, total_steps=1)
        flag = mc.Cancel()
        flag.trigger()
        with self.assertRaises(mc.Cancelled):  # as soon as the library has them; the square would take minutes
            trainer.train_step([[1, 2]] * 100_000, cancel=flag)

    def test_a_training_stops_by_an_exception_and_by_a_flag_and_goes_on(self) -> None:
        trainer, cancel = mc.Trainer(self.model, total_steps=4), mc.Cancel()
        with self.assertRaises(ZeroDivisionError):
            trainer.train(self.facts, on_step=lambda event: 1 / 0)
        with self.assertRaisesRegex(mc.Cancelled, "training was cancelled"):
            trainer.train(self.facts, on_step=lambda event: cancel.trigger(), cancel=cancel)
        self.assertEqual(trainer.step_count, 2)
        trainer.train(self.facts)
        self.assertEqual(trainer.step_count, 4)
        with self.assertRaises(mc.MismatchError):
            other = mc.Dataset()
            other.add_text("another")
            trainer.train(other)

    def test_an_adapter_is_saved_loaded_merged_and_gone_on_with(self) -> None:
        trainer = mc.Trainer(self.model, learning_rate=5e-3, total_steps=3)
        trainer.train(self.facts)
        lora = trainer.adapter()
        lora.save(self.folder / "adapter")
        again = self.model.load_lora(self.folder / "adapter")
        self.assertEqual((again.parameter_count, again.rank), (lora.parameter_count, lora.rank))
        prompt = "fn main() {"
        texts = [self.model.generate(prompt, max_tokens=8, temperature=0, lora=adapter).tokens for adapter in (lora, again)]
        self.assertEqual(texts[0], texts[1])
        zero = self.model.generate(prompt, max_tokens=8, temperature=0, lora=lora, lora_scale=0.0).tokens
        self.assertEqual(zero, self.model.generate(prompt, max_tokens=8, temperature=0).tokens)
        attached, merged = self.model.session(), self.model.merge(again).session()
        attached.set_lora(lora)
        for session in (attached, merged):
            session.append(prompt)
        np.testing.assert_allclose(merged.logits(), attached.logits(), atol=1e-3)
        np.testing.assert_array_equal(self.model.embed(prompt, lora=lora), self.model.embed(prompt, lora=again))
        further = mc.Trainer(self.model, {"initial": lora}, total_steps=1)
        self.assertEqual(further.adapter().parameter_count, lora.parameter_count)
        with mc.Conversation(self.model, lora=lora) as talk:
            self.assertTrue(talk.ask(QUESTION, max_tokens=4).read().tokens)


if __name__ == "__main__":
    unittest.main()
