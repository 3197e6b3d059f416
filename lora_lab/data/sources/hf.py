"""Data sets of the Hugging Face hub, or local ones that ``datasets.load_dataset`` reads (the extra ``lora-lab[hf]``).

``data.path`` is ``owner/name``, ``owner/name:configuration`` or a folder; its ``train`` split is read.
``data.eval_path`` names the split to evaluate on (``validation``, ``test``); without it the train split is divided.
Rows are read by the columns they have: ``messages`` as in :mod:`~lora_lab.data.sources.chat`, otherwise
``instruction``/``input``/``output`` as in :mod:`~lora_lab.data.sources.alpaca`, or ``text`` alone as running text.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from lora_lab.data.reading import Row, check_columns, column
from lora_lab.data.records import Passage, Record
from lora_lab.data.sources import alpaca, chat
from lora_lab.errors import DataError, nearest
from lora_lab.spec import Pairs

COLUMNS = tuple(dict.fromkeys((*alpaca.COLUMNS, *chat.COLUMNS, "text")))


def check(path: str, columns: Pairs) -> None:
    """What can be said without reaching the hub.

    Raises:
        DataError: ``datasets`` is not installed, a local folder that is not there, or an unknown column.
    """
    check_columns(columns, COLUMNS, "hf")
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            f"data.path={path}: data.name=hf needs the package 'datasets', which is not installed. "
            "Run: pip install 'lora-lab[hf]'"
        )
    if path.startswith((".", "/", "~")) and not Path(path).expanduser().exists():
        raise DataError(f"data.path: the folder {path} does not exist. Give a folder, or a hub id such as owner/name.")


def read(path: str, split: str, columns: Pairs) -> list[Record]:
    """The records of one split, in its order.

    Raises:
        DataError: as :func:`check`; the data set or the split cannot be had; or a column is missing.
    """
    check(path, columns)
    import datasets

    name, _, configuration = path.partition(":")
    if name.startswith("~"):
        name = str(Path(name).expanduser())
    try:
        loaded = datasets.load_dataset(name, configuration or None)
    except Exception as error:
        # an unknown id, a gated set, no network, an ambiguous configuration, a torn file: the package has a class for
        # each and they share no root, but all are about what the user named
        raise DataError(
            f"data.path={path}: datasets.load_dataset failed ({type(error).__name__}: {error}). Check the id and the "
            "network (or log in for a gated set); name a configuration as owner/name:configuration."
        ) from error
    if split not in loaded:
        raise DataError(
            f"data.path={path}: no split {split!r}{nearest(split, loaded)} Splits found: {', '.join(loaded)}. "
            "The train split is trained on; data.eval_path names the one to evaluate on."
        )
    rows = [Row(f"{path} {split} row {i}", values) for i, values in enumerate(loaded[split], start=1)]
    if not rows:
        raise DataError(f"data.path={path}: the split {split!r} has no rows.")
    return [_record(row, columns) for row in rows]


def _record(row: Row, columns: Pairs) -> Record:
    names: dict[str, Any] = dict(columns)
    if names.get("messages", "messages") in row.values:
        return chat.record(row, columns)
    if names.get("output", "output") not in row.values and names.get("text", "text") in row.values:
        return Passage(column(row, "text", columns))
    return alpaca.record(row, columns)
