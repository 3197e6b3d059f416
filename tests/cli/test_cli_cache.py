"""``lora-lab cache``: what there is, and what is left when something of it is being made."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from lora_lab.cli.main import main


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path))
    for name in ("shared/a/model.safetensors", "shared/b/model.safetensors", "tokens/c.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1" * 100_000)
    (tmp_path / "shared" / "a.lock").touch()
    return tmp_path


def test_what_there_is_is_listed(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(cache)
    assert [line.split()[:4] for line in lines[1:3]] == [["shared", "205", "kB", "2"], ["tokens", "102", "kB", "1"]]
    assert lines[3].split() == ["307", "kB"]


def test_a_kind_is_removed_but_for_what_is_being_made(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(cache / "shared" / "b.lock"):
        main(["cache", "--clear", "shared"])
    assert "1 removed, 102 kB; 1 being made now stay" in capsys.readouterr().out
    assert not (cache / "shared" / "a").exists()
    assert (cache / "shared" / "b" / "model.safetensors").exists()
    assert (cache / "tokens" / "c.safetensors").exists()


def test_all_is_all(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["cache", "--clear", "all"])
    main(["cache"])
    assert capsys.readouterr().out.splitlines()[-1].split() == ["0", "B"]


def test_an_unknown_kind_is_refused(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "--clear", "shred"]) == 2
    assert "--clear shred: no such kind; did you mean 'shared'?" in capsys.readouterr().err
    assert (cache / "shared" / "a").exists()
