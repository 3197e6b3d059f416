"""Which rows of a data set are trained on and which are held out: the same on every machine, from fingerprints alone.

Without a second file the rows are shuffled by ``data.seed`` and the last ones are held out, or one fold of them;
running text keeps its order. Training rows that equal a held-out one are left out, kept or refused as
``data.on_duplicate`` says. ``train_size`` takes the first so many, so that smaller sizes are parts of larger ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lora_lab.errors import DataError
from lora_lab.spec import DataSpec

_MAX_DEFAULT_EVAL = 512

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one source: what tells them apart, whether they are running text, and what to call the source."""

    prints: NDArray[np.uint64]
    running: bool
    path: str


@dataclass(frozen=True, eq=False)
class Division:
    """The rows of both sides, each as ``(source, row)`` arrays of shape ``(examples,)``.

    Sources are numbered as they were given, two a part: what is trained on, then what is held out.
    """

    train: tuple[NDArray[np.int32], Indices]
    evaluation: tuple[NDArray[np.int32], Indices]
    duplicates: int = 0
    """Training rows that equal a held-out one: left out, or kept under ``on_duplicate=keep``."""


def divide(spec: DataSpec, main: Rows, held: Rows | None) -> Division:
    """Divide one source, or a source and its held-out twin.

    Raises:
        DataError: too few rows, or duplicates that are refused or leave nothing to train on.
    """
    train, evaluation = _sides(spec, main, held)
    source = 0 if held is None else 1
    repeated = np.zeros(len(train), dtype=np.bool_)
    if not main.running and spec.name != "taskmix":
        repeated = np.isin(main.prints[train], (held or main).prints[evaluation])
    duplicates = int(repeated.sum())
    train = _without(train, repeated, spec, main.path, len(evaluation))
    train = _first(train, spec.train_size, "data.train_size", main.path)
    return Division(
        (np.zeros(len(train), np.int32), train),
        (np.full(len(evaluation), source, np.int32), evaluation),
        duplicates,
    )


def mix(
    spec: DataSpec, parts: Sequence[Division], weights: Sequence[float], sources: Sequence[Rows | None]
) -> Division:
    """Examples of several divided sources, interleaved so that every beginning holds them by weight.

    Without sizes, as many as can be had with no example twice (512 at most to evaluate on).

    Raises:
        DataError: a source has too few for the size asked; or duplicates, as :func:`divide`.
    """
    names = list(dict(spec.sources))
    evaluation = _interleaved([p.evaluation for p in parts], weights, names, spec.eval_size, "data.eval_size")
    if spec.eval_size is None:
        evaluation = evaluation[0][:_MAX_DEFAULT_EVAL], evaluation[1][:_MAX_DEFAULT_EVAL]
    known = _prints(sources, *evaluation)
    duplicates, clean = sum(part.duplicates for part in parts), []
    for part, name in zip(parts, names, strict=True):
        source, row = part.train
        repeated = np.isin(_prints(sources, source, row), known[known != 0])
        if spec.on_duplicate != "keep":  # under keep, each part counted its own
            duplicates += int(repeated.sum())
        kept = _without(np.arange(len(row)), repeated, spec, f"data.sources.{name}", len(known))
        clean.append((source[kept], row[kept]))
    return Division(_interleaved(clean, weights, names, spec.train_size, "data.train_size"), evaluation, duplicates)


def shuffled(count: int, seed: int) -> Indices:
    """The numbers below ``count`` in an order that is the same on every machine and under every version of numpy."""
    keys = [hashlib.sha256(f"{seed}/{i}".encode()).digest() for i in range(count)]
    return np.array(sorted(range(count), key=keys.__getitem__), dtype=np.int64)


def _sides(spec: DataSpec, main: Rows, held: Rows | None) -> tuple[Indices, Indices]:
    ordered = main.running or spec.name == "taskmix"
    rows = np.arange(len(main.prints)) if ordered else shuffled(len(main.prints), spec.seed)
    if held is not None:
        others = np.arange(len(held.prints)) if ordered else shuffled(len(held.prints), spec.seed)
        return rows, _first(others, spec.eval_size, "data.eval_size", held.path)
    what = f"blocks of {spec.max_length} tokens" if main.running else "examples"
    count = len(rows)
    if spec.folds is not None:
        if count < spec.folds:
            raise DataError(f"{main.path}: has {count} {what}, too few for data.folds={spec.folds}. Lower it.")
        start, end = (count * fold // spec.folds for fold in (spec.fold, spec.fold + 1))
        return np.concatenate([rows[:start], rows[end:]]), rows[start:end]
    size = spec.eval_size or min(_MAX_DEFAULT_EVAL, max(1, count // 10))
    if size >= count:
        asked = f"data.eval_size={spec.eval_size}" if spec.eval_size else "a held-out example"
        raise DataError(
            f"{main.path}: has {count} {what}, too few for {asked} and at least one to train on. "
            "Lower data.eval_size, give more data, or give a second file with data.eval_path."
        )
    return rows[: count - size], rows[count - size :]


def _without(rows: Indices, repeated: NDArray[np.bool_], spec: DataSpec, path: str, held_out: int) -> Indices:
    """Training rows without those that are held out, as ``data.on_duplicate`` says."""
    count = int(repeated.sum())
    if not count or spec.on_duplicate == "keep":
        return rows
    if spec.on_duplicate == "error":
        raise DataError(
            f"{path}: {count:,} of {len(rows):,} training examples also occur among the {held_out:,} held-out ones. "
            "Take them out of the file, or let data.on_duplicate=drop do it."
        )
    if count == len(rows):
        raise DataError(
            f"{path}: every training example also occurs among the {held_out:,} held-out ones. "
            "Remove the repeated lines, give another file with data.eval_path, or train on them with "
            "data.on_duplicate=keep."
        )
    return rows[~repeated]


def _first(rows: Indices, size: int | None, name: str, path: str) -> Indices:
    if size is not None and size > len(rows):
        raise DataError(f"{name}={size}: only {len(rows)} are there in {path}. Lower it, or set it to null for all.")
    return rows[:size]


def _interleaved(
    parts: Sequence[tuple[NDArray[np.int32], Indices]],
    weights: Sequence[float],
    names: Sequence[str],
    size: int | None,
    asked: str,
) -> tuple[NDArray[np.int32], Indices]:
    """The ``k``-th example of a part comes at time ``(k + 1/2) / weight``, counted from 0; ties in the order given."""
    counts = [len(row) for _, row in parts]
    total = sum(weights)
    if size is None:
        wanted = counts
        last = min((n + 0.5) / w for n, w in zip(counts, weights, strict=True))
    else:
        wanted = [int(size * w / total) + 2 for w in weights]
        last = float("inf")
    times = np.concatenate([(np.arange(n) + 0.5) / w for n, w in zip(wanted, weights, strict=True)])
    part = np.repeat(np.arange(len(parts)), wanted)
    order = np.argsort(times, kind="stable")
    order = order[times[order] < last][:size]
    taken = np.bincount(part[order], minlength=len(parts))
    for name, have, need in zip(names, counts, taken.tolist(), strict=True):
        if need > have:
            raise DataError(
                f"{asked}={size}: the weights ask for {need:,} examples of data.sources.{name}, which has {have:,}. "
                f"Lower the size or the weight, or set {asked}=null for as many as there are."
            )
    if not len(order) or not taken.all():
        empty = names[int(np.argmin(taken))]
        raise DataError(f"{asked}={size}: leaves no example of data.sources.{empty}. Raise the size or its weight.")
    number = np.concatenate([np.arange(n) for n in wanted])[order]
    source, row = np.zeros(len(order), np.int32), np.zeros(len(order), np.int64)
    for i, (sources, rows) in enumerate(parts):
        mine = part[order] == i
        source[mine], row[mine] = sources[number[mine]], rows[number[mine]]
    return source, row


def _prints(sources: Sequence[Rows | None], source: NDArray[np.int32], row: Indices) -> NDArray[np.uint64]:
    found = np.zeros(len(row), np.uint64)
    for i in np.unique(source).tolist():
        rows = sources[i]
        assert rows is not None
        mine = source == i
        found[mine] = rows.prints[row[mine]]
    return found


def placed(division: Division, by: int) -> Division:
    """The division of a part of a mixture with its sources numbered from ``by``."""
    (a, train), (b, evaluation) = division.train, division.evaluation
    return Division((a + np.int32(by), train), (b + np.int32(by), evaluation), division.duplicates)
