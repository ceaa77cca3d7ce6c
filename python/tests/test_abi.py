"""The binding covers the C ABI as the header and the list of symbols say it."""

from __future__ import annotations

import ctypes
import re
import sys
import unittest
from pathlib import Path
from typing import Any

import metal_candle as mc
from common import CODER, FACTS, ROOT, Case
from metal_candle import _abi, _native
from metal_candle._native import Function

sys.path.insert(0, str(ROOT / "python"))
import declarations

SOURCES = "".join(path.read_text(encoding="utf-8") for path in sorted(Path(mc.__file__).parent.glob("*.py")) if path.name != "_abi.py")

CALLBACKS = (_abi.LogFn, _abi.DestroyFn, _abi.ProgressFn, _abi.TokenFn, _abi.TrainFn)

# What Python does in another way.
UNUSED = {
    "mc_embed",  # a batch of one
    "mc_error_code",  # the status came with the error
    "mc_generate_stream",  # a session is asked for one token after another
    "mc_lora_retain",  # Python counts references
    "mc_model_retain",
    "mc_version_number",  # as mc_version_string
    # Names of ABI 1.
    "mc_chat_encode",
    "mc_chat_render",
    "mc_device_get_kind",
    "mc_embed_dim",
    "mc_embed_similarity",
    "mc_lora_estimate_memory",
    "mc_lora_eval_step",
    "mc_lora_merge",
    "mc_lora_train",
    "mc_lora_train_step",
    "mc_model_get_dtype",
}

# Setters of several values, and the options that they are.
TOGETHER = {
    "mc_generate_options_set_lora": {"lora", "lora_scale"},
    "mc_generate_options_set_loras": {"loras", "lora_scales"},
    "mc_embed_options_set_loras": {"loras", "lora_scales"},
    "mc_generate_options_set_repetition_penalty": {"repetition_penalty", "repetition_last_n"},
    "mc_embed_options_set_lora": {"lora", "lora_scale"},
    "mc_train_options_set_schedule": {"schedule", "warmup_steps", "total_steps"},
    "mc_train_options_set_checkpoint": {"checkpoint_dir", "checkpoint_every"},
}

# What is a parameter of the calls instead of an option.
PARAMETERS = {"cancel", "progress", "prefill_progress", "add_special"}

OPTIONS: dict[str, Any] = {
    "mc_model_options": mc.LoadOptions,
    "mc_generate_options": mc.GenerateOptions,
    "mc_embed_options": mc.EmbedOptions,
    "mc_rerank_options": mc.RerankOptions,
    "mc_train_options": mc.TrainOptions,
    "mc_lora_config": mc.LoraConfig,
}


def header() -> dict[str, tuple[str, str]]:
    """Of each function of the header its result and its parameters; read in another way than declarations.py does."""
    text = (ROOT / "include" / "metal_candle.h").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("/*", "*", "#"))]
    code = re.sub(r"\bMC_(NULLABLE|NONNULL|NODISCARD)\b", "", " ".join(lines))
    functions = (re.fullmatch(r"\s*([\w *]+?)(mc_\w+)\(([^()]*)\)", statement) for statement in code.split(";"))
    return {found[2]: (found[1], found[3]) for found in functions if found}


def kind(c: str) -> str:
    """The class of machine value that a C type is."""
    words = c.replace("const", "").split()
    if "*" in c or words[0].endswith("_fn"):
        return "pointer"
    return {"size_t": "word", "uint64_t": "word", "int64_t": "word"}.get(words[0], words[0])


def kind_of(ctype: Any) -> str:
    if ctype in (ctypes.c_void_p, ctypes.c_char_p) or ctype in CALLBACKS:
        return "pointer"
    names = {ctypes.c_bool: "bool", ctypes.c_float: "float", ctypes.c_double: "double", ctypes.c_uint32: "uint32_t", ctypes.c_int: "int"}
    return names.get(ctype, "word" if ctypes.sizeof(ctype) == 8 else "other")


class Abi(Case):
    def test_every_function_is_bound_with_the_parameters_of_the_header(self) -> None:
        functions = header()
        symbols = (ROOT / "abi" / "symbols.txt").read_text(encoding="utf-8").split()
        self.assertGreater(len(symbols), 200)
        self.assertEqual(sorted(_native._functions), sorted(symbols))
        for name in symbols:
            declared, arguments = functions[name]
            bound: Function = _native._functions[name]
            parameters: list[str] = [] if arguments.strip() == "void" else arguments.split(",")
            wanted = [kind(parameter) for parameter in parameters]
            wanted = ["int" if want.startswith("mc_") else want for want in wanted]
            self.assertEqual([kind_of(ctype) for ctype in bound.pointer.argtypes], wanted, name)
            result = kind(declared)
            restype = bound.pointer.restype
            self.assertEqual("void" if restype is None else kind_of(restype), "int" if result.startswith("mc_") else result, name)

    def test_every_function_is_used(self) -> None:
        used: set[str] = set(re.findall(r'"(mc_\w+)"', SOURCES))
        used |= {f"{kind}_free" for kind in _abi.HANDLES} | {f"{kind}_new" for kind in (*OPTIONS, "mc_cancel", "mc_chat", "mc_dataset")}
        used |= {"mc_generate_options_add_stop", "mc_generate_options_add_logit_bias", "mc_lora_config_add_target"}
        for builder in OPTIONS:
            used |= {name for name in _abi.FUNCTIONS if name.startswith(f"{builder}_set_")}  # the next test looks at them
        self.assertEqual(set(_abi.FUNCTIONS) - used, UNUSED)

    def test_every_setter_is_an_option_and_every_option_is_one(self) -> None:
        for builder, options in OPTIONS.items():
            names = {"stop", "logit_bias"} if builder == "mc_generate_options" else {"targets"} if builder == "mc_lora_config" else set()
            for setter in _abi.FUNCTIONS:
                name = setter.partition(f"{builder}_set_")[2]
                if name and name not in PARAMETERS:
                    names |= TOGETHER.get(setter, {name})
            self.assertEqual(set(options.__annotations__), names, builder)

    def test_every_error_has_a_class(self) -> None:
        classes = {kind.status: kind for kind in mc.Error.__subclasses__()}
        self.assertEqual(set(classes), {status for status in mc.Status if status >= 16})
        for status, kind in classes.items():
            words = status.name.lower().split("_")[1:]
            self.assertEqual(kind.__name__, "".join(word.capitalize() for word in words) + "Error")
            self.assertIs(getattr(mc, kind.__name__), kind)

    def test_events_have_the_layout_that_the_library_has(self) -> None:
        sizes: dict[Any, int] = {}

        def remember(event: Any) -> int:
            sizes[type(event)] = event.struct_size
            return _abi.CONTINUE

        model = mc.Model.load(CODER)
        progress = _abi.ProgressFn(lambda _, event: remember(event.contents))
        with _native.Options("mc_generate_options", {"max_tokens": 1}) as options:
            _native.get("mc_generate_options_set_prefill_progress", options, progress, None)
            token = _abi.TokenFn(lambda _, event: remember(event.contents))
            _native.check("mc_generate_stream", model, "fn", options, token, None, None)
        trainer, dataset = mc.Trainer(model, total_steps=1), mc.Dataset.load_jsonl(FACTS)
        step = _abi.TrainFn(lambda _, event: remember(event.contents))
        _native.check("mc_lora_trainer_train", trainer, dataset, None, step, None)
        self.assertEqual(sizes, {struct: ctypes.sizeof(struct) for struct in (_abi._ProgressEvent, _abi._TokenEvent, _abi._TrainEvent)})

    def test_the_generated_module_is_that_of_the_header(self) -> None:
        text = declarations.Header(declarations.HEADER.read_text(encoding="utf-8")).module()
        self.assertEqual(Path(_abi.__file__).read_text(encoding="utf-8"), text, "the package is older than the header: build it again")

    def test_numbers_outside_a_type_are_errors_that_name_the_field(self) -> None:
        cases: list[tuple[Any, str]] = [
            ({"max_tokens": -1}, f"max_tokens: expected 0 to {2**64 - 1}, found -1"),
            ({"top_k": 2**64}, f"top_k: expected 0 to {2**64 - 1}, found {2**64}"),
            ({"logit_bias": {-2: 1.0}}, f"token: expected 0 to {2**32 - 1}, found -2"),
        ]
        for options, text in cases:
            with self.assertRaisesRegex(mc.InvalidArgumentError, f"^{text}$"):
                mc.Model.load(CODER).generate("fn", **options)

    def test_values_of_another_type_are_errors_that_name_the_field(self) -> None:
        model = mc.Model.load(CODER)
        cases: list[tuple[Any, Any, str]] = [
            (3, {}, "prompt: expected str, found int"),
            ("fn", {"temperature": "1"}, "temperature: expected a number, found str"),
            ("fn", {"ignore_eos": 1}, "ignore_eos: expected bool, found int"),
            ("fn", {"lora": model}, "lora: expected Lora, found Model"),
            ("fn", {"loras": [model]}, r"loras\[0\]: expected Lora, found Model"),
            ("fn", {"stop": 3}, "stop: expected str or a sequence of them, found int"),
            ("fn", {"stop": ["a", 3]}, r"stop\[1\]: expected str, found int"),
            ("fn", {"warp": 9}, "unknown option 'warp' of GenerateOptions; it has .*max_tokens.*"),
            ("fn", {"temprature": 1}, "unknown option 'temprature' of GenerateOptions; is 'temperature' meant[?]"),
        ]
        for prompt, options, text in cases:
            with self.assertRaisesRegex(TypeError, f"^{text}$"):
                model.generate(prompt, **options)
        with self.assertRaisesRegex(TypeError, "^unknown option 'quant' of LoadOptions; is 'quantization' meant[?]$"):
            mc.Model.load(CODER, quant="q8_0")  # type: ignore[call-arg]
        del cases, options
        with self.assertRaisesRegex(TypeError, r"^texts\[1\]: expected str, found int$"):
            model.embed(["a", 3])  # type: ignore[list-item]
        with self.assertRaisesRegex(TypeError, "^kind: expected one of .*DeviceKind.CPU, .*, found 'cuda'$"):
            mc.Device("cuda")  # type: ignore[arg-type]
        with self.assertRaisesRegex(TypeError, "^dtype: expected one of .*Dtype.F16.*, found 'f16'$"):
            mc.Model.load(CODER, dtype="f16")  # type: ignore[arg-type]
        with self.assertRaisesRegex(mc.InvalidArgumentError, "path: expected text without NUL, found one at byte 1"):
            mc.Model.load("a\0b")


if __name__ == "__main__":
    unittest.main()
