"""From a :class:`~lora_lab.spec.DataSpec` to its records, one by one, with what is skipped counted and told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

from lora_lab.data import reading, taskmix
from lora_lab.data.columns import Row, check_columns
from lora_lab.data.opening import content_digest
from lora_lab.data.records import Passage, Record
from lora_lab.data.sources import alpaca, call, chat, completion, hf, table, text
from lora_lab.errors import DataError
from lora_lab.spec import DataSpec, Pairs, thaw

ROWS = 20_000_000
"""Rows that are read of one source at most; a function may give them without end."""
TOLD = 20
"""Skipped rows that are told one by one; the others are counted."""

_RECORDS: Mapping[str, tuple[tuple[str, ...], Callable[[Row, Pairs], Record]]] = {
    "alpaca": (alpaca.COLUMNS, alpaca.record),
    "chat": (chat.COLUMNS, chat.record),
    "completion": (completion.COLUMNS, completion.record),
    "text": (text.COLUMNS, text.record),
    "hf": (table.COLUMNS, table.record),
    "callable": (table.COLUMNS, table.record),
}


@dataclass(frozen=True)
class Source:
    """One stream of records: what is trained on, or what is held out. Not for mixtures, which have several."""

    spec: DataSpec
    held_out: bool = False
    held: tuple[tuple[str, Record | DataError], ...] | None = None
    """Its rows, where they were read before (:meth:`whole`)."""

    @property
    def field(self) -> str:
        """The config path that names it."""
        return "data.eval_path" if self.held_out else "data.path"

    @property
    def path(self) -> str:
        """The file, the hub's split or whatever else a message may call it."""
        if self.spec.name == "hf":
            return f"{self.spec.path} {self.spec.eval_path if self.held_out else self.spec.split}"
        if self.spec.name == "callable":
            return str(dict(self.spec.call)["_target_"])
        return (self.spec.eval_path if self.held_out else self.spec.path) or self.spec.name

    def whole(self) -> Source:
        """This source with its rows in memory."""
        return replace(self, held=tuple(self.read()))

    def content(self) -> str | None:
        """A digest of what it holds, where that is cheaper than to read it; ``None`` where it is not known.

        Raises:
            DataError: the file cannot be opened.
        """
        spec = self.spec
        if self.held is not None:
            digest = hashlib.sha256()
            for _, found in self.held:
                digest.update(json.dumps(str(found) if isinstance(found, DataError) else found.parts).encode())
            return digest.hexdigest()
        if spec.name == "taskmix":
            kept = [spec.seed, spec.tasks, spec.diversity, spec.eval_size if self.held_out else spec.train_size]
            said = json.dumps(["taskmix", self.held_out, *kept])
        elif spec.name in ("hf", "callable"):
            return None
        else:
            name = self.path.lower().removesuffix(".gz").rpartition(".")[2]
            said = json.dumps([spec.name, name, thaw(spec.columns), content_digest(self.path, self.field)])
        return hashlib.sha256(said.encode()).hexdigest()

    def read(self) -> Iterator[tuple[str, Record | DataError]]:
        """The place and the record of every row, or why it cannot be used.

        Raises:
            DataError: nothing of it can be used; see :func:`lora_lab.data.reading.rows`.
        """
        spec = self.spec
        if self.held is not None:
            yield from self.held
            return
        if spec.name == "taskmix":
            yield from ((f"taskmix example {i}", made) for i, made in enumerate(self._generated(), start=1))
            return
        columns, record = _RECORDS[spec.name]
        if spec.name == "text" and not text.is_table(self.path):
            check_columns(spec.columns, (), "text")
            yield from ((self.path, passage) for passage in text.passages(self.path, self.field))
            return
        check_columns(spec.columns, columns, spec.name)
        for row in self._rows():
            if isinstance(row, DataError):
                yield "", row
                continue
            try:
                made = record(row, spec.columns)
            except DataError as error:
                yield row.place, error
            else:
                yield row.place, made

    def _generated(self) -> list[Record]:
        return list(taskmix.generate(self.spec)[self.held_out])

    def _rows(self) -> Iterator[Row | DataError]:
        spec = self.spec
        if spec.name == "callable":
            return call.rows(spec)
        if spec.name == "hf":
            rows = hf.rows(spec, (spec.eval_path if self.held_out else spec.split) or "")
            if not spec.streaming:
                return rows
            sizes = (0 if self.held_out else spec.train_size or 0) + (
                spec.eval_size or 0 if self.held_out or not spec.eval_path else 0
            )
            return islice(rows, sizes)
        return reading.rows(self.path, self.field)


def sources_of(spec: DataSpec) -> tuple[Source, Source | None]:
    """What is trained on, and what is held out where that is another file, split or set of made examples."""
    apart = spec.name == "taskmix" or (spec.eval_path is not None and spec.name != "callable")
    return Source(spec), Source(spec, held_out=True) if apart else None


@dataclass
class Reader:
    """One pass over a source; afterwards ``skipped`` and ``told`` say what was left out.

    Raises (while it is walked):
        DataError: a bad row, unless they are skipped; no good row; rows of running text among others; too many.
    """

    source: Source
    skipped: int = 0
    told: list[str] = field(default_factory=list)

    def skip(self, error: DataError) -> None:
        """Leave out a row, or refuse it, as ``data.on_bad_row`` says.

        Raises:
            DataError: ``error``, with how to skip such rows.
        """
        if self.source.spec.on_bad_row == "error":
            raise DataError(f"{error} (data.on_bad_row=skip leaves such rows out.)") from error
        self.skipped += 1
        if len(self.told) < TOLD:
            self.told.append(str(error))

    def __iter__(self) -> Iterator[tuple[str, Record]]:
        running: bool | None = None
        count = 0
        for place, found in self.source.read():
            count += 1
            if count > ROWS:
                raise DataError(f"{self.source.path}: has more than {ROWS:,} rows. Give a part of it.")
            if isinstance(found, DataError):
                self.skip(found)
                continue
            if running is None:
                running = isinstance(found, Passage)
            elif isinstance(found, Passage) != running:
                self.skip(
                    DataError(
                        f"{place}: {'running text' if not running else 'a prompt with a response'}, and the first row "
                        f"is {'running text' if running else 'a prompt with a response'}. Put them in two files."
                    )
                )
                continue
            yield place, found
        if running is None:
            first = f" The first: {self.told[0]}" if self.told else ""
            raise DataError(f"{self.source.path}: none of its {count:,} rows can be used.{first}")
