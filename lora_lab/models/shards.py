"""One base model over the devices of several processes, each of which holds a part of every weight (FSDP2).

A module's whole weights are gathered when it computes, and let go of after (arXiv:2304.11277). All processes run the
same engine on the same run and come to the same numbers; the first of them writes files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lora_lab.errors import ModelError


@dataclass(frozen=True, eq=False)
class Shards:
    """This process's place, ``rank``, among the ``count`` of ``torch.distributed`` that hold one base model.

    ``trains``: the dtype in which every parameter of it trains; ``None``: they are frozen.
    """

    rank: int
    count: int
    trains: torch.dtype | None = None

    @property
    def first(self) -> bool:
        """This process writes files and speaks for all."""
        return self.rank == 0

    def agree(self, value: Any) -> Any:
        """What the first process says, for decisions that must be the same in all."""
        said = [value]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace ``tensors`` by their sums over all processes, in one exchange."""
        for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
            some = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in some])
            dist.all_reduce(flat)
            for tensor, summed in zip(some, flat.split([tensor.numel() for tensor in some]), strict=True):
                tensor.copy_(summed.view_as(tensor))

    def divide(self, model: Any, device: torch.device) -> None:
        """Leave this process its part of ``model``, whose weights may lie in memory that cannot hold them all.

        Raises:
            ModelError: an architecture that does not say what its blocks are.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if self.trains is not None:
            if getattr(model, "_lora_lab_untied", False):
                model.get_output_embeddings().weight = model.get_input_embeddings().weight
                model._lora_lab_untied = False
            model.to(self.trains).requires_grad_(True)
        names = set(getattr(model, "_no_split_modules", None) or ())
        blocks = [module for module in model.modules() if type(module).__name__ in names]
        if not blocks:
            raise ModelError(
                f"model.shard=fsdp: {type(model).__name__} does not say what its blocks are (_no_split_modules), by "
                "which it could be divided. Use model.shard=none, or an architecture of transformers' own."
            )
        mesh = init_device_mesh(device.type, (self.count,))
        for module in (*blocks, model):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # losses are divided by all processes' targets already
                module.set_force_sum_reduction_for_comms(True)


def whole(own: Tensor, divided: Any) -> Tensor:
    """All processes' ``own`` together, divided among them as the parameter ``divided`` is; all have to ask for it."""
    from torch.distributed.tensor import DTensor

    places = divided.device_mesh, divided.placements
    together = DTensor.from_local(own, *places, shape=divided.shape, stride=divided.stride(), run_check=False)
    full: Tensor = together.full_tensor()
    return full


def part(full: Tensor, divided: Any) -> Tensor:
    """This process's part of ``full``, which has the shape of the parameter ``divided``."""
    mesh = divided.device_mesh
    chunks = full.chunk(mesh.size())
    rank = mesh.get_local_rank()
    mine = chunks[rank] if rank < len(chunks) else full[:0]
    return mine.clone()  # a view would keep all of it
