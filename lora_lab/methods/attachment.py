"""What a method makes: the trainable parameters of one lane, and how they are saved.

An :class:`Attachment` holds parameters only. It is not wired into the base model; whoever trains it adds, at
the output ``y`` of each module named in :attr:`Attachment.factors`, with the module's input ``x``::

    (y + dropout(x) @ A.T @ B.T * scaling).to(y.dtype)        x (…, in) cast to A's dtype first, y (…, out)

which is what PEFT's own layer computes (arXiv:2106.09685, eq. 3).
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lora_lab.errors import CheckpointError
from lora_lab.files import read_json, write_bytes, write_text
from lora_lab.spec import MethodSpec

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(eq=False)
class LowRank:
    """One module's update ``scaling * B A``: ``A`` is ``(r, in)``, ``B`` is ``(out, r)``.

    ``in`` and ``out`` are those of the linear map, also where the base stores its weight as ``(in, out)`` (Conv1D).
    """

    A: nn.Parameter
    B: nn.Parameter
    scaling: float


class RowPath(Protocol):
    """What a method does at one module beyond a low-rank update, computed on its lane's own rows alone.

    The module is given ``before(x)``, its frozen output and the low-rank update, if any, are added up, and ``after``
    makes of them what the module gives. Both are plain differentiable PyTorch.
    """

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The trainable parameters by their names within the module."""

    def before(self, x: Tensor) -> Tensor:
        """``(rows, in)`` to ``(rows, in)``: the input that the frozen module and the low-rank update see."""

    def after(self, x: Tensor, y: Tensor) -> Tensor:
        """``(rows, in)``, as it came, and ``(rows, out)`` to ``(rows, out)``."""


@dataclass(eq=False)
class Attachment:
    """The trainable parameters of one lane.

    ``factors`` maps full module names to factors, in the order of the model; ``packable`` says that several
    such attachments can train in one pack. ``dropout`` is the probability on the input of ``A``. An empty mask
    gives no factors. ``paths`` maps module names to what the method does there besides. ``prompt`` gives the
    ``(n, d)`` virtual tokens that stand before each of the lane's sequences. An attachment that is not packable has
    ``solo``, which runs the whole model: token ids and attention mask ``(n, t)``, padded on the right, to logits
    ``(n, t, vocabulary)``.
    """

    spec: MethodSpec
    packable: bool
    factors: dict[str, LowRank]
    dropout: float
    paths: dict[str, RowPath] = field(default_factory=dict)
    prompt: Callable[[], Tensor] | None = None
    solo: Callable[[Tensor, Tensor], Tensor] | None = None
    peft_config: Any = field(default=None, repr=False)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters by their names in PEFT's files: ``base_model.model.<module>.lora_A.weight``."""
        named: dict[str, nn.Parameter] = {}
        for module, factor in self.factors.items():
            named[f"base_model.model.{module}.lora_A.weight"] = factor.A
            named[f"base_model.model.{module}.lora_B.weight"] = factor.B
        return named

    @property
    def count(self) -> int:
        """Trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters().values())

    def state_dict(self) -> dict[str, Tensor]:
        """The parameters' values, sharing their storage: clone what must survive the next step."""
        return {name: parameter.detach() for name, parameter in self.parameters().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy values into the parameters, in place.

        Raises:
            CheckpointError: names or shapes differ; nothing is copied then.
        """
        mine = self.parameters()
        missing, strange = sorted(mine.keys() - state.keys()), sorted(state.keys() - mine.keys())
        if missing or strange:
            raise CheckpointError(
                f"The adapter state is of another run: {len(missing)} parameters are missing ({_few(missing)}), "
                f"{len(strange)} are not of this adapter ({_few(strange)}). Use the state saved by the same "
                "method.roles and method.layers."
            )
        for name, parameter in mine.items():
            if parameter.shape != state[name].shape:
                raise CheckpointError(
                    f"{name}: the adapter state has shape {tuple(state[name].shape)}, here it is "
                    f"{tuple(parameter.shape)}. Use the state saved with method.r={self.spec.r} on the same model."
                )
        with torch.no_grad():
            for name, parameter in mine.items():
                parameter.copy_(state[name])

    def save(self, folder: Path, *, base_name: str) -> bool:
        """Write the adapter in PEFT's format; ``PeftModel.from_pretrained(base, folder)`` loads it.

        ``adapter_model.safetensors`` is written first and ``adapter_config.json``, without which no loader
        looks further, last; each moves into place whole. An empty mask has nothing to save: no file is written
        and the answer is False.

        ``base_name`` is the base's hub id or folder, kept in the config. An adapter on the head of a model with
        tied embeddings loads on the stock (tied) model and gives the same logits, with a warning of PEFT's;
        *merging* it there would change the input embeddings too, so untie the head first (``models.untie``).

        Raises:
            SweepFolderError: no space or no permission.
        """
        if not self.factors:
            return False
        from safetensors.torch import save

        tensors = {name: value.to("cpu").contiguous() for name, value in self.state_dict().items()}
        write_bytes(folder / ADAPTER_WEIGHTS, save(tensors, metadata={"format": "pt"}))
        write_text(folder / ADAPTER_CONFIG, self._config_text(base_name))
        return True

    def _config_text(self, base_name: str) -> str:
        """The config as PEFT renders it, whatever its version adds; target modules sorted, to be the same each time."""
        config = copy.copy(self.peft_config)
        config.base_model_name_or_path, config.inference_mode = base_name, True
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            tree = read_json(Path(folder) / ADAPTER_CONFIG)
        tree["target_modules"] = sorted(tree["target_modules"])
        return json.dumps(tree, indent=2, sort_keys=True) + "\n"


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "") if names else "none"
