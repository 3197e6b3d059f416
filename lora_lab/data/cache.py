"""Tokenised data sets on disk, one safetensors file each, named by digest and read through a memory map.

A file is written whole or not at all (:func:`lora_lab.files.write_bytes`), so that workers which tokenise the same
set at the same time do no harm. A damaged file is named in the log and made again; a cache that cannot be written is
named in the log and done without. The file::

    train.ids  train.offsets  train.prompt_lengths  train.texts     (and the same four for evaluation)

with ``texts`` the JSON of answers and tasks as UTF-8 bytes, and the digest and the counts in the metadata.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_lab.data.split import Split, Tokenised
from lora_lab.errors import SweepFolderError
from lora_lab.files import write_bytes

_LOG = logging.getLogger(__name__)
_SIDES = ("train", "evaluation")


def cache_file(cache: Path, digest: str) -> Path:
    """Where the tokens of a digest lie in a cache folder."""
    return cache / "tokens" / f"{digest}.safetensors"


def fetch(cache: Path, digest: str) -> Tokenised | None:
    """The tokenised data set of ``digest``, memory-mapped; ``None`` where there is none (or a damaged one, logged)."""
    path = cache_file(cache, digest)
    try:
        arrays, about = _open(path, digest)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        _LOG.warning("%s is damaged (%s); the data is tokenised again.", path, error)
        return None
    train, evaluation = (_read(arrays, about[side], side) for side in _SIDES)
    return Tokenised(train, evaluation, digest)


def keep(cache: Path, tokenised: Tokenised) -> None:
    """Write a tokenised data set into the cache."""
    from safetensors.numpy import save

    arrays: dict[str, NDArray[Any]] = {}
    about: dict[str, Any] = {"digest": tokenised.digest}
    for side in _SIDES:
        split: Split = getattr(tokenised, side)
        texts = json.dumps([split.answers, split.tasks]).encode()
        arrays[f"{side}.ids"] = split.ids
        arrays[f"{side}.offsets"] = split.offsets
        arrays[f"{side}.prompt_lengths"] = split.prompt_lengths
        arrays[f"{side}.texts"] = np.frombuffer(texts, dtype=np.uint8)
        about[side] = {"mask_prompt": split.mask_prompt, "truncated": split.truncated, "dropped": split.dropped}
    path = cache_file(cache, tokenised.digest)
    try:
        write_bytes(path, save(arrays, metadata={"lora_lab": json.dumps(about)}))
    except (SweepFolderError, OSError) as error:
        cause = error.__cause__ or error
        _LOG.warning(
            "%s cannot be written (%s), so the data will be tokenised again next time; "
            "name a writable folder with LORA_LAB_CACHE.",
            path,
            cause,
        )


def _open(path: Path, digest: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays of a safetensors file as views of one memory map, and its own account; ``ValueError`` if torn."""
    if path.stat().st_size < 8:
        raise ValueError("the file is torn")
    raw = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    start = 8 + int(raw[:8].view(np.uint64)[0])
    if start > len(raw):
        raise ValueError("the file is torn")
    header = json.loads(raw[8:start].tobytes())
    about = json.loads(header.pop("__metadata__")["lora_lab"])
    if about["digest"] != digest:
        raise ValueError("it holds another data set")
    if start + max(entry["data_offsets"][1] for entry in header.values()) != len(raw):
        raise ValueError("the file is torn")
    types = {"I32": np.int32, "I64": np.int64, "U8": np.uint8}
    arrays = {
        name: raw[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]].view(types[entry["dtype"]])
        for name, entry in header.items()
    }
    return arrays, about


def _read(arrays: dict[str, NDArray[Any]], counts: dict[str, Any], side: str) -> Split:
    answers, tasks = json.loads(arrays[f"{side}.texts"].tobytes())
    return Split(
        ids=arrays[f"{side}.ids"],
        offsets=arrays[f"{side}.offsets"],
        prompt_lengths=arrays[f"{side}.prompt_lengths"],
        answers=answers,
        tasks=tasks,
        mask_prompt=counts["mask_prompt"],
        truncated=counts["truncated"],
        dropped=counts["dropped"],
    )
