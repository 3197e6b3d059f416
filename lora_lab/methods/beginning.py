"""LoRA that begins as a weighted sum of trained adapters (``method.init=adapters``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from lora_lab.errors import MethodError
from lora_lab.methods.attachment import ADAPTER_CONFIG, METHOD_CONFIG, LowRank
from lora_lab.methods.combining import combined, low_rank, nearest_of_rank
from lora_lab.methods.loading import load
from lora_lab.models import BaseModel
from lora_lab.spec import MethodSpec


@torch.no_grad()
def begin(factors: Mapping[str, LowRank], base: BaseModel, spec: MethodSpec, seed: int) -> None:
    """Give ``factors`` (by module) the values of what ``spec`` combines; modules that none of them changes keep theirs,
    and so do ranks that are left over: ``A`` random and ``B`` zero, which is nothing until it is trained.

    ``seed`` draws what DARE drops.

    Raises:
        MethodError: no adapter in a folder, one on modules that have no factor here, or one that is no low-rank update.
        CheckpointError: an adapter that does not fit the base.
    """
    sets = {name: low_rank(load(adapter_in(folder), base), name) for name, folder in spec.adapters}
    for name, one in sets.items():
        left_out = [module for module in one if module not in factors]
        if left_out:
            raise MethodError(
                f"method.adapters.{name} changes {len(left_out)} modules that method.roles and method.layers leave "
                f"out, such as {left_out[0]}. Give method.roles all of its roles."
            )
    weights = [spec.weight_of(name) for name in sets]
    found = combined(list(sets.values()), weights, spec.combine, density=spec.density, seed=seed)
    for module, whole in found.items():
        factor = factors[module]
        A, B = whole.product()
        if len(A) > factor.rank:
            A, B = nearest_of_rank(A, B, factor.rank)
        factor.B[:, len(A) :] = 0
        factor.A[: len(A)] = A.to(factor.A)
        factor.B[:, : len(A)] = (whole.scaling / factor.scaling) * B.to(factor.B)


def adapter_in(folder: str) -> Path:
    """The folder of the adapter's files: ``folder`` itself, or ``adapter`` in it, where it is that of a run.

    Raises:
        MethodError: there is no adapter.
    """
    path = Path(folder).expanduser()
    for place in (path, path / "adapter"):
        if any((place / name).is_file() for name in (ADAPTER_CONFIG, METHOD_CONFIG)):
            return place
    raise MethodError(
        f"method.adapters: no adapter is in {folder}, seen from {Path.cwd()}. Give the folder of an adapter or of its "
        "run, as in runs/demo/runs/t0000-s0."
    )
