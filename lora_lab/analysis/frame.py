"""Results as a pandas frame: one row a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.analysis.folder import SweepRecord, read_results, read_sweep
from lora_lab.errors import SweepFolderError
from lora_lab.spec import RunResult

if TYPE_CHECKING:
    import pandas as pd

IDENTITY = ("sweep", "trial", "run", "seed", "outcome", "key")
"""The first columns: which run a row is."""

MEASURES = (
    "eval_loss",
    "base_eval_loss",
    "best_eval_loss",
    "train_loss",
    "exact_match",
    "base_exact_match",
    "eval_accuracy",
    "trainable_parameters",
    "lane_bytes",
    "peak_bytes",
    "seconds",
    "tokens",
    "flops",
    "steps",
    "adapter",
    "message",
)
"""The measured columns, in order; the other fields of a result follow them."""

_NESTED = ("point", "scores", "base_scores")
_TEXT = ("sweep", "run", "outcome", "key", "adapter", "message", "device")
_SIZES = ("lane_bytes", "peak_bytes", "predicted_bytes", "training_bytes")
_WHOLE = ("trial", "seed", "trainable_parameters", "total_parameters", *_SIZES, "tokens", "steps")


def load_results(folder: Path | str) -> pd.DataFrame:
    """Read a sweep's folder into a frame with one row a run, ordered by trial and seed.

    Columns: ``sweep trial run seed outcome key``; one column per searched config path (``method.r``; a mask is
    a tuple of role names); then :data:`MEASURES` (losses in nats per supervised token, exact match as a fraction,
    sizes in bytes, times in seconds) and the other fields of :class:`~lora_lab.spec.RunResult`;
    ``scores.<name>`` for every benchmark score and ``base_scores.<name>`` for the base model's. A number that a run
    does not have is NaN. ``adapter`` is relative to ``folder``. ``frame.attrs["sweep"]`` holds the sweep's name, space,
    objective, sampler, trials and repeats, from which tables take their defaults.

    Raises:
        SweepFolderError: no sweep in ``folder``, or no run of it has a result yet.
        CheckpointError: a result file is torn; it is named.
    """
    record = read_sweep(folder)
    results = read_results(folder)
    if not results:
        raise SweepFolderError(
            f"{folder}: no run of sweep {record.name!r} has a result yet. "
            f"Wait for the first one (lora-lab status {record.folder}), or start it again: it resumes."
        )
    return results_frame(record, results)


def results_frame(record: SweepRecord, results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The frame of :func:`load_results` from results already read (at least one)."""
    import pandas as pd

    points = [tree["point"] for tree in results]
    columns: dict[str, list[Any]] = {"sweep": [record.name] * len(results)}
    columns |= {name: [tree[name] for tree in results] for name in IDENTITY[1:]}
    for path in dict.fromkeys([*record.space.paths, *(path for point in points for path in point)]):
        columns[path] = [frozen(point.get(path)) for point in points]
    defaults = {f.name: f.default for f in fields(RunResult)}
    rest = [name for name in defaults if name not in (*IDENTITY, *MEASURES, *_NESTED)]
    for name in (*MEASURES, *rest):
        columns[name] = [tree.get(name, defaults[name]) for tree in results]
    for kind in ("scores", "base_scores"):
        for task in dict.fromkeys(task for tree in results for task in tree.get(kind) or ()):
            columns[f"{kind}.{task}"] = [(tree.get(kind) or {}).get(task) for tree in results]
    frame = pd.DataFrame({name: _series(name, values) for name, values in columns.items()})
    frame.attrs["sweep"] = record.to_attrs()
    return frame


def _series(name: str, values: list[Any]) -> pd.Series[Any]:
    import pandas as pd

    if name in _TEXT or any(isinstance(value, tuple) for value in values):
        return pd.Series(values, dtype="object")
    if name in _WHOLE:
        return pd.Series(values, dtype="int64")
    if name in MEASURES or all(value is None for value in values):
        return pd.Series(values, dtype="float64")
    return pd.Series(values)


def frozen(value: Any) -> Any:
    """Lists (a mask, layer numbers) as tuples, mappings as sorted pairs, so that points group and hash."""
    if isinstance(value, list):
        return tuple(frozen(v) for v in value)
    if isinstance(value, Mapping):
        return tuple(sorted((k, frozen(v)) for k, v in value.items()))
    return value
