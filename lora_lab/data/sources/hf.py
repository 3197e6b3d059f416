"""Data sets of the Hugging Face hub, or local ones that ``datasets.load_dataset`` reads (the extra ``lora-lab[hf]``).

``data.path`` is ``owner/name``, ``owner/name:configuration`` or a folder; ``data.split`` of it is read, at
``data.revision``. ``data.eval_path`` names the split to evaluate on (``validation``, ``test``); without it the first
is divided. With ``data.streaming`` only the first rows are fetched, as many as the sizes ask for.

Without a network the package's own cache is read. It would first try to reach the hub for half a minute; here the hub
is asked once, for a few seconds.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from lora_lab.data.columns import Row, check_columns
from lora_lab.data.sources import table
from lora_lab.errors import DataError, nearest
from lora_lab.spec import DataSpec

KNOCK_SECONDS = 4.0
"""How long the hub may take to answer before it counts as out of reach."""


def check(spec: DataSpec) -> None:
    """What can be said without reaching the hub.

    Raises:
        DataError: ``datasets`` is not installed, a local folder that is not there, or an unknown column.
    """
    path = spec.path or ""
    check_columns(spec.columns, table.COLUMNS, "hf")
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            f"data.path={path}: data.name=hf needs the package 'datasets', which is not installed. "
            "Run: pip install 'lora-lab[hf]'"
        )
    if path.startswith((".", "/", "~")) and not Path(path).expanduser().exists():
        raise DataError(f"data.path: the folder {path} does not exist. Give a folder, or a hub id such as owner/name.")


def rows(spec: DataSpec, split: str) -> Iterator[Row]:
    """The rows of one split, in its order.

    Raises:
        DataError: as :func:`check`; or the data set or the split cannot be had.
    """
    check(spec)
    import datasets

    path = spec.path or ""
    name, _, configuration = path.partition(":")
    if name.startswith("~"):
        name = str(Path(name).expanduser())
    local, reached = Path(name).exists(), True
    try:
        with contextlib.nullcontext(True) if local else _hub() as reached:
            loaded = datasets.load_dataset(
                name, configuration or None, revision=spec.revision, streaming=spec.streaming
            )
            if split not in loaded:
                raise DataError(
                    f"data.path={path}: no split {split!r}{nearest(split, loaded)} Splits found: {', '.join(loaded)}. "
                    "data.split is trained on; data.eval_path names the one to evaluate on."
                )
            empty = True
            for i, values in enumerate(loaded[split], start=1):
                empty = False
                yield Row(f"{path} {split} row {i}", values)
            if empty:
                raise DataError(f"data.path={path}: the split {split!r} has no rows.")
    except DataError:
        raise
    except Exception as error:
        # an unknown id, a gated set, no network, an ambiguous configuration, a torn file: the package has a class for
        # each and they share no root, but all are about what the user named
        raise DataError(_refused(path, error, local, reached)) from error


def _refused(path: str, error: Exception, local: bool, reached: bool) -> str:
    if not reached:
        return (
            f"data.path={path}: the hub cannot be reached, and the data set is not in the local cache "
            f"({_first_line(error)}). Run once with a network, copy the cache (HF_HOME) from where it was, or give "
            "files: data=alpaca data.path=train.jsonl"
        )
    network = "" if local else " and the network (or sign in for a gated set: hf auth login)"
    return (
        f"data.path={path}: datasets.load_dataset failed ({type(error).__name__}: {_first_line(error)}). Check the "
        f"id{network}; name a configuration as owner/name:configuration."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


@contextlib.contextmanager
def _hub() -> Iterator[bool]:
    """Whether the hub answers; inside, its packages keep to their cache where it does not."""
    import datasets
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or _answers(constants.ENDPOINT):
        yield not constants.HF_HUB_OFFLINE
        return
    before = (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE)
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield False
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _answers(endpoint: str) -> bool:
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=KNOCK_SECONDS)
    except Exception:  # no name, no route, a proxy that refuses, too slow: whatever its HTTP client calls them
        return False
    return True
