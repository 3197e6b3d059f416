"""The three things one does with a :class:`~lora_lab.spec.DataSpec`: check it, look at its records, load its tokens."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lora_lab.data import cache as token_cache
from lora_lab.data import taskmix
from lora_lab.data.division import Division, Indices, Rows, divide, mix, placed
from lora_lab.data.jinja import Renderer, template_text
from lora_lab.data.records import Passage, Record, fingerprint
from lora_lab.data.source import Reader, Source, sources_of
from lora_lab.data.sources import call, hf
from lora_lab.data.split import Split, Tokenised, Tokens
from lora_lab.data.tokenising import tokenise, tokenizer_fingerprint
from lora_lab.errors import DataError
from lora_lab.spec import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOG = logging.getLogger(__name__)
_SAID: set[str] = set()  # what was logged in this process: once a data set is enough

_FORMAT = 3  # raise when the same records would give other tokens, so that old cache files are not read


def check(spec: DataSpec) -> None:
    """Refuse a data set that cannot be used, in every way that shows without a tokenizer, the hub or running code.

    Raises:
        DataError: a file that is missing, unreadable, empty or malformed at a named line; a missing column; too few
            examples for the split; an unknown task; a template that cannot be read; code that is not allowed.
    """
    if spec.template == "jinja":
        with Renderer(template_text(spec.jinja or "")):
            pass
    if spec.name == "mixture":
        for _, part in spec.parts().values():
            check(part)
    elif spec.name == "taskmix":
        taskmix.chosen(spec)
    elif spec.name == "hf":
        hf.check(spec)
    elif spec.name == "callable":
        call.check(spec)
    else:
        first, second = sources_of(spec)
        main, held = _surveyed(first), None if second is None else _surveyed(second)
        _same_kind(spec, main, held)
        if not main.running:
            divide(spec, main, held)


def examples(spec: DataSpec) -> tuple[list[Record], list[Record]]:
    """The train and held-out records of a data set, the same on every machine.

    See :mod:`lora_lab.data.division` for which are which. Running text comes as whole passages: it is divided only when
    it is cut into blocks of tokens (:func:`load`), and its held-out list is empty without ``eval_path``.

    Raises:
        DataError: see :func:`check`.
    """
    records: list[list[Record]] = []
    rows: list[Rows | None] = []
    for source in _sources(spec):
        found = [] if source is None else [record for _, record in Reader(source)]
        records.append(found)
        rows.append(None if source is None else _rows(source, found))
    if any(side is not None and side.running for side in rows):
        if spec.name == "mixture":
            raise DataError("data.name=mixture: running text has no examples before it is cut into blocks of tokens.")
        _same_kind(spec, *rows)
        return records[0], records[1]
    division = _divided(spec, rows)
    train, evaluation = (
        [records[s][r] for s, r in zip(source.tolist(), row.tolist(), strict=True)]
        for source, row in (division.train, division.evaluation)
    )
    return train, evaluation


def load(spec: DataSpec, tokenizer: PreTrainedTokenizerBase, cache: Path | None = None) -> Tokenised:
    """The tokens of a data set, from ``cache`` (a folder) where the same source was tokenised before.

    A source is tokenised once, whole; what is trained on and what is held out are rows of it. So every size, fold and
    split of it shares one file.

    Raises:
        DataError: see :func:`check`; a tokenizer without an end-of-sequence token, or without the chat template asked
            for; or ``max_length`` leaves nothing to learn.
    """
    tokenizer_digest = tokenizer_fingerprint(tokenizer)
    sources = _sources(spec)
    tokens = [None if source is None else _tokens(source, tokenizer, tokenizer_digest, cache) for source in sources]
    rows = [
        None if found is None or source is None else Rows(found.prints, found.running, source.path)
        for found, source in zip(tokens, sources, strict=True)
    ]
    division = _divided(spec, rows)
    labels = tuple(name for name in dict(spec.sources) for _ in range(2))
    there = tuple(found for found in tokens if found is not None)
    place = np.cumsum([found is not None for found in tokens]).astype(np.int32) - 1
    names = tuple(label for label, found in zip(labels, tokens, strict=True) if found) if labels else ()
    dropped = 0 if spec.on_duplicate == "keep" else division.duplicates
    train = _split(spec, "train", there, place[division.train[0]], division.train[1], names, dropped)
    evaluation = _split(spec, "held-out", there, place[division.evaluation[0]], division.evaluation[1], names)
    tokenised = Tokenised(train, evaluation, _digest(division, there), division.duplicates)
    if tokenised.digest not in _SAID:
        _SAID.add(tokenised.digest)
        _say(spec, tokenised)
    return tokenised


def _say(spec: DataSpec, tokenised: Tokenised) -> None:
    """Log what of the data set is not trained on as it stands."""
    name = spec.path or spec.name
    if tokenised.truncated:
        cut = "end" if spec.truncate == "right" else "beginning"
        _LOG.warning(
            "%s: %d training and %d held-out examples are cut at the %s, to data.max_length=%d tokens.",
            *(name, tokenised.train.truncated, tokenised.evaluation.truncated, cut, spec.max_length),
        )
    if tokenised.duplicates:
        what = "trained on all the same" if spec.on_duplicate == "keep" else "left out of training"
        _LOG.warning("%s: %d training examples equal a held-out one and are %s.", name, tokenised.duplicates, what)
    if tokenised.skipped:
        _LOG.warning("%s: %d rows are skipped; the first: %s", name, tokenised.skipped, tokenised.told[0])


def _sources(spec: DataSpec) -> list[Source | None]:
    """Two a part: what is trained on, and what is held out where that is another source."""
    parts = [part for _, part in spec.parts().values()] if spec.name == "mixture" else [spec]
    return [source for part in parts for source in sources_of(part)]


def _divided(spec: DataSpec, rows: Sequence[Rows | None]) -> Division:
    if spec.name != "mixture":
        main, held = rows
        assert main is not None
        _same_kind(spec, main, held)
        return divide(spec, main, held)
    divisions, weights = [], []
    for i, (weight, part) in enumerate(spec.parts().values()):
        divisions.append(placed(_divided(part, rows[2 * i : 2 * i + 2]), 2 * i))
        weights.append(weight)
    return mix(spec, divisions, weights, rows)


def _tokens(source: Source, tokenizer: PreTrainedTokenizerBase, tokenizer_digest: str, cache: Path | None) -> Tokens:
    content = source.content()
    if content is None:
        source = source.whole()
        content = source.content()
    spec = source.spec
    fields = [spec.template, spec.mask_prompt, spec.turns, spec.max_length, spec.truncate, spec.on_bad_row]
    jinja = template_text(spec.jinja) if spec.jinja else ""
    said = json.dumps([_FORMAT, content, fields, jinja, tokenizer_digest])
    digest = hashlib.sha256(said.encode()).hexdigest()

    def make() -> Tokens:
        return tokenise(Reader(source), spec, tokenizer, digest)

    return make() if cache is None else token_cache.cached(cache, digest, make)


def _surveyed(source: Source) -> Rows:
    """A source's rows without its records."""
    running, prints = False, []
    for _, record in Reader(source):
        running = isinstance(record, Passage)
        prints.append(0 if running else fingerprint(record))
    return Rows(np.array(prints, dtype=np.uint64), running, source.path)


def _rows(source: Source, records: Sequence[Record]) -> Rows:
    running = isinstance(records[0], Passage)
    prints = [0 if running else fingerprint(record) for record in records]
    return Rows(np.array(prints, dtype=np.uint64), running, source.path)


def _same_kind(spec: DataSpec, main: Rows | None, held: Rows | None) -> None:
    if main is not None and held is not None and main.running != held.running:
        raise DataError(
            f"data.eval_path={spec.eval_path}: running text on one side and prompts with responses on the other cannot "
            "be compared. Give two sets of the same kind."
        )


def _split(
    spec: DataSpec,
    side: str,
    sources: tuple[Tokens, ...],
    source: NDArray[np.int32],
    row: Indices,
    labels: tuple[str, ...],
    dropped: int = 0,
) -> Split:
    split = Split.of(sources, source, row, labels, dropped)
    if len(split):
        return split
    if all(tokens.running for tokens in sources):
        raise DataError(
            f"data: the {side} text is too short, it has no block of 2 tokens. "
            "Give a longer text, or lower data.max_length."
        )
    places = list(zip(source.tolist(), row.tolist(), strict=True))
    blank = sum(not sources[s].full_lengths[r] for s, r in places)
    longest = max(int(sources[s].prompt_lengths[r]) for s, r in places)
    raise DataError(
        f"data: none of the {len(places)} {side} examples has a token to learn: {blank} with an empty response, "
        f"{len(places) - blank} with a prompt of data.max_length={spec.max_length} tokens or more. "
        f"Raise data.max_length above {longest} (the longest prompt), or check the column of the responses."
    )


def _digest(division: Division, sources: tuple[Tokens, ...]) -> str:
    digest = hashlib.sha256(json.dumps([tokens.digest for tokens in sources]).encode())
    for side in (division.train, division.evaluation):
        for array in side:
            digest.update(len(array).to_bytes(8, "little") + array.tobytes())
    return digest.hexdigest()
