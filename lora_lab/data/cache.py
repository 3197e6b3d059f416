"""Tokenised sources on disk, one safetensors file each, named by digest and read through a memory map.

One process makes a file and the others wait for it (a lock beside it, which the operating system gives back when its
holder dies). A file is written whole or not at all (:func:`lora_lab.files.write_bytes`), so nothing is harmed where
locks do not work. A damaged file is named in the log and made again; a cache that cannot be written is named in the log
and done without. The file holds the arrays of :class:`~lora_lab.data.split.Tokens` by name, and the rest of it as JSON
in the metadata.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_lab.data.split import Tokens
from lora_lab.errors import SweepFolderError
from lora_lab.files import write_bytes

_LOG = logging.getLogger(__name__)
_TYPES = {"I32": np.int32, "I64": np.int64, "U64": np.uint64, "U8": np.uint8}
_ARRAYS = ("ids", "supervised", "offsets", "prompt_lengths", "full_lengths", "prints", "texts")


def cache_file(cache: Path, digest: str) -> Path:
    """Where the tokens of a digest lie in a cache folder."""
    return cache / "tokens" / f"{digest}.safetensors"


def cached(cache: Path, digest: str, make: Callable[[], Tokens]) -> Tokens:
    """The tokens of ``digest``, memory-mapped; made by ``make`` and kept where they are not there yet."""
    found = fetch(cache, digest)
    if found is not None:
        return found
    with _lock(cache_file(cache, digest)):
        found = fetch(cache, digest)  # another process may have made them while this one waited
        if found is not None:
            return found
        made = make()
        keep(cache, made)
    return fetch(cache, digest) or made


def fetch(cache: Path, digest: str) -> Tokens | None:
    """The tokens of ``digest``, memory-mapped; ``None`` where there are none (or damaged ones, logged)."""
    path = cache_file(cache, digest)
    try:
        return _open(path, digest)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _LOG.warning("%s is damaged (%s); the data is tokenised again.", path, error)
        return None


def keep(cache: Path, tokens: Tokens) -> None:
    """Write tokens into the cache."""
    from safetensors.numpy import save

    about = {name: getattr(tokens, name) for name in ("digest", "running", "skipped", "told")}
    path = cache_file(cache, tokens.digest)
    try:
        write_bytes(path, save({n: getattr(tokens, n) for n in _ARRAYS}, metadata={"lora_lab": json.dumps(about)}))
    except (SweepFolderError, OSError) as error:
        cause = error.__cause__ or error
        _LOG.warning(
            "%s cannot be written (%s), so the data will be tokenised again next time; "
            "name a writable folder with LORA_LAB_CACHE.",
            path,
            cause,
        )


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock of a cache file, if the cache's folder can hold one."""
    from filelock import FileLock

    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        _LOG.info("%s cannot be locked (%s).", path, error)
    try:
        yield
    finally:
        lock.release()


def _open(path: Path, digest: str) -> Tokens:
    """The arrays of a safetensors file as views of one memory map; ``ValueError`` if torn."""
    if path.stat().st_size < 8:
        raise ValueError("the file is torn")
    raw = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    start = 8 + int(raw[:8].view(np.uint64)[0])
    if start > len(raw):
        raise ValueError("the file is torn")
    header = json.loads(raw[8:start].tobytes())
    about: dict[str, Any] = json.loads(header.pop("__metadata__")["lora_lab"])
    if about["digest"] != digest:
        raise ValueError("it holds another data set")
    if start + max(entry["data_offsets"][1] for entry in header.values()) != len(raw):
        raise ValueError("the file is torn")
    arrays: dict[str, NDArray[Any]] = {
        name: raw[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]].view(_TYPES[entry["dtype"]])
        for name, entry in header.items()
    }
    return Tokens(
        ids=arrays["ids"],
        supervised=arrays["supervised"],
        offsets=arrays["offsets"],
        prompt_lengths=arrays["prompt_lengths"],
        full_lengths=arrays["full_lengths"],
        prints=arrays["prints"],
        texts=arrays["texts"],
        digest=digest,
        running=about["running"],
        skipped=about["skipped"],
        told=tuple(about["told"]),
    )
