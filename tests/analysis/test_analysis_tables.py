"""Ablation tables: the numbers in the cells, the choice of axes, and every rendering."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from lora_lab.analysis import ablation_table, load_results
from lora_lab.analysis.naming import path_name, point_name, value_name
from lora_lab.analysis.rendering import Grid, digits_for
from lora_lab.errors import SpecError
from lora_lab.spec import Objective, Outcome, Sweep

Fabricate = Callable[..., Sweep]
SPACE = {"method.r": {"choices": [2, 8, 32]}, "method.alpha_over_r": {"choices": [0.5, 1, 2]}}


def rank_alpha(point: dict[str, float], seed: int) -> float:
    """Best at r = 8, alpha/r = 2; seeds differ by 0.004."""
    return 1.5 + abs(math.log2(point["method.r"]) - 3) / 10 - point["method.alpha_over_r"] / 20 + 0.004 * seed


@pytest.fixture
def frame(fabricate: Fabricate, tmp_path: Path) -> pd.DataFrame:
    fabricate(SPACE, rank_alpha)
    return load_results(tmp_path / "runs" / "demo")


def test_rows_by_columns_mean_std_best_and_base(frame: pd.DataFrame) -> None:
    table = ablation_table(frame)
    assert (table.row_paths, table.column_path) == (("method.r",), "method.alpha_over_r")
    assert (table.rows, table.columns) == (((2,), (8,), (32,)), (0.5, 1, 2))
    cell = table.cells[2][1]
    assert cell.mean == pytest.approx(1.5 + 0.2 - 0.05 + 0.002) and cell.n == cell.planned == 2
    assert cell.std == pytest.approx(0.004 / math.sqrt(2))
    assert table.best == (1, 2)
    assert table.base == (2.5, 2.5, 2.5)
    assert cell.text(4) == "1.6520 ± 0.0028"


def test_plain(frame: pd.DataFrame) -> None:
    assert ablation_table(frame).plain() == (
        "eval_loss (lower is better)\n"
        "mean ± std over 2 seeds\n"
        "r ↓  alpha_over_r →              0.5                  1                  2\n"
        "----------------------------------------------------------------------------\n"
        "2                    1.6770 ± 0.0028    1.6520 ± 0.0028    1.6020 ± 0.0028\n"
        "8                    1.4770 ± 0.0028    1.4520 ± 0.0028    1.4020 ± 0.0028 *\n"
        "32                   1.6770 ± 0.0028    1.6520 ± 0.0028    1.6020 ± 0.0028\n"
        "----------------------------------------------------------------------------\n"
        "base model                    2.5000             2.5000             2.5000\n"
        "* best\n"
    )


def test_markdown(frame: pd.DataFrame) -> None:
    assert ablation_table(frame).markdown() == (
        "eval_loss (lower is better), mean ± std over 2 seeds\n\n"
        "| r ↓  alpha_over_r → | 0.5 | 1 | 2 |\n"
        "| :-- | --: | --: | --: |\n"
        "| 2 | 1.6770 ± 0.0028 | 1.6520 ± 0.0028 | 1.6020 ± 0.0028 |\n"
        "| 8 | 1.4770 ± 0.0028 | 1.4520 ± 0.0028 | **1.4020 ± 0.0028** |\n"
        "| 32 | 1.6770 ± 0.0028 | 1.6520 ± 0.0028 | 1.6020 ± 0.0028 |\n"
        "| *base model* | 2.5000 | 2.5000 | 2.5000 |\n"
    )


def test_csv_has_a_line_a_cell_at_full_precision(frame: pd.DataFrame) -> None:
    rows = list(csv.DictReader(io.StringIO(ablation_table(frame).csv())))
    assert len(rows) == 9
    best = next(row for row in rows if row["best"] == "True")
    assert (best["method.r"], best["method.alpha_over_r"], best["n"], best["base"]) == ("8", "2", "2", "2.5")
    assert float(best["mean"]) == pytest.approx(1.402, abs=1e-12)


def rendered(table: object, width: int, colour: bool = False) -> str:
    console = Console(
        width=width, file=io.StringIO(), force_terminal=colour, color_system="standard" if colour else None
    )
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_rich_shows_the_best_alone_in_bold(frame: pd.DataFrame) -> None:
    text = rendered(ablation_table(frame).rich(80), 80, colour=True)
    bold = [match for match in re.findall(r"\x1b\[1;32m([^\x1b]*)\x1b", text) if match.strip()]
    assert bold == ["1.4020 ± 0.0028"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_rich_fits_the_terminal_without_losing_a_digit(fabricate: Fabricate, tmp_path: Path, width: int) -> None:
    rates = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3]
    fabricate({"method.r": {"choices": [2, 8]}, "optimizer.lr": {"choices": rates}}, lambda p, s: 1.234 + 0.004 * s)
    text = rendered(ablation_table(load_results(tmp_path / "runs" / "demo")).rich(width), width)
    assert max(map(len, text.splitlines())) <= width
    if width >= 80:
        assert text.count("1.2360") == 12 and text.count("± 0.0028") == 12


def test_a_path_alone_gives_one_column(fabricate: Fabricate, tmp_path: Path) -> None:
    fabricate({"method.r": {"choices": [32, 2]}}, lambda p, s: float(p["method.r"]), repeats=1)
    table = ablation_table(load_results(tmp_path / "runs" / "demo"))
    assert (table.column_path, table.columns, table.rows) == (None, ("eval_loss",), ((32,), (2,)))
    assert "mean" not in table.plain() and "32.000" in table.plain()


def test_three_paths_give_a_list_best_first(fabricate: Fabricate, tmp_path: Path) -> None:
    space = {
        "method.r": {"choices": [2, 4, 8]},
        "optimizer.name": {"choices": ["adamw", "sgd"]},
        "method.dropout": {"choices": [0.0, 0.05, 0.1, 0.2]},
    }
    fabricate(space, lambda p, s: p["method.r"] + p["method.dropout"] + 0.1 * s, outcomes={(5, 0): Outcome.FAILED})
    table = ablation_table(load_results(tmp_path / "runs" / "demo"))
    assert table.row_paths == ("method.r", "optimizer.name", "method.dropout")
    assert len(table.rows) == 20 and table.rows[0] == (2, "adamw", 0.0) and table.best == (0, 0)
    means = [cells[0].mean for cells in table.cells]
    assert means == sorted(means)
    assert "the best 20 of 24 configurations" in table.markdown()
    assert "| r | optimizer.name | dropout | eval_loss |" in table.markdown()
    assert "| *base model* |  |  |" in table.markdown()
    assert len(ablation_table(load_results(tmp_path / "runs" / "demo"), top=3).rows) == 3


def test_three_paths_of_which_one_is_fixed_are_a_matrix(fabricate: Fabricate, tmp_path: Path) -> None:
    fabricate(SPACE | {"method.dropout": {"choices": [0.1]}}, rank_alpha)
    table = ablation_table(load_results(tmp_path / "runs" / "demo"))
    assert table.column_path == "method.alpha_over_r" and not table.averaged


def test_named_axes_average_over_the_rest_and_say_so(frame: pd.DataFrame) -> None:
    table = ablation_table(frame, rows="method.r")
    assert table.averaged == ("method.alpha_over_r",)
    assert table.cells[0][0].n == table.cells[0][0].planned == 6
    assert "averaged over method.alpha_over_r" in table.plain() and "over 6 runs" in table.plain()
    turned = ablation_table(frame, "method.alpha_over_r", "method.r")
    assert (turned.row_paths, turned.columns, turned.best) == (("method.alpha_over_r",), (2, 8, 32), (2, 1))
    assert ablation_table(frame, columns="method.r").row_paths == ("method.alpha_over_r",)
    by_seed = ablation_table(frame, "method.r", "seed")
    assert by_seed.columns == (0, 1) and by_seed.cells[0][0].n == 3


def test_axes_with_many_values_go_down_the_page(fabricate: Fabricate, tmp_path: Path) -> None:
    fabricate({"method.alpha_over_r": {"choices": [1, 2]}, "method.r": {"int": [1, 12]}})
    table = ablation_table(load_results(tmp_path / "runs" / "demo"))
    assert (table.row_paths, table.columns) == (("method.r",), (1, 2))


def test_a_sampled_range_is_a_list_and_a_sampled_grid_a_matrix(fabricate: Fabricate, tmp_path: Path) -> None:
    rng = random.Random(0)
    space = {"optimizer.lr": {"float": {"low": 1e-5, "high": 1e-2, "log": True}}, "method.r": {"choices": [2, 8]}}
    points = [{"optimizer.lr": rng.uniform(1e-5, 1e-2), "method.r": rng.choice([2, 8])} for _ in range(10)]
    fabricate(space, sampler="tpe", trials=10, points=points, name="lr")
    assert ablation_table(load_results(tmp_path / "runs" / "lr")).column_path is None
    points = [{"method.r": r, "method.alpha_over_r": a} for r, a in [(32, 1), (2, 1), (8, 2), (32, 2)]]
    fabricate(SPACE, rank_alpha, sampler="random", trials=4, points=points, name="some")
    table = ablation_table(load_results(tmp_path / "runs" / "some"))
    assert (table.rows, table.columns) == (((2,), (8,), (32,)), (1, 2))
    assert table.cells[0][1].text(3) == "–"


def test_all_masks(fabricate: Fabricate, tmp_path: Path) -> None:
    fabricate({"method.roles": {"masks": "all"}}, lambda p, s: 1.0 - 0.01 * len(p["method.roles"]) + 0.001 * s)
    table = ablation_table(load_results(tmp_path / "runs" / "demo"))
    assert table.rows[0] == (("query", "key", "value", "projection", "mlp", "head"),)
    assert table.grid.rows[0][0] == "all" and len(table.rows) == 20


def test_incomplete_cells_say_what_happened(fabricate: Fabricate, tmp_path: Path) -> None:
    outcomes = {
        (0, 0): Outcome.DIVERGED,
        (0, 1): Outcome.DIVERGED,
        (1, 0): Outcome.DIVERGED,
        (1, 1): Outcome.OUT_OF_MEMORY,
        (2, 1): Outcome.FAILED,
        (3, 1): None,
        (4, 0): None,
        (4, 1): None,
        (5, 0): Outcome.PRUNED,
    }
    fabricate(SPACE, rank_alpha, outcomes=outcomes)
    table = ablation_table(load_results(tmp_path / "runs" / "demo"))
    texts = [[cell.text(3) for cell in row] for row in table.cells]
    assert texts[0] == ["diverged", "1 diverged, 1 out of memory", "1.600 (n=1, 1 failed)"]
    assert texts[1][0].endswith("(n=1)") and texts[1][1] == "–" and texts[1][2].endswith("(n=1, 1 pruned)")
    assert table.best == (0, 2)  # r = 8 has lower means, of configurations that are unfinished or were pruned
    assert "1 diverged, 1 out of memory" in rendered(table.rich(80), 80)


def test_a_sweep_without_a_completed_run_still_has_a_table(fabricate: Fabricate, tmp_path: Path) -> None:
    fabricate(SPACE, outcomes={(t, s): Outcome.DIVERGED for t in range(9) for s in (0, 1)})
    table = ablation_table(load_results(tmp_path / "runs" / "demo"))
    assert table.best is None
    assert table.plain().count("diverged") == 9 and "*" not in table.plain()


def test_maximised_objective_and_other_metrics(fabricate: Fabricate, tmp_path: Path) -> None:
    fabricate(SPACE, rank_alpha, objective=Objective("exact_match", "maximize"))
    frame = load_results(tmp_path / "runs" / "demo")
    table = ablation_table(frame)
    assert (table.metric, table.direction, table.base) == ("exact_match", "maximize", (0.02, 0.02, 0.02))
    assert "higher is better" in table.plain()
    loss = ablation_table(frame, metric="eval_loss")
    assert (loss.direction, loss.best) == ("minimize", (1, 2))
    size = ablation_table(frame, metric="peak_bytes")
    assert size.base is None and "1200000000 ± 0" in size.plain()


def test_a_base_score_that_moves_with_the_rows_is_said(fabricate: Fabricate, tmp_path: Path) -> None:
    fabricate({"data.max_length": {"choices": [64, 128]}})
    for seed in (0, 1):
        path = tmp_path / "runs" / "demo" / "runs" / f"t0001-s{seed}" / "result.json"
        path.write_text(path.read_text().replace('"base_eval_loss": 2.5', '"base_eval_loss": 3.5'))
    table = ablation_table(load_results(tmp_path / "runs" / "demo"))
    assert table.base == (3.0,)
    assert "the base model's score depends on the rows" in table.plain()


def test_unknown_axes_name_the_nearest(frame: pd.DataFrame) -> None:
    with pytest.raises(SpecError, match=r"'method\.rr' was not searched.*did you mean 'method\.r'"):
        ablation_table(frame, "method.rr")
    with pytest.raises(SpecError, match="no number called 'run'"):
        ablation_table(frame, metric="run")


def test_a_frame_read_back_from_csv_works_too(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.to_csv(tmp_path / "results.csv", index=False)
    table = ablation_table(pd.read_csv(tmp_path / "results.csv"))
    assert table.plain() == ablation_table(frame).plain()


def test_a_space_without_paths(fabricate: Fabricate, tmp_path: Path) -> None:
    fabricate({}, points=[{}])
    table = ablation_table(load_results(tmp_path / "runs" / "demo"))
    assert table.grid.rows[0][0] == "the base settings"
    assert "the base settings" in table.csv() or "eval_loss" in table.csv()


def test_records_are_strict_json(fabricate: Fabricate, tmp_path: Path) -> None:
    fabricate(SPACE, rank_alpha, repeats=1, outcomes={(0, 0): None})
    tree = json.loads(json.dumps(ablation_table(load_results(tmp_path / "runs" / "demo")).to_tree(), allow_nan=False))
    assert tree["cells"][0]["mean"] is None and tree["cells"][1]["std"] is None


# -- names and grids -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8, "8"),
        (0.5, "0.5"),
        (1.0, "1"),
        (1_000_000.0, "1000000"),
        (3e-4, "0.0003"),
        (("query", "value"), "query+value"),
        ((), "none"),
        (["query", "value"], "query+value"),
        (("addition", "sorting"), "addition+sorting"),
        ((0, 1), "[0, 1]"),
        (None, "null"),
        (math.nan, "null"),
        (True, "True"),
        ("sgd", "sgd"),
    ],
)
def test_value_names(value: object, text: str) -> None:
    assert value_name(value) == text


def test_path_names_are_short_and_never_ambiguous() -> None:
    assert path_name("method.r", ["method.r", "optimizer.lr"]) == "r"
    assert path_name("optimizer.name", ["optimizer.name"]) == "optimizer.name"
    assert path_name("data.max_length", ["data.max_length", "other.max_length"]) == "data.max_length"
    assert point_name({"method.r": 8, "optimizer.name": "sgd"}) == "r=8 optimizer.name=sgd"


@pytest.mark.parametrize(
    ("std", "largest", "digits"),
    [(0.0031, 1.2, 4), (0.12, 1.2, 2), (3.0, 12.0, 2), (1e-9, 1.0, 5), (math.nan, 1.0, 3), (2e6, 1e9, 0), (0, 1e9, 0)],
)
def test_digits_follow_the_std(std: float, largest: float, digits: int) -> None:
    assert digits_for(std, largest) == digits


def test_markdown_escapes_what_would_break_a_table() -> None:
    grid = Grid(title=("t",), head=("a", "b"), rows=(("x|y", "1"),))
    assert "| x\\|y | 1 |" in grid.markdown()


def test_rich_reads_no_markup_in_values() -> None:
    assert "[red]x[/red]" in rendered(Grid(("t",), ("a", "b"), (("[red]x[/red]", "1"),)).rich(), 80)
