"""Learning curves of a sweep's runs, read from the JSON lines that training left beside its results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

FILE = "metrics.jsonl"
COLUMNS = ("run", "kind", "step", "loss")
KINDS = {"step": "train", "evaluation": "eval"}


def learning_curves(folder: Path | str, runs: Sequence[str] | None = None, points: int = 200) -> pd.DataFrame:
    """``run kind step loss`` of every run in the sweep's ``folder`` that has metrics, ``kind`` being train or eval.

    At most ``points`` training points a run, evenly thinned (the last one stays); every evaluation is kept. A line that
    a crash spoilt is left out. Steps are optimizer steps, losses nats per supervised token. Empty where there are none.
    """
    base = Path(folder) / "runs"
    if runs is None:
        runs = sorted(path.parent.name for path in base.glob(f"*/{FILE}"))
    rows: list[tuple[str, str, int, float]] = []
    for run in runs:
        try:
            data = (base / run / FILE).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
        found: dict[str, list[tuple[str, str, int, float]]] = {"train": [], "eval": []}
        for line in data.splitlines():
            if b'"kind": "step"' not in line and b'"kind": "evaluation"' not in line:
                continue
            try:
                record = json.loads(line)
                kind = KINDS[record["kind"]]
                found[kind].append((run, kind, int(record["step"]), float(record["loss"])))
            except (ValueError, KeyError, TypeError):
                continue
        every = -(-len(found["train"]) // points) or 1
        rows += found["train"][::-1][::every][::-1] + found["eval"]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def curve_table(curves: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """One row a run with curves: ``run outcome steps first best best_step last`` of its evaluations."""
    outcomes = dict(zip(frame["run"], frame["outcome"], strict=True))
    rows = []
    for run, group in curves[curves["kind"] == "eval"].groupby("run", sort=True):
        known = group.dropna(subset="loss")
        best = (known if len(known) else group).sort_values("loss", kind="stable").iloc[0]
        rows.append(
            {
                "run": run,
                "outcome": outcomes.get(run, "running"),
                "steps": int(group["step"].max()),
                "first": float(group["loss"].iloc[0]),
                "best": float(best["loss"]),
                "best_step": int(best["step"]),
                "last": float(group["loss"].iloc[-1]),
            }
        )
    return pd.DataFrame(rows, columns=["run", "outcome", "steps", "first", "best", "best_step", "last"])
