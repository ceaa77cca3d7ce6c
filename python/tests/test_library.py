"""Version, features, memory, the log, devices, and who frees what."""

from __future__ import annotations

import sys
import threading
import unittest
from typing import Any

import metal_candle as mc
from common import CODER, ROOT, Case


class Library(Case):
    def test_the_version_is_that_of_the_crate(self) -> None:
        manifest = (ROOT / "Cargo.toml").read_text(encoding="utf-8")
        self.assertIn(f'\nversion = "{mc.version()}"\n', manifest)
        self.assertEqual(mc.__version__, mc.version())

    def test_features_and_memory(self) -> None:
        self.assertFalse(mc.has_feature("no such feature"))
        mc.trim_memory()
        mc.trim_memory(keep_bytes=1 << 20)
        mc.set_threads(3)
        self.assertEqual(mc.threads(), 3)
        with self.assertRaisesRegex(mc.InvalidArgumentError, "threads: expected 0 to 1024, found 1025"):
            mc.set_threads(1025)
        mc.set_threads(0)

    def test_the_log_tells_that_a_model_was_loaded(self) -> None:
        lines: list[Any] = []
        mc.set_log(lambda level, target, message: lines.append((level, target, message)), mc.LogLevel.DEBUG)
        self.addCleanup(mc.set_log, None)
        mc.Model.load(CODER).close()
        self.assertTrue(any(level == mc.LogLevel.INFO and target.startswith("metal_candle") for level, target, _ in lines), lines)
        mc.set_log(None)
        count = len(lines)
        mc.Model.load(CODER).close()
        self.assertEqual(len(lines), count)

    def test_an_exception_in_the_log_is_reported_and_goes_no_further(self) -> None:
        reported: list[Any] = []
        hook, sys.unraisablehook = sys.unraisablehook, lambda report: reported.append(report.exc_type)
        try:
            mc.set_log(lambda level, target, message: 1 / 0)
            mc.Model.load(CODER).close()
        finally:
            mc.set_log(None)
            sys.unraisablehook = hook
        self.assertIn(ZeroDivisionError, reported)

    def test_the_log_is_not_changed_by_itself(self) -> None:
        errors: list[BaseException] = []

        def log(*_: object) -> None:
            try:
                mc.set_log(None)
            except mc.BusyError as error:
                errors.append(error)

        mc.set_log(log)
        mc.Model.load(CODER).close()
        mc.set_log(None)
        self.assertTrue(errors)
        del errors[:]


class Devices(Case):
    def test_the_processor_is_there(self) -> None:
        with mc.Device(mc.DeviceKind.CPU) as device:
            self.assertEqual(device.kind, mc.DeviceKind.CPU)
            self.assertTrue(device.name)
            memory = device.memory()
            self.assertTrue(0 < memory.used_bytes < memory.total_bytes)
            device.synchronize()
        self.assertEqual(mc.Device.count(mc.DeviceKind.CPU), 1)

    def test_a_device_that_is_not_there_is_an_error(self) -> None:
        with self.assertRaises(mc.NotFoundError) as caught:
            mc.Device(mc.DeviceKind.CPU, 7)
        self.assertEqual(caught.exception.status, mc.Status.ERROR_NOT_FOUND)
        self.assertIn(str(caught.exception), caught.exception.details)

    def test_a_stream_goes_on_after_a_suspension(self) -> None:
        device = mc.Device(mc.DeviceKind.CPU)
        model = mc.Model.load(CODER, device=device)
        whole = model.generate("fn main", max_tokens=8)
        stream = model.stream("fn main", max_tokens=8)
        tokens = [next(stream).id for _ in range(3)]
        device.suspend(1000)
        with self.assertRaises(mc.SuspendedError):
            next(stream)
        device.resume()
        tokens += [token.id for token in stream]
        self.assertEqual(tokens, whole.tokens[: len(tokens)])
        assert stream.generation is not None
        self.assertEqual(stream.generation.text, whole.text)


class Handles(Case):
    def test_everything_is_freed_in_any_order(self) -> None:
        model = mc.Model.load(CODER)
        tokenizer, session = model.tokenizer, model.session()
        trainer = mc.Trainer(model)
        model.close()
        session.append("fn main")
        session.close()
        self.assertEqual(tokenizer.decode(tokenizer.encode("fn main")), "fn main")
        lora = trainer.adapter()
        trainer.close()
        self.assertEqual(lora.rank, 8)
        lora.close()
        tokenizer.close()
        self.assertEqual(mc.live_objects(), 0)
        tokenizer.close()
        self.assertTrue(tokenizer.closed)

    def test_what_is_closed_cannot_be_used(self) -> None:
        with mc.Model.load(CODER) as model:
            pass
        for call in (lambda: model.architecture, lambda: model.generate("fn"), lambda: model.session()):
            with self.assertRaisesRegex(mc.InvalidArgumentError, "model: this Model is closed"):
                call()
        del call

    def test_closing_beside_a_call_lets_it_end(self) -> None:
        model = mc.Model.load(CODER)
        session = model.session()
        session.append("fn main")
        stream = session.stream(max_tokens=200, ignore_eos=True)
        next(stream)
        closer = threading.Thread(target=model.close)
        closer.start()
        self.assertEqual(len(stream.read().tokens), 200)
        closer.join()


if __name__ == "__main__":
    unittest.main()
