"""Which base language model a run trains on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lora_lab.errors import SpecError
from lora_lab.spec.checks import one_of
from lora_lab.spec.roles import mask_of
from lora_lab.spec.tree import Pairs, pairs

DTYPES = ("float32", "bfloat16", "float64")
QUANTIZATIONS = ("none", "nf4", "fp4", "int8")
FOUR_BIT = ("nf4", "fp4")
"""Quantisations whose block scales can be quantised once more (``double_quant``)."""
MODEL_SOURCES = ("wheel", "random", "pretrained")
SHARDINGS = ("none", "fsdp")


@dataclass(frozen=True)
class ModelSpec:
    """A base language model.

    ``source`` says where it comes from: ``wheel`` (a GGUF file inside an installed Python package,
    ``path`` is ``package/file.gguf``), ``random`` (randomly initialised from ``config`` by ``init_seed``),
    or ``pretrained`` (``path`` is a hub id or a local folder). ``roles`` names modules by hand for an
    architecture that is not in the roles table: role -> list of module-name suffixes. ``pad_token`` names
    the pad token of a tokenizer that has none of its own. ``quantization`` is how the frozen weights of linear maps
    are kept (the head and the embeddings stay in ``dtype``), ``double_quant`` whether the block scales of 4-bit
    weights are quantised, too (arXiv:2305.14314, section 3; without effect on others). With ``shard=fsdp`` a run's base
    is divided among the devices of ``shards`` processes of one machine, and the run trains alone.
    """

    name: str
    source: str = "pretrained"
    path: str | None = None
    revision: str | None = None
    dtype: str = "bfloat16"
    quantization: str = "none"
    double_quant: bool = False
    shard: str = "none"
    shards: int = 2
    config: Pairs = field(default_factory=pairs)
    init_seed: int = 0
    roles: Pairs = field(default_factory=pairs)
    pad_token: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        one_of("model.source", self.source, MODEL_SOURCES)
        one_of("model.dtype", self.dtype, DTYPES)
        one_of("model.quantization", self.quantization, QUANTIZATIONS)
        one_of("model.shard", self.shard, SHARDINGS)
        if self.divided and self.quantization != "none":
            raise SpecError(
                f"model.shard={self.shard} and model.quantization={self.quantization}: quantised weights cannot be "
                "divided. Set model.quantization=none, or model.shard=none, which 4 bits may make possible."
            )
        if self.divided and self.shards < 2:
            raise SpecError(
                f"model.shards: {self.shards} with model.shard={self.shard}; give 2 or more, or model.shard=none."
            )
        if self.quantization != "none" and self.dtype == "float64":
            raise SpecError(
                f"model.quantization={self.quantization}: quantised weights are computed with in bfloat16 or float32, "
                "and model.dtype=float64. Set model.dtype=bfloat16, or model.quantization=none."
            )
        if self.source in ("wheel", "pretrained") and not self.path:
            raise SpecError(
                f"model.path: source={self.source} needs one. Give a hub id or a folder, e.g. model.path=./my-model."
            )
        if self.source == "random" and not self.config:
            raise SpecError("model.config: source=random needs the architecture, e.g. model_type: llama.")
        mask_of([role for role, _ in self.roles])

    @property
    def divided(self) -> bool:
        """A run on it is wider than a device."""
        return self.shard != "none"

    def canonical(self, tree: dict[str, Any]) -> None:
        """Drop from ``tree`` (this spec as a tree) what cannot matter to a run's result."""
        tree.pop("name")
        if not self.divided:
            tree.pop("shard")
            tree.pop("shards")
        if self.quantization not in FOUR_BIT:
            tree.pop("double_quant")
        if self.source != "random":
            tree.pop("config")
            tree.pop("init_seed")
        if self.source != "pretrained":
            tree.pop("revision")
            tree.pop("trust_remote_code")
