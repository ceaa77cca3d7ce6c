"""Loading, what a model says of itself, stateless generation, saving."""

from __future__ import annotations

import json
import unittest

import metal_candle as mc
from common import ANSWER, CODER, EMBED, GGUF, QUESTION, Case


class Loading(Case):
    def test_a_model_tells_what_it_is(self) -> None:
        with mc.Model.load(CODER) as model:
            config = model.config()
            self.assertEqual(model.architecture, config["model_type"])
            self.assertEqual(model.context_length, config["max_position_embeddings"])
            self.assertEqual(model.vocab_size, config["vocab_size"])
            self.assertEqual(model.hidden_size, config["hidden_size"])
            self.assertEqual(model.layer_count, config["num_hidden_layers"])
            self.assertGreater(model.parameter_count, 1_000_000)
            self.assertIsInstance(model.dtype, mc.Dtype)
            backend = model.backend()
            self.assertEqual((backend["device"], backend["single_tokens"]), ("CPU", "kernels"))
            self.assertGreater(sum(backend["weights"].values()), 1_000_000)
            self.assertEqual(f"{model.dtype}", model.dtype.name)
            self.assertTrue(model.supports(mc.Capability.GENERATE))
        with mc.Model.load(EMBED) as model:
            self.assertFalse(model.supports(mc.Capability.GENERATE))
            with self.assertRaises(mc.UnsupportedError):
                model.session()

    def test_progress_rises_to_the_end(self) -> None:
        events: list[mc.ProgressEvent] = []
        mc.Model.load(CODER, progress=events.append).close()
        done = [event.done for event in events]
        self.assertEqual(done, sorted(done))
        self.assertEqual((events[-1].stage, events[-1].done), (mc.Stage.READ, events[-1].total))

    def test_a_progress_callback_stops_by_false_and_by_an_exception(self) -> None:
        with self.assertRaisesRegex(mc.Cancelled, "^loading .*tiny-coder was cancelled$"):
            mc.Model.load(CODER, progress=lambda event: False)
        with self.assertRaises(ZeroDivisionError):
            mc.Model.load(CODER, progress=lambda event: 1 / 0)

    def test_a_triggered_flag_stops_until_it_is_reset(self) -> None:
        with mc.Cancel() as cancel:
            cancel.trigger()
            self.assertTrue(cancel.is_triggered)
            with self.assertRaises(mc.Cancelled):
                mc.Model.load(CODER, cancel=cancel)
            cancel.reset()
            mc.Model.load(CODER, cancel=cancel, progress=lambda event: None).close()
            with self.assertRaises(mc.Cancelled):
                mc.Model.load(CODER, cancel=cancel, progress=lambda event: cancel.trigger())

    def test_errors_have_the_class_of_their_status(self) -> None:
        (self.folder / "broken").mkdir()
        (self.folder / "broken" / "config.json").write_text("{")
        for name, kind, text in (
            ("nothing", mc.NotFoundError, "nothing: No such file"),
            ("broken", mc.FormatError, "config.json: not valid JSON"),
        ):
            with self.assertRaisesRegex(kind, text) as caught:
                mc.Model.load(self.folder / name)
            self.assertEqual(caught.exception.status, kind.status)
        with self.assertRaisesRegex(mc.UnsupportedError, "q4_0"):
            mc.Model.load(CODER, quantization="q3")

    def test_options_reach_the_library(self) -> None:
        model = mc.Model.load(
            CODER, device=mc.Device(mc.DeviceKind.CPU), dtype=mc.Dtype.F32, kv_cache="f16", max_context=64, tokenizer_path=CODER, exact=True
        )
        self.assertEqual((model.dtype, model.context_length), (mc.Dtype.F32, 64))
        full = mc.Model.estimate_memory(CODER, dtype=mc.Dtype.F32)
        self.assertLess(mc.Model.estimate_memory(CODER, dtype=mc.Dtype.F32, quantization="q8_0"), full)
        self.assertLess(mc.Model.estimate_memory(CODER, dtype=mc.Dtype.F32, kv_cache="q8_0"), full)

    def test_a_repository_that_is_not_in_the_cache_is_not_found_offline(self) -> None:
        with self.assertRaises(mc.NotFoundError):
            mc.Model.load_hub("nobody/nothing", offline=True, hub_cache_dir=self.folder, hub_revision="main", hub_token=None)

    def test_a_quantised_model_answers(self) -> None:
        stages: list[mc.Stage] = []
        model = mc.Model.load(CODER, quantization="q8_0", progress=lambda event: stages.append(event.stage))
        self.assertIn(mc.Stage.QUANTIZE, stages)
        self.assertEqual(mc.Conversation(model).ask(QUESTION).read().text, ANSWER)


class Saving(Case):
    def test_a_saved_model_answers_as_before(self) -> None:
        stages: list[mc.Stage] = []
        mc.Model.load(CODER).save(self.folder / "saved", format="f32", progress=lambda event: stages.append(event.stage))
        self.assertEqual(set(stages), {mc.Stage.WRITE})
        self.assertEqual(mc.Conversation(mc.Model.load(self.folder / "saved")).ask(QUESTION).read().text, ANSWER)
        with self.assertRaisesRegex(mc.InvalidArgumentError, "saved"):
            mc.Model.load(CODER).save(self.folder / "saved")

    def test_saving_stops_by_a_flag_and_by_an_exception(self) -> None:
        model, cancel = mc.Model.load(CODER), mc.Cancel()
        with self.assertRaises(mc.Cancelled):
            model.save(self.folder / "saved", progress=lambda event: cancel.trigger(), cancel=cancel)
        with self.assertRaises(ZeroDivisionError):
            model.save(self.folder / "saved", progress=lambda event: 1 / 0)
        self.assertFalse((self.folder / "saved").exists())

    def test_a_gguf_file_is_loaded_and_written(self) -> None:
        model = mc.Model.load(GGUF)
        session = model.session()
        session.append([1, 2, 3])
        model.save_gguf(self.folder / "saved.gguf")
        again = mc.Model.load(self.folder, file="saved.gguf").session()
        again.append([1, 2, 3])
        self.assertEqual(again.logits().tolist(), session.logits().tolist())
        with self.assertRaises(mc.UnsupportedError):
            mc.Model.load(CODER).save_gguf(self.folder / "other.gguf")


class Generating(Case):
    def test_a_stream_has_the_tokens_of_the_whole(self) -> None:
        model = mc.Model.load(CODER)
        progress: list[mc.ProgressEvent] = []
        whole = model.generate("fn main() {", max_tokens=12, temperature=0, prefill_progress=progress.append)
        self.assertEqual(progress[-1].stage, mc.Stage.PREFILL)
        with model.stream("fn main() {", max_tokens=12, temperature=0) as stream:
            tokens = list(stream)
        self.assertEqual([token.id for token in tokens], whole.tokens)
        self.assertEqual("".join(map(str, tokens)), whole.text)
        self.assertEqual([token.index for token in tokens], list(range(12)))
        self.assertTrue(all(token.logprob <= 0 for token in tokens))
        assert stream.generation is not None
        self.assertEqual(stream.generation[:4], whole[:4])
        self.assertEqual(whole.finish_reason, mc.FinishReason.MAX_TOKENS)
        self.assertEqual(whole.prompt_tokens, len(model.tokenizer.encode("fn main() {")))
        self.assertGreater(whole.prefill_seconds, 0)
        self.assertGreater(whole.decode_seconds, 0)

    def test_a_rendered_prompt_gets_no_special_tokens(self) -> None:
        model = mc.Model.load(CODER)
        prompt = mc.Chat([{"role": "user", "content": QUESTION}]).render(model)
        for answer in (model.generate(prompt, add_special=False), model.stream(prompt, add_special=False).read()):
            self.assertEqual(answer.text, ANSWER)
            self.assertEqual(answer.finish_reason, mc.FinishReason.EOS)

    def test_options_as_json_count_more(self) -> None:
        model = mc.Model.load(CODER)
        answer = model.generate("fn", max_tokens=9, json='{"max_tokens": 2, "ignore_eos": true}')
        self.assertEqual(len(answer.tokens), 2)
        with self.assertRaisesRegex(mc.InvalidArgumentError, "max_tokens: expected a whole number from 0, found -1"):
            model.generate("fn", json='{"max_tokens": -1}')
        with self.assertRaisesRegex(mc.InvalidArgumentError, "rank: expected 1 to 8192, found 0"):
            mc.Trainer(model, {"json": '{"rank": 0}'})

    def test_options_change_the_answer(self) -> None:
        model = mc.Model.load(CODER)
        plain = model.generate("fn main() {", max_tokens=6, temperature=0)
        other = model.generate("fn main() {", max_tokens=6, temperature=0, logit_bias={plain.tokens[0]: float("-inf")})
        self.assertNotEqual(other.tokens[0], plain.tokens[0])
        seeded = [model.generate("fn", max_tokens=8, temperature=1.5, top_k=0, top_p=1.0, seed=seed).tokens for seed in (7, 7, 8)]
        self.assertEqual(seeded[0], seeded[1])
        self.assertNotEqual(seeded[0], seeded[2])
        prompt = mc.Chat([{"role": "user", "content": QUESTION}]).render(model)
        for stop in ("element", ["nothing", "element"]):
            answer = model.generate(prompt, add_special=False, stop=stop)
            self.assertEqual((answer.text, answer.finish_reason), ("Appends an ", mc.FinishReason.STOP_TEXT))
        with self.assertRaisesRegex(mc.InvalidArgumentError, "top_p: expected above 0, up to 1, found 2"):
            model.generate("fn", top_p=2)

    def test_an_answer_conforms_to_a_schema(self) -> None:
        model = mc.Model.load(CODER)
        schema = {
            "type": "object",
            "properties": {"kind": {"enum": ["trait", "struct"]}},
            "required": ["kind"],
            "additionalProperties": False,
        }
        answer = model.generate("What is Vec?", json_schema=schema, max_tokens=64)
        self.assertIn(json.loads(answer.text)["kind"], ("trait", "struct"))
        self.assertEqual((answer.content, answer.reasoning, answer.tool_calls), (answer.text, "", []))
        self.assertEqual(model.generate("What is Vec?", json_schema=json.dumps(schema), max_tokens=64).text, answer.text)
        call = {"enum": [{"name": "f", "parameters": {"a": 1}}]}
        answer = model.generate("{", json_schema=call, answer_format="llama3", reasoning_budget=4, max_tokens=64)
        self.assertEqual(answer.content, "")
        function = answer.tool_calls[0]["function"]
        self.assertEqual((function["name"], json.loads(function["arguments"])), ("f", {"a": 1}))
        with model.stream("{", json_schema=call, answer_format="llama3", max_tokens=64) as stream:
            parts = list(stream.parts())
        self.assertEqual((parts[0].kind, parts[0].text), (mc.PartKind.TOOL_CALL, "f"))
        self.assertEqual(json.loads("".join(part.text for part in parts if part.kind == mc.PartKind.ARGUMENTS)), {"a": 1})
        self.assertEqual(json.loads(parts[-1].text)["function"]["name"], "f")
        with self.assertRaisesRegex(mc.InvalidArgumentError, "uniqueItems"):
            model.generate("fn", json_schema={"uniqueItems": True})

    def test_a_prefill_callback_that_raises_is_heard(self) -> None:
        with self.assertRaises(ZeroDivisionError):
            mc.Model.load(CODER).generate("fn main", prefill_progress=lambda event: 1 / 0)

    def test_a_cancelled_answer_is_given_as_far_as_it_came(self) -> None:
        model, cancel = mc.Model.load(CODER), mc.Cancel()
        cancel.trigger()
        answer = model.generate("fn main", cancel=cancel)
        self.assertEqual((answer.text, answer.finish_reason), ("", mc.FinishReason.CANCELLED))
        self.assertEqual(model.stream("fn main", cancel=cancel).read()[:2], ("", []))
        cancel.reset()
        stream = model.stream("fn main", ignore_eos=True, cancel=cancel)
        texts = []
        for token in stream:
            texts.append(token.text)
            if token.index == 4:
                cancel.trigger()
        assert stream.generation is not None
        self.assertEqual((len(texts), stream.generation.finish_reason), (5, mc.FinishReason.CANCELLED))
        self.assertTrue(stream.generation.text.startswith("".join(texts)))


if __name__ == "__main__":
    unittest.main()
