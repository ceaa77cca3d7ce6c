"""The libraries whose generation is compared, behind one interface: see worker.py."""

import os
import time

from worker import Peer, peak_bytes


class MetalCandle(Peer):
    decoders = ("decode_pull", "decode_push")

    exact = False

    def __init__(self, library, host, directory, threads, context, dtype="F32"):
        import c_abi

        self.abi, self.bytes_before = c_abi, peak_bytes()
        self.library = c_abi.Library(library, host)
        self.version = self.library.version_string().decode()
        # A file of quantised weights is taken as it is.
        dtype = dtype if os.path.isdir(directory) else "stored"
        start = time.perf_counter()
        self.model = c_abi.Model(self.library, directory, dtype, exact=self.exact)
        self.session = c_abi.Session(self.model, context)
        self.seconds = time.perf_counter() - start

    def load_seconds(self):
        return self.seconds

    def prefill(self, ids):
        self.session.truncate(0)
        start = time.perf_counter()
        self.session.append(ids)
        logits = self.session.logits()
        return time.perf_counter() - start, logits

    def decode_pull(self, prompt, steps):
        return self._decode(prompt, steps, "pull")

    def decode_push(self, prompt, steps):
        return self._decode(prompt, steps, "push")

    def _decode(self, prompt, steps, way):
        record = self.abi.Record(steps + 1)
        self.session.truncate(0)
        self.session.append(prompt)
        ids = self.session.generate(steps + 1, way, record)
        if ids != record.tokens():
            raise RuntimeError(f"metal-candle: the generation holds {ids}, the events were {record.tokens()}")
        return record.seconds(), ids

    def generate(self, prompt, tokens, way):
        """The whole call, nothing recorded for each token."""
        self.session.truncate(0)
        self.session.append(prompt)
        record = self.abi.Record(0)
        start = time.perf_counter()
        ids = self.session.generate(tokens, way, record)
        return time.perf_counter() - start, ids

    def close(self):
        self.session.free()
        self.model.free()
        self.library.expect_no_live_objects()


class MetalCandleExact(MetalCandle):
    """The same with quantised weights in F32."""

    exact = True


class Transformers(Peer):
    decoders = ("decode",)

    def __init__(self, directory, threads, context):
        import torch
        import transformers

        self.torch, self.bytes_before = torch, peak_bytes()
        self.version = f"{transformers.__version__}, torch {torch.__version__}"
        torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    def settings(self, method):
        return ("sdpa", "eager")

    def use(self, setting):
        self.model.set_attn_implementation(setting)

    def _step(self, ids, cache=None):
        ids = self.torch.tensor([ids])
        return self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def prefill(self, ids):
        with self.torch.inference_mode():
            start = time.perf_counter()
            logits = self._step(ids).logits[0, -1].numpy()
            return time.perf_counter() - start, logits

    def decode(self, prompt, steps):
        with self.torch.inference_mode():
            out = self._step(prompt)
            ids = [int(out.logits[0, -1].argmax())]
            start = time.perf_counter()
            for _ in range(steps):
                out = self._step(ids[-1:], out.past_key_values)
                ids.append(int(out.logits[0, -1].argmax()))
            return time.perf_counter() - start, ids


class LlamaCpp(Peer):
    decoders = ("decode",)

    def __init__(self, directory, threads, context):
        import llama_cpp
        import numpy

        self.llama, self.numpy, self.bytes_before = llama_cpp.llama_cpp, numpy, peak_bytes()
        self.version = f"llama-cpp-python {llama_cpp.__version__}"
        self.path = os.path.join(directory, "model.gguf") if os.path.isdir(directory) else str(directory)
        if not os.path.exists(self.path):
            raise FileNotFoundError(f"no {self.path}: install gguf and delete {directory}")
        self.quiet = self.llama.llama_log_callback(lambda level, text, user_data: None)
        self.llama.llama_log_set(self.quiet, None)
        self.threads, self.context = threads, context
        start = time.perf_counter()
        # Its flash attention rounds to F16 on the way: logits 1.6e-3 off, without it 1.2e-5.
        self._open(repack=True, flash=False, cache=self.llama.GGML_TYPE_F32)
        self.seconds = time.perf_counter() - start

    def load_seconds(self):
        return self.seconds

    def _open(self, repack, flash, cache):
        params = self.llama.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = repack
        self.model = self.llama.llama_model_load_from_file(self.path.encode(), params)
        self.vocab_size = self.llama.llama_vocab_n_tokens(self.llama.llama_model_get_vocab(self.model))
        params = self.llama.llama_context_default_params()
        params.n_ctx = self.context
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = self.threads
        params.type_k = params.type_v = cache
        params.flash_attn_type = self.llama.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else self.llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.handle = self.llama.llama_init_from_model(self.model, params)

    def _step(self, ids):
        """The logits after the last of `ids`: (V), valid until the next step."""
        array = (self.llama.llama_token * len(ids))(*ids)
        if self.llama.llama_decode(self.handle, self.llama.llama_batch_get_one(array, len(ids))):
            raise RuntimeError("llama_decode failed")
        return self.numpy.ctypeslib.as_array(self.llama.llama_get_logits_ith(self.handle, -1), (self.vocab_size,))

    def _clear(self):
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.handle), True)

    def prefill(self, ids):
        self._clear()
        start = time.perf_counter()
        logits = self._step(ids).copy()
        return time.perf_counter() - start, logits

    def decode(self, prompt, steps):
        self._clear()
        ids = [int(self._step(prompt).argmax())]
        start = time.perf_counter()
        for _ in range(steps):
            ids.append(int(self._step(ids[-1:]).argmax()))
        return time.perf_counter() - start, ids


class LlamaCppQuantised(LlamaCpp):
    """With what is fastest: weights repacked for the processor or as they are in the file, with flash attention or without."""

    SETTINGS = {
        f"{'repacked' if repack else 'as stored'}, {'flash' if flash else 'no flash'}": (repack, flash)
        for repack in (True, False)
        for flash in (True, False)
    }

    def settings(self, method):
        return tuple(self.SETTINGS)

    def use(self, setting):
        if getattr(self, "setting", None) != setting:
            self.llama.llama_free(self.handle)
            self.llama.llama_model_free(self.model)
            self._open(*self.SETTINGS[setting], cache=self.llama.GGML_TYPE_F16)
            self.setting = setting


PEERS = {"metal-candle": MetalCandle, "transformers": Transformers, "llama.cpp": LlamaCpp}
