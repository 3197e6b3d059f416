"""Where things that are made once and used by every sweep are kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from lora_lab.errors import ModelError
from lora_lab.files import sync_folder


class CacheError(ModelError):
    """The cache cannot be written, or is too full."""


def cache_folder() -> Path:
    """``$LORA_LAB_CACHE`` if it is set, else ``~/.cache/lora-lab``. The folder need not exist yet."""
    chosen = os.environ.get("LORA_LAB_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".cache" / "lora-lab"


def made_once(folder: Path, make: Callable[[Path], None], need: int, source: str) -> Path:
    """``folder`` of the cache, whole; ``make`` fills a new folder beside it first if it is not there yet.

    Several processes may ask at the same time: one makes it, the others wait. ``need`` is the free space in bytes
    that it takes at most; ``source`` is what messages say is converted.

    Raises:
        CacheError: the cache cannot be written or is too full; and whatever ``make`` raises.
    """
    if folder.is_dir():
        return folder
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                need_space(folder.parent, need, source)
                _fill(folder, make)
    except OSError as error:
        raise CacheError(
            f"{folder}: {error.strerror or error}. The converted model is kept there; "
            "choose another place with the environment variable LORA_LAB_CACHE=FOLDER."
        ) from error
    return folder


def _fill(folder: Path, make: Callable[[Path], None]) -> None:
    beside = folder.with_suffix(".partial")
    shutil.rmtree(beside, ignore_errors=True)  # of a conversion that was killed; the lock is ours
    try:
        make(beside)
        for file in beside.iterdir():
            file.chmod(0o644)
            with file.open("rb") as written:
                os.fsync(written.fileno())
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)  # half a model fills a disk, too
        raise
    sync_folder(beside)
    beside.replace(folder)
    sync_folder(folder.parent)


def need_space(folder: Path, needed: int, source: str) -> None:
    """Refuse to convert ``source`` into a file system with less than ``needed`` bytes free.

    Raises:
        CacheError
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CacheError(
            f"{folder}: {free / 1e6:.0f} MB free, about {needed / 1e6:.0f} MB needed to convert {source}. "
            "Free some space, or choose another place with the environment variable LORA_LAB_CACHE=FOLDER."
        )
