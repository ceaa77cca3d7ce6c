"""Training of LoRA adapters: the model stays as it is, and what is trained is an adapter of it."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional, TypedDict, Union

from . import _abi
from ._abi import Schedule, TrainEvent, Weighting
from ._calls import Callback, Cancel, finished, run, run_async
from ._lora import Lora
from ._native import Handle, Options, Reference, TokenIds, check, get, known, made, new, token_array
from ._text import Chat, Path

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._model import Model


class Dataset(Handle):
    """Examples to train on: texts, completions of prompts, and conversations; `len()` of them.

    Of a text all is trained on; of a completion and of a conversation, with `mask_prompt`, what the model is to write.
    """

    _kind = "mc_dataset"

    def __init__(self) -> None:
        """An empty dataset."""
        self._reference: Optional[Reference] = new("mc_dataset")

    @classmethod
    def load_jsonl(cls, path: Path) -> Dataset:
        """A file of JSON lines with `messages` (and `tools`), `prompt` and `completion`, or `text`.

        Raises `NotFoundError`, `IoError`, and `FormatError` with the number of the line.
        """
        return cls._of(made("mc_dataset", "mc_dataset_load_jsonl", path))

    def add_text(self, text: str) -> None:
        """Adds a text at the end."""
        check("mc_dataset_add_text", self, text)

    def add_completion(self, prompt: str, completion: str) -> None:
        """Adds a prompt and the text that is to follow it; a space between them belongs to one."""
        check("mc_dataset_add_completion", self, prompt, completion)

    def add_chat(self, chat: Chat) -> None:
        """Adds a conversation as it is now."""
        check("mc_dataset_add_chat", self, chat)

    def __len__(self) -> int:
        return int(get("mc_dataset_len", self))


class LoraConfig(TypedDict, total=False):
    """The adapter that is to be trained. What is not there, or None, is the default."""

    rank: Optional[int]
    """How many values each input and output of a changed matrix gets: 1 to 8192. Default: 8."""
    alpha: Optional[float]
    """A change counts `alpha` / rank times: above 0. Default: 16."""
    dropout: Optional[float]
    """The share of a change's inputs that a training pass does not see: at least 0 and below 1. Default: 0."""
    rslora: Optional[bool]
    """Whether a change counts alpha / sqrt(rank) times instead. Default: False."""
    seed: Optional[int]
    """What decides the fresh weights and the dropout. Default: 0."""
    initial: Optional[Lora]
    """An adapter to go on with: its rank, alpha and targets are taken, and its weights copied. Default: fresh weights."""
    targets: Union[str, Sequence[str]]
    """Which matrices get a change, as PEFT names them; a text is one name. Default: every matrix of the layers."""
    json: Optional[str]
    """Options as JSON, by the names that mc_lora_config_set_json() tells; they count more than those beside it."""


class TrainOptions(TypedDict, total=False):
    """How to train. What is not there, or None, is the default."""

    learning_rate: Optional[float]
    """0 to 1. Default: 2e-4."""
    weight_decay: Optional[float]
    """What each step takes off every weight: this times the learning rate; 0 to 1. Default: 0.01."""
    adam_betas: Optional[tuple[float, float]]
    """How much the moving averages of AdamW keep: at least 0 and below 1. Default: (0.9, 0.999)."""
    adam_epsilon: Optional[float]
    """What AdamW adds to the root of the second average: above 0. Default: 1e-8."""
    schedule: Optional[Schedule]
    """What the learning rate does behind the warm-up. Default: CONSTANT."""
    warmup_steps: int
    """Steps in which it rises. Default: 0."""
    total_steps: int
    """Where the schedule and the training end; 0 (the default) = with the last epoch."""
    max_steps: Optional[int]
    """The step that `Trainer.train()` ends with at the latest, whatever the schedule; 0 (the default) = none."""
    warmup_from_zero: Optional[bool]
    """Whether a warm-up begins with the learning rate 0, as in the Trainer of transformers. Default: False."""
    batch_size: Optional[int]
    """How many examples are a micro-batch: 1 to 1048576. Default: 4."""
    grad_accumulation: Optional[int]
    """How many micro-batches make a step: 1 to 1048576. Default: 1."""
    weighting: Optional[Weighting]
    """What the micro-batches of a step count. Default: MICRO_BATCHES."""
    grad_clip: Optional[float]
    """The length that the gradient of all weights together is cut to; 0 = as it is. Default: 1."""
    epochs: Optional[int]
    """How often each example is seen: at least 1. Default: 1."""
    max_length: Optional[int]
    """The most tokens of an example: at least 2; 0 (the default) = the model's context, but at most 2048."""
    mask_prompt: Optional[bool]
    """Whether completions and conversations teach the answers alone. Default: True."""
    seed: Optional[int]
    """What decides the order of the examples. Default: 0."""
    checkpoint_dir: Optional[Path]
    """Where `Trainer.train()` writes checkpoints, each in place of the one before. Default: none are written."""
    checkpoint_every: int
    """Steps between two checkpoints; 0 (the default) = only one at the end."""
    eval_every: Optional[int]
    """Steps between two evaluations; 0 (the default) = only one at the end."""
    patience: Optional[int]
    """How many evaluations in a row may be without a new lowest loss, before the training ends; 0 (the default) = any number."""
    gradient_checkpointing: Optional[bool]
    """Computes layers twice, to keep one of them instead of all. Default: True."""
    json: Optional[str]
    """Options as JSON, by the names that mc_train_options_set_json() tells; they count more than those beside it."""


def train_options(options: Mapping[str, Any], flag: Optional[Cancel]) -> Options:
    values = {"cancel": flag, **known(options, TrainOptions)}
    schedule, warmup, total = values.pop("schedule", None), values.pop("warmup_steps", 0), values.pop("total_steps", 0)
    betas = tuple(values.pop("adam_betas", None) or (None,))
    if betas != (None,) and len(betas) != 2:
        raise ValueError(f"adam_betas: expected 2 numbers, found {len(betas)}")
    together = {
        "schedule": (Schedule.CONSTANT if schedule is None else schedule, warmup, total),
        "checkpoint": (values.pop("checkpoint_dir", None), values.pop("checkpoint_every", 0)),
        "adam_betas": betas,
    }
    return Options("mc_train_options", values, together).finished()


def lora_config(config: Optional[LoraConfig]) -> Options:
    values = known(config or {}, LoraConfig)
    targets = values.pop("targets", None) or ()
    built = Options("mc_lora_config", values)
    for module in [targets] if isinstance(targets, str) else targets:
        built.add("target", module)
    return built.finished()


class Update(NamedTuple):
    """What a step of the optimizer did: whether `Trainer.train_step()` made one shows in `step`."""

    step: int
    """Its number, from 1."""
    learning_rate: float
    """Its learning rate."""
    grad_norm: float
    """The length of the gradient of all weights together, before it was cut."""


class Trainer(Handle):
    """An adapter in training. One call at a time: a second one meanwhile raises `BusyError`.

    trainer = Trainer(model, learning_rate=5e-3, epochs=10)
    trainer.train(Dataset.load_jsonl("examples.jsonl"), on_step=lambda step: print(step.loss))
    trainer.adapter().save("adapter")
    """

    _kind = "mc_lora_trainer"

    def __init__(self, model: Model, lora: Optional[LoraConfig] = None, **options: Unpack[TrainOptions]) -> None:
        """A trainer with fresh weights, which change nothing yet, or with those of `initial`.

        Raises `InvalidArgumentError` for a bad option and for a target that the model does not have, `UnsupportedError` if the model
        cannot generate, `MismatchError` for an initial adapter of another model, `OutOfMemoryError`.
        """
        self._flag = Cancel()
        with lora_config(lora) as config, train_options(options, self._flag) as built:
            self._reference: Optional[Reference] = made("mc_lora_trainer", "mc_lora_trainer_new", model, config, built)

    @classmethod
    def resume(cls, model: Model, directory: Path, **options: Unpack[TrainOptions]) -> Trainer:
        """Goes on where a checkpoint has left off: with the same data on the CPU as without an interruption, bit for bit.

        Without options with those of the checkpoint; else with these, where all but `batch_size`, `grad_accumulation`, `weighting`,
        `max_length`, `mask_prompt` and `seed` may differ. Raises `InvalidArgumentError`; `NotFoundError`, `IoError` or `FormatError` for
        the file; `MismatchError` for a checkpoint of another model.
        """
        flag = Cancel()
        built = train_options(options, flag) if options else None
        trainer = cls._of(made("mc_lora_trainer", "mc_lora_trainer_resume", model, directory, built))
        trainer._flag = flag
        return trainer

    @staticmethod
    def estimate_memory(model: Model, lora: Optional[LoraConfig] = None, **options: Unpack[TrainOptions]) -> int:
        """The bytes that a trainer takes beside its model, at most, with micro-batches of the longest examples. Raises as `Trainer()`."""
        size = ctypes.c_uint64()
        with lora_config(lora) as config, train_options(options, None) as built:
            check("mc_model_estimate_training_memory", model, config, built, ctypes.byref(size))
        return size.value

    def _train(
        self, dataset: Dataset, evaluation: Optional[Dataset], on_step: Optional[Callable[[TrainEvent], object]]
    ) -> Callable[[Cancel], None]:
        def call(flag: Cancel) -> None:
            callback = Callback(_abi.TrainFn, TrainEvent, on_step, flag)
            callback.finish(check("mc_lora_trainer_train", self, dataset, evaluation, callback.pointer, None), "training")

        self._flag.reset()
        return call

    def train(
        self,
        dataset: Dataset,
        evaluation: Optional[Dataset] = None,
        *,
        on_step: Optional[Callable[[TrainEvent], object]] = None,
        cancel: Optional[Cancel] = None,
    ) -> None:
        """Trains until the last epoch, `total_steps` or `patience` ends it; what was done before counts.

        `on_step` hears each step; False ends the training. After that, `Cancelled` and an error the trainer is at the last finished
        micro-batch, and another call with the same dataset goes on there. Raises `InvalidArgumentError` for a dataset without a target
        token and for numbers that are not finite, `MismatchError` for another dataset than the first, `TemplateError`, `IoError` for a
        checkpoint, `OutOfMemoryError`.
        """
        run(self._train(dataset, evaluation, on_step), cancel, self._flag)

    async def train_async(
        self,
        dataset: Dataset,
        evaluation: Optional[Dataset] = None,
        *,
        on_step: Optional[Callable[[TrainEvent], object]] = None,
        cancel: Optional[Cancel] = None,
    ) -> None:
        """As `train()`; `on_step` runs in the event loop."""
        await run_async(self._train(dataset, evaluation, on_step), cancel, self._flag)

    def _step(self, name: str, sequences: Sequence[TokenIds], loss_mask: Optional[Sequence[Sequence[bool]]]) -> Callable[[Cancel], float]:
        lengths = [len(sequence) for sequence in sequences]
        offsets = (ctypes.c_size_t * (len(lengths) + 1))(0, *itertools.accumulate(lengths))
        tokens = token_array("sequences", [token for sequence in sequences for token in sequence])
        mask = None
        if loss_mask is not None:
            if [len(row) for row in loss_mask] != lengths:
                raise ValueError(f"loss_mask: expected {lengths} values, found {[len(row) for row in loss_mask]}")
            mask = (ctypes.c_uint8 * len(tokens))(*(bool(value) for row in loss_mask for value in row))

        def call(flag: Cancel) -> float:
            loss = ctypes.c_float()
            finished("a step", name, self, tokens, mask, offsets, len(lengths), ctypes.byref(loss))
            return loss.value

        self._flag.reset()
        return call

    def train_step(
        self,
        sequences: Sequence[TokenIds],
        loss_mask: Optional[Sequence[Sequence[bool]]] = None,
        *,
        cancel: Optional[Cancel] = None,
    ) -> float:
        """Learns from one micro-batch of token ids, and gives the mean cross entropy of its target tokens, in nats, before it.

        `loss_mask` says of each token whether it is a target, predicted from those before it; the first of a sequence never is. Raises
        `Cancelled`, `InvalidArgumentError` for a loss or gradient that is not finite, `ContextFullError`; the trainer is then as it was.
        """
        return run(self._step("mc_lora_trainer_train_step", sequences, loss_mask), cancel, self._flag)

    def eval_step(
        self,
        sequences: Sequence[TokenIds],
        loss_mask: Optional[Sequence[Sequence[bool]]] = None,
        *,
        cancel: Optional[Cancel] = None,
    ) -> float:
        """The loss of one micro-batch with the weights as they are, in nats; changes nothing. Else as `train_step()`."""
        return run(self._step("mc_lora_trainer_eval_step", sequences, loss_mask), cancel, self._flag)

    @property
    def step_count(self) -> int:
        """How many steps of the optimizer are finished."""
        return int(get("mc_lora_trainer_step_count", self))

    def last_update(self) -> Optional[Update]:
        """What the last step of the optimizer did; None if there was none yet. Raises `BusyError` while the training runs."""
        step, rate, norm = ctypes.c_uint64(), ctypes.c_double(), ctypes.c_float()
        check("mc_lora_trainer_last_update", self, ctypes.byref(step), ctypes.byref(rate), ctypes.byref(norm))
        return Update(step.value, rate.value, norm.value) if step.value else None

    def adapter(self) -> Lora:
        """The adapter as it is now, an immutable copy; training may go on. Raises `BusyError` while it runs."""
        return Lora._of(made("mc_lora", "mc_lora_trainer_adapter", self))

    def save(self, checkpoint_dir: Path) -> None:
        """Writes a checkpoint, for `resume()`; the directory is also the adapter in PEFT's format. Raises `IoError`, `BusyError`."""
        check("mc_lora_trainer_save", self, checkpoint_dir)

    def close(self) -> None:
        """Frees the trainer."""
        super().close()
        self._flag.close()
