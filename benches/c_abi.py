"""The part of metal_candle.h that the benchmarks call, through ctypes.

    library = Library("target/release/libmetal_candle.so", "build/bench/host.so")
    session = Session(Model(library, "models/tiny-coder"), max_context=640)
    session.append([1, 2, 3])
    ids = session.generate(max_tokens=8, way="push", record=Record(8))
    loss = Trainer(model, "adapter", 1e-3, 0.01, 1.0, checkpointing=False).step([[1, 2, 3], [4, 5]])
"""

import ctypes
import os
from array import array
from ctypes import POINTER, byref, c_bool, c_char_p, c_double, c_float, c_int32, c_size_t, c_uint32, c_void_p

DEVICES = {"cpu": 1, "metal": 2, "cuda": 3}  # mc_device_kind
DTYPES = {"stored": 0, "F32": 1, "F16": 2, "BF16": 3}  # mc_dtype
CAPABILITIES = {"generate": 1, "embed": 2}  # mc_capability

ids_p, floats_p, texts_p, handle_p = POINTER(c_uint32), POINTER(c_float), POINTER(c_char_p), POINTER(c_void_p)

# name: (result, arguments); functions that can fail return mc_status and end with err.
FUNCTIONS = {
    "mc_version_string": (c_char_p, []),
    "mc_live_objects": (c_size_t, []),
    "mc_error_message": (c_char_p, [c_void_p]),
    "mc_error_details": (c_char_p, [c_void_p]),
    "mc_error_free": (None, [c_void_p]),
    "mc_status_name": (c_char_p, [c_int32]),
    "mc_device_new": (c_int32, [c_int32, c_size_t, handle_p, handle_p]),
    "mc_device_free": (None, [c_void_p]),
    "mc_model_options_new": (c_void_p, []),
    "mc_model_options_set_device": (None, [c_void_p, c_void_p]),
    "mc_model_options_set_dtype": (None, [c_void_p, c_int32]),
    "mc_model_options_set_exact": (None, [c_void_p, c_bool]),
    "mc_model_options_set_tokenizer_path": (None, [c_void_p, c_char_p]),
    "mc_model_options_set_quantization": (None, [c_void_p, c_char_p]),
    "mc_model_options_free": (None, [c_void_p]),
    "mc_model_load": (c_int32, [c_char_p, c_void_p, handle_p, handle_p]),
    "mc_model_vocab_size": (c_size_t, [c_void_p]),
    "mc_model_backend_json": (c_int32, [c_void_p, handle_p, handle_p]),
    "mc_string_data": (c_char_p, [c_void_p]),
    "mc_string_free": (None, [c_void_p]),
    "mc_model_supports": (c_bool, [c_void_p, c_int32]),
    "mc_model_save_gguf": (c_int32, [c_void_p, c_char_p, c_char_p, c_void_p, c_void_p, handle_p]),
    "mc_model_save": (c_int32, [c_void_p, c_char_p, c_char_p, c_void_p, c_void_p, handle_p]),
    "mc_model_tokenizer": (c_int32, [c_void_p, handle_p, handle_p]),
    "mc_model_free": (None, [c_void_p]),
    "mc_tokenizer_encode": (c_int32, [c_void_p, c_char_p, c_size_t, c_bool, handle_p, handle_p]),
    "mc_tokenizer_free": (None, [c_void_p]),
    "mc_tokens_data": (ids_p, [c_void_p]),
    "mc_tokens_len": (c_size_t, [c_void_p]),
    "mc_tokens_free": (None, [c_void_p]),
    "mc_generate_options_new": (c_void_p, []),
    "mc_generate_options_set_max_tokens": (None, [c_void_p, c_size_t]),
    "mc_generate_options_set_temperature": (None, [c_void_p, c_double]),
    "mc_generate_options_set_ignore_eos": (None, [c_void_p, c_bool]),
    "mc_generate_options_free": (None, [c_void_p]),
    "mc_generation_tokens": (ids_p, [c_void_p]),
    "mc_generation_tokens_len": (c_size_t, [c_void_p]),
    "mc_generation_free": (None, [c_void_p]),
    "mc_session_new": (c_int32, [c_void_p, c_size_t, handle_p, handle_p]),
    "mc_session_append_tokens": (c_int32, [c_void_p, ids_p, c_size_t, c_void_p, handle_p]),
    "mc_session_logits": (c_int32, [c_void_p, floats_p, c_size_t, handle_p]),
    "mc_session_truncate": (c_int32, [c_void_p, c_size_t, handle_p]),
    "mc_session_generate_stream": (c_int32, [c_void_p, c_void_p, c_void_p, c_void_p, handle_p, handle_p]),
    "mc_session_begin": (c_int32, [c_void_p, c_void_p, handle_p]),
    "mc_session_next": (c_int32, [c_void_p, handle_p, handle_p]),
    "mc_session_end": (c_int32, [c_void_p, handle_p, handle_p]),
    "mc_session_set_lora": (c_int32, [c_void_p, c_void_p, c_float, handle_p]),
    "mc_sessions_next": (c_int32, [handle_p, c_size_t, handle_p, POINTER(c_int32), handle_p]),
    "mc_session_free": (None, [c_void_p]),
    "mc_lora_load": (c_int32, [c_void_p, c_char_p, handle_p, handle_p]),
    "mc_model_merge": (c_int32, [c_void_p, c_void_p, c_float, handle_p, handle_p]),
    "mc_lora_free": (None, [c_void_p]),
    "mc_lora_config_new": (c_void_p, []),
    "mc_lora_config_set_initial": (None, [c_void_p, c_void_p]),
    "mc_lora_config_free": (None, [c_void_p]),
    "mc_train_options_new": (c_void_p, []),
    "mc_train_options_set_learning_rate": (None, [c_void_p, c_double]),
    "mc_train_options_set_weight_decay": (None, [c_void_p, c_double]),
    "mc_train_options_set_grad_clip": (None, [c_void_p, c_double]),
    "mc_train_options_set_gradient_checkpointing": (None, [c_void_p, c_bool]),
    "mc_train_options_free": (None, [c_void_p]),
    "mc_lora_trainer_new": (c_int32, [c_void_p, c_void_p, c_void_p, handle_p, handle_p]),
    "mc_lora_trainer_train_step": (c_int32, [c_void_p, ids_p, c_char_p, POINTER(c_size_t), c_size_t, floats_p, handle_p]),
    "mc_lora_trainer_free": (None, [c_void_p]),
    "mc_model_embed_dim": (c_size_t, [c_void_p, c_void_p]),
    "mc_embed": (c_int32, [c_void_p, c_char_p, c_size_t, c_void_p, floats_p, c_size_t, handle_p]),
    "mc_embed_batch": (c_int32, [c_void_p, texts_p, POINTER(c_size_t), c_size_t, c_void_p, floats_p, c_size_t, handle_p]),
}


def zeros(count):
    """Floats for the library to fill. Not numpy's: its memory would count as ours."""
    return array("f", bytes(4 * count))


def address(floats):
    return (c_float * len(floats)).from_buffer(floats)


class Library:
    """`path`: the shared library; `host`: host.c, compiled, for answers that are pulled or pushed. Functions are attributes without their
    `mc_`."""

    def __init__(self, path, host=None):
        library = ctypes.CDLL(os.fspath(path))
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(library, name, None)
            if function is None:  # an older build, which is asked for nothing newer
                continue
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("mc_"), self._checked(function) if result is c_int32 else function)
        if host is None:
            return
        host = ctypes.CDLL(os.fspath(host))
        host.keep_pulled.argtypes = [c_void_p, c_void_p, POINTER(Record), handle_p]
        self.keep_pulled = self._checked(host.keep_pulled)
        self.keep_pushed = ctypes.cast(host.keep_pushed, c_void_p)
        self.next_address = ctypes.cast(library.mc_session_next, c_void_p)

    def _checked(self, function):
        """`function` without its `err`; a status other than MC_OK raises."""

        def call(*arguments):
            error = c_void_p()
            status = function(*arguments, byref(error))
            if status == 0:
                return
            text = f"{function.__name__}: {self.status_name(status).decode()}"
            if error:
                text += f": {self.error_message(error).decode()}\n{self.error_details(error).decode()}"
                self.error_free(error)
            raise RuntimeError(text)

        return call

    def expect_no_live_objects(self):
        if live := self.live_objects():
            raise RuntimeError(f"metal-candle: expected no live objects at the end, found {live}")


class Record(ctypes.Structure):
    """The `record` of host.c; `capacity` 0 only counts."""

    _fields_ = [("token", ids_p), ("time", POINTER(c_double)), ("capacity", c_size_t), ("count", c_size_t)]

    def __init__(self, capacity):
        super().__init__((c_uint32 * capacity)(), (c_double * capacity)(), capacity, 0)

    def tokens(self):
        return self.token[: self.count]

    def seconds(self):
        """From the first token to the last."""
        return self.time[self.count - 1] - self.time[0]


class Model:
    def __init__(self, library, path, dtype="F32", device="cpu", exact=False, quantization=None, tokenizer=None):
        self.library, self.handle = library, c_void_p()
        computing, options = c_void_p(), library.model_options_new()
        library.device_new(DEVICES[device], 0, byref(computing))
        library.model_options_set_device(options, computing)
        library.model_options_set_dtype(options, DTYPES[dtype])
        if exact:
            library.model_options_set_exact(options, exact)
        if tokenizer:
            library.model_options_set_tokenizer_path(options, os.fsencode(tokenizer))
        if quantization:
            library.model_options_set_quantization(options, quantization.encode())
        library.model_load(os.fsencode(path), options, byref(self.handle))
        library.model_options_free(options)
        library.device_free(computing)
        self.vocab_size = library.model_vocab_size(self.handle)

    def supports(self, capability):
        return self.library.model_supports(self.handle, CAPABILITIES[capability])

    def backend(self):
        """What computes which part, as JSON."""
        out = c_void_p()
        self.library.model_backend_json(self.handle, byref(out))
        text = self.library.string_data(out).decode()
        self.library.string_free(out)
        return text

    def merge(self, lora):
        """Becomes the model that it and an adapter's directory are together."""
        adapter, merged = c_void_p(), c_void_p()
        self.library.lora_load(self.handle, os.fsencode(lora), byref(adapter))
        self.library.model_merge(self.handle, adapter, 1, byref(merged))
        self.library.lora_free(adapter)
        self.free()
        self.handle = merged

    def save(self, directory, format=None):
        self.library.model_save(self.handle, os.fsencode(directory), format and format.encode(), None, None)

    def save_gguf(self, path, format=None):
        self.library.model_save_gguf(self.handle, os.fsencode(path), format and format.encode(), None, None)

    def encode(self, text):
        """The ids of a text, with the special tokens around it."""
        text, tokenizer, tokens = text.encode(), c_void_p(), c_void_p()
        self.library.model_tokenizer(self.handle, byref(tokenizer))
        self.library.tokenizer_encode(tokenizer, text, len(text), True, byref(tokens))
        ids = self.library.tokens_data(tokens)[: self.library.tokens_len(tokens)]
        self.library.tokens_free(tokens)
        self.library.tokenizer_free(tokenizer)
        return ids

    def embed(self, text):
        """(dim)."""
        text, out = text.encode(), zeros(self.library.model_embed_dim(self.handle, None))
        self.library.embed(self.handle, text, len(text), None, address(out), len(out))
        return out

    def embed_batch(self, texts):
        """(texts, dim), row by row."""
        texts, count = [text.encode() for text in texts], len(texts)
        out = zeros(count * self.library.model_embed_dim(self.handle, None))
        pointers, lengths = (c_char_p * count)(*texts), (c_size_t * count)(*map(len, texts))
        self.library.embed_batch(self.handle, pointers, lengths, count, None, address(out), len(out))
        return out

    def free(self):
        self.library.model_free(self.handle)


class Session:
    def __init__(self, model, max_context):
        self.model, self.library, self.vocab_size, self.handle = model, model.library, model.vocab_size, c_void_p()
        self.library.session_new(model.handle, max_context, byref(self.handle))

    def append(self, ids):
        self.library.session_append_tokens(self.handle, (c_uint32 * len(ids))(*ids), len(ids), None)

    def truncate(self, position):
        self.library.session_truncate(self.handle, position)

    def logits(self):
        """After the last token: (V)."""
        out = zeros(self.vocab_size)
        self.library.session_logits(self.handle, address(out), len(out))
        return out

    def generate(self, max_tokens, way, record):
        """Greedy, past any end token. `way`: "pull" with begin, next, end; "push" to a C callback; "silent", no callback."""
        library, generation, options = self.library, c_void_p(), self.library.generate_options_new()
        library.generate_options_set_max_tokens(options, max_tokens)
        library.generate_options_set_temperature(options, 0)
        library.generate_options_set_ignore_eos(options, True)
        if way == "pull":
            library.session_begin(self.handle, options)
            library.keep_pulled(library.next_address, self.handle, byref(record))
            library.session_end(self.handle, byref(generation))
        else:
            callback = library.keep_pushed if way == "push" else None
            library.session_generate_stream(self.handle, options, callback, record and byref(record), byref(generation))
        ids = library.generation_tokens(generation)[: library.generation_tokens_len(generation)]
        library.generation_free(generation)
        library.generate_options_free(options)
        return ids

    def set_lora(self, lora):
        """`lora`: a directory, or None."""
        handle = c_void_p()
        if lora:
            self.library.lora_load(self.model.handle, os.fsencode(lora), byref(handle))
        self.library.session_set_lora(self.handle, handle, 1)
        self.library.lora_free(handle)

    def begin(self, max_tokens):
        """A greedy answer, past any end token."""
        options = self.library.generate_options_new()
        self.library.generate_options_set_max_tokens(options, max_tokens)
        self.library.generate_options_set_temperature(options, 0)
        self.library.generate_options_set_ignore_eos(options, True)
        self.library.session_begin(self.handle, options)
        self.library.generate_options_free(options)

    def end(self):
        """The tokens of the answer."""
        generation = c_void_p()
        self.library.session_end(self.handle, byref(generation))
        ids = self.library.generation_tokens(generation)[: self.library.generation_tokens_len(generation)]
        self.library.generation_free(generation)
        return ids

    def free(self):
        self.library.session_free(self.handle)


def next_of(sessions):
    """One token of each of several answers."""
    count = len(sessions)
    handles, events = (c_void_p * count)(*(session.handle for session in sessions)), (c_void_p * count)()
    sessions[0].library.sessions_next(handles, count, events, (c_int32 * count)())


class Trainer:
    """Trains an adapter with AdamW at a constant rate. `adapter`: a directory to begin with; None = a fresh one of rank 8."""

    def __init__(self, model, adapter, learning_rate, weight_decay, grad_clip, checkpointing):
        library, self.handle, lora = model.library, c_void_p(), c_void_p()
        self.library = library
        config, options = library.lora_config_new(), library.train_options_new()
        if adapter:
            library.lora_load(model.handle, os.fsencode(adapter), byref(lora))
            library.lora_config_set_initial(config, lora)
        library.train_options_set_learning_rate(options, learning_rate)
        library.train_options_set_weight_decay(options, weight_decay)
        library.train_options_set_grad_clip(options, grad_clip)
        library.train_options_set_gradient_checkpointing(options, checkpointing)
        library.lora_trainer_new(model.handle, config, options, byref(self.handle))
        library.train_options_free(options)
        library.lora_config_free(config)
        library.lora_free(lora)

    def step(self, batch):
        """The mean loss of all tokens of the sequences but each first, before the step."""
        ids, offsets, loss = [id for sequence in batch for id in sequence], [0], c_float()
        for sequence in batch:
            offsets.append(offsets[-1] + len(sequence))
        ids, offsets = (c_uint32 * len(ids))(*ids), (c_size_t * len(offsets))(*offsets)
        self.library.lora_trainer_train_step(self.handle, ids, None, offsets, len(batch), byref(loss))
        return loss.value

    def free(self):
        self.library.lora_trainer_free(self.handle)
