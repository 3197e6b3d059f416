"""Durable files: written beside and moved into place, and never read torn.

A crash, a full disk or a second reader sees the old file or the new one, nothing between. JSON files
carry no checksum of their own: a torn one does not parse, and that is said by name.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lora_lab.errors import CheckpointError, SweepFolderError


@contextlib.contextmanager
def writing(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A file that is at ``path`` whole when the block has ended well, or not at all, also after a crash.

    Without ``durable`` a power cut may still take it, or leave it torn: for what is also kept elsewhere.

    Raises:
        SweepFolderError: no space left, or no permission to write there.
    """
    with folder_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()
            raise
        if durable:
            sync_folder(path.parent)


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write ``data`` to ``path`` as :func:`writing` does."""
    with writing(path, durable=durable) as file:
        file.write(data)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """:func:`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode(), durable=durable)


def write_json(path: Path, tree: Any, *, durable: bool = True) -> None:
    """:func:`write_bytes` of indented JSON."""
    write_text(path, json.dumps(tree, indent=1, allow_nan=True) + "\n", durable=durable)


def read_json(path: Path) -> Any:
    """Read a JSON file; ``FileNotFoundError`` where there is none.

    Raises:
        CheckpointError: the file is torn or not JSON; it is never read as an empty one.
    """
    text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except ValueError as error:
        raise CheckpointError(
            f"{path}: torn or not JSON ({error}). Move it away to let its run be trained again."
        ) from error


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def folder_errors(path: Path) -> Iterator[None]:
    """Turn 'disk full' and 'permission denied' under ``path`` into a :class:`SweepFolderError`."""
    try:
        yield
    except OSError as error:
        remedies = {
            errno.ENOSPC: "The disk is full: free some space, or move the sweep with sweep.dir=FOLDER.",
            errno.EDQUOT: "The disk quota is used up: free some space, or move the sweep with sweep.dir=FOLDER.",
            errno.EFBIG: "A file may not grow so large there: raise that limit (ulimit -f), or use sweep.dir=FOLDER.",
            errno.ENOENT: "No folder can be made there: choose another place with sweep.dir=FOLDER.",
            errno.EACCES: "No permission to write there: choose another place with sweep.dir=FOLDER.",
            errno.EPERM: "No permission to write there: choose another place with sweep.dir=FOLDER.",
            errno.EROFS: "The file system is read-only: choose another place with sweep.dir=FOLDER.",
            errno.ENOTDIR: "A part of the path is a file: choose another place with sweep.dir=FOLDER.",
            errno.EISDIR: "A folder stands where a file is needed: name a file in it.",
            errno.EBUSY: "A folder stands where a file is needed: name a file in it.",
            errno.EEXIST: "A file stands where a folder is needed: choose another place with sweep.dir=FOLDER.",
        }
        if error.errno in remedies:
            raise SweepFolderError(f"{path}: {error.strerror}. {remedies[error.errno]}") from error
        raise
