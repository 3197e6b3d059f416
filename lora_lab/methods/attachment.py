"""What a method makes: the trainable parameters of one lane, where they act, and how they are saved.

An :class:`Attachment` is not wired into the base model; whoever trains it lets its parts act on the lane's own rows:

* :attr:`~Attachment.factors`: at the output ``y`` of each module, with its input ``x`` (see :class:`LowRank`);
* :attr:`~Attachment.paths`: around a module (see :class:`RowPath`);
* :attr:`~Attachment.prompt`: virtual tokens before every sequence;
* :attr:`~Attachment.solo`: instead of all these, a forward of its own, for a method that cannot share one.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lora_lab.errors import CheckpointError
from lora_lab.files import read_json, write_text, writing
from lora_lab.models.shards import Shards
from lora_lab.models.weight_files import write_tensors
from lora_lab.spec import MethodSpec, to_tree

ADAPTER_CONFIG = "adapter_config.json"
METHOD_CONFIG = "lora_lab_method.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT's files put before the name of a base model's module."""


@dataclass(eq=False)
class LowRank:
    """One module's update: ``scaling B A``, with ``A (r, in)`` and ``B (out, r)`` (arXiv:2106.09685, eq. 3)::

        (y + scaling * dropout(x) @ A.T @ B.T).to(y.dtype)        x (…, in) cast to A's dtype first, y (…, out)

    ``in`` and ``out`` are those of the linear map, also where the base stores its weight as ``(in, out)`` (Conv1D).
    What is multiplied is :meth:`product`, not ``A`` and ``B`` themselves:

    * ``initial``: factors ``A0, B0`` that are taken off, ``B A - B0 A0``. PEFT's PiSSA and OLoRA take them off the
      base's weight instead; here they stand beside it, so that one frozen base serves lanes with and without.
    * ``values``: AdaLoRA's singular values ``E (r, 1)``: ``B (E * A)``.
    """

    A: nn.Parameter
    B: nn.Parameter
    scaling: float
    initial: tuple[Tensor, Tensor] | None = None
    values: nn.Parameter | None = None

    def product(self) -> tuple[Tensor, Tensor]:
        """``A' (r', in)`` and ``B' (out, r')`` whose product is the update before scaling; differentiable."""
        A: Tensor = self.A if self.values is None else self.A * self.values
        if self.initial is None:
            return A, self.B
        return torch.cat([A, self.initial[0]]), torch.cat([self.B, -self.initial[1]], dim=1)

    @property
    def rank(self) -> int:
        """The inner size of :meth:`product`."""
        return len(self.A) if self.initial is None else len(self.A) + len(self.initial[0])

    def parameters(self) -> dict[str, nn.Parameter]:
        """By their local names in PEFT's files."""
        if self.values is not None:
            return {"lora_A": self.A, "lora_B": self.B, "lora_E": self.values}
        return {"lora_A.weight": self.A, "lora_B.weight": self.B}


class RowPath:
    """What one lane does around one frozen module, on its own rows alone; by default nothing.

    Plain differentiable torch. ``x`` is ``(rows, in)``, ``y`` is ``(rows, out)``, both in the base's dtype, which what
    is returned has, too. ``seed`` decides what dropout drops; ``None`` (evaluation) means that nothing is dropped.
    ``multiplies_trained`` says whether the weights that :meth:`multiplied` counts train.
    """

    multiplies_trained: ClassVar[bool] = True

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by local name."""
        raise NotImplementedError

    def before(self, x: Tensor) -> Tensor:
        """What the frozen module is given instead of ``x``."""
        return x

    def after(self, x: Tensor, y: Tensor, seed: int | None = None) -> Tensor:
        """What takes the place of the output ``y`` (a low-rank update of the module included); ``x`` as it came."""
        return y

    def multiplied(self) -> int:
        """Multiply-adds of the matrix products that this adds to each token's forward."""
        return 0


def dropped(x: Tensor, p: float, seed: int | None) -> Tensor:
    """``x`` with a share ``p`` of its entries zero and the others made larger; ``x`` itself without a seed."""
    if seed is None or p == 0:
        return x
    generator = torch.Generator(device=x.device).manual_seed(seed)
    return x * torch.empty_like(x).bernoulli_(1 - p, generator=generator).div_(1 - p)


@dataclass(eq=False)
class Attachment:
    """The trainable parameters of one lane.

    ``factors`` and ``paths`` are by full module name, in the order of the model; ``own`` are parameters of no single
    module, by name. ``dropout`` is the probability on the input of ``A``. ``packable`` says that several such
    attachments can train in one pack; where it is False, ``solo`` gives the logits ``(n, t, V)`` of tokens ``(n, t)``
    int64, padded on the right, and their attention mask ``(n, t)``. ``prompt`` gives ``(n, d)`` virtual tokens. An
    empty mask gives no parameters at all.
    """

    weights_file: ClassVar[str] = ADAPTER_WEIGHTS
    movable: ClassVar[bool] = True
    """An optimizer may give the parameters another storage."""
    spec: MethodSpec
    packable: bool = True
    factors: dict[str, LowRank] = field(default_factory=dict)
    dropout: float = 0.0
    paths: dict[str, RowPath] = field(default_factory=dict)
    own: dict[str, nn.Parameter] = field(default_factory=dict)
    prompt: Callable[[], Tensor] | None = None
    solo: Callable[[Tensor, Tensor], Tensor] | None = None
    peft_config: Any = field(default=None, repr=False)
    shards: Shards | None = field(default=None, repr=False)
    """The processes that hold the base model; each has these parameters, and gradients of its own sequences."""

    # -- training -------------------------------------------------------------------------------------

    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters by name: ``base_model.model.<module>.lora_A.weight``, as in PEFT's files."""
        named: dict[str, nn.Parameter] = {}
        for module in self.factors | self.paths:
            for part in (self.factors.get(module), self.paths.get(module)):
                if part is not None:
                    named |= {f"{PREFIX}{module}.{local}": value for local, value in part.parameters().items()}
        return named | self.own

    @property
    def count(self) -> int:
        """Trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters().values())

    def collect(self) -> None:
        """To be called after a step's backward passes: gradients of other processes' sequences are added."""
        if self.shards is not None:
            self.shards.add([p.grad for p in self.parameters().values() if p.grad is not None])

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The length of all gradients together, of which this process has ``gradients``; a scalar."""
        length: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients))))
        return length

    def penalty(self) -> Tensor | None:
        """What is added to the loss of an optimizer step, once, however many micro-batches it has; a scalar."""
        return None

    def after_step(self, step: int, total: int) -> None:
        """To be called after each optimizer step (``step`` counts from 0) while the gradients are still there."""

    # -- state ----------------------------------------------------------------------------------------

    def buffers(self) -> dict[str, Tensor]:
        """What does not train and yet belongs to the state, by name."""
        named = {}
        for module, factor in self.factors.items():
            if factor.initial is not None:
                named[f"{PREFIX}{module}.initial_A"], named[f"{PREFIX}{module}.initial_B"] = factor.initial
        return named

    def state_dict(self) -> dict[str, Tensor]:
        """All values of parameters and buffers, sharing their storage: clone what must survive the next step."""
        return {name: value.detach() for name, value in (self.parameters() | self.buffers()).items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy values into the parameters and buffers, in place.

        Raises:
            CheckpointError: names or shapes differ; nothing is copied then.
        """
        mine = self.state_dict()
        missing, strange = sorted(mine.keys() - state.keys()), sorted(state.keys() - mine.keys())
        if missing or strange:
            raise CheckpointError(
                f"The adapter state is of another run: {len(missing)} parameters are missing ({_few(missing)}), "
                f"{len(strange)} are not of this adapter ({_few(strange)}). Use the state saved by the same "
                "method.roles and method.layers."
            )
        for name, value in mine.items():
            if value.shape != state[name].shape:
                raise CheckpointError(
                    f"{name}: the adapter state has shape {tuple(state[name].shape)}, here it is "
                    f"{tuple(value.shape)}. Use the state saved with method.r={self.spec.r} on the same model."
                )
        with torch.no_grad():
            for name, value in mine.items():
                value.copy_(state[name])

    def gathered(self, tensors: Mapping[str, Tensor], owner: Callable[[str], str | None]) -> dict[str, Tensor]:
        """``tensors`` for a checkpoint; ``owner`` says of which parameter one has the shape here, ``None``: of none."""
        return dict(tensors)

    def taken(self, tensors: Mapping[str, Tensor], owner: Callable[[str], str | None]) -> dict[str, Tensor]:
        """What :meth:`gathered` was given, from what it gave."""
        return dict(tensors)

    # -- files ----------------------------------------------------------------------------------------

    def exported(self) -> dict[str, Tensor]:
        """The tensors of the saved adapter. Factors with ``initial`` ones become ordinary ones of twice the rank."""
        tensors = {name: parameter.detach() for name, parameter in self.parameters().items()}
        for module, factor in self.factors.items():
            if factor.initial is not None:
                A, B = factor.product()
                tensors[f"{PREFIX}{module}.lora_A.weight"] = A.detach()
                tensors[f"{PREFIX}{module}.lora_B.weight"] = B.detach()
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the values back that :meth:`exported` gave, where they are the state.

        Raises:
            CheckpointError: as :meth:`load_state_dict`.
        """
        self.load_state_dict(tensors)

    def save(self, folder: Path, *, base_name: str) -> bool:
        """Write the adapter: in PEFT's format where PEFT has the method, and then ``PeftModel.from_pretrained(base,
        folder)`` loads it; else as tensors and ``lora_lab_method.json``. :func:`lora_lab.methods.load` reads both.

        ``adapter_model.safetensors`` is written first and the config, without which no loader
        looks further, last; each moves into place whole. An empty mask has nothing to save: no file is written
        and the answer is False.

        ``base_name`` is the base's hub id or folder, kept in the config. An adapter on the head of a model with
        tied embeddings loads on the stock (tied) model and gives the same logits, with a warning of PEFT's;
        *merging* it there would change the input embeddings too, so untie the head first (``models.untie``).

        Raises:
            SweepFolderError: no space or no permission.
        """
        if not self.parameters():
            return False
        tensors = self.exported()
        if self.shards is not None and not self.shards.first:
            return True
        with writing(folder / self.weights_file) as file:
            write_tensors(file, tensors, {"format": "pt"})
        if self.peft_config is not None:
            write_text(folder / ADAPTER_CONFIG, self._config_text(base_name))
        else:
            tree = {"format": 1, "base": base_name, "method": to_tree(self.spec)}
            write_text(folder / METHOD_CONFIG, json.dumps(tree, indent=2, sort_keys=True) + "\n")
        return True

    def _config_text(self, base_name: str) -> str:
        """The config as PEFT renders it, whatever its version adds; sets sorted, to be the same each time."""
        config = copy.copy(self.peft_config)
        config.base_model_name_or_path, config.inference_mode = base_name, True
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            tree = read_json(Path(folder) / ADAPTER_CONFIG)
        for name in ("target_modules", "feedforward_modules"):
            if isinstance(tree.get(name), list):
                tree[name] = sorted(tree[name])
        return json.dumps(tree, indent=2, sort_keys=True) + "\n"


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "") if names else "none"
