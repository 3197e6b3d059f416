"""What a study needs of the file system that its workers share, tried out: locks, renames, appends, and which it is.

The journal (no ``sweep.storage``) needs all of it; with PostgreSQL only checkpoints and adapters are in the folder, and
renames are enough.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lora_lab.study.lines import file_lock

TRIES = 200
SECONDS = 20.0
KNOWN = {
    "nfs": "NFS 3 has locks only where its lock daemon runs on all nodes",
    "lustre": "Lustre has locks between nodes only where it is mounted with -o flock (localflock is not enough)",
    "fuse.sshfs": "sshfs has no locks between machines",
    "cifs": "SMB has locks only without the nobrl mount option",
    "9p": "9p has locks only within this machine",
}
"""File systems where locks depend on how they are mounted."""
SAFE = {
    "ext4": "one machine",
    "xfs": "one machine",
    "btrfs": "one machine",
    "overlay": "one machine",
    "tmpfs": "one machine, gone with its memory",
    "zfs": "one machine",
    "nfs4": "locks work between nodes",
    "gpfs": "locks work between nodes",
    "beegfs": "locks work between nodes if tuneUseGlobalFileLocks is true",
    "ceph": "locks work between nodes",
}

TAKE = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(7)
"""
APPEND = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_APPEND)
for n in range(int(sys.argv[3])):
    fcntl.flock(file, fcntl.LOCK_EX)
    count = os.pread(file, 1 << 20, 0).count(b"\\n")
    os.write(file, f"{sys.argv[2]} {count}\\n".encode())
    fcntl.flock(file, fcntl.LOCK_UN)
"""


def troubles(folder: Path) -> Iterator[str]:
    """What does not work in ``folder``, each as a sentence; nothing where all does.

    Raises:
        OSError: it cannot be written at all.
    """
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as name:
        place = Path(name)
        for check in (_locks, _appends, _renames, _deletes):
            yield from check(place)


def kind_of(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> tuple[str, str, bool]:
    """The type of file system that ``folder`` is on, what is known of its locks, and whether that is good news."""
    kind, length = "unknown", -1
    path = folder.resolve()
    with contextlib.suppress(OSError):
        for line in mounts.read_text().splitlines():
            point, found = line.split()[1:3]
            where = Path(point.replace("\\040", " "))
            if path.is_relative_to(where) and len(where.parts) > length:
                kind, length = found, len(where.parts)
    if kind in SAFE:
        return kind, SAFE[kind], True
    return kind, KNOWN.get(kind, "nothing is known of its locks between machines"), kind == "unknown"


def _locks(place: Path) -> Iterator[str]:
    """Another process must not get a lock that is held, and must get one that its holder was killed with."""
    file = place / "lock"
    with file_lock(file) as mine:
        if not mine or _python(TAKE, str(file)) != 7:
            yield "two processes hold one lock at the same time"
    if _python(TAKE, str(file)) != 0:
        yield "a lock is not given back"


def _appends(place: Path) -> Iterator[str]:
    """Two processes append under the lock, and each sees all that was appended before."""
    file = place / "lines"
    file.touch()
    crowd = [_start(APPEND, str(file), who, str(TRIES)) for who in ("a", "b")]
    if sum(abs(process.wait(SECONDS)) for process in crowd):
        yield "appending under a lock fails"
        return
    counts = [int(line.split()[1]) for line in file.read_text().splitlines()]
    if counts != list(range(2 * TRIES)):
        yield f"of {2 * TRIES} lines that two processes appended, some were lost or not seen at once"


def _renames(place: Path) -> Iterator[str]:
    """A file that is replaced is there, whole, old or new, whenever somebody looks."""
    file = place / "whole"
    file.write_text("0" * 1000)
    for n in range(TRIES):
        beside = place / "beside"
        beside.write_text(str(n % 10) * 1000)
        with file.open() as open_one:
            os.replace(beside, file)  # noqa: PTH105 - the call that is tried out
            seen = open_one.read()
        if len(seen) != 1000 or len(set(seen)) != 1 or file.read_text() != str(n % 10) * 1000:
            yield "a file that is replaced is seen torn, or not there"
            return


def _deletes(place: Path) -> Iterator[str]:
    """What is deleted is gone from the listing."""
    file = place / "gone"
    file.touch()
    file.unlink()
    if file in place.iterdir():
        yield "a deleted file is still listed"


def _start(program: str, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-S", "-c", program, *words], stderr=subprocess.DEVNULL)


def _python(program: str, *words: str) -> int:
    return _start(program, *words).wait(SECONDS)
