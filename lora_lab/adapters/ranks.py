"""Ranks that adapters have used, as a ``method.rank_pattern`` from which a next sweep can begin."""

from __future__ import annotations

import pandas as pd

from lora_lab.adapters.subspace import Comparison


def suggest_ranks(found: Comparison) -> dict[str, int]:
    """By module, the largest rank that any of the adapters needs for 90 % of its update's energy; 1 at least."""
    return {
        str(module): max(1, int(rows["rank_90"].max())) for module, rows in found.modules.groupby("module", sort=False)
    }


def used_by(found: Comparison, by: str) -> pd.DataFrame:
    """Given rank, used rank, amplification and norm, as means over the modules of each ``role`` or ``layer``."""
    columns = ["rank", "rank_90", "effective_rank", "stable_rank", "norm", "amplification", "random_amplification"]
    present = [name for name in columns if name in found.modules]
    return found.modules.groupby(["adapter", by], sort=False, dropna=False)[present].mean().reset_index()


def as_yaml(ranks: dict[str, int]) -> str:
    """The suggestion as the ``method`` section of a sweep's file: the commonest rank, and the others."""
    most = max(set(ranks.values()), key=list(ranks.values()).count)
    lines = [
        "# Each module's rank that keeps 90 % of its update's energy; the others have method.r.",
        "method:",
        f"  r: {most}",
        "  alpha_over_r: 2",
        "  rank_pattern:",
    ]
    others = {module: rank for module, rank in ranks.items() if rank != most}
    if not others:
        lines[-1] = "  rank_pattern: {}"
    lines += [f"    {module}: {rank}" for module, rank in others.items()]
    return "\n".join(lines) + "\n"
