"""Doctor tries out what a study needs of a file system, and finds what is wrong with one that lacks it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_lab.cli import shared_folder
from lora_lab.cli.doctor import check_shared_folder
from lora_lab.cli.shared_folder import kind_of, troubles
from lora_lab.spec import Execution, LauncherSpec


def test_a_sound_file_system_has_no_troubles(tmp_path: Path) -> None:
    assert list(troubles(tmp_path)) == [] and not list(tmp_path.iterdir())


def test_locks_that_keep_nobody_out_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def no_lock(path: Path) -> Iterator[bool]:
        path.touch()
        yield True

    monkeypatch.setattr(shared_folder, "file_lock", no_lock)
    lockless = "import fcntl\nfcntl.flock = lambda *_: None\n"
    monkeypatch.setattr(
        shared_folder,
        "APPEND",
        lockless + shared_folder.APPEND.replace("os.write", "__import__('time').sleep(0.0005); os.write"),
    )
    found = list(troubles(tmp_path))
    assert found[0] == "two processes hold one lock at the same time"
    assert "some were lost or not seen at once" in found[1]
    (check,) = list(check_shared_folder(Execution(str(tmp_path))))[:1]
    assert check.status == "fail" and "sweep.storage=postgresql" in check.remedy


@pytest.mark.parametrize(
    ("kind", "status"),
    [("nfs4", "ok"), ("nfs", "warn"), ("lustre", "warn"), ("fuse.sshfs", "warn"), ("strange", "warn")],
)
def test_the_file_system_says_what_cannot_be_tried(
    kind: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"proc /proc proc rw 0 0\n/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path.resolve()} {kind} rw 0 0\n")
    assert kind_of(tmp_path, mounts)[0] == kind and kind_of(Path("/usr"), mounts)[0] == "ext4"
    monkeypatch.setattr("lora_lab.cli.shared_folder.kind_of", lambda folder: kind_of(folder, mounts))
    (check,) = check_shared_folder(Execution(str(tmp_path), launcher=LauncherSpec(name="slurm")))
    assert check.status == status and kind in check.value
    (check,) = check_shared_folder(Execution(str(tmp_path)))
    assert check.status == "ok", "one machine needs no more"
