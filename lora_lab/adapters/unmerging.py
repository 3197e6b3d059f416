"""A merged model taken apart again: its base, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from lora_lab.adapters.card import PROVENANCE
from lora_lab.adapters.changes import changes, rows_at_once
from lora_lab.adapters.hollow import hollow
from lora_lab.adapters.planning import Plan, check_free, plan_of, written
from lora_lab.adapters.reversal import KEPT, Reverse
from lora_lab.adapters.weights import INDEX, Stored, write_index
from lora_lab.errors import SweepFolderError
from lora_lab.files import folder_errors, read_json
from lora_lab.methods import load as load_adapter
from lora_lab.models.weight_files import Planned, write_shard
from lora_lab.spec import ModelSpec


def unmerge(merged: Path, out: Path, *, say: Callable[[str], None] = lambda text: None) -> int:
    """Write the base model back from a reversible merge, bit for bit in its own dtype; how many tensors were restored.

    Raises:
        SweepFolderError: ``merged`` keeps nothing to go back by, or ``out`` is taken.
        CheckpointError: a tensor does not come back bit for bit.
    """
    if not (merged / KEPT / "adapter").is_dir():
        raise SweepFolderError(
            f"{merged}: it was not merged with --reversible, so the base is not in it. Take the base."
        )
    check_free(out)
    tree = read_json(merged / PROVENANCE)
    spec = ModelSpec(str(merged), path=str(merged), dtype=tree["dtype"])
    shell = hollow(spec)
    found = changes(load_adapter(merged / KEPT / "adapter", shell), str(merged))
    source = Stored(merged, shell.model, spec)
    plan = plan_of(found, shell.model, dict(shell.model.named_modules()), str(merged))
    base: torch.dtype = getattr(torch, tree["model"]["dtype"])
    places: dict[str, str] = {}
    total = restored = 0
    tied = False
    with written(out) as folder, folder_errors(folder):
        for file, names in source.shards().items():
            kept = merged / KEPT / file
            reverse = Reverse(load_file(kept) if kept.is_file() else {})
            planned = []
            for name in names:
                first = source.read(name, 0, 1)
                if reverse.is_new(name):
                    tied = True
                    continue
                planned.append(Planned(name, base if first.is_floating_point() else first.dtype, source.shape(name)))
            blocks = (_taken_off(one, plan, source, reverse) for one in planned)
            total += write_shard(folder / file, planned, blocks)
            restored += sum(reverse.altered(one.name) for one in planned)
            places |= {one.name: file for one in planned}
            say(f"{file}: {len(planned)} tensors")
        write_index(folder, places, total)
        for beside in merged.iterdir():
            if (beside.suffix == ".json" and beside.name not in (PROVENANCE, INDEX)) or beside.suffix in (
                ".jinja",
                ".py",
            ):
                shutil.copyfile(beside, folder / beside.name)
        config = read_json(merged / "config.json") | {"dtype": tree["model"]["dtype"]}
        if tied:
            config["tie_word_embeddings"] = True
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return restored


def _taken_off(one: Planned, plan: Plan, source: Stored, reverse: Reverse) -> Tensor:
    whole = source.read(one.name)
    if not reverse.altered(one.name):
        return whole.to(one.dtype) if whole.is_floating_point() else whole
    change = plan.weights.get(one.name)
    if change is None:
        return reverse.restored(one.name, whole.to(one.dtype))
    conv = one.name in plan.conv
    step = one.shape[0] if conv else rows_at_once(one.shape)
    wide = torch.float64 if one.dtype in (torch.float32, torch.float64) else torch.float32
    blocks = []
    for start in range(0, one.shape[0], step):
        rows = whole[start : start + step]
        back = change.without((rows.t() if conv else rows).to(wide), start).to(one.dtype)
        blocks.append(back.t().contiguous() if conv else back)
    return reverse.restored(one.name, torch.cat(blocks))
