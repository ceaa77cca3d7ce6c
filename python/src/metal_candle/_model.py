"""Models: loading, what they are, stateless generation, embeddings, saving."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional, TypedDict, Union

import numpy as np
from numpy.typing import NDArray

from ._abi import Capability, Dtype, Pooling, ScoreActivation, Similarity
from ._calls import Cancel, Progress, progress_callback, run, run_async
from ._library import Device
from ._lora import Lora, lora_arrays
from ._native import Handle, Options, check, encoded, floats, get, ids_of, known, made, make, string_of, text, texts_of
from ._session import GenerateOptions, Generation, Session, Stream, generate_options
from ._text import Path, Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LoadOptions(TypedDict, total=False):
    """How to load a model. What is not there, or None, is the default."""

    device: Optional[Device]
    """Where the model runs. Default: the best device."""
    dtype: Optional[Dtype]
    """The type that weights are kept in. Default: as stored."""
    tokenizer_path: Optional[Path]
    """A tokenizer.json, a directory with one, or a .gguf file. Default: the model's."""
    quantization: Optional[str]
    """What weights are quantised to while loading: "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "iq4_nl" or "mlx4", of
    8.5 to 4.5 bits a weight. Default: as stored."""
    exact: Optional[bool]
    """Computes in F32 with quantised weights on the CPU, two to four times as slow. Default: False."""
    kv_cache: Optional[str]
    """What sessions keep the KV cache in: "f32" (the default), "f16" or, on the CPU, "q8_0"."""
    max_context: Optional[int]
    """The longest context of sessions, in tokens; 0 (the default) = what the configuration says."""
    file: Optional[str]
    """Which GGUF file is loaded of a directory or a repository that has several."""
    hub_revision: Optional[str]
    """A branch, tag or commit of a repository. Default: "main"."""
    hub_cache_dir: Optional[Path]
    """Where downloads are kept. Default: Hugging Face's own cache, in the home directory."""
    hub_token: Optional[str]
    """The access token for private and gated repositories. Default: none."""
    offline: Optional[bool]
    """Whether to do with what was downloaded before. Default: False."""
    json: Optional[str]
    """Options as JSON, by the names that mc_model_options_set_json() tells; they count more than those beside it."""


class EmbedOptions(TypedDict, total=False):
    """How to embed. What is not there, or None, is as the model's directory says."""

    pooling: Optional[Pooling]
    """How the vectors of a text's tokens become one."""
    normalize: Optional[bool]
    """Whether vectors have length 1."""
    dimensions: Optional[int]
    """Keeps the first values of each vector only (Matryoshka); 0 (the default) = all."""
    max_length: Optional[int]
    """How many tokens of a long text count; 0 (the default) = the model's own limit."""
    batch_size: Optional[int]
    """The most texts that go through the network together, on each thread; 0 (the default) = as many as are fastest."""
    prompt_name: Optional[str]
    """The model's own prompt that is put in front of every text: "query", "document", …"""
    prefix: Optional[str]
    """A text that is put in front of every text; "" = not even the model's default prompt."""
    lora: Optional[Lora]
    """An adapter for the vectors."""
    lora_scale: float
    """A factor for its changes. Default: 1."""
    loras: Optional[Sequence[Lora]]
    """Several adapters at once, in place of `lora`: their changes add up."""
    lora_scales: Optional[Sequence[float]]
    """A factor for each of them. Default: 1."""
    json: Optional[str]
    """Options as JSON, by the names that mc_embed_options_set_json() tells; they count more than those beside it."""


class RerankOptions(TypedDict, total=False):
    """How to rerank. What is not there, or None, is as the model's directory says."""

    activation: Optional[ScoreActivation]
    """What becomes of each logit."""
    max_length: Optional[int]
    """How many tokens of a query and a document count; 0 (the default) = the model's own limit."""
    batch_size: Optional[int]
    """The most pairs that go through the network together, on each thread; 0 (the default) = as many as are fastest."""
    prompt_name: Optional[str]
    """The model's own prompt that is put in front of the query, or is the system message."""
    prompt: Optional[str]
    """A text in its place, "" = none; for a Qwen3-Reranker without a template for pairs its instruction."""
    json: Optional[str]
    """Options as JSON, by the names that mc_rerank_options_set_json() tells; they count more than those beside it."""


def load_options(options: Mapping[str, Any], flag: Optional[Cancel]) -> Options:
    return Options("mc_model_options", {"cancel": flag, **known(options, LoadOptions)}).finished()


def embed_options(options: Mapping[str, Any], flag: Optional[Cancel]) -> Options:
    values = {"cancel": flag, **known(options, EmbedOptions)}
    if values.get("prompt_name") is not None and values.get("prefix") is not None:
        raise ValueError("prompt_name and prefix: expected one of them, found both")
    together = {
        "lora": (values.pop("lora", None), values.pop("lora_scale", 1.0)),
        "loras": lora_arrays(values.pop("loras", None), values.pop("lora_scales", None)),
    }
    return Options("mc_embed_options", values, together).finished()


def rerank_options(options: Mapping[str, Any], flag: Optional[Cancel]) -> Options:
    values = {"cancel": flag, **known(options, RerankOptions)}
    if values.get("prompt_name") is not None and values.get("prompt") is not None:
        raise ValueError("prompt_name and prompt: expected one of them, found both")
    return Options("mc_rerank_options", values).finished()


def architectures() -> list[str]:
    """The architectures that this build knows, as `model_type` of config.json has them, in alphabetical order."""
    names: list[str] = json.loads(string_of(made("mc_string", "mc_architectures_json")))
    return names


class Nearest(NamedTuple):
    """For each query the nearest documents, the nearest first."""

    indices: NDArray[np.intp]
    """Numbers of documents, of shape (queries, k), or (k,) for one query."""
    scores: NDArray[np.float32]
    """Their similarities, of the same shape; more is nearer."""


def nearest(queries: NDArray[np.float32], documents: NDArray[np.float32], k: int, similarity: Similarity = Similarity.COSINE) -> Nearest:
    """The `k` nearest of many vectors, from 1 to all; of equally near ones the earlier. Every document is compared, on all threads.

    `queries` has the shape (queries, dim), or (dim,) for one, `documents` (documents, dim). Raises `InvalidArgumentError`.
    """
    rows, columns = np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(documents, np.float32)
    if rows.ndim not in (1, 2) or columns.ndim != 2 or rows.shape[-1] != columns.shape[1]:
        raise ValueError(f"expected queries (queries, dim) and documents (documents, dim), found {rows.shape} and {columns.shape}")
    many = rows.reshape(-1, columns.shape[1])
    indices, scores = np.empty((len(many), k), np.uintp), np.empty((len(many), k), np.float32)
    shape, place = columns.shape, ctypes.c_void_p(indices.ctypes.data)
    arguments = (floats(many), len(many), floats(columns), *shape, k, place, floats(scores))
    check("mc_similarity_top_k", similarity, *arguments)
    shape = (*rows.shape[:-1], k)
    return Nearest(indices.astype(np.intp).reshape(shape), scores.reshape(shape))


class Model(Handle):
    """A loaded model: network, tokenizer, chat template and generation defaults. Immutable; any number of sessions on any threads
    share it.

        with Model.load("models/tiny-coder") as model:
            for token in model.stream("fn main", max_tokens=32):
                print(token, end="", flush=True)
    """

    _kind = "mc_model"

    @classmethod
    def _load(cls, function: str, name: Path, progress: Optional[Progress], options: Mapping[str, Any]) -> Callable[[Cancel], Model]:
        def call(flag: Cancel) -> Model:
            callback = progress_callback(progress)
            with load_options(options, flag) as built:
                get("mc_model_options_set_progress", built, callback.pointer, None)
                status, reference = make("mc_model", function, name, built)
            callback.finish(status, f"loading {name}")
            assert reference is not None
            return cls._of(reference)

        return call

    @classmethod
    def load(
        cls, path: Path, *, progress: Optional[Progress] = None, cancel: Optional[Cancel] = None, **options: Unpack[LoadOptions]
    ) -> Model:
        """Loads a model from this machine: a directory with config.json, safetensors and tokenizer.json, or a .gguf file.

        Raises `Cancelled`; `NotFoundError`, `IoError` or `FormatError` for a file; `UnsupportedError` for an architecture or setting;
        `OutOfMemoryError`, `DeviceError`, `SuspendedError`.
        """
        return run(cls._load("mc_model_load", path, progress, options), cancel)

    @classmethod
    async def load_async(
        cls, path: Path, *, progress: Optional[Progress] = None, cancel: Optional[Cancel] = None, **options: Unpack[LoadOptions]
    ) -> Model:
        """As `load()`; `progress` runs in the event loop."""
        return await run_async(cls._load("mc_model_load", path, progress, options), cancel)

    @classmethod
    def load_hub(
        cls, repo_id: str, *, progress: Optional[Progress] = None, cancel: Optional[Cancel] = None, **options: Unpack[LoadOptions]
    ) -> Model:
        """Loads a model of Hugging Face, "owner/name": downloads the files that are not in the cache, then does as `load()`.

        Raises as `load()`; `NetworkError` if a download fails; `NotFoundError` if there is no such repository, revision or file.
        """
        return run(cls._load("mc_model_load_hub", repo_id, progress, options), cancel)

    @classmethod
    async def load_hub_async(
        cls, repo_id: str, *, progress: Optional[Progress] = None, cancel: Optional[Cancel] = None, **options: Unpack[LoadOptions]
    ) -> Model:
        """As `load_hub()`; `progress` runs in the event loop."""
        return await run_async(cls._load("mc_model_load_hub", repo_id, progress, options), cancel)

    @staticmethod
    def estimate_memory(path: Path, **options: Unpack[LoadOptions]) -> int:
        """The bytes that a model takes, without loading it: weights, the KV cache of the whole context, and the workspace.

        Raises `NotFoundError`, `IoError`, `FormatError`, `UnsupportedError`.
        """
        size = ctypes.c_uint64()
        with load_options(options, None) as built:
            check("mc_model_estimate_memory", path, built, ctypes.byref(size))
        return size.value

    def _save(self, name: str, path: Path, format: Optional[str], progress: Optional[Progress]) -> Callable[[Cancel], None]:
        def call(flag: Cancel) -> None:
            callback = progress_callback(progress, flag)
            callback.finish(check(name, self, path, format, callback.pointer, None), f"saving {path}")

        return call

    def save(
        self, directory: Path, *, format: Optional[str] = None, progress: Optional[Progress] = None, cancel: Optional[Cancel] = None
    ) -> None:
        """Writes the model as a directory in the layout of the Hub, which this library and transformers load. It must not be there, or be
        empty. Tensors have the bytes of the files that the model was loaded from; `format` is what matrices become, "f32", "f16" or
        "bf16" (None = as they are; merged matrices F32).

        Raises `Cancelled`, `InvalidArgumentError`, `UnsupportedError`, `NotFoundError` or `MismatchError` if the model's files are gone or
        others by now, `FormatError` for a value beyond the range of `format`, `IoError`.
        """
        run(self._save("mc_model_save", directory, format, progress), cancel)

    def save_gguf(
        self, path: Path, *, format: Optional[str] = None, progress: Optional[Progress] = None, cancel: Optional[Cancel] = None
    ) -> None:
        """Writes a model that was loaded from a GGUF file as one; a file that is there is replaced. `format` is what matrices become that
        are not quantised: as of `save()`, or a `quantization` of `LoadOptions` but "mlx4". Raises as `save()`."""
        run(self._save("mc_model_save_gguf", path, format, progress), cancel)

    @property
    def architecture(self) -> str:
        """`model_type` of config.json, such as "qwen2"."""
        return text("mc_model_architecture", self)

    @property
    def eos_tokens(self) -> list[int]:
        """The ids of the tokens that end an answer, the usual one first; none if no file of the model names one."""
        return ids_of(made("mc_tokens", "mc_model_eos_tokens", self))

    @property
    def context_length(self) -> int:
        """The longest context of a session, in tokens."""
        return int(get("mc_model_context_length", self))

    @property
    def vocab_size(self) -> int:
        """How many token ids the network knows: the number of logits."""
        return int(get("mc_model_vocab_size", self))

    @property
    def hidden_size(self) -> int:
        """The width of the network, in numbers a token."""
        return int(get("mc_model_hidden_size", self))

    @property
    def layer_count(self) -> int:
        """How many layers the network has."""
        return int(get("mc_model_layer_count", self))

    @property
    def parameter_count(self) -> int:
        """How many weights the network has; shared ones count once."""
        return int(get("mc_model_parameter_count", self))

    @property
    def dtype(self) -> Dtype:
        """The type of the weights as loaded; of a quantised model, of those that are not quantised."""
        return Dtype(get("mc_model_dtype", self))

    def supports(self, capability: Capability) -> bool:
        """Whether the model can be asked for something."""
        return bool(get("mc_model_supports", self, capability))

    def config(self) -> dict[str, Any]:
        """config.json as it was read, or as it follows from the metadata of a GGUF file."""
        config: dict[str, Any] = json.loads(string_of(made("mc_string", "mc_model_config_json", self)))
        return config

    def backend(self) -> dict[str, Any]:
        """What computes which part of the model, and how its weights are kept: see `mc_model_backend_json`."""
        backend: dict[str, Any] = json.loads(string_of(made("mc_string", "mc_model_backend_json", self)))
        return backend

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, which outlives the model. Raises `NotFoundError` if it has none."""
        return Tokenizer._of(made("mc_tokenizer", "mc_model_tokenizer", self))

    def session(self, max_context: int = 0) -> Session:
        """An empty session: `Session(model, max_context)`."""
        return Session(self, max_context)

    def load_lora(self, peft_dir: Path) -> Lora:
        """An adapter of this model: `Lora.load(model, peft_dir)`."""
        return Lora.load(self, peft_dir)

    def merge(self, lora: Lora, scale: float = 1.0) -> Model:
        """A new model with an adapter's changes in its weights, `scale` times; the two share the weights that do not change.

        Raises `MismatchError` for an adapter of another model, `OutOfMemoryError`.
        """
        return Model._of(made("mc_model", "mc_model_merge", self, lora, scale))

    def _generate(
        self, prompt: str, add_special: bool, prefill_progress: Optional[Progress], options: Mapping[str, Any]
    ) -> Callable[[Cancel], Generation]:
        def call(flag: Cancel) -> Generation:
            callback = progress_callback(prefill_progress)
            with generate_options(options, flag) as built:
                get("mc_generate_options_set_add_special", built, add_special)
                get("mc_generate_options_set_prefill_progress", built, callback.pointer, None)
                status, reference = make("mc_generation", "mc_generate", self, prompt, built)
            callback.finish(status if reference is None else status.OK, "generating")
            assert reference is not None
            return Generation.of(reference)

        return call

    def generate(
        self,
        prompt: str,
        *,
        add_special: bool = True,
        prefill_progress: Optional[Progress] = None,
        cancel: Optional[Cancel] = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """An answer to a prompt, which is then forgotten; a cancelled one is given as far as it came.

        `add_special` puts in front what the tokenizer does: not for a prompt of `Chat.render()`. Raises `InvalidArgumentError` for a bad
        option and for a prompt without a token, `NotFoundError` if the model has no tokenizer, `UnsupportedError` if it cannot generate,
        `ContextFullError` if the prompt alone is too long.
        """
        return run(self._generate(prompt, add_special, prefill_progress, options), cancel)

    async def generate_async(
        self,
        prompt: str,
        *,
        add_special: bool = True,
        prefill_progress: Optional[Progress] = None,
        cancel: Optional[Cancel] = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """As `generate()`."""
        return await run_async(self._generate(prompt, add_special, prefill_progress, options), cancel)

    def stream(
        self, prompt: str, *, add_special: bool = True, cancel: Optional[Cancel] = None, **options: Unpack[GenerateOptions]
    ) -> Stream:
        """As `generate()`, token by token; errors are raised at the first one."""

        def begin(flag: Cancel) -> Session:
            session = self.session()
            content: Union[str, list[int]] = prompt
            if not add_special:
                content = self.tokenizer.encode(prompt, add_special=False)
            session._append(content)(flag)
            return session

        return Stream(begin, options, cancel, owns_session=True)

    def embedding_dim(self, **options: Unpack[EmbedOptions]) -> int:
        """How many values a vector has with these options; 0 for a model without a tokenizer."""
        with embed_options(options, None) as built:
            return int(get("mc_model_embed_dim", self, built))

    @property
    def similarity(self) -> Similarity:
        """How the model's vectors are meant to be compared."""
        return Similarity(get("mc_model_similarity", self))

    def _embed(
        self, texts: Union[str, Sequence[str]], progress: Optional[Progress], options: Mapping[str, Any]
    ) -> Callable[[Cancel], NDArray[np.float32]]:
        data = [encoded(text) for text in texts_of("texts", texts)]

        def call(flag: Cancel) -> NDArray[np.float32]:
            callback = progress_callback(progress)
            with embed_options(options, flag) as built:
                get("mc_embed_options_set_progress", built, callback.pointer, None)
                vectors = np.empty((len(data), get("mc_model_embed_dim", self, built)), np.float32)
                pointers = (ctypes.c_char_p * len(data))(*data)
                lengths = (ctypes.c_size_t * len(data))(*map(len, data))
                status = check("mc_embed_batch", self, pointers, lengths, len(data), built, vectors)
            callback.finish(status, "embedding")
            return vectors[0] if isinstance(texts, str) else vectors

        return call

    def embed(
        self,
        texts: Union[str, Sequence[str]],
        *,
        progress: Optional[Progress] = None,
        cancel: Optional[Cancel] = None,
        **options: Unpack[EmbedOptions],
    ) -> NDArray[np.float32]:
        """Vectors of texts, of shape (texts, dim), or (dim,) for one text: the same alone and in any batch, bit for bit on the CPU.

        Raises `Cancelled`; `InvalidArgumentError` for a bad option; `NotFoundError` if the model has no tokenizer; `MismatchError` for an
        adapter of another model; `OutOfMemoryError`.
        """
        return run(self._embed(texts, progress, options), cancel)

    async def embed_async(
        self,
        texts: Union[str, Sequence[str]],
        *,
        progress: Optional[Progress] = None,
        cancel: Optional[Cancel] = None,
        **options: Unpack[EmbedOptions],
    ) -> NDArray[np.float32]:
        """As `embed()`; `progress` runs in the event loop."""
        return await run_async(self._embed(texts, progress, options), cancel)

    def _rerank(
        self, query: str, documents: Sequence[str], options: Mapping[str, Any]
    ) -> Callable[[Cancel], NDArray[np.float32]]:
        if isinstance(documents, str):
            raise TypeError("documents: expected a list of texts, found one text")
        data = [encoded(text) for text in texts_of("documents", documents)]

        def call(flag: Cancel) -> NDArray[np.float32]:
            with rerank_options(options, flag) as built:
                scores = np.empty(len(data), np.float32)
                pointers = (ctypes.c_char_p * max(len(data), 1))(*data)
                lengths = (ctypes.c_size_t * max(len(data), 1))(*map(len, data))
                check("mc_rerank", self, query, pointers, lengths, len(data), built, scores)
            return scores

        return call

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        cancel: Optional[Cancel] = None,
        **options: Unpack[RerankOptions],
    ) -> NDArray[np.float32]:
        """How well each document answers the query, of shape (documents,): of a cross-encoder, or of a causal reranker such as
        Qwen3-Reranker. A pair has the same score alone and in any company, bit for bit on the CPU.

        Raises `Cancelled`; `UnsupportedError` for a model that is no reranker, saying why; `InvalidArgumentError` for a bad option;
        `NotFoundError` if the model has no tokenizer; `OutOfMemoryError`.
        """
        return run(self._rerank(query, documents, options), cancel)

    async def rerank_async(
        self,
        query: str,
        documents: Sequence[str],
        *,
        cancel: Optional[Cancel] = None,
        **options: Unpack[RerankOptions],
    ) -> NDArray[np.float32]:
        """As `rerank()`."""
        return await run_async(self._rerank(query, documents, options), cancel)

    def nearest(self, queries: NDArray[np.float32], documents: NDArray[np.float32], k: int) -> Nearest:
        """The `k` nearest documents of each query, compared as the model's vectors are meant to be: see `nearest()`."""
        return nearest(queries, documents, k, self.similarity)
