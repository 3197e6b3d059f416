"""An adapter merged into its base model's weights, shard by shard.

What is merged is computed in float64 for a base in float32 and in float32 for one in 16 bits, and rounded once, to the
dtype of the files. So merged and unmerged logits differ by that rounding alone; :class:`Merged` says how large it is.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lora_lab.adapters.card import Merged, write_card
from lora_lab.adapters.changes import Change, changes, rows_at_once
from lora_lab.adapters.hollow import files_of, hollow
from lora_lab.adapters.planning import Plan, check_free, plan_of, written
from lora_lab.adapters.references import Reference
from lora_lab.adapters.reversal import KEPT, Reversal
from lora_lab.adapters.weights import SINGLE, Held, Stored, Weights, write_index
from lora_lab.errors import MethodError, SpecError
from lora_lab.files import folder_errors
from lora_lab.methods import load as load_adapter
from lora_lab.models import BaseModel
from lora_lab.models import load as load_base
from lora_lab.models.weight_files import Planned, write_shard

ONTO = ("dequantised", "original")


def merge(
    reference: Reference,
    out: Path,
    *,
    dtype: str = "auto",
    onto: str = "dequantised",
    reversible: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Merged:
    """Write the model that ``reference``'s adapter makes of its base to ``out``: safetensors, configs, tokenizer.

    ``dtype`` is that of its files (``auto``: of the base as it was trained on). A quantised base is merged ``onto`` its
    ``dequantised`` weights (the function that was trained) or onto the ``original`` ones. ``reversible`` keeps what
    :func:`~lora_lab.adapters.unmerge` needs to give the base back bit for bit. ``out`` appears when it is whole.

    Raises:
        MethodError: a method that is no change of weights, or a bias where the architecture has none.
        SpecError: an option of another domain, or ``original`` where there are no such files.
        SweepFolderError: ``out`` is taken, or cannot be written.
        CheckpointError, ModelError: files of the adapter or the base that cannot be read.
    """
    if onto not in ONTO:
        raise SpecError(f"--onto: must be one of {', '.join(ONTO)}, got {onto!r}.")
    check_free(out)
    name = reference.model.dtype if dtype == "auto" else dtype
    if reversible:
        _check_reversible(reference, name)
    shell = hollow(reference.model)
    plan = _planned(reference, shell)
    source = _source(reference, shell, plan, onto)
    merged = Merged(out, name, len(plan.altered), plan.untied, isinstance(source, Stored), reversible=reversible)
    say(f"merging {len(plan.altered)} of {len(shell.model.state_dict())} tensors into {name}")
    with written(out) as folder, folder_errors(folder):
        _Stream(plan, source, merged, onto).write(folder, say)
        _configure(folder, reference, shell, merged)
        shell.tokenizer.save_pretrained(folder)
        if reversible and reference.folder is not None:
            shutil.copytree(reference.folder, folder / KEPT / "adapter", dirs_exist_ok=True)
        write_card(folder, reference, merged, onto)
    return merged


def _check_reversible(reference: Reference, name: str) -> None:
    base, wide = (getattr(torch, one) for one in (reference.model.dtype, name))
    if torch.promote_types(base, wide) != wide:
        raise SpecError(
            f"--reversible: {name} cannot hold what {reference.model.dtype} does, so the base would not come back. "
            f"Use --dtype {reference.model.dtype}."
        )
    if reference.method == "full":
        raise MethodError(f"{reference.name}: full fine-tuning is another model, with nothing to take off again.")


def _planned(reference: Reference, shell: BaseModel) -> Plan:
    model: Any = shell.model
    modules = dict(model.named_modules())
    found: dict[str, Change] = {}
    if reference.folder is not None and reference.method != "full":
        found = changes(load_adapter(reference.folder, shell), reference.name)
    return plan_of(found, model, modules, reference.name)


def _source(reference: Reference, shell: BaseModel, plan: Plan, onto: str) -> Weights:
    if reference.method == "full":
        assert reference.folder is not None
        return Stored(reference.folder, shell.model, _plain(reference))
    folder = files_of(shell)
    if folder is not None and any(folder.glob("*.safetensors")):
        quantised_files = getattr(shell.model.config, "quantization_config", None) is not None
        if not quantised_files:
            spec = reference.model if onto == "dequantised" else _plain(reference)
            stored = Stored(folder, shell.model, spec)
            if stored.covers(plan.altered - ({plan.head} if plan.untied else set())):
                return stored
    if onto == "original" and reference.model.quantization != "none":
        raise SpecError(
            f"--onto original: the files of {reference.model.name} are quantised, or it has none, so there are no "
            "other weights. Use --onto dequantised."
        )
    return Held(load_base(reference.model))


def _plain(reference: Reference) -> Any:
    return replace(reference.model, quantization="none", double_quant=False)


class _Stream:
    """Tensor by tensor, a block of rows at a time."""

    def __init__(self, plan: Plan, source: Weights, merged: Merged, onto: str) -> None:
        self.plan, self.source, self.merged, self.onto = plan, source, merged, onto
        self.dtype: torch.dtype = getattr(torch, merged.dtype)
        self.reversal: Reversal | None = None
        self._sums = [0.0, 0.0, 0.0]  # squares of weights, changes, roundings
        self._quantised = [0.0, 0.0]

    def write(self, folder: Path, say: Callable[[str], None]) -> None:
        """Write all shards and their index into ``folder``."""
        places: dict[str, str] = {}
        shards = self.source.shards()
        for file, names in shards.items():
            target = SINGLE if len(shards) == 1 else file
            planned = [self._plan(name) for name in names]
            if self.plan.untied and self.plan.words in names:
                assert self.plan.head is not None
                planned.append(Planned(self.plan.head, self.dtype, self.source.shape(self.plan.words)))
            self.reversal = Reversal() if self.merged.reversible else None
            self.merged.bytes += write_shard(folder / target, planned, self._blocks(planned))
            if self.reversal is not None and self.reversal.tensors:
                (folder / KEPT).mkdir(exist_ok=True)
                save_file(self.reversal.tensors, folder / KEPT / target)
            places |= {one.name: target for one in planned}
            say(f"{target}: {len(planned)} tensors")
        write_index(folder, places, self.merged.bytes)
        weights, change, lost = map(math.sqrt, self._sums)
        self.merged.update = change / weights if weights else 0.0
        self.merged.lost = lost / change if change else 0.0
        if self._quantised[0]:
            self.merged.quantisation = math.sqrt(self._quantised[1] / self._quantised[0])

    def _plan(self, name: str) -> Planned:
        first = self.source.read(name, 0, 1)
        return Planned(name, self.dtype if first.is_floating_point() else first.dtype, self.source.shape(name))

    def _blocks(self, planned: list[Planned]) -> Iterator[Tensor]:
        for one in planned:
            if self.reversal is not None:
                self.reversal.begin(one.name)
            source = self.plan.words if self.plan.untied and one.name == self.plan.head else one.name
            self._compare(source)
            conv = one.name in self.plan.conv and one.name in self.plan.weights
            step = one.shape[0] if conv else (rows_at_once(one.shape) if one.shape else 1)
            for start in range(0, one.shape[0] if one.shape else 1, step):
                rows = self.source.read(source, start, start + step)
                yield self._merged(one.name, rows, start, conv)
            if self.reversal is not None:
                self.reversal.end(new=source != one.name)

    def _merged(self, name: str, rows: Tensor, start: int, conv: bool) -> Tensor:
        weight, bias = self.plan.weights.get(name), self.plan.biases.get(name)
        if weight is None and bias is None:
            return rows.to(self.dtype) if rows.is_floating_point() else rows
        given = rows.t() if conv else rows
        wide = given.to(torch.float64 if rows.dtype in (torch.float32, torch.float64) else torch.float32)
        if weight is not None:
            exact = weight.weight(wide, start)
        else:
            assert bias is not None
            exact = bias.bias(wide) if start == 0 and len(rows) == len(wide) else wide
        out = exact.to(self.dtype)
        self._sums[0] += float(wide.double().square().sum())
        self._sums[1] += float((exact - wide).double().square().sum())
        self._sums[2] += float((out.to(exact.dtype) - exact).double().square().sum())
        if self.reversal is not None:
            back = weight.without(out.to(wide.dtype), start) if weight is not None else out.to(wide.dtype)
            back = back.to(rows.dtype)
            self.reversal.compare(rows, back.t().contiguous() if conv else back)
        return out.t() if conv else out

    def _compare(self, name: str) -> None:
        """How far a de-quantised weight is from the original one."""
        source = self.source
        if isinstance(source, Stored) and name in source.quantised:
            original = source.original(name).float()
            far = float((source.read(name).float() - original).square().sum())
            size = float(original.square().sum())
            self._quantised[0] += size
            self._quantised[1] += far
            self.merged.by_tensor[name] = math.sqrt(far / size) if size else 0.0


def _configure(folder: Path, reference: Reference, shell: BaseModel, merged: Merged) -> None:
    """``config.json`` and what else lies beside a model's weights."""
    files = reference.folder if reference.method == "full" else files_of(shell)
    model: Any = shell.model
    if files is not None and (files / "config.json").is_file():
        tree = json.loads((files / "config.json").read_text(encoding="utf-8"))
        if (files / "generation_config.json").is_file():
            shutil.copyfile(files / "generation_config.json", folder / "generation_config.json")
        for code in files.glob("*.py") if reference.model.trust_remote_code else ():
            shutil.copyfile(code, folder / code.name)
    else:
        tree = json.loads(model.config.to_json_string(use_diff=True))
        tree["tie_word_embeddings"] = bool(getattr(model, "_lora_lab_untied", False))
    tree.pop("quantization_config", None)
    tree.pop("torch_dtype", None)
    tree["dtype"], tree["architectures"] = merged.dtype, [type(model).__name__]
    if merged.untied:
        tree["tie_word_embeddings"] = False
    for special in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if tree.get(special) is None and getattr(shell.tokenizer, special, None) is not None:
            tree[special] = getattr(shell.tokenizer, special)
    (folder / "config.json").write_text(json.dumps(tree, indent=2, sort_keys=True) + "\n", encoding="utf-8")
