"""The notebooks run from top to bottom, and are kept with what they said."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest

import lora_lab
from lora_lab.spec import Sweep

FOLDER = Path(lora_lab.__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SMALL = {
    "LORA_LAB_NOTEBOOK_MODEL": "tiny",
    "LORA_LAB_NOTEBOOK_STEPS": "4",
    "LORA_LAB_NOTEBOOK_SEEDS": "2",
    "LORA_LAB_NOTEBOOK_SAMPLER": "plackett_burman",
}

OWN: dict[str, tuple[dict[str, Any], str]] = {
    "02_which_layers": ({"method.roles": {"masks": "all"}}, "**head** (+0.5000) pays"),
    "03_rank_alpha_consistency": (
        {"method.r": {"choices": [2, 8]}, "method.alpha_over_r": {"choices": [0.5, 2]}},
        "among 2 scales it is the best at 2 of 2 ranks on this model and data, after 60 steps",
    ),
}
"""Finished sweeps that a reader may have, and what the page says of them."""


def named(path: Path) -> str:
    return path.stem


def cells(path: Path, kind: str) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def text_of(cell: Any) -> str:
    """What a cell put out, as text."""
    said = [output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "".join(said)


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["01_first_sweep", "02_which_layers", "03_rank_alpha_consistency"]


def executed(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, **variables: str) -> Any:
    """A notebook after all its cells, in ``folder``."""
    from nbclient import NotebookClient

    for name, value in (SMALL | variables | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MPLBACKEND", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    book = nbformat.read(path, as_version=4)
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return book


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_executed_on_a_small_budget(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = executed(path, tmp_path, monkeypatch)
    conclusions = [cell for cell in book.cells if cell.cell_type == "code" and "Markdown(" in cell.source][-1]
    (output,) = [output for output in conclusions.outputs if output.output_type == "execute_result"]
    assert output.data["text/markdown"].count("**") >= 4, "conclusions are drawn from the numbers"


@pytest.mark.parametrize("name", OWN)
def test_a_sweep_of_ones_own_is_read_and_nothing_is_trained(
    name: str, fabricate: Callable[..., Sweep], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, sentence = OWN[name]
    fabricate(space, loss, folder=tmp_path / "own")
    page = tmp_path / "page"
    page.mkdir()
    book = executed(FOLDER / f"{name}.ipynb", page, monkeypatch, LORA_LAB_NOTEBOOK_SWEEP="../own")
    assert list(page.iterdir()) == []
    said = [text_of(cell) for cell in book.cells if cell.cell_type == "code"]
    assert "$ lora-lab status ../own" in said[1]
    assert sentence in book.cells[-2].outputs[-1].data["text/markdown"]


def loss(point: Mapping[str, Any], seed: int) -> float:
    """Of a run: the head pays, and so does a large scale, by more than seeds differ."""
    head, scale = "head" in point.get("method.roles", ()), point.get("method.alpha_over_r", 0)
    return 3.0 - 0.5 * head - 0.1 * scale + seed / 100


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_kept_with_the_output_of_a_real_run(path: Path) -> None:
    code = cells(path, "code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "executed once, from the top"
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs), "a page has figures"
    assert any("$ lora-lab " in text_of(cell) and "runs settled" in text_of(cell) for cell in code)
    words = sum(len(cell.source.split()) for cell in cells(path, "markdown"))
    assert words > 150, "a page is read, not only run"
    assert os.sep + "tmp" + os.sep not in path.read_text(), "no machine's own paths"
