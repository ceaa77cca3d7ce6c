"""Tokenizer, conversations and sessions, with the reference's prompts, answers and log-probabilities."""

from __future__ import annotations

import json
import shutil
import tempfile
import unittest
from pathlib import Path
from typing import Any

import metal_candle as mc
import numpy as np
from common import ANSWER, CODER, FACTS, GGUF, QUESTION, Case, golden


class Reference(Case):
    def test_messages_are_counted_removed_and_told(self) -> None:
        chat = mc.Chat([{"role": "user", "content": "a"}], tools=[{"name": "f"}])
        chat.add("assistant", "b")
        self.assertEqual(len(chat), 2)
        chat.remove_last()
        written = {"messages": [{"role": "user", "content": "a"}], "tools": [{"name": "f"}]}
        self.assertEqual(json.loads(chat.to_json()), written)
        chat.remove_last()
        with self.assertRaisesRegex(mc.InvalidArgumentError, "expected a message to remove"):
            chat.remove_last()

    def test_prompts_answers_ids_and_log_probabilities_equal_the_reference(self) -> None:
        reference = golden("tiny_coder.json")
        model = mc.Model.load(CODER)
        for item in reference["items"]:
            chat = mc.Chat(item["messages"])
            self.assertEqual(chat.render(model), item["prompt"])
            self.assertEqual(model.tokenizer.encode(item["prompt"], add_special=False), item["prompt_ids"])
            session = model.session()
            session.set_prompt(chat)
            self.assertEqual(session.position, len(item["prompt_ids"]))
            # 25 times the reference's own noise, as in tests/tiny_coder.rs.
            logprobs = session.score(item["answer_ids"])
            self.assertLessEqual(float(np.abs(logprobs - np.array(item["logprobs"], np.float32)).max()), 5e-4)
            stream = session.stream(max_tokens=reference["max_new_tokens"])
            tokens = list(stream)
            self.assertEqual([token.id for token in tokens], item["answer_ids"])
            self.assertEqual("".join(token.text for token in tokens), item["answer"])
            self.assertLessEqual(max(abs(token.logprob - want) for token, want in zip(tokens, item["logprobs"])), 5e-4)


class Text(Case):
    def test_a_tokenizer_goes_there_and_back(self) -> None:
        with mc.Tokenizer.load(CODER) as tokenizer:
            text = "naïve 日本語 🦀\0 end"
            ids = tokenizer.encode(text, add_special=False)
            self.assertEqual(tokenizer.decode(ids), text)
            self.assertEqual(tokenizer.decode(np.array(ids, np.uint32)), text)
            end = tokenizer.token_id("<|im_end|>")
            self.assertEqual(tokenizer.encode("<|im_end|>", add_special=False), [end])
            self.assertEqual((tokenizer.decode([end]), tokenizer.decode([end], skip_special=False)), ("", "<|im_end|>"))
            self.assertEqual(tokenizer.decode([]), "")
            self.assertGreater(tokenizer.vocab_size, end)
            with self.assertRaises(mc.NotFoundError):
                tokenizer.token_id("no such token at all")
            with self.assertRaisesRegex(mc.InvalidArgumentError, r"tokens: expected whole numbers of shape \(tokens,\)"):
                tokenizer.decode(np.array([[1.0]]))
            with self.assertRaises(mc.InvalidUtf8Error):
                tokenizer.encode("\udcff")

    def test_tokens_have_bytes_and_become_text_as_they_come(self) -> None:
        model = mc.Model.load(CODER)
        tokenizer, text = model.tokenizer, "naïve 🦀 x"
        ids, end = tokenizer.encode(text, add_special=False), model.eos_tokens[0]
        self.assertEqual(b"".join(map(tokenizer.token_bytes, ids)), text.encode())
        self.assertEqual((tokenizer.is_special(end), tokenizer.is_special(ids[0]), tokenizer.token_bytes(end)), (True, False, b""))
        longest = max(range(tokenizer.vocab_size), key=lambda token: len(tokenizer.token_bytes(token)))
        self.assertEqual(tokenizer.token_bytes(longest).decode(), tokenizer.decode([longest]))
        with self.assertRaises(mc.InvalidArgumentError):
            tokenizer.token_bytes(2**32 - 1)
        stream = mc.TextStream(tokenizer)
        tokenizer.close()
        for _ in range(2):
            pieces = [stream.push(token) for token in (*ids, end)]
            self.assertEqual("".join(pieces) + stream.finish(), text)
            self.assertIn("", pieces)
        self.assertIn("qwen2", mc.architectures())

    def test_a_conversation_is_rendered_with_tools_variables_and_another_template(self) -> None:
        model = mc.Model.load(CODER)
        chat = mc.Chat([{"role": "user", "content": "hi"}], tools=[{"name": "clock"}])
        chat.add("assistant", "hello")
        chat.set_variable("word", {"a": [1]})
        chat.set_time(0)
        chat.set_template(
            "{{ messages | length }} {{ tools[0].name }} {{ word.a[0] }} {{ strftime_now('%Y') }} {{ add_generation_prompt }}"
        )
        self.assertEqual(chat.render(model), "2 clock 1 1970 True")
        chat.set_template("{% for m in messages %}{{ m.content }}.{% endfor %}")
        chat.set_continue_final_message(True)
        self.assertEqual(chat.render(model, add_generation_prompt=False), "hi.hello")
        chat.set_continue_final_message(False)
        ids = chat.encode(model)
        chat.set_control_tokens(mc.ControlTokens.TEXT)
        self.assertEqual(chat.encode(model), ids)
        with self.assertRaises(mc.InvalidArgumentError):
            chat.render(model)
        chat.set_control_tokens(mc.ControlTokens.TOKENS)
        chat.remove_variable("word")
        chat.set_tools(None)
        chat.set_template("{{ word is defined }} {{ add_generation_prompt }}")
        self.assertEqual(chat.render(model, add_generation_prompt=False), "False False")
        chat.set_template("{{ raise_exception('no') }}")
        with self.assertRaisesRegex(mc.TemplateError, "no"):
            chat.render(model)
        with self.assertRaises(mc.TemplateError):
            chat.set_template("{% if %}")
        with self.assertRaises(mc.FormatError):
            mc.Chat([{"role": 3}])


class Sessions(Case):
    def setUp(self) -> None:
        super().setUp()
        self.model = mc.Model.load(CODER)

    def tearDown(self) -> None:
        del self.model
        super().tearDown()

    def test_in_pieces_a_session_has_the_bits_of_the_whole(self) -> None:
        whole, pieces = self.model.session(), self.model.session()
        ids = self.model.tokenizer.encode("fn main() { let x = 1; }")
        whole.append(ids)
        pieces.append(np.array(ids[:3]))
        pieces.append(ids[3:])
        self.assertEqual(whole.position, len(ids))
        logits = whole.logits()
        self.assertEqual((logits.shape, logits.dtype), ((self.model.vocab_size,), np.float32))
        np.testing.assert_array_equal(pieces.logits(), logits)
        logprobs = whole.score([int(logits.argmax())])
        exact = logits.astype(np.float64)
        self.assertAlmostEqual(float(logprobs[0]), float(exact.max() - np.log(np.exp(exact).sum())), places=4)
        self.assertEqual((whole.position, whole.score([]).shape), (len(ids), (0,)))
        self.assertEqual((whole.tokens(), pieces.tokens(), self.model.session().tokens()), (ids, ids, []))
        top = whole.top_logprobs(5)
        np.testing.assert_array_equal(top.tokens, np.argsort(-logits, kind="stable")[:5])
        np.testing.assert_allclose(top.logprobs, whole.score(top.tokens[:1]).tolist() + top.logprobs[1:].tolist(), atol=1e-6)
        self.assertTrue((np.diff(top.logprobs) <= 0).all())
        for count in (0, self.model.vocab_size + 1):
            with self.assertRaisesRegex(mc.InvalidArgumentError, f"count: expected 1 to 4096, found {count}"):
                whole.top_logprobs(count)

    def test_fork_truncate_save_and_load(self) -> None:
        session = self.model.session(max_context=128)
        session.set_prompt("fn main() {")
        kept = session.position
        fork = session.fork()
        answer = session.generate(max_tokens=5)
        self.assertEqual((session.position, fork.position), (kept + 5, kept))
        self.assertEqual(fork.generate(max_tokens=5).tokens, answer.tokens)
        session.truncate(kept)
        session.save(self.folder / "session")
        again = mc.Session.load(self.model, self.folder / "session")
        np.testing.assert_array_equal(again.logits(), session.logits())
        with self.assertRaises(mc.InvalidArgumentError):
            session.truncate(kept + 1)
        with self.assertRaises(mc.ContextFullError):
            session.append([5] * 128)
        self.assertEqual(session.position, kept)
        with self.assertRaises(mc.NotFoundError):
            mc.Session.load(self.model, self.folder / "nothing")

    def test_several_sessions_go_on_together_with_the_tokens_that_each_has_alone(self) -> None:
        prompts, limits = ["fn main", "let x = ", "What is a trait?"], [3, 9, 6]
        alone = [self.model.generate(prompt, max_tokens=limit, temperature=0).tokens for prompt, limit in zip(prompts, limits)]
        streams = [self.model.stream(prompt, max_tokens=limit, temperature=0) for prompt, limit in zip(prompts, limits)]
        together: list[list[int]] = [[], [], []]
        while not all(stream.closed for stream in streams):
            for tokens, token in zip(together, mc.next_tokens(streams)):
                if token is not None:
                    tokens.append(token.id)
        self.assertEqual(together, alone)
        self.assertEqual([stream.generation.tokens for stream in streams if stream.generation], alone)
        self.assertEqual(mc.next_tokens(streams), [None, None, None])
        session = self.model.session()
        session.append("fn")
        with self.assertRaisesRegex(mc.InvalidArgumentError, "twice|answer"):
            mc.next_tokens([session.stream(), session.stream()])

    def test_one_answer_at_a_time_and_leaving_one_ends_it(self) -> None:
        session = self.model.session()
        session.append("fn main")
        with session.stream(ignore_eos=True) as stream:
            next(stream)
            with self.assertRaisesRegex(mc.InvalidArgumentError, "an answer was begun, end it first"):
                next(session.stream())
            with self.assertRaises(mc.InvalidArgumentError):
                session.append("x")
        assert stream.generation is not None
        self.assertEqual((len(stream.generation.tokens), stream.generation.finish_reason), (1, mc.FinishReason.CALLBACK))
        self.assertEqual(list(stream), [])
        for token in session.stream(ignore_eos=True):
            if token.index == 2:
                break
        session.append("x")
        stream = session.stream(ignore_eos=True)
        next(stream)
        session.close()
        self.assertTrue(stream.closed and stream.generation is not None and session.closed)

    def test_an_empty_session_has_no_answer(self) -> None:
        with self.assertRaises(mc.InvalidArgumentError):
            self.model.session().generate()
        with self.assertRaises(mc.InvalidArgumentError):
            self.model.session(max_context=10**9)

    def test_an_adapter_is_set_scaled_added_and_taken_off(self) -> None:
        trainer = mc.Trainer(self.model, learning_rate=5e-3, total_steps=2)
        trainer.train(mc.Dataset.load_jsonl(FACTS))
        lora, session = trainer.adapter(), self.model.session()
        session.append("fn main")

        def logits() -> "np.ndarray[Any, Any]":
            return session.logits()

        plain = logits()
        session.set_lora(lora)
        adapted = logits()
        self.assertTrue((adapted != plain).any())
        session.set_loras([lora, lora], [0.5, 0.5])
        np.testing.assert_allclose(logits(), adapted, atol=1e-4)
        session.set_loras([lora], [0.0])
        np.testing.assert_array_equal(logits(), plain)
        session.set_loras([lora])
        self.assertGreater(session.memory, 0)
        halves = self.model.generate("a", max_tokens=2, loras=[lora, lora], lora_scales=[0.5, 0.5])
        self.assertEqual(halves.tokens, self.model.generate("a", max_tokens=2, lora=lora).tokens)
        np.testing.assert_array_equal(logits(), adapted)
        session.set_lora(None)
        np.testing.assert_array_equal(logits(), plain)
        with self.assertRaisesRegex(ValueError, "scales: expected 1"):
            session.set_loras([lora], [1.0, 2.0])
        with self.assertRaises(mc.MismatchError):
            mc.Model.load(GGUF).session().set_lora(lora)


class Conversations(Case):
    def setUp(self) -> None:
        super().setUp()
        self.talk = mc.Conversation(mc.Model.load(CODER))

    def tearDown(self) -> None:
        del self.talk
        super().tearDown()

    def test_turns_evaluate_only_what_is_new(self) -> None:
        self.assertEqual("".join(map(str, self.talk.ask(QUESTION))), ANSWER)
        position = self.talk.session.position
        second = self.talk.ask("What is the signature of `Option::map`?").read()
        self.assertEqual([message["role"] for message in self.talk.messages], ["user", "assistant"] * 2)
        self.assertGreater(second.prompt_tokens, position)

    def test_an_answer_that_is_over_can_be_closed_beside_the_next(self) -> None:
        with self.talk.ask(QUESTION) as first:
            first.read()
            second = self.talk.ask("b")
            next(second)
        # The third ends the second, which is still open.
        self.assertTrue(self.talk.ask(QUESTION).read().tokens)

    def test_messages_can_be_changed_and_answered_again(self) -> None:
        first = self.talk.ask(QUESTION).read()
        self.talk.messages.pop()
        self.assertEqual(self.talk.answer().read().text, first.text)
        self.talk.messages[:] = [{"role": "user", "content": QUESTION}]
        self.assertEqual(self.talk.answer().read().text, ANSWER)

    def test_a_stopped_answer_stays_as_far_as_it_came(self) -> None:
        stream = self.talk.ask(QUESTION)
        for token in stream:
            if token.index == 3:
                stream.cancel()
        assert stream.generation is not None
        self.assertEqual(stream.generation.finish_reason, mc.FinishReason.CANCELLED)
        self.assertEqual(self.talk.messages[-1], {"role": "assistant", "content": stream.generation.text})
        self.assertEqual(self.talk.ask(QUESTION).read().finish_reason, mc.FinishReason.EOS)

    def test_thoughts_stand_apart_from_what_was_said(self) -> None:
        template = (
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
            "<|im_start|>assistant\n<think>\n"
        )
        with tempfile.TemporaryDirectory() as folder:
            thinking = shutil.copytree(CODER, Path(folder) / "model")
            (thinking / "chat_template.jinja").write_text(template)
            talk = mc.Conversation(mc.Model.load(thinking))
        answer = talk.ask(QUESTION, temperature=2.0, seed=4, max_tokens=200, reasoning_budget=7).read()
        self.assertTrue(answer.reasoning)
        self.assertNotEqual(answer.content, answer.text)
        expected = {"role": "assistant", "content": answer.content, "reasoning_content": answer.reasoning}
        self.assertEqual(talk.messages[-1], expected)
        talk.close()

    def test_a_question_without_an_answer_is_taken_back(self) -> None:
        cancel = mc.Cancel()
        cancel.trigger()
        self.assertEqual(self.talk.ask(QUESTION, cancel=cancel).read().finish_reason, mc.FinishReason.CANCELLED)
        self.assertEqual(self.talk.messages, [])
        with self.assertRaises(mc.InvalidArgumentError):
            self.talk.ask(QUESTION, top_p=7.0).read()
        self.assertEqual(self.talk.messages, [])
        with self.assertRaises(mc.ContextFullError):
            self.talk.ask("x " * 4000).read()
        self.assertEqual(self.talk.messages, [])
        self.assertEqual(self.talk.ask(QUESTION).read().text, ANSWER)

    def test_a_new_question_ends_the_open_answer(self) -> None:
        open_answer = self.talk.ask(QUESTION)
        next(open_answer)
        self.assertEqual(self.talk.ask(QUESTION).read().finish_reason, mc.FinishReason.EOS)
        self.assertTrue(open_answer.closed)
        self.assertEqual([message["role"] for message in self.talk.messages], ["user", "assistant"] * 2)

    def test_system_tools_and_variables_reach_the_template(self) -> None:
        model, seen = mc.Model.load(CODER), []
        talk = mc.Conversation(model, "Be brief.", tools=[{"name": "clock"}], variables={"word": "x"}, max_context=512)
        talk.ask(QUESTION, max_tokens=2).read()
        seen = [dict(message) for message in talk.messages]
        self.assertEqual(seen[0], {"role": "system", "content": "Be brief."})
        options: dict[str, Any] = {"max_tokens": 1}
        self.assertEqual(len(talk.ask(QUESTION, **options).read().tokens), 1)
        talk.close()


if __name__ == "__main__":
    unittest.main()
