"""The measurements of three sections: sums of adapters (Q9), directions in common (S0) and time to answer (S3)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lora_lab.article.measured import Say, Table

if TYPE_CHECKING:
    from lora_lab.adapters import Reference
    from lora_lab.models import BaseModel

BASE, OWN, SUM, MEAN, TOGETHER = "base", "the task's own adapter", "sum of all", "mean of all", "trained on all tasks"
TRAINED, CHANCE = "adapters", "random matrices"
TIMED: Mapping[str, Mapping[str, Any]] = {
    "smoke": {"batches": (1, 2), "prompt": 8, "new": 2, "rounds": 3},
    "small": {"batches": (1, 4), "new": 8, "rounds": 9},
    "full": {},
}
"""How S3 is timed under each budget; see :func:`lora_lab.bench.latency.measure`."""
ANSWERED = {"smoke": 16, "small": 48, "full": None}
"""Held-out prompts of Q9 that are answered."""
SIDES = {"A": "inputs (A)", "B": "outputs (B)"}


@dataclass(frozen=True)
class Sums:
    """Adapters of one task each, added up and averaged, on the held-out examples of every task.

    Beside them the base model, each task's own adapter, and one adapter that was trained on all tasks. Table
    ``q9_sums``: a row a combination, task and seed, with ``eval_loss`` in nats a token and ``exact_match``.
    """

    single: str
    together: str

    @property
    def parts(self) -> tuple[str, ...]:
        """Both sweeps."""
        return self.single, self.together

    @property
    def timed(self) -> bool:
        """Losses are the same everywhere."""
        return False

    def __call__(self, runs: Mapping[str, Sequence[Reference]], budget: str, say: Say) -> dict[str, Table]:
        """Score the seeds that both sweeps have."""
        from lora_lab.bench.combinations import combination_scores

        own = {_seed(one): [r for r in runs[self.single] if _seed(r) == _seed(one)] for one in runs[self.single]}
        base, rows = _base(runs[self.single]), list[dict[str, Any]]()
        for both in runs[self.together]:
            seed, spec = _seed(both), both.spec
            singles = [replace(one, name=_task(one)) for one in own.get(seed, ())]
            names = [one.name for one in singles]
            if spec is None or set(names) != set(spec.data.tasks):
                say(f"seed {seed} is left out: not every task has an adapter of it")
                continue
            sums: dict[str, Mapping[str, float]] = {BASE: {}, SUM: dict.fromkeys(names, 1.0)}
            sums |= {MEAN: dict.fromkeys(names, 1 / len(names)), TOGETHER: {TOGETHER: 1.0}}
            sums |= {name: {name: 1.0} for name in names}
            spec = replace(spec, evaluation=replace(spec.evaluation, exact_match_size=ANSWERED[budget]))
            found = combination_scores(base, [*singles, replace(both, name=TOGETHER)], list(sums.values()), spec)
            found = found.assign(combination=np.repeat(list(sums), len(found) // len(sums)))
            rows += _scores(found[found["task"] != "all"], names, seed)
            say(f"seed {seed}: {len(sums)} combinations on {len(names)} tasks")
        return {"q9_sums": Table(("combination", "task"), "eval_loss", tuple(rows))}


def _scores(found: pd.DataFrame, names: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """An adapter of one task counts on that task alone."""
    rows = []
    for row in found.to_dict("records"):
        who = str(row["combination"])
        if who in names and who != row["task"]:
            continue
        numbers = {name: float(row[name]) for name in ("eval_loss", "exact_match")}
        rows.append({"combination": OWN if who in names else who, "task": row["task"], "seed": seed, **numbers})
    order = [BASE, OWN, SUM, MEAN, TOGETHER]
    return sorted(rows, key=lambda row: order.index(str(row["combination"])))


@dataclass(frozen=True)
class Subspaces:
    """Adapters of several ranks and seeds by their singular directions (arXiv:2106.09685, section 7).

    Table ``s0_shared``: a row a pair of ranks, side and seed, and beside it the same of random matrices; ``phi`` is
    that of the top direction of both, the mean over modules, ``phi_r`` that of all directions of the smaller. Table
    ``s0_used``: a row a rank, role and seed, with the directions that hold 90 % of the update and how much it amplifies
    what the weight does there.
    """

    sweep: str

    @property
    def parts(self) -> tuple[str, ...]:
        """The one sweep."""
        return (self.sweep,)

    @property
    def timed(self) -> bool:
        """Directions are the same everywhere."""
        return False

    def __call__(self, runs: Mapping[str, Sequence[Reference]], budget: str, say: Say) -> dict[str, Table]:
        """Compare the ranks of each seed."""
        from lora_lab.adapters import compare_adapters

        shared, used = list[dict[str, Any]](), list[dict[str, Any]]()
        for seed in sorted({_seed(one) for one in runs[self.sweep]}):
            mine = sorted((one for one in runs[self.sweep] if _seed(one) == seed), key=_rank)
            found = compare_adapters([replace(one, name=str(_rank(one))) for one in mine])
            shared += _shared(found.pairs, seed)
            modules = found.modules.groupby(["adapter", "role"], sort=False)
            columns = ["rank_90", "effective_rank", "amplification", "random_amplification"]
            for row in modules[columns].mean().reset_index().to_dict("records"):
                used.append(
                    {"r": int(row["adapter"]), "role": row["role"], "seed": seed} | {c: row[c] for c in columns}
                )
            say(f"seed {seed}: {len(mine)} adapters compared")
        used.sort(key=lambda row: (row["r"], row["seed"]))
        return {
            "s0_shared": Table(("ranks", "side", "of"), "phi", tuple(shared), higher=True),
            "s0_used": Table(("r", "role"), "rank_90", tuple(used)),
        }


def _shared(pairs: pd.DataFrame, seed: int) -> list[dict[str, Any]]:
    if pairs.empty:  # one rank completed: there is none to compare it with
        return []
    columns = {TRAINED: ("phi_1", "phi_r"), CHANCE: ("random_phi_1", "random_phi_r")}
    means = pairs.groupby(["first", "second", "side"], sort=False)[list(itertools.chain(*columns.values()))].mean()
    return [
        {
            "ranks": f"{row['first']} and {row['second']}",
            "side": SIDES[str(row["side"])],
            "of": who,
            "seed": seed,
            "phi": float(row[top]),
            "phi_r": float(row[whole]),
        }
        for row in means.reset_index().to_dict("records")
        for who, (top, whole) in columns.items()
    ]


@dataclass(frozen=True)
class Latency:
    """Time to answer of the base, each adapter beside it, and merged where it can be.

    Table ``s3_latency``: a row a variant, batch, phase and round (its ``seed``), with ``milliseconds`` and
    ``slowdown``, the natural logarithm of the time over the base's in the same round: 0.05 is 5 % more.
    """

    sweep: str

    @property
    def parts(self) -> tuple[str, ...]:
        """The one sweep."""
        return (self.sweep,)

    @property
    def timed(self) -> bool:
        """They are times."""
        return True

    def __call__(self, runs: Mapping[str, Sequence[Reference]], budget: str, say: Say) -> dict[str, Table]:
        """Time them all in one process, in another order each round."""
        from lora_lab.bench.latency import measure, variants

        base = _base(runs[self.sweep])
        named = list({one.method: replace(one, name=one.method) for one in runs[self.sweep]}.values())
        timed = variants(base, named, say=say)
        found = measure(base, timed, say=say, **TIMED[budget])
        wide = found.set_index(["round", "batch", "phase"])
        theirs = wide[wide["variant"] == BASE]["seconds"]
        rows = [
            {
                "variant": row["variant"],
                "phase": row["phase"],
                "batch": int(row["batch"]),
                "seed": int(row["round"]),
                "milliseconds": 1e3 * row["seconds"],
                "slowdown": math.log(row["seconds"] / theirs[row["round"], row["batch"], row["phase"]]),
            }
            for row in found.to_dict("records")
        ]
        order = [one.name for one in timed]
        rows.sort(key=lambda row: (order.index(str(row["variant"])), row["batch"], row["seed"]))
        return {"s3_latency": Table(("variant", "phase", "batch"), "milliseconds", tuple(rows))}


def _base(runs: Sequence[Reference]) -> BaseModel:
    from lora_lab.models import load
    from lora_lab.worker.bases import device_name

    return load(runs[0].model, device_name("auto"))


def _seed(one: Reference) -> int:
    return 0 if one.result is None else one.result.seed


def _rank(one: Reference) -> int:
    return 0 if one.spec is None else one.spec.method.r


def _task(one: Reference) -> str:
    return one.name if one.spec is None else one.spec.data.tasks[0]
