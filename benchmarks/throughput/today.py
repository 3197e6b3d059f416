"""A sweep from command to table as people do it today: ``python -m throughput.today job.json FOLDER``.

Loads the model, tokenises, has Optuna hand out the runs, trains each with ``Trainer``, evaluates it on the held-out
split, saves its adapter, and prints the table. Batches are of like length (sorted, then shuffled), which is the best
that grouping by length can come to.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lora_lab import data
from lora_lab.data import Split
from lora_lab.spec import RunSpec
from lora_lab.spec.tree import from_tree
from throughput.child import Job, load
from throughput.stock import peft_model
from throughput.trainer import Collator, arguments, each_trial


def rows(split: Split, indices: Any) -> list[dict[str, Any]]:
    """Examples as ``Trainer`` takes them."""
    return [{"sequence": split.tokens(int(i))} for i in indices]


def by_length(split: Split, size: int, seed: int) -> list[int]:
    """All examples once, in batches of like length, the batches shuffled."""
    order = np.argsort(split.lengths, kind="stable")
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    shuffled = np.random.default_rng(seed).permutation(len(batches))
    return [int(i) for k in shuffled for i in batches[k]]


def main(path: Path, folder: Path) -> None:
    """Do the sweep in ``path``, with its adapters in ``folder``."""
    from transformers import PrinterCallback, Trainer
    from transformers.utils import logging

    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    job = Job(**json.loads(path.read_text()))
    torch.set_num_threads(job.threads)
    specs = {name: from_tree(RunSpec, tree) for name, tree in job.specs.items()}
    first = next(iter(specs.values()))
    base = load(first.model, job.device)
    base.model.set_attn_implementation(job.attention)
    tokens = data.load(first.data, base.tokenizer)
    held_out = rows(tokens.evaluation, np.argsort(tokens.evaluation.lengths, kind="stable"))
    table: dict[str, float] = {}

    def one(index: int) -> float:
        name, spec = list(specs.items())[index]
        with peft_model(base, spec) as model:
            trainer = Trainer(
                model=model,
                args=arguments(spec, folder / name, spec.budget.total_steps(len(tokens.train)), base.device),
                train_dataset=rows(tokens.train, by_length(tokens.train, spec.budget.batch_size, spec.seed)),
                eval_dataset=held_out,
                data_collator=Collator(base.tokenizer.pad_token_id or 0, job.every_logit),
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            table[name] = float(trainer.evaluate()["eval_loss"])
            model.save_pretrained(folder / name)
        return table[name]

    each_trial(len(specs), one)
    (folder / f"{path.stem}.table.json").write_text(json.dumps(table))
    for name, loss in sorted(table.items(), key=lambda row: row[1]):
        m = specs[name].method
        print(f"{name}  r={m.r:<3} {'+'.join(m.mask):<40} lr={specs[name].optimizer.lr:.2g}  {loss:.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
