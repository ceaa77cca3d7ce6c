"""asyncio, Ctrl-C and signals: who is stopped, where callbacks run, and that nothing is left over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import unittest
from collections.abc import Iterator
from typing import Any

import metal_candle as mc
from common import ANSWER, CODER, EMBED, FACTS, QUESTION, Case


class Asynchronous(Case):
    def test_an_answer_is_streamed_while_the_loop_runs(self) -> None:
        async def main() -> None:
            threads: list[Any] = []
            model = await mc.Model.load_async(CODER, progress=lambda event: threads.append(threading.current_thread()))
            self.assertEqual(set(threads), {threading.main_thread()})
            talk, ticks = mc.Conversation(model), 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    ticks += 1
                    await asyncio.sleep(0)

            beside = asyncio.create_task(tick())
            text = ""
            async for token in talk.ask(QUESTION):
                text += token.text
            beside.cancel()
            self.assertEqual(text, ANSWER)
            self.assertGreater(ticks, 3)
            self.assertEqual((await talk.answer().read_async()).finish_reason, mc.FinishReason.EOS)

        asyncio.run(main())

    def test_every_call_has_its_asynchronous_form(self) -> None:
        async def main() -> None:
            model, embedder = await asyncio.gather(mc.Model.load_async(CODER), mc.Model.load_async(EMBED))
            self.assertEqual((await embedder.embed_async(["a", "b"])).tolist(), embedder.embed(["a", "b"]).tolist())
            whole = model.generate("fn main", max_tokens=4, temperature=0)
            self.assertEqual((await model.generate_async("fn main", max_tokens=4, temperature=0)).tokens, whole.tokens)
            session = model.session()
            await session.append_async("fn main")
            self.assertEqual((await session.score_async(whole.tokens)).tolist(), session.score(whole.tokens).tolist())
            self.assertEqual((await session.generate_async(max_tokens=4, temperature=0)).tokens, whole.tokens)
            await session.set_prompt_async(mc.Chat([{"role": "user", "content": QUESTION}]))
            self.assertEqual(session.generate().text, ANSWER)
            trainer = mc.Trainer(model, total_steps=2)
            steps: list[mc.TrainEvent] = []
            await trainer.train_async(mc.Dataset.load_jsonl(FACTS), on_step=steps.append)
            self.assertEqual([event.step for event in steps], [1, 2])
            with self.assertRaises(mc.NotFoundError):
                await mc.Model.load_hub_async("nobody/nothing", offline=True, hub_cache_dir=self.folder)

        asyncio.run(main())

    def test_an_exception_in_a_callback_is_raised_by_the_call(self) -> None:
        async def main() -> None:
            with self.assertRaises(ZeroDivisionError):
                await mc.Model.load_async(CODER, progress=lambda event: 1 / 0)

        asyncio.run(main())

    def test_a_cancelled_task_stops_its_call_and_the_session_goes_on(self) -> None:
        async def main() -> None:
            model = mc.Model.load(CODER)
            talk = mc.Conversation(model)
            started = asyncio.Event()

            async def ask() -> None:
                async for _ in talk.ask(QUESTION, ignore_eos=True):
                    started.set()

            task = asyncio.create_task(ask())
            await started.wait()
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task
            self.assertEqual([message["role"] for message in talk.messages], ["user", "assistant"])
            self.assertEqual((await talk.ask(QUESTION).read_async()).finish_reason, mc.FinishReason.EOS)

            trainer, started = mc.Trainer(model, epochs=10**6), asyncio.Event()
            facts = mc.Dataset.load_jsonl(FACTS)
            task = asyncio.create_task(trainer.train_async(facts, on_step=lambda event: started.set()))
            await started.wait()
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task
            self.assertEqual(trainer.train_step([[1, 2, 3]]) > 0, True)

        asyncio.run(main())

    def test_streams_beside_each_other_have_the_tokens_that_each_has_alone(self) -> None:
        async def main() -> None:
            model = mc.Model.load(CODER)
            prompts = ["fn main", "let x", "impl", "What is a trait?"]
            together = await asyncio.gather(*(model.stream(prompt, max_tokens=8, temperature=0).read_async() for prompt in prompts))
            for prompt, answer in zip(prompts, together):
                self.assertEqual(answer.tokens, model.generate(prompt, max_tokens=8, temperature=0).tokens)

        asyncio.run(main())


class Alarm(Exception):
    pass


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """A signal whose handler raises, as that of Ctrl-C does."""

    def ring(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Signals(Case):
    def setUp(self) -> None:
        super().setUp()
        # Whoever runs this in the background may have it ignored.
        self.addCleanup(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT) or signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def test_a_signal_stops_a_training_that_would_never_end(self) -> None:
        model, facts = mc.Model.load(CODER), mc.Dataset.load_jsonl(FACTS)
        trainer = mc.Trainer(model, epochs=10**6)
        with self.assertRaises(Alarm), alarm(0.2):
            trainer.train(facts)  # no callback: the flag alone stops it
        trainer.save(self.folder / "saved")
        resumed = mc.Trainer.resume(model, self.folder / "saved")  # whose options know no flag: the callback stops it
        with self.assertRaises(Alarm), alarm(0.2):
            resumed.train(facts)
        self.assertGreaterEqual(resumed.step_count, trainer.step_count)

    def test_ctrl_c_in_a_callback_stops_the_call(self) -> None:
        def interrupt(event: object) -> None:
            self.assertIs(threading.current_thread(), threading.main_thread())
            signal.raise_signal(signal.SIGINT)

        with self.assertRaises(KeyboardInterrupt):
            mc.Model.load(CODER, progress=interrupt)
        model = mc.Model.load(CODER)
        with self.assertRaises(KeyboardInterrupt):
            model.generate("fn main", prefill_progress=interrupt)
        with self.assertRaises(KeyboardInterrupt):
            model.save(self.folder / "saved", progress=interrupt)
        self.assertFalse((self.folder / "saved").exists())

    def test_ctrl_c_between_tokens_leaves_a_conversation_that_goes_on(self) -> None:
        talk = mc.Conversation(mc.Model.load(CODER))
        with self.assertRaises(KeyboardInterrupt):
            for token in talk.ask(QUESTION, ignore_eos=True):
                if token.index == 3:
                    signal.raise_signal(signal.SIGINT)
        self.assertEqual(talk.ask(QUESTION).read().finish_reason, mc.FinishReason.EOS)
        self.assertEqual([message["role"] for message in talk.messages], ["user", "assistant"] * 2)

    def test_a_signal_stops_the_evaluation_of_a_prompt(self) -> None:
        model = mc.Model.load(CODER)
        texts = ["What is the nearest of many texts?"] * 200_000
        with self.assertRaises(Alarm), alarm(0.2):
            model.embed(texts)

    def test_a_callback_may_use_the_library(self) -> None:
        model = mc.Model.load(CODER)
        inner: list[list[int]] = []

        def nested(event: mc.ProgressEvent) -> None:
            if not inner:
                inner.append(model.generate("fn main", max_tokens=3, temperature=0).tokens)

        mc.Model.load(CODER, progress=nested).close()
        self.assertEqual(inner, [model.generate("fn main", max_tokens=3, temperature=0).tokens])

    def test_other_threads_call_for_themselves(self) -> None:
        model, cancel = mc.Model.load(CODER), mc.Cancel()
        outcomes: list[tuple[str, list[int], bool]] = []

        def work(prompt: str) -> None:
            threads = []

            def progress(event: object) -> None:
                threads.append(threading.current_thread())

            answer = model.generate(prompt, max_tokens=6, temperature=0, prefill_progress=progress, cancel=cancel)
            outcomes.append((prompt, answer.tokens, set(threads) == {threading.current_thread()}))

        workers = [threading.Thread(target=work, args=(prompt,)) for prompt in ("fn", "let", "impl")]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self.assertEqual(len(outcomes), 3)
        for prompt, tokens, at_home in outcomes:
            self.assertTrue(at_home)
            self.assertEqual(tokens, model.generate(prompt, max_tokens=6, temperature=0).tokens)
        del workers, worker


class Processes(Case):
    def run_alone(self, program: str) -> str:
        # From 3.12 on Python warns of a fork beside threads, which is what is tested.
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout

    @unittest.skipUnless(hasattr(os, "fork"), "needs fork")
    def test_a_forked_child_is_told_so_and_does_not_hang(self) -> None:
        said = self.run_alone(
            f"""
import os
import metal_candle as mc
model = mc.Model.load({str(CODER)!r})
model.generate("fn", max_tokens=1)
child = os.fork()
if child == 0:
    try:
        model.generate("fn", max_tokens=1)
    except mc.UnsupportedError as error:
        print("fork" in str(error), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
        )
        self.assertEqual(said, "True\n")

    def test_calls_work_while_the_interpreter_ends(self) -> None:
        said = self.run_alone(
            f"""
import atexit
import metal_candle as mc
model = mc.Model.load({str(CODER)!r})
atexit.register(lambda: print(len(model.generate("fn", max_tokens=2).tokens)))
"""
        )
        self.assertEqual(said, "2\n")


if __name__ == "__main__":
    unittest.main()
