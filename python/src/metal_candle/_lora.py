"""LoRA adapters: a fine-tuning that is kept apart from its model."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Optional

from ._native import Handle, address_of, check, get, made, string_of
from ._text import Path

if TYPE_CHECKING:
    from ._model import Model


class Lora(Handle):
    """An adapter in the format of PEFT: for a session (`Session.set_lora`), a generation or embeddings (`lora=`), or to be merged
    (`Model.merge`). Immutable; for any threads; for its model only."""

    _kind = "mc_lora"

    @classmethod
    def load(cls, model: Model, peft_dir: Path) -> Lora:
        """Loads an adapter of a model: a directory with adapter_config.json and adapter_model.safetensors, or a .gguf file.

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


def lora_arrays(loras: Optional[Sequence[Lora]], scales: Optional[Sequence[float]]) -> tuple[Any, Any, int]:
    """The arrays of adapters and of their factors that C takes, and how many there are; None in front without any."""
    if scales is not None and len(scales) != len(loras or ()):
        raise ValueError(f"scales: expected {len(loras or ())}, one an adapter, found {len(scales)}")
    if loras is None:
        return None, None, 0
    held = [lora._reference if isinstance(lora, Lora) else None for lora in loras]
    addresses = (ctypes.c_void_p * len(loras))(*(address_of("mc_lora", f"loras[{i}]", lora) for i, lora in enumerate(loras)))
    addresses.held = held  # type: ignore[attr-defined]  # as long as C has the addresses
    return addresses, None if scales is None else (ctypes.c_float * len(loras))(*scales), len(loras)
