"""The three things one does with a :class:`~lora_lab.spec.DataSpec`: check it, look at its records, load its tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lora_lab.data import cache as token_cache
from lora_lab.data import taskmix
from lora_lab.data.records import Passage, Record
from lora_lab.data.sources import alpaca, chat, hf, text
from lora_lab.data.split import Split, Tokenised
from lora_lab.data.tokenising import blocks, split_of_blocks, tokenise, tokenizer_fingerprint
from lora_lab.errors import DataError
from lora_lab.spec import DataSpec, Pairs, to_tree

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

_FORMAT = 1  # raise when the same records would give other tokens, so that old cache files are not read
_MAX_DEFAULT_EVAL = 512
_FILES: Mapping[str, Callable[[str, Pairs, str], Sequence[Record]]] = {
    "alpaca": alpaca.read,
    "chat": chat.read,
    "text": text.read,
}


def check(spec: DataSpec) -> None:
    """Refuse a data set that cannot be used, in every way that shows without a tokenizer (and without the hub).

    Raises:
        DataError: a file that is missing, unreadable, empty or malformed at a named line; a missing column; too few
            examples for the split; an unknown task.
    """
    if spec.name == "taskmix":
        taskmix.chosen(spec)
    elif spec.name == "hf":
        hf.check(spec.path or "", spec.columns)
    else:
        examples(spec)


def examples(spec: DataSpec) -> tuple[list[Record], list[Record]]:
    """The train and held-out records of a data set, the same on every machine.

    With ``eval_path`` the held-out records are that file's; otherwise they are the last ``eval_size`` (default: a
    tenth, 512 at most) after a shuffle by ``spec.seed``, and records equal to one of them are taken out of training.
    ``train_size`` takes the first so many, so that smaller sizes are parts of larger ones.

    Running text comes as whole passages: it is divided only when it is cut into blocks of tokens (:func:`load`),
    and its held-out list is empty without ``eval_path``.

    Raises:
        DataError: see :func:`check`.
    """
    train, evaluation, _ = _examples(spec)
    return train, evaluation


def load(spec: DataSpec, tokenizer: PreTrainedTokenizerBase, cache: Path | None = None) -> Tokenised:
    """The tokens of a data set, from ``cache`` (a folder) where the same tokens were made before.

    Raises:
        DataError: see :func:`check`; a tokenizer without an end-of-sequence token, or without the chat template asked
            for; or ``max_length`` leaves nothing to learn.
    """
    train, evaluation, leaked = _examples(spec)
    digest = _digest(spec, train, evaluation, tokenizer)
    if cache is not None and (known := token_cache.fetch(cache, digest)) is not None:
        return known
    if isinstance(train[0], Passage):
        tokenised = Tokenised(*_text_splits(spec, train, evaluation, tokenizer), digest)
    else:
        sides = [
            tokenise(records, side, spec.template, spec.max_length, spec.mask_prompt, tokenizer)
            for side, records in (("train", train), ("held-out", evaluation))
        ]
        tokenised = Tokenised(replace(sides[0], dropped=sides[0].dropped + leaked), sides[1], digest)
    if cache is not None:
        token_cache.keep(cache, tokenised)
    return tokenised


def _examples(spec: DataSpec) -> tuple[list[Record], list[Record], int]:
    """Train, held-out, and how many training records were left out because an equal one is held out."""
    if spec.name == "taskmix":
        made, held_out = taskmix.generate(spec)
        return list(made), list(held_out), 0
    records = _read(spec, spec.path or "", "data.path")
    others = _read(spec, spec.eval_path, "data.eval_path") if spec.eval_path else []
    if others and isinstance(records[0], Passage) != isinstance(others[0], Passage):
        raise DataError(
            f"data.eval_path={spec.eval_path}: running text on one side and prompts with responses on the other cannot "
            "be compared. Give two sets of the same kind."
        )
    if isinstance(records[0], Passage):
        return records, others, 0
    if spec.eval_path:
        train = _first(_shuffled(records, spec.seed), spec.train_size, "data.train_size", spec.path or "")
        return train, _first(_shuffled(others, spec.seed), spec.eval_size, "data.eval_size", spec.eval_path), 0
    train, evaluation = _divided(_shuffled(records, spec.seed), spec, "examples")
    known = {record.parts for record in evaluation}
    clean = [record for record in train if record.parts not in known]
    if not clean:
        raise DataError(
            f"{spec.path}: every training example also occurs among the {len(evaluation)} held-out ones. "
            "Remove the repeated lines, or give another file with data.eval_path."
        )
    return _first(clean, spec.train_size, "data.train_size", spec.path or ""), evaluation, len(train) - len(clean)


def _read(spec: DataSpec, path: str, field: str) -> list[Record]:
    if spec.name == "hf":
        split = "train" if field == "data.path" else path
        return hf.read(spec.path or "", split, spec.columns)
    return list(_FILES[spec.name](path, spec.columns, field))


def _text_splits(
    spec: DataSpec, train: Sequence[Record], evaluation: Sequence[Record], tokenizer: PreTrainedTokenizerBase
) -> tuple[Split, Split]:
    """Running text in consecutive blocks; without a held-out file the last blocks are held out."""
    rows = blocks([p for p in train if isinstance(p, Passage)], spec.max_length, tokenizer)
    path = spec.path or ""
    if evaluation:
        held_out = blocks([p for p in evaluation if isinstance(p, Passage)], spec.max_length, tokenizer)
        held_out = _first(held_out, spec.eval_size, "data.eval_size", spec.eval_path or "")
    else:
        rows, held_out = _divided(rows, spec, f"blocks of {spec.max_length} tokens")
    rows = _first(rows, spec.train_size, "data.train_size", path)
    return split_of_blocks(rows, "train"), split_of_blocks(held_out, "held-out")


def _shuffled(items: Sequence[T], seed: int) -> list[T]:
    """A shuffle that is the same on every machine and under every version of every library."""
    order = sorted(range(len(items)), key=lambda i: hashlib.sha256(f"{seed}/{i}".encode()).digest())
    return [items[i] for i in order]


def _divided(items: list[T], spec: DataSpec, what: str) -> tuple[list[T], list[T]]:
    count = len(items)
    size = spec.eval_size or min(_MAX_DEFAULT_EVAL, max(1, count // 10))
    if size >= count:
        asked = f"data.eval_size={spec.eval_size}" if spec.eval_size else "a held-out example"
        raise DataError(
            f"{spec.path}: has {count} {what}, too few for {asked} and at least one to train on. "
            "Lower data.eval_size, give more data, or give a second file with data.eval_path."
        )
    return items[: count - size], items[count - size :]


def _first(items: list[T], size: int | None, field: str, path: str) -> list[T]:
    if size is not None and size > len(items):
        raise DataError(f"{field}={size}: only {len(items)} are there in {path}. Lower it, or set it to null for all.")
    return items[:size]


def _digest(
    spec: DataSpec, train: Sequence[Record], evaluation: Sequence[Record], tokenizer: PreTrainedTokenizerBase
) -> str:
    fields = {name: to_tree(spec)[name] for name in ("template", "mask_prompt", "max_length")}
    if isinstance(train[0], Passage):
        fields |= {"train_size": spec.train_size, "eval_size": spec.eval_size}
    digest = hashlib.sha256(json.dumps([_FORMAT, fields, tokenizer_fingerprint(tokenizer)]).encode())
    for side in (train, evaluation):
        digest.update(b"%d records\n" % len(side))
        for record in side:
            digest.update(json.dumps(record.parts).encode())
    return digest.hexdigest()
