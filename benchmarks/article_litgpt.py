"""The article's memory figures from the article's own program: Lit-GPT's model, traced by this project's ledger.

`article_memory.py` predicts what *this* program takes for the article's runs. What lies between the two is either an
error of the planner or another program, and this benchmark tells which: the same ledger follows Lit-GPT's model code
on tensors without data. Four things of `finetune/lora.py` decide what its `torch.cuda.max_memory_allocated` shows:

- the longest sequence comes first, "so potential OOMs happen right away": before there are gradients and states;
- quantised models train with `bitsandbytes.optim.PagedAdamW`, whose states of 100,000 numbers or more lie in managed
  memory, which torch does not count (smaller ones are float32 tensors);
- bitsandbytes 0.41 keeps the input of every 4-bit product for the backward, which does not need it (mended in 0.43.2);
- what it keeps lives as long as the graph, and `loss` holds the graph until the next micro-batch has its own.

    git clone https://github.com/Lightning-AI/litgpt && git -C litgpt checkout bf60124f     # of 11 October 2023
    python benchmarks/article_litgpt.py litgpt [--article ../shared/reference/article.json]

Results are added to benchmarks/results/article_litgpt.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import machine
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lora_lab.planner.fused import FusedAttention
from lora_lab.planner.ledger import Ledger
from lora_lab.spec import ROLES

RESULTS = Path(__file__).parent / "results" / "article_litgpt.json"
ARTICLE = Path(__file__).parents[2] / "shared" / "reference" / "article.json"
PAGED = 100_000
"""Numbers of a tensor from which PagedAdamW pages its states."""
BLOCKSIZE = 64
"""4-bit numbers to one float32 scale."""
PARTS = ("weights", "adapters", "gradients", "optimizer", "activations")


@dataclass(frozen=True)
class Setting:
    """A run of the article: roles, rank, tokens of its longest sequence, 4-bit or not, and the optimizer."""

    roles: Sequence[str]
    r: int
    four_bit: bool = True
    optimizer: str = "adamw"
    length: int = 1304


QV = ("query", "value")
ROWS = {
    "lora bf16, q+v r=8, AdamW": Setting(QV, 8, four_bit=False),
    "qlora nf4, q+v r=8, AdamW": Setting(QV, 8),
    "qlora fp4, q+v r=8, AdamW": Setting(QV, 8),
    "qlora nf4, q+v r=8, SGD": Setting(QV, 8, optimizer="sgd"),
    "qlora nf4, all r=8, AdamW": Setting(ROLES, 8),
    "qlora nf4, all r=16, AdamW": Setting(ROLES, 16),
    "qlora nf4, all r=256, AdamW": Setting(ROLES, 256),
    "qlora nf4, all r=256, SGD": Setting(ROLES, 256, optimizer="sgd"),
    "qlora nf4, q+v r=256, SGD": Setting(QV, 256, optimizer="sgd"),
    "qlora nf4, all r=256, AdamW, sequences up to 2048": Setting(ROLES, 256, length=2048),
}
"""The article's names, and one that it does not have: the r=256 of SGD with query and value alone."""
ASKED_AS = {"qlora nf4, q+v r=256, SGD": "qlora nf4, all r=256, SGD"}
"""Of which of the article's figures that row is another reading."""


class FourBit(nn.Module):
    """A 4-bit linear map without data, as bitsandbytes 0.41 computes it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.shape = linear.weight.shape
        self.out_features, self.in_features = self.shape  # which the adapters read
        numbers = linear.weight.numel()
        self.packed = nn.Parameter(torch.empty(numbers // 2, dtype=torch.uint8), requires_grad=False)
        self.scales = nn.Parameter(torch.empty(numbers // BLOCKSIZE), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(…, in)`` to ``(…, out)``."""
        return _FourBitProduct.apply(x, self.packed, self.shape)  # type: ignore[no-any-return, no-untyped-call]


class _FourBitProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, shape: torch.Size) -> Tensor:
        ctx.kept, ctx.shape = x, shape  # the input is kept, and never read again
        return nn.functional.linear(x, x.new_empty(shape))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] @ grads[0].new_empty(ctx.shape), None, None


class Kernels(FusedAttention):
    """A GPU's attention and dropout: of dropout it keeps a mask of one byte a number."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Replace those two; all else is as it is."""
        if func is nn.functional.dropout:
            given = dict(zip(("input", "p", "training"), args, strict=False)) | (kwargs or {})
            return torch.native_dropout(given["input"], given["p"], given["training"])[0]
        return super().__torch_function__(func, types, args, kwargs)


def litgpt(checkout: Path) -> Any:
    """Lit-GPT's ``lora`` and ``utils``; Lightning, which they import and the model does not use, need not be there."""
    for name in (
        "lightning",
        "lightning.fabric",
        "lightning.fabric.strategies",
        "lightning.fabric.utilities",
        "lightning.fabric.utilities.load",
        "lightning_utilities",
        "lightning_utilities.core",
        "lightning_utilities.core.imports",
    ):
        sys.modules.setdefault(name, MagicMock())
    sys.path.insert(0, str(checkout))
    return importlib.import_module("lit_gpt.lora"), importlib.import_module("lit_gpt.utils")


def built(lora: Any, setting: Setting) -> nn.Module:
    """Llama-2-7B with the setting's adapters, in bf16 or 4 bits."""
    roles = {f"to_{role}": role in setting.roles for role in ROLES}
    config = lora.Config.from_name("Llama-2-7b-hf", r=setting.r, alpha=2 * setting.r, dropout=0.05, **roles)
    torch.set_default_dtype(torch.bfloat16)
    try:
        model: nn.Module = lora.GPT(config)
        lora.mark_only_lora_as_trainable(model)
        model.max_seq_length = setting.length
    finally:
        torch.set_default_dtype(torch.float32)
    if setting.four_bit:
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear):
                model.set_submodule(name, FourBit(module))
    return model


def micro_batch(model: nn.Module, utils: Any, length: int, ledger: Ledger, names: dict[str, Any]) -> None:
    """Forward and backward of one sequence, as in ``finetune/lora.py``; ``names`` are the loop's variables."""
    ids = torch.zeros(1, length, dtype=torch.int64)
    with ledger.phase("activations"), Kernels(lambda flops: None):
        names["logits"] = model(ids, lm_head_chunk_size=128)
        names["logits"][-1] = names["logits"][-1][..., :-1, :]
        names["loss"] = utils.chunked_cross_entropy(names["logits"], ids[..., 1:])
        (names["loss"] / 128).backward()


def states(parameters: Sequence[Tensor], setting: Setting) -> list[Tensor]:
    """The optimizer's state as far as torch counts it."""
    if setting.optimizer == "sgd":
        return [torch.empty_like(parameter) for parameter in parameters]  # momentum
    if not setting.four_bit:
        return [torch.empty_like(parameter) for parameter in parameters for _ in range(2)]
    small = [parameter for parameter in parameters if parameter.numel() < PAGED]
    return [torch.empty_like(parameter, dtype=torch.float32) for parameter in small for _ in range(2)]


def traced(lora: Any, utils: Any, setting: Setting) -> dict[str, dict[str, int]]:
    """Bytes by part at the peak of the first micro-batch, and of one as long when there are gradients and state."""
    ledger = Ledger(PARTS)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = built(lora, setting)
        for tensor in (*model.parameters(), *model.buffers()):
            ledger.book(tensor, "adapters" if tensor.requires_grad else "weights")
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        found, names = {}, dict[str, Any]()
        with ledger:
            ledger.begin()
            micro_batch(model, utils, setting.length, ledger, names)
            found["first"] = _peak(ledger)
            for parameter in parameters:
                assert parameter.grad is not None
                ledger.book(parameter.grad, "gradients")
            with ledger.phase("optimizer"):
                kept = states(parameters, setting)
            ledger.begin()
            micro_batch(model, utils, setting.length, ledger, names)
            found["later"] = _peak(ledger)
            del kept
    return found


def _peak(ledger: Ledger) -> dict[str, int]:
    highest = max((live for _, live in ledger.moments), key=sum)
    return dict(zip(ledger.parts, highest, strict=True))


def main() -> None:
    """Trace, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a checkout of Lit-GPT")
    parser.add_argument("--article", type=Path, default=ARTICLE, help="the article's numbers as JSON")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    article = json.loads(args.article.read_text())["memory_gb"]
    lora, utils = litgpt(args.checkout)

    rows = []
    print("| configuration | article, GB | first micro-batch, GB | one as long later, GB | made of at first (GB) |")
    print("|---|---:|---:|---:|---|")
    for name, setting in ROWS.items():
        found = traced(lora, utils, setting)
        said = article[ASKED_AS.get(name, name)]
        first, later = (sum(found[when].values()) / 1e9 for when in ("first", "later"))
        parts = ", ".join(f"{part} {size / 1e9:.2f}" for part, size in found["first"].items() if size > 5e6)
        print(f"| {name} | {said:.2f} | {first:.2f} | {later:.2f} | {parts} |", flush=True)
        rows.append({"configuration": name, "article_gb": said} | found)
    machine.keep(args.results, [{"machine": machine.facts("cpu"), "rows": rows}])
    print(f"\nkept in {args.results}")


if __name__ == "__main__":
    main()
