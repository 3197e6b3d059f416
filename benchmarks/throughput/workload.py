"""What every method trains: the same runs on the same batches.

A shape says how large a batch is and how long its sequences are. ``2x96`` is two sequences of exactly 96 tokens;
``alpaca`` is four instructions of their real lengths, batched by length as HF's ``group_by_length`` does it over the
whole data set. ``nf4-`` before a shape asks for a base in NF4.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lora_lab import data
from lora_lab.config import compose_sweep
from lora_lab.data import BatchOrder, Split, Tokenised
from lora_lab.data.split import Tokens
from lora_lab.engine.cost import Flops
from lora_lab.methods import Attachment, attach
from lora_lab.models import BaseModel
from lora_lab.packing.inputs import Sequences
from lora_lab.spec import Execution, RunSpec
from lora_lab.study import Study

SWEEP = Path(__file__).with_name("sweep.yaml")
SUPERVISED = 0.57
"""Share of a block's tokens that are targets, as of a short instruction's."""
ALPACA = "alpaca_5k.json"
EXAMPLES = 2048
"""Training examples that batches are chosen from."""


@dataclass(frozen=True)
class Shape:
    """``length`` ``None``: real instruction lengths."""

    name: str
    batch: int
    length: int | None
    quantization: str = "none"

    @staticmethod
    def read(name: str) -> Shape:
        """``1x64``, ``alpaca``, ``nf4-1x64``, ``nf4-alpaca``; any numbers.

        Raises:
            ValueError: it is none of these.
        """
        found = re.fullmatch(r"(nf4-)?(?:(\d+)x(\d+)|alpaca)", name)
        if found is None:
            raise ValueError(f"{name!r} is no shape: write 2x96 (sequences x tokens), alpaca, or nf4- before one")
        quantization = "nf4" if found[1] else "none"
        if found[2] is None:
            return Shape(name, 4, None, quantization)
        return Shape(name, int(found[2]), int(found[3]), quantization)

    @property
    def overrides(self) -> list[str]:
        """The sweep's overrides: data, batch and quantisation."""
        words = [f"budget.batch_size={self.batch}", "data.eval_size=8"]
        if self.length is None:
            words += ["data=alpaca", f"data.path={alpaca_file()}", "data.max_length=512"]
        if self.quantization != "none":
            words.append(f"model.quantization={self.quantization}")
        return [*words, f"data.train_size={EXAMPLES}"]


def alpaca_file() -> Path | None:
    """The real instructions, where ``$LORA_LAB_DATA`` has them."""
    folder = os.environ.get("LORA_LAB_DATA")
    path = Path(folder) / ALPACA if folder else None
    return path if path is not None and path.exists() else None


def points(words: Sequence[str], runs: int, own_seeds: bool = True) -> list[RunSpec]:
    """The first ``runs`` runs of the sweep, as the study hands them out; with ``own_seeds`` each has another seed."""
    composed = compose_sweep(str(SWEEP), [*words, f"sweep.trials={runs}"])
    with (
        tempfile.TemporaryDirectory() as folder,
        Study.open(composed.sweep, Execution(folder)) as study,
    ):
        found = []
        while (run := study.next_run()) is not None:
            found.append(run.spec.at({}, seed=len(found)) if own_seeds else run.spec)
    return found


def even_sample(specs: Sequence[RunSpec], count: int) -> list[int]:
    """``count`` of the runs, evenly from the smallest adapter to the largest; in their own order."""
    order = sorted(range(len(specs)), key=lambda i: (specs[i].method.r * len(specs[i].method.mask), i))
    return sorted(order[int((i + 0.5) * len(order) / count)] for i in range(min(count, len(order))))


@dataclass(frozen=True, eq=False)
class Planned:
    """One run: what to train, and on what. Its batches are those that ``BatchOrder`` gives for its seed."""

    name: str
    spec: RunSpec
    data: Tokenised

    def batches(self) -> list[Sequences]:
        """The sequences of every step."""
        train = self.data.train
        order = BatchOrder(len(train), self.spec.budget.batch_size, self.spec.seed)
        steps = self.spec.budget.total_steps(len(train))
        return [[train.tokens(int(i)) for i in order.batch(step)] for step in range(steps)]


def planned(base: BaseModel, shape: Shape, names: Sequence[str], specs: Sequence[RunSpec]) -> list[Planned]:
    """The runs with their data, tokenised here."""
    tokens = data.load(specs[0].data, base.tokenizer)
    evaluation = _rows(tokens.evaluation, range(1))
    if shape.length is not None:
        shared = Tokenised(_blocks(tokens.train, shape.length), evaluation, shape.name)
        return [Planned(name, spec, shared) for name, spec in zip(names, specs, strict=True)]
    return [
        Planned(name, spec, Tokenised(_by_length(tokens.train, spec), evaluation, shape.name))
        for name, spec in zip(names, specs, strict=True)
    ]


def training_flops(base: BaseModel, run: Planned, first: int, attachment: Attachment | None = None) -> float:
    """Model FLOPs of the steps from ``first`` on, counted alike for every method."""
    attachment = attachment or attach(base, run.spec.method, run.spec.seed)
    flops = Flops(base)
    return sum(flops.training(batch, attachment) for batch in run.batches()[first:])


def _blocks(split: Split, length: int) -> Split:
    """The tokens of a split as blocks of exactly ``length``, of which the end is supervised."""
    ids = np.concatenate([split.tokens(i)[0] for i in range(len(split))])
    count = len(ids) // length
    prompt = round((1 - SUPERVISED) * length)
    tokens = Tokens(
        ids=ids[: count * length].astype(np.int32),
        supervised=np.tile(np.arange(length) >= prompt, count).astype(np.uint8),
        offsets=np.arange(count + 1, dtype=np.int64) * length,
        prompt_lengths=np.full(count, prompt, dtype=np.int32),
        full_lengths=np.full(count, length, dtype=np.int32),
        prints=np.zeros(count, dtype=np.uint64),
        texts=np.frombuffer(json.dumps([[""] * count, [""] * count]).encode(), dtype=np.uint8),
        digest="blocks",
        running=False,
    )
    return Split((tokens,), np.zeros(count, dtype=np.int32), np.arange(count, dtype=np.int64))


def _by_length(split: Split, spec: RunSpec) -> Split:
    """As many batches as the run has steps, out of an epoch batched by length, and evenly from short to long."""
    from transformers.trainer_pt_utils import get_length_grouped_indices

    size, steps = spec.budget.batch_size, spec.budget.total_steps(len(split))
    generator = torch.Generator().manual_seed(spec.seed)
    lengths = split.lengths.tolist()
    epoch = get_length_grouped_indices(lengths, size, generator=generator)
    batches = [epoch[i : i + size] for i in range(0, len(epoch) - size + 1, size)]
    batches.sort(key=lambda batch: sum(lengths[i] for i in batch))
    chosen = [batches[int((k + 0.5) * len(batches) / steps)] for k in range(steps)]
    wanted = [i for k in torch.randperm(steps, generator=generator).tolist() for i in chosen[k]]
    order = BatchOrder(len(wanted), size, spec.seed)
    rows = np.empty(len(wanted), dtype=np.int64)
    rows[np.concatenate([order.batch(step) for step in range(steps)])] = wanted
    return _rows(split, rows)


def _rows(split: Split, rows: Sequence[int] | np.ndarray) -> Split:
    """A split of some examples of another."""
    chosen = np.asarray(rows)
    return replace(split, source=split.source[chosen], row=split.row[chosen])
