"""Initialisations of LoRA's factors that look at the base model's weights or activations.

PiSSA (arXiv:2404.02948) and OLoRA (arXiv:2406.01775) begin with a part of the weight, which PEFT takes off the
weight itself. Here PEFT works on a copy of one weight at a time, and what was taken stays beside the factors
(:attr:`~lora_lab.methods.attachment.LowRank.initial`): the base is left alone and the function is the same.
EVA (arXiv:2410.07170) begins with the principal directions of each module's inputs on the run's own data; LoftQ
(arXiv:2310.08659) with the best low-rank correction of what quantisation has lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lora_lab.errors import MethodError
from lora_lab.methods.injection import ADAPTER, is_quantised
from lora_lab.methods.targets import linear_shape
from lora_lab.models import BaseModel, frozen_weight, load
from lora_lab.spec import MethodSpec

Calibration = Callable[[int], Sequence[np.ndarray]]
"""Gives so many of the run's training sequences: token ids ``(t,)`` each."""
MUTATING = ("pissa", "olora")
"""Those that begin with a part of the weight."""
DECOMPOSING = (*MUTATING, "eva", "loftq")
"""Those that take their factors from an SVD or QR, and are made when PEFT's layers are already there."""
EVA_PASSES = 50
"""Passes over the calibration data after which EVA's directions must have come to rest."""


def check_ranks(ranks: Mapping[str, int], modules: Mapping[str, nn.Module], spec: MethodSpec) -> None:
    """Refuse ranks above what a decomposition can give.

    Raises:
        MethodError
    """
    for name, module in modules.items():
        if ranks[name] > min(linear_shape(module)):
            raise MethodError(
                f"method.init={spec.init}: {name} is {' x '.join(map(str, linear_shape(module)))} and has no "
                f"{ranks[name]} directions. Lower its rank, or use method.init=default."
            )


def start(layers: Mapping[str, Any], modules: Mapping[str, nn.Module], base: BaseModel, init: str) -> None:
    """Give PEFT's LoRA ``layers`` (by module name, around ``modules``) their first values from the weights.

    Raises:
        MethodError: a base that is not quantised for LoftQ.
    """
    if init == "loftq":
        _loftq(layers, modules, base)
    else:
        for name, module in modules.items():
            _on_a_copy(layers[name], module, init)


def _on_a_copy(layer: Any, module: nn.Module, init: str) -> None:
    inputs, outputs = linear_shape(module)
    stand_in = nn.Linear(inputs, outputs, bias=False, device="meta")
    stand_in.weight = nn.Parameter(frozen_weight(module).float().clone(), requires_grad=False)
    layer.base_layer, layer.fan_in_fan_out = stand_in, False
    if init == "olora":
        layer.olora_init(ADAPTER)
    elif init == "orthogonal":
        layer.orthogonal_init(ADAPTER)
    else:
        layer.pissa_init(ADAPTER, init)


# -- EVA ----------------------------------------------------------------------------------------------


class _Batches:
    """Right-padded batches, over and over, but not for ever."""

    SIZE = 8

    def __init__(self, sequences: Sequence[np.ndarray]) -> None:
        self.sequences, self.passes = sequences, 0

    def __len__(self) -> int:
        return (len(self.sequences) + self.SIZE - 1) // self.SIZE

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.passes += 1
        if self.passes > EVA_PASSES:
            raise MethodError(
                f"method.init=eva: no rest after {EVA_PASSES} passes over {len(self.sequences)} sequences of "
                f"{sum(map(len, self.sequences))} tokens. Raise method.calibration_sequences, or lower method.r."
            )
        for at in range(0, len(self.sequences), self.SIZE):
            rows = [torch.from_numpy(ids) for ids in self.sequences[at : at + self.SIZE]]
            yield {
                "input_ids": nn.utils.rnn.pad_sequence(rows, batch_first=True),
                "attention_mask": nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
            }


def eva_directions(
    ranks: Mapping[str, int], base: BaseModel, spec: MethodSpec, calibration: Calibration | None
) -> dict[str, Tensor]:
    """``A`` by module name: PEFT's own SVD of the inputs, at the highest rank for all; ranks are not redistributed.

    Raises:
        MethodError: no data, or too little of it.
    """
    from peft import EvaConfig, LoraConfig, get_eva_state_dict

    if calibration is None:
        raise MethodError("method.init=eva needs training data to look at, and none was given. Use it in a run.")
    config = LoraConfig(
        r=max(ranks.values()), target_modules=list(ranks), init_lora_weights="eva", eva_config=EvaConfig(rho=1.0)
    )
    batches = _Batches(calibration(spec.calibration_sequences))
    fewest = min((int(batch["attention_mask"].sum()) for batch in batches), default=0)
    if fewest < config.r:
        raise MethodError(
            f"method.init=eva: a batch of the calibration data has {fewest} tokens, too few for rank {config.r}. "
            "Raise method.calibration_sequences, or lower method.r."
        )
    with torch.no_grad():
        found = get_eva_state_dict(base.model, batches, config, show_progress_bar=False)
    return {name: found[name][:rank].float() for name, rank in ranks.items()}


# -- LoftQ --------------------------------------------------------------------------------------------


def _loftq(layers: Mapping[str, Any], modules: Mapping[str, nn.Module], base: BaseModel) -> None:
    """One step of LoftQ, as PEFT's ``replace_lora_weights_loftq`` takes it (that one needs CUDA): the base stays."""
    plain = sorted(name for name, module in modules.items() if not is_quantised(module))
    if plain:
        raise MethodError(
            f"method.init=loftq corrects what quantisation lost, and {plain[0]} is not quantised. "
            "Choose model.quantization=nf4, or another method.init."
        )
    original = load(replace(base.spec, quantization="none"))
    for name, module in modules.items():
        weight = frozen_weight(module)
        lost = frozen_weight(original.model.get_submodule(name)).to(weight.device).float() - weight.float()
        U, S, Vh = torch.linalg.svd(lost, full_matrices=False)
        layer, r = layers[name], layers[name].r[ADAPTER]
        root = (S[:r] / layer.scaling[ADAPTER]).sqrt()
        layer.lora_A[ADAPTER].weight.data = root[:, None] * Vh[:r]
        layer.lora_B[ADAPTER].weight.data = U[:, :r] * root
