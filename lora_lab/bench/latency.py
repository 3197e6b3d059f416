"""How long prefill and decoding take on a base model, with an adapter beside it, and with one merged into it.

Everything is measured in one process on one resident base. A round measures every variant once, each round in another
order, so that a machine that warms up, or is busy for a while, treats all alike; what is compared is a variant with the
base of the same round.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import DynamicCache

from lora_lab.adapters import Reference
from lora_lab.adapters.in_place import Weights, in_place, merged_weights
from lora_lab.bench.decoding import hidden_states
from lora_lab.errors import ConfigError, LoraLabError, nearest
from lora_lab.methods import Attachment, attach, load
from lora_lab.models import BaseModel
from lora_lab.packing.paths import Mount
from lora_lab.packing.stacks import Share
from lora_lab.spec import MethodSpec
from lora_lab.spec.method import METHODS

BASE = "base"
MARGIN = 0.05
"""A median ratio to the base whose interval lies within this of 1 is "adds nothing"."""


@dataclass(frozen=True, eq=False)
class Variant:
    """What is timed: the base model (neither is given), an ``attachment`` beside it, or merged ``weights`` in it."""

    name: str
    attachment: Attachment | None = None
    weights: Weights | None = None

    @property
    def bytes(self) -> int:
        """What it needs beside the base: parameters of the adapter; nothing once merged."""
        if self.attachment is None:
            return 0
        return sum(one.numel() * one.element_size() for one in self.attachment.parameters().values())


def variants(
    base: BaseModel,
    references: Sequence[Reference],
    methods: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> list[Variant]:
    """The base, each adapter beside it and, where it can be, merged; and untrained ones of ``methods``.

    Methods that this base cannot carry are left out, and ``say`` is told.

    Raises:
        ConfigError: an unknown method.
    """
    found = [Variant(BASE)]
    for reference in references:
        if reference.folder is None:
            continue
        attachment = load(reference.folder, base)
        found.append(Variant(reference.name, attachment))
        try:
            found.append(Variant(f"{reference.name} merged", None, merged_weights(base, attachment, reference.name)))
        except LoraLabError as error:
            say(str(error))
    for name in methods:
        if name not in METHODS:
            raise ConfigError(f"--methods {name}: no such method{nearest(name, METHODS)}")
        try:
            found.append(Variant(name, attach(base, MethodSpec(name), 0)))
        except LoraLabError as error:
            say(f"{name} is left out: {error}")
    return found


def measure(
    base: BaseModel,
    variants: Sequence[Variant],
    *,
    batches: Sequence[int] = (1, 2, 4, 8),
    prompt: int = 64,
    new: int = 16,
    rounds: int = 7,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> pd.DataFrame:
    """One row a round, variant, batch and phase: ``round, variant, batch, phase, seconds, tokens, memory``.

    ``phase`` is ``prefill`` (``prompt`` tokens a sequence) or ``decode`` (``new`` tokens, one after another, with a
    key-value cache; not of methods that run alone, whose model keeps none). ``seconds`` is of the phase, ``tokens``
    what it took in all sequences together, ``memory`` the bytes at its peak (CUDA), else those beside the base. The
    first round of all is thrown away.
    """
    order, rows = random.Random(seed), []
    generator = torch.Generator().manual_seed(seed)
    vocabulary = int(base.model.config.vocab_size)
    for batch in batches:
        ids = torch.randint(0, vocabulary, (batch, prompt), generator=generator).to(base.device)
        for turn in range(-1, rounds):
            for variant in order.sample(list(variants), len(variants)):
                _peak_again(base)
                found = _timed(base, variant, ids, new)
                memory = _peak(base, variant)
                if turn < 0:
                    continue
                for phase, seconds in found.items():
                    tokens = batch * (prompt if phase == "prefill" else new)
                    rows.append((turn, variant.name, batch, phase, seconds, tokens, memory))
        say(f"batch {batch}: {rounds} rounds of {len(variants)} variants")
    names = [variant.name for variant in variants]
    rows.sort(key=lambda row: (batches.index(row[2]), row[0], names.index(row[1])))
    return pd.DataFrame(rows, columns=["round", "variant", "batch", "phase", "seconds", "tokens", "memory"])


@torch.no_grad()
def _timed(base: BaseModel, variant: Variant, ids: Tensor, new: int) -> dict[str, float]:
    if variant.attachment is not None and variant.attachment.solo is not None:
        mask = torch.ones_like(ids)
        start = _now(base)
        variant.attachment.solo(ids, mask)
        return {"prefill": _now(base) - start}
    with contextlib.ExitStack() as stack:
        mount = Mount(base)
        stack.callback(mount.unmount)
        if variant.weights is not None:
            stack.enter_context(in_place(base, variant.weights))
        if variant.attachment is not None:
            mount.mount(variant.attachment)
        return _both(base, mount, variant.attachment, ids, new)


def _both(base: BaseModel, mount: Mount, attachment: Attachment | None, ids: Tensor, new: int) -> dict[str, float]:
    model, batch = base.model, len(ids)
    cache = DynamicCache(config=model.config)
    embedded = model.get_input_embeddings()(ids)
    if attachment is not None and attachment.prompt is not None:
        virtual = attachment.prompt().to(embedded.dtype)
        embedded = torch.cat([virtual.expand(batch, -1, -1), embedded], dim=1)

    def step(given: Tensor) -> Tensor:
        with mount.shares([Share(attachment, 0, given.shape[0] * given.shape[1])]):
            hidden = hidden_states(model, given, cache)
        with mount.shares([Share(attachment, 0, batch)]):
            token: Tensor = model.get_output_embeddings()(hidden[:, -1]).argmax(-1)
        return token

    start = _now(base)
    token = step(embedded)
    middle = _now(base)
    for _ in range(new):
        token = step(model.get_input_embeddings()(token.unsqueeze(1)))
    return {"prefill": middle - start, "decode": _now(base) - middle}


def _now(base: BaseModel) -> float:
    if base.device.type == "cuda":
        torch.cuda.synchronize(base.device)
    return time.perf_counter()


def _peak_again(base: BaseModel) -> None:
    if base.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(base.device)


def _peak(base: BaseModel, variant: Variant) -> int:
    return torch.cuda.max_memory_allocated(base.device) if base.device.type == "cuda" else variant.bytes


def summary(frame: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """A row a variant, batch and phase: ``median`` and ``q1 … q3`` of the seconds, ``tokens_per_s``, ``memory``; and
    ``ratio`` to the base, the median over rounds of both times in one round, with its 95 % bootstrap interval
    ``low … high``.
    """
    rows = []
    generator = np.random.default_rng(seed)
    for (batch, phase), part in frame.groupby(["batch", "phase"], sort=False):
        wide = part.pivot(index="round", columns="variant", values="seconds")
        for variant in dict.fromkeys(part["variant"]):
            mine = part[part["variant"] == variant]
            seconds = wide[variant].to_numpy()
            row = {
                "variant": variant,
                "batch": batch,
                "phase": phase,
                "median": float(np.median(seconds)),
                "q1": float(np.quantile(seconds, 0.25)),
                "q3": float(np.quantile(seconds, 0.75)),
                "tokens_per_s": float(mine["tokens"].iloc[0] / np.median(seconds)),
                "memory": int(mine["memory"].max()),
            }
            if BASE in wide:
                ratios = seconds / wide[BASE].to_numpy()
                drawn = np.median(generator.choice(ratios, (2000, len(ratios))), axis=1)
                low, high = np.quantile(drawn, [0.025, 0.975])
                row |= {"ratio": float(np.median(ratios)), "low": float(low), "high": float(high)}
            rows.append(row)
    return pd.DataFrame(rows)


def verdict(found: pd.DataFrame, variant: str) -> str:
    """``adds nothing``, ``slower``, ``faster`` or ``unclear`` than the base, over all batches and phases of a summary.

    Of the rows, by their 95 % intervals of the ratio: all within :data:`MARGIN` of 1; most wholly above; most wholly
    below; else.
    """
    mine = found[found["variant"] == variant]
    if ((mine["low"] > 1 - MARGIN) & (mine["high"] < 1 + MARGIN)).all():
        return "adds nothing"
    if (mine["low"] > 1).mean() > 0.5:
        return "slower"
    return "faster" if (mine["high"] < 1).mean() > 0.5 else "unclear"
