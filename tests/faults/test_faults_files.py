"""Disks that fill up, files that are damaged, folders that cannot be written."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import Death, start, until
from services import absent
from tiny import SWEEP, events, results

Same = Callable[[Path], None]
FOLDER = Path("runs/rank_alpha")
KEEP = "launcher.checkpoint_seconds=0.05"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 90 MiB, which is as small as a sweep begins on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=90m", "tmpfs", disk], capture_output=True, check=False)
    if done.returncode != 0:
        absent("small_disk", f"a small file system cannot be mounted here ({done.stderr.decode().strip()})")
    yield disk
    subprocess.run(["umount", disk], check=True)


def fill(disk: Path) -> Path:
    """Leave not a byte of it free."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            return filler


def test_a_full_disk_ends_it_with_a_remedy_and_nothing_is_lost(small_disk: Path, tmp_path: Path, same: Same) -> None:
    where = f"sweep.dir={small_disk}/sweep"
    worker = start(tmp_path, *SWEEP, where, KEEP)
    until(lambda: any((small_disk / "sweep").glob("runs/*/checkpoint.safetensors")), "a checkpoint")
    filler = fill(small_disk)
    assert worker.wait() == 2, worker.said()
    assert "The disk is full: free some space" in worker.said() and "Traceback" not in worker.said()
    filler.unlink()
    again = start(tmp_path, *SWEEP, where)
    assert again.wait() == 0, again.said()
    same(small_disk / "sweep")


def test_a_checkpoint_that_cannot_be_written_does_not_end_a_run_but_an_adapter_does(tmp_path: Path) -> None:
    """No file may grow beyond 16 KB: the log and the metrics are smaller, checkpoints and adapters are not."""
    words = (*SWEEP, KEEP, "sweep.space={method.r: {choices: [64]}}")
    worker = start(tmp_path, *words, limit=16 << 10)
    assert worker.wait() == 2, worker.said()
    assert "goes on without a new checkpoint" in worker.said() and "Traceback" not in worker.said()
    assert "A file may not grow so large there" in worker.said()
    again = start(tmp_path, *words)
    assert again.wait() == 0, again.said()
    assert list(results(tmp_path / FOLDER)["outcome"]) == ["COMPLETED"] * 2


@pytest.mark.parametrize("damage", ["truncated", "a bit flipped"])
def test_a_damaged_checkpoint_costs_its_own_run_its_steps_and_no_more(damage: str, tmp_path: Path, same: Same) -> None:
    killed = start(tmp_path, *SWEEP, KEEP, dies=Death("lora_lab.engine.lane:Lane.update", 60))
    assert killed.wait() == -signal.SIGKILL
    path = sorted((tmp_path / FOLDER).glob("runs/*/checkpoint.safetensors"))[0]
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        data = data[: len(data) // 2]
    else:
        data[-9] ^= 1
    path.write_bytes(data)
    again = start(tmp_path, *SWEEP)
    assert again.wait() == 0, again.said()
    same(tmp_path / FOLDER)
    messages = results(tmp_path / FOLDER)["message"].dropna()
    assert list(messages.index) == [path.parent.name]
    assert "its checkpoint was damaged, so it was trained from its beginning again" in messages.iloc[0]


def test_a_torn_last_line_of_the_log(tmp_path: Path, same: Same) -> None:
    killed = start(tmp_path, *SWEEP, dies=Death("lora_lab.study.study:Study.settle", 4))
    assert killed.wait() == -signal.SIGKILL
    for name in ("study.log", "study.journal"):
        path = tmp_path / FOLDER / name
        if path.exists():
            with path.open("ab") as file:
                file.write(b'{"op":"settle","run":"t0001-s0","res')
    again = start(tmp_path, *SWEEP)
    assert again.wait() == 0, again.said()
    same(tmp_path / FOLDER)
    assert all(event["op"] for event in events(tmp_path / FOLDER))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    refused = start(tmp_path, *SWEEP, "sweep.dir=closed/sweep", as_user=True)
    assert refused.wait() == 2 and "No permission to write there" in refused.said()
    assert "Traceback" not in refused.said()
