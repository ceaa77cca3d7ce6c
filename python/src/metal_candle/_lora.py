"""LoRA adapters: a fine-tuning that is kept apart from its model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ._native import Handle, check, get, made, string_of
from ._text import Path

if TYPE_CHECKING:
    from ._model import Model


class Lora(Handle):
    """An adapter in the format of PEFT: for a session (`Session.set_lora`), a generation or embeddings (`lora=`), or to be merged
    (`Model.merge`). Immutable; for any threads; for its model only."""

    _kind = "mc_lora"

    @classmethod
    def load(cls, model: Model, peft_dir: Path) -> Lora:
        """Loads an adapter of a model: a directory with adapter_config.json and adapter_model.safetensors.

        Raises `NotFoundError`, `IoError` or `FormatError` for the files, `UnsupportedError`, `OutOfMemoryError`.
        """
        return cls._of(made("mc_lora", "mc_lora_load", model, peft_dir))

    def save(self, peft_dir: Path) -> None:
        """Writes the adapter, with its values in F32; files of an adapter that are there are replaced. Raises `IoError`."""
        check("mc_lora_save", self, peft_dir)

    @property
    def rank(self) -> int:
        """The rank that the configuration gives; rank_pattern may give single modules another one."""
        return int(get("mc_lora_rank", self))

    @property
    def alpha(self) -> float:
        """The lora_alpha that the configuration gives. A change counts alpha / rank times, with rsLoRA alpha / sqrt(rank) times."""
        return float(get("mc_lora_alpha", self))

    @property
    def parameter_count(self) -> int:
        """How many values the adapter has."""
        return int(get("mc_lora_parameter_count", self))

    def config(self) -> dict[str, Any]:
        """adapter_config.json as it was read."""
        config: dict[str, Any] = json.loads(string_of(made("mc_string", "mc_lora_config_json", self)))
        return config
