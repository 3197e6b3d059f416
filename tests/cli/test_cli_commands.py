"""Printed commands can be typed as they stand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lora_lab.cli.commands import program, typed


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment in ``.venv`` of the working folder, not activated."""
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("python", "lora-lab"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_program_off_the_path_is_named_by_its_place(environment: Path, tmp_path: Path, monkeypatch) -> None:
    assert typed(["lora-lab", "report", "my sweep"]) == ".venv/bin/lora-lab report 'my sweep'"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert program("lora-lab") == str(environment / "lora-lab")


def test_a_program_on_the_path_keeps_its_name(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{environment}:/usr/bin")
    assert typed(["lora-lab", "status"]) == "lora-lab status"


def test_another_environments_program_is_not_taken_for_this_ones(environment: Path, tmp_path, monkeypatch) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "lora-lab").write_text("#!/bin/sh\n")
    (other / "lora-lab").chmod(0o755)
    monkeypatch.setenv("PATH", f"{other}:/usr/bin")
    assert program("lora-lab") == ".venv/bin/lora-lab"


def test_a_program_the_environment_lacks_is_left_as_it_is(environment: Path) -> None:
    assert program("mlflow") == "mlflow"
