"""A solo lane is stock PEFT with a stock torch optimizer and transformers schedule on the same batches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from parity.lanes import Listener, run_pack, tiny
from torch import nn

from lora_lab import models
from lora_lab.data import BatchOrder
from lora_lab.engine.lane import LaneJob, noise_of
from lora_lab.methods import attach
from lora_lab.models import BaseModel
from lora_lab.packing.dropout import dropout, seed_of
from lora_lab.spec import (
    ROLES,
    BudgetSpec,
    DataSpec,
    MethodSpec,
    OptimizerSpec,
    Outcome,
    RunSpec,
    ScheduleSpec,
)

DATA = DataSpec(train_size=48, eval_size=8)
STEPS = 50


class InjectedDropout(nn.Module):
    """Dropout with the masks that the lane draws at module ``name`` in the forward whose noise is ``now["noise"]``."""

    def __init__(self, p: float, name: str, now: dict[str, Any]) -> None:
        super().__init__()
        self.p, self.name, self.now = p, name, now

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lengths = self.now["lengths"]
        ones = torch.ones(sum(lengths), x.shape[-1], dtype=x.dtype)
        flat = dropout(ones, self.p, seed_of(self.now["noise"], self.name), "none")
        mask = torch.zeros_like(x)
        for row, part in enumerate(flat.split(lengths)):
            mask[row, : len(part)] = part
        return x * mask


def stock_losses(spec: RunSpec, job: LaneJob, base: BaseModel) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train with peft.get_peft_model, torch.optim and plain padded batches; returns losses and adapter."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    model = copy.deepcopy(base.model)
    model.set_attn_implementation("sdpa" if spec.model.dtype == "float64" else "eager")
    names = sorted({name for role in spec.method.mask for name in base.roles[role]})
    torch.manual_seed(spec.seed)
    peft = get_peft_model(
        model,
        LoraConfig(
            r=spec.method.r,
            lora_alpha=spec.method.effective_alpha,
            lora_dropout=spec.method.dropout,
            target_modules=names,
            fan_in_fan_out="gpt2" in spec.model.name,
        ),
    )
    peft.eval()
    now: dict[str, Any] = {}
    if spec.method.dropout:
        for name, module in peft.named_modules():
            if isinstance(module, LoraLayer):
                own = name.removeprefix("base_model.model.")
                module.lora_dropout["default"] = InjectedDropout(spec.method.dropout, own, now)
    trainable = [p for p in peft.parameters() if p.requires_grad]
    o = spec.optimizer
    optimizer: torch.optim.Optimizer
    if o.name == "adamw":
        optimizer = torch.optim.AdamW(trainable, lr=o.lr, weight_decay=o.weight_decay, foreach=False)
    else:
        optimizer = torch.optim.SGD(trainable, lr=o.lr, weight_decay=o.weight_decay, momentum=o.momentum)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (STEPS - step) / STEPS if spec.schedule.name == "linear" else 1.0
    )
    order = BatchOrder(len(job.data.train), spec.budget.batch_size, spec.seed)
    losses = []
    for step in range(STEPS):
        rows = [job.data.train.tokens(int(i)) for i in order.batch(step)]
        targets = sum(int(s[1:].sum()) for _, s in rows)
        total = 0.0
        for start in range(0, len(rows), spec.budget.micro):
            micro = rows[start : start + spec.budget.micro]
            width = max(len(ids) for ids, _ in micro)
            ids = torch.zeros(len(micro), width, dtype=torch.long)
            labels = torch.full((len(micro), width), -100)
            for row, (tokens, supervised) in enumerate(micro):
                ids[row, : len(tokens)] = torch.from_numpy(tokens)
                labels[row, : len(tokens)] = torch.where(
                    torch.from_numpy(supervised), torch.from_numpy(tokens), torch.tensor(-100)
                )
            now["lengths"] = [len(tokens) for tokens, _ in micro]
            now["noise"] = noise_of(spec.seed, step, start // spec.budget.micro)
            for module in peft.modules():
                if isinstance(module, InjectedDropout):
                    module.train()
            logits = peft(input_ids=ids).logits
            wide = torch.promote_types(logits.dtype, torch.float32)
            loss = nn.functional.cross_entropy(
                logits[:, :-1].reshape(-1, logits.shape[-1]).to(wide), labels[:, 1:].reshape(-1), reduction="sum"
            )
            (loss / targets).backward()
            total += float(loss.detach())
        if o.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(trainable, o.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(total / targets)
    state = {k.replace(".default", ""): v.detach().clone() for k, v in peft.named_parameters() if v.requires_grad}
    return losses, state


CASES = {
    "adamw-all-roles-accumulated": RunSpec(
        model=tiny("llama-tied-gqa"),
        data=DATA,
        method=MethodSpec(r=4, roles=ROLES),
        optimizer=OptimizerSpec(lr=5e-3, weight_decay=0.1, max_grad_norm=0.5),
        schedule=ScheduleSpec("linear"),
        budget=BudgetSpec(steps=STEPS, batch_size=8, micro_batch_size=3),
        seed=3,
    ),
    "sgd-momentum-query-value": RunSpec(
        model=tiny("llama-tied-gqa"),
        data=DATA,
        method=MethodSpec(r=8, alpha=4.0),
        optimizer=OptimizerSpec(name="sgd", lr=0.3, momentum=0.9, max_grad_norm=None),
        schedule=ScheduleSpec("constant"),
        budget=BudgetSpec(steps=STEPS, batch_size=4),
        seed=5,
    ),
    "gpt2-fused-everything-supervised": RunSpec(
        model=tiny("gpt2-fused"),
        data=DataSpec(train_size=48, eval_size=8, mask_prompt=False),
        method=MethodSpec(r=4, roles=("query", "key", "value", "projection", "mlp")),
        optimizer=OptimizerSpec(lr=5e-3),
        budget=BudgetSpec(steps=STEPS, batch_size=4),
        seed=1,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_float64_trajectory_is_that_of_stock_peft(
    case: str, bases: Callable[..., BaseModel], job: Callable[..., LaneJob]
) -> None:
    spec = CASES[case]
    base = bases(spec.model.name)
    mine = job("lane", spec)
    listener = Listener()
    end = run_pack(base, [mine], listener, 1)["lane"]
    losses, adapter = stock_losses(spec, mine, base)
    assert end.outcome is Outcome.COMPLETED
    assert losses[-1] < losses[0], "the comparison needs a run that learns"
    torch.testing.assert_close(torch.tensor(listener.losses("lane")), torch.tensor(losses), rtol=1e-8, atol=0)
    assert end.lane is not None
    for name, value in end.lane.attachment.state_dict().items():
        torch.testing.assert_close(value, adapter[name], rtol=1e-6, atol=1e-9)


def test_float64_trajectory_with_dropout_is_that_of_stock_peft_given_the_masks(
    bases: Callable[..., BaseModel], job: Callable[..., LaneJob]
) -> None:
    spec = CASES["sgd-momentum-query-value"].at({"method.dropout": 0.2})
    base = bases(spec.model.name)
    mine = job("lane", spec)
    listener = Listener()
    run_pack(base, [mine], listener, 1)
    losses, _ = stock_losses(spec, mine, base)
    torch.testing.assert_close(torch.tensor(listener.losses("lane")), torch.tensor(losses), rtol=1e-8, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 2e-2)])
def test_lower_precision_stays_close(
    dtype: str, tolerance: float, bases: Callable[..., BaseModel], job: Callable[..., LaneJob]
) -> None:
    """bfloat16 keeps 8 bits: single activations differ by 0.4 % where sums are ordered differently."""
    spec = CASES["adamw-all-roles-accumulated"]
    spec = spec.at({"model.dtype": dtype})
    mine = job("lane", spec)
    listener = Listener()
    base = bases(spec.model.name, dtype)
    run_pack(base, [mine], listener, 1)
    losses, _ = stock_losses(spec, mine, base)
    torch.testing.assert_close(torch.tensor(listener.losses("lane")), torch.tensor(losses), rtol=tolerance, atol=0)


def test_attaching_leaves_the_base_as_it_was(bases: Callable[..., BaseModel]) -> None:
    base = bases("llama-tied-gqa")
    before = [name for name, _ in base.model.named_modules()]
    attach(base, MethodSpec(roles=ROLES), seed=0)
    assert [name for name, _ in base.model.named_modules()] == before
    assert models.load(base.spec).total_parameters == base.total_parameters
