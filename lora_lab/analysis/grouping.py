"""Runs grouped into configurations: the points of the space with what their seeds gave.

Everything that tables and statistics say of a metric is said of the COMPLETED runs only; a run that was
pruned, diverged or failed is counted by its outcome and never averaged. Runs with equal keys are one
experiment (an empty mask with two ranks, say) and count once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_lab.analysis.folder import SweepRecord
from lora_lab.analysis.frame import IDENTITY, MEASURES, frozen
from lora_lab.analysis.naming import point_name
from lora_lab.errors import SpecError, nearest
from lora_lab.spec import Choices, Domain, FloatRange, IntRange, Masks, Outcome, Space
from lora_lab.spec.objective import DIRECTIONS
from lora_lab.spec.result import BASE_METRICS

if TYPE_CHECKING:
    import pandas as pd

HIGHER_IS_BETTER = frozenset({"exact_match", "eval_accuracy", "phi"})
"""``phi`` is the share of directions that two adapters have in common."""
_LOWER_SCORES = ("perplexity", "bits_per_byte", "_stderr", "brier", ".ties")
_SCORES = ("scores.", "base_scores.")


@dataclass(frozen=True)
class Configuration:
    """One point of the space and the metric of its completed runs (one value a seed, in order of seeds)."""

    point: tuple[tuple[str, Any], ...]
    trials: tuple[int, ...]
    values: tuple[float, ...]
    failures: tuple[tuple[str, int], ...]
    base: float | None

    @property
    def n(self) -> int:
        """Completed runs."""
        return len(self.values)

    @property
    def settled(self) -> int:
        """Runs with an outcome, completed or not."""
        return self.n + sum(count for outcome, count in self.failures if outcome != Outcome.PREEMPTED)

    @cached_property
    def mean(self) -> float:
        """Mean over the completed runs; NaN without one."""
        return mean_of(self.values) if self.values else math.nan

    @property
    def std(self) -> float:
        """Standard deviation over seeds (ddof = 1); NaN below two completed runs."""
        return float(np.std(self.values, ddof=1)) if self.n > 1 else math.nan

    @property
    def cv(self) -> float:
        """Coefficient of variation, std / abs(mean); NaN where it has no meaning."""
        return self.std / abs(self.mean) if self.mean else math.nan

    @property
    def minimum(self) -> float:
        """The smallest value of a seed."""
        return min(self.values, default=math.nan)

    @property
    def maximum(self) -> float:
        """The largest value of a seed."""
        return max(self.values, default=math.nan)

    @property
    def name(self) -> str:
        """``r=8 alpha_over_r=1``: the point as a person says it."""
        return point_name(dict(self.point))


@dataclass(frozen=True)
class Best:
    """The configuration with the best mean, and the run of it whose adapter one would take."""

    metric: str
    direction: str
    configuration: Configuration
    trial: int
    run: str
    seed: int
    value: float
    adapter: str | None


def configurations(
    frame: pd.DataFrame, metric: str = "eval_loss", paths: Sequence[str] | None = None
) -> list[Configuration]:
    """Group the runs of ``frame`` by their values at ``paths`` (all searched paths), in order of first trial.

    Raises:
        SpecError: the frame has no such metric or path; the nearest one is named.
    """
    paths = searched_paths(frame) if paths is None else list(paths)
    check_metric(frame, metric)
    for path in paths:
        check_path(frame, path)
    base_column = base_metric(metric)
    bases = frame[base_column].tolist() if base_column in frame else [math.nan] * len(frame)
    groups: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    columns = [[plain_value(v) for v in frame[path].tolist()] for path in paths]
    points = zip(*columns, strict=True) if columns else [()] * len(frame)
    rows = zip(
        frame["trial"].tolist(),
        frame["seed"].tolist(),
        frame["key"].tolist(),
        frame["outcome"].tolist(),
        frame[metric].tolist(),
        bases,
        strict=True,
    )
    for point, row in zip(points, rows, strict=True):
        groups.setdefault(point, []).append(row)
    found = [_configuration(tuple(zip(paths, point, strict=True)), rows) for point, rows in groups.items()]
    return sorted(found, key=lambda configuration: configuration.trials)


def best_configuration(frame: pd.DataFrame, metric: str | None = None, direction: str | None = None) -> Best | None:
    """The configuration with the best mean of ``metric`` over its completed runs; ``None`` if none completed.

    Configurations with seeds still to run, or of which a seed diverged or was pruned, are passed over as long as
    there is another (see :func:`ranked`). ``run`` is the best seed's run.

    Raises:
        SpecError: an unknown metric or direction.
    """
    metric, direction = objective_of(frame, metric, direction)
    names = ("trial", "seed", "outcome", metric, "run")
    adapters = frame["adapter"].tolist() if "adapter" in frame else [None] * len(frame)
    runs = zip(*(frame[name].tolist() for name in names), adapters, strict=True)
    return _best(metric, direction, configurations(frame, metric), repeats_of(frame), runs)


def best_of_results(record: SweepRecord, results: Sequence[Mapping[str, Any]]) -> Best | None:
    """:func:`best_configuration` by the sweep's own objective, of results already read and without a frame: the frame
    of ten thousand runs takes longer to make than these to read."""
    metric, direction = record.objective.metric, record.objective.direction
    groups: dict[tuple[tuple[str, Any], ...], list[tuple[Any, ...]]] = {}
    for tree in results:
        point = tuple((path, frozen(tree["point"].get(path))) for path in record.space.paths)
        measured = [_measured(tree, name) for name in (metric, base_metric(metric))]
        groups.setdefault(point, []).append((*(tree[name] for name in ("trial", "seed", "key", "outcome")), *measured))
    found = [_configuration(point, rows) for point, rows in groups.items()]
    runs = (
        (tree["trial"], tree["seed"], tree["outcome"], _measured(tree, metric), tree["run"], tree.get("adapter"))
        for tree in results
    )
    return _best(metric, direction, found, record.repeats, runs)


def _best(
    metric: str, direction: str, found: Sequence[Configuration], repeats: int, runs: Iterable[tuple[Any, ...]]
) -> Best | None:
    """The best of ``found`` with its best run; ``runs`` are ``(trial, seed, outcome, value, run, adapter)``."""
    best = best_of(found, direction, repeats)
    if best is None:
        return None
    sign = 1.0 if direction == "minimize" else -1.0
    trial, seed, _, value, run, adapter = min(
        (
            one
            for one in runs
            if one[0] in best.trials and one[2] == Outcome.COMPLETED
            if one[3] is not None and math.isfinite(one[3])
        ),
        key=lambda one: (sign * one[3], *one[:2]),
    )
    return Best(metric, direction, best, trial, run, seed, value, adapter if isinstance(adapter, str) else None)


def _measured(tree: Mapping[str, Any], metric: str | None) -> float | None:
    """A metric of a result's tree; ``scores.…`` and ``base_scores.…`` are in mappings of their own."""
    if metric is None:
        return None
    kind, _, score = metric.partition(".")
    value = (tree.get(kind) or {}).get(score) if score else tree.get(metric)
    return None if value is None else float(value)


def best_of(found: Sequence[Configuration], direction: str, repeats: int) -> Configuration | None:
    """The first of :func:`ranked`; ``None`` where no run completed."""
    return next((c for c in ranked(found, direction, repeats) if c.n), None)


def ranked(found: Sequence[Configuration], direction: str, repeats: int) -> list[Configuration]:
    """Best mean first, but behind one another: whole ones, those with seeds still to run, those of which a seed
    diverged or was pruned (their mean leaves out the bad news), those without a completed run.
    """
    sign = 1.0 if direction == "minimize" else -1.0

    def place(c: Configuration) -> tuple[int, float, tuple[int, ...]]:
        if not c.n:
            return 3, 0.0, c.trials
        unstable = any(outcome in (Outcome.DIVERGED, Outcome.PRUNED) for outcome, _ in c.failures)
        return 2 if unstable else int(c.settled < repeats), sign * c.mean, c.trials

    return sorted(found, key=place)


def mean_of(values: Sequence[float]) -> float:
    """The mean, exactly the value itself where all are equal."""
    return values[0] if min(values) == max(values) else float(np.mean(values))


def searched_paths(frame: pd.DataFrame) -> list[str]:
    """The searched config paths: as the sweep says, else the dotted columns that are no scores."""
    sweep = frame.attrs.get("sweep")
    if sweep is not None:
        return [path for path in sweep["space"] if path in frame]
    return [str(name) for name in frame.columns if "." in str(name) and not str(name).startswith(_SCORES)]


def base_metric(metric: str) -> str | None:
    """The column of the base model's own value of a metric, where it has one."""
    return f"base_{metric}" if metric.startswith("scores.") else BASE_METRICS.get(metric)


def objective_of(frame: pd.DataFrame, metric: str | None, direction: str | None) -> tuple[str, str]:
    """Metric and direction: as given, else the sweep's own, else by what the metric is.

    Raises:
        SpecError: an unknown metric or direction.
    """
    sweep = frame.attrs.get("sweep")
    own = sweep["objective"] if sweep is not None else {"metric": "eval_loss", "direction": "minimize"}
    if metric is None:
        metric = str(own["metric"])
    check_metric(frame, metric)
    if direction is None and metric == own["metric"]:
        direction = str(own["direction"])
    if direction is None:
        direction = "maximize" if higher_is_better(metric) else "minimize"
    if direction not in DIRECTIONS:
        raise SpecError(
            f"direction: {direction!r} is not one of {', '.join(DIRECTIONS)}{nearest(direction, DIRECTIONS)}"
        )
    return metric, direction


def higher_is_better(metric: str) -> bool:
    """True of most scores; False of losses, sizes and times, and of scores that are losses (a perplexity, say)."""
    if metric.startswith("scores."):
        return not any(word in metric for word in _LOWER_SCORES)
    return metric in HIGHER_IS_BETTER


def repeats_of(frame: pd.DataFrame) -> int:
    """Seeds a configuration was to be trained with: as the sweep says, else the most that one has."""
    sweep = frame.attrs.get("sweep")
    return int(sweep["repeats"]) if sweep is not None else max(1, int(frame.groupby("trial")["seed"].nunique().max()))


def axis_values(frame: pd.DataFrame, path: str) -> list[Any]:
    """The values along one axis of a table.

    In the order of the sweep's domain when that is a list (all of it under a grid, so that cells still to be
    trained have their place), numbers ascending otherwise, other values in the order of their first trial.
    """
    seen = list(dict.fromkeys(plain_value(v) for v in frame[path].tolist()))
    sweep = frame.attrs.get("sweep")
    if sweep is not None and path in sweep["space"]:
        whole = sweep["sampler"] == "grid"
        domain = dict(Space.from_tree({path: sweep["space"][path]}).domains)[path]
        planned = _listed(domain, whole)
        if planned is not None:
            rest = [v for v in seen if v not in planned]
            return [v for v in planned if whole or v in seen] + rest
    if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in seen):
        return sorted(seen)
    return seen


def plain_value(value: Any) -> Any:
    """A value of a frame as plain Python: numpy scalars unpacked, NaN (a path that does not apply) as ``None``."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def check_metric(frame: pd.DataFrame, metric: str) -> None:
    """Refuse a metric that is no numeric column of the frame."""
    import pandas as pd

    numeric = [str(c) for c in frame.columns if pd.api.types.is_numeric_dtype(frame[c])]
    known = [c for c in numeric if c not in (*IDENTITY, *searched_paths(frame))]
    if metric not in known:
        kinds = [name for name in MEASURES if name in known] + [name for name in known if name.startswith("scores.")]
        raise SpecError(
            f"metric: no number called {metric!r} in the results{nearest(metric, known)} Known: {', '.join(kinds)}."
        )


def check_path(frame: pd.DataFrame, path: str) -> None:
    """Refuse an axis that the sweep did not search."""
    known = [*searched_paths(frame), "seed"]
    if path not in known:
        raise SpecError(
            f"axis: {path!r} was not searched in this sweep{nearest(path, known)} "
            f"Searched: {', '.join(known[:-1]) or 'nothing'}."
        )


def _configuration(point: tuple[tuple[str, Any], ...], rows: list[tuple[Any, ...]]) -> Configuration:
    values: dict[str, float] = {}
    failures: dict[str, dict[str, None]] = {}
    bases = []
    for _trial, _seed, key, outcome, value, base in sorted(rows, key=lambda row: (row[1], row[0])):
        if outcome == Outcome.COMPLETED and value is not None and math.isfinite(value):
            values.setdefault(key, float(value))
        elif outcome != Outcome.COMPLETED:
            failures.setdefault(outcome, {})[key] = None
        if base is not None and math.isfinite(base):
            bases.append(float(base))
    return Configuration(
        point=point,
        trials=tuple(sorted({int(row[0]) for row in rows})),
        values=tuple(values.values()),
        failures=tuple(Counter({outcome: len(keys) for outcome, keys in failures.items()}).most_common()),
        base=mean_of(bases) if bases else None,
    )


def _listed(domain: Domain, whole: bool) -> list[Any] | None:
    match domain:
        case Choices(values) | Masks(values):
            return list(values)
        case IntRange(_, _, _, False) | FloatRange(_, _, float(), False) if whole:
            return [point["x"] for point in Space((("x", domain),)).grid() or []]
    return None
