"""The article's sections hang together: sweeps compose under every budget, and every claim finds what it looks at."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from simulated_sweeps import frame_of

from lora_lab.adapters.references import Reference
from lora_lab.adapters.subspace import Comparison
from lora_lab.analysis.claims import Size
from lora_lab.analysis.verdicts import Status
from lora_lab.article import Reproduction, Section, page, screen, sections
from lora_lab.article.budgets import chosen_data, data_overrides, planned_run
from lora_lab.article.catalogue import parts_of
from lora_lab.article.findings import found
from lora_lab.article.measured import Table, frames_of
from lora_lab.article.measurements import BASE, CHANCE, MEAN, OWN, SIDES, SUM, TOGETHER, TRAINED, Subspaces
from lora_lab.article.prepared import prepare
from lora_lab.article.section import Part, TableOf
from lora_lab.config import compose_run
from lora_lab.config.places import sweep_names
from lora_lab.data.taskmix import generate
from lora_lab.errors import ConfigError, DataError, SweepFolderError
from lora_lab.files import write_json
from lora_lab.spec import DataSpec, ModelSpec, Outcome, RunResult, RunSpec, pairs, to_tree

EVERY = sections()
COMBINATIONS = (BASE, OWN, SUM, MEAN, TOGETHER)
VARIANTS = (BASE, "lora", "lora merged", "bottleneck", "prompt_tuning", "ia3")


def reproduction(folder: Path, budget: str = "small", **said: str) -> Reproduction:
    return Reproduction(budget, folder, **({"data": "taskmix"} | said))


def frames_of_runs(section: Section, folder: Path) -> dict[str, pd.DataFrame]:
    """Results that were never trained: every point of the section's sweeps, and noise."""
    job, frames = reproduction(folder), {}
    for part in section.parts:
        sweep = job.compose(part).sweep
        points = [dict(point) for point in sweep.points or ()]
        space = sweep.space.to_tree()
        points = [{path: value for path, value in point.items() if path in sweep.space.paths} for point in points]
        frames[part.name] = frame_of(points, lambda p: 1.0, seeds=sweep.repeats, space=space, sampler="grid")
        frames[part.name]["steps"] = 24
        frames[part.name]["eval_accuracy"] = 0.5
        for task in sweep.base.evaluation.tasks:
            scores = {"acc": [0.1 + seed / 100 for seed in frames[part.name]["seed"]], "acc_stderr": 0.02, "n": 200}
            for metric, values in scores.items():
                frames[part.name][f"scores.{task}.{metric}"] = values
                frames[part.name][f"base_scores.{task}.{metric}"] = 0.25
    return frames | measured(section)


def measured(section: Section, **truth: float) -> dict[str, pd.DataFrame]:
    """What was never measured: noise around ``truth`` of each first word of a row."""
    rng = np.random.default_rng(0)
    places = {
        "q9_sums": (("combination", COMBINATIONS), ("task", ("addition", "capitals", "reversal"))),
        "s0_shared": (("of", (TRAINED, CHANCE)), ("side", tuple(SIDES.values())), ("ranks", ("1 and 8", "8 and 64"))),
        "s0_used": (("r", (1, 8)), ("role", ("query", "value"))),
        "s3_latency": (("variant", VARIANTS), ("phase", ("prefill", "decode")), ("batch", (1, 2))),
    }
    numbers = ("eval_loss", "exact_match", "phi", "phi_r", "rank_90", "effective_rank", "milliseconds", "slowdown")
    numbers += ("amplification", "random_amplification")
    wanted = {table.sweep for table in section.tables} & places.keys()
    out = {}
    for name in wanted:
        axes = [axis for axis, _ in places[name]]
        rows = [
            dict(zip(axes, point, strict=True))
            | {"seed": seed}
            | {number: truth.get(str(point[0]), 0.0) + rng.normal(0, 0.005) for number in numbers}
            for point in itertools.product(*[values for _, values in places[name]])
            for seed in range(3)
        ]
        out[name] = Table(tuple(axes), "phi" if name == "s0_shared" else numbers[0], tuple(rows)).frame(name)
    return out


def test_a_section_for_each_row_of_the_article() -> None:
    rows = [
        *("1-consistency", "2-qlora", "3-scheduler", "4-adam-sgd", "5-epochs", "6-layers", "7-alpha", "8-single-gpu"),
        *("Q1-data", "Q2-domain", "Q3-rank", "Q4-masks", "Q5-overfit", "Q6-sophia", "Q7-memory", "Q8-full"),
        *("Q9-combine", "Q10-layerwise", "S0-subspace", "S1-learning-rate", "S2-methods", "S3-latency"),
    ]
    assert [section.id for section in EVERY] == rows
    shipped = {name for name in sweep_names() if name.startswith("article/")}
    assert {part.sweep for part in parts_of(EVERY)} == shipped, "every file belongs to a section"


@pytest.mark.parametrize("said", ["Q5", "q5-overfit", "Q5_overfit", "overfit"])
def test_sections_by_any_of_their_names(said: str) -> None:
    assert [section.id for section in sections([said])] == ["Q5-overfit"]


def test_an_unknown_section_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'Q5-overfit'"):
        sections(["Q5-overfitting"])


@pytest.mark.parametrize("budget", ["smoke", "small", "full"])
def test_every_sweep_composes_under_every_budget(budget: str, tmp_path: Path) -> None:
    job = reproduction(tmp_path, budget)
    names = {part.name: job.compose(part).sweep for part in parts_of(EVERY)}
    runs = sum(sweep.planned_trials * sweep.repeats for sweep in names.values())
    models = {sweep.base.model.name for name, sweep in names.items() if name not in ("8_single_gpu", "q7_memory")}
    assert models == {{"smoke": "tiny", "small": "smollm2_135m", "full": "llama2_7b"}[budget]}
    assert runs > 100
    if budget == "full":
        lengths = {sweep.base.data.max_length for name, sweep in names.items() if name.startswith(("1", "2", "6"))}
        assert lengths == {1304} and names["6_layers"].base.budget.batch_size == 128


@pytest.mark.parametrize("section", EVERY, ids=lambda section: section.id)
def test_every_claim_finds_what_it_looks_at(section: Section, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = {one.label: Size(one.label, rng.uniform(1, 9), 9, rng.uniform(1, 9), 9.0) for one in section.sizes}
    frames = frames_of_runs(section, tmp_path)
    finding = found(section, frames, sizes)
    assert section.claims
    assert len(finding.verdicts) == len(section.claims)
    for verdict in finding.verdicts:
        assert not verdict.test.startswith("not testable"), verdict.sentence
    assert len(finding.tables) == len(section.tables) + bool(section.sizes)
    tree = json.loads(json.dumps(finding.to_tree(), allow_nan=False))
    assert all(verdict.sentence in screen(section, tree) for verdict in finding.verdicts)


@pytest.mark.parametrize("section", EVERY, ids=lambda section: section.id)
def test_every_size_is_a_run(section: Section) -> None:
    for one in section.sizes:
        if one.sweep is None:
            spec = compose_run(planned_run(one.overrides))
            assert spec.model.name == "llama2_7b" and spec.budget.micro <= 4


def test_a_section_is_supported_whole_and_mixed_where_its_claims_differ() -> None:
    section = next(one for one in EVERY if one.id == "8-single-gpu")
    good = {one.label: Size(one.label, one.article_gb * 1e9, 9, article=one.article_gb * 1e9) for one in section.sizes}
    assert found(section, {}, good).status == Status.SUPPORTED
    label = section.sizes[-1].label
    assert found(section, {}, good | {label: Size(label, 30e9, 9, article=17.86e9)}).status == "mixed"
    assert found(section, {}, {}).status == Status.INCONCLUSIVE, "nothing planned, nothing said"


def test_verdicts_follow_what_was_measured(tmp_path: Path) -> None:
    def words(name: str, **truth: float) -> list[str]:
        section = sections([name])[0]
        frames = frames_of_runs(section, tmp_path) | measured(section, **truth)
        return [str(verdict.status) for verdict in found(section, frames, {}).verdicts]

    good = {BASE: 3.0, OWN: 1.0, SUM: 1.0, MEAN: 2.0, TOGETHER: 1.0}
    assert words("Q9", **good) == ["supported"] * 4
    assert words("Q9", **(good | {SUM: 4.0})) == ["contradicted"] * 3 + ["supported"]
    assert words("S0", **{TRAINED: 0.8, CHANCE: 0.1})[1:] == ["supported", "supported"]
    assert words("S0", **{TRAINED: 0.3, CHANCE: 0.1})[1:] == ["contradicted", "contradicted"]
    slow = {"lora": 0.2, "bottleneck": 0.3, "prompt_tuning": 0.0, "ia3": 0.1}
    assert words("S3", **slow) == ["supported"] * 3 + ["contradicted", "supported"]
    assert words("S3", **{"lora merged": 0.2})[0] == "contradicted"


@dataclass(frozen=True)
class Count:
    """A measurement that counts how often it is made."""

    made: list[int]
    timed: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        return ("demo",)

    def __call__(self, runs: Mapping[str, Sequence[object]], budget: str, say: object) -> dict[str, Table]:
        self.made.append(len(runs["demo"]))
        return {"counts": Table(("side",), "phi", ({"side": "A", "seed": 0, "phi": 0.5},), higher=True)}

    def __repr__(self) -> str:
        return "Count()"


def test_a_measurement_is_made_once_and_again_when_runs_have_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Count([])
    monkeypatch.setattr("lora_lab.adapters.resolve", list)

    def run(seed: int) -> None:
        tree = {"run": f"t0000-s{seed}", "trial": 0, "seed": seed, "key": f"key-{seed}", "outcome": "COMPLETED"}
        result = to_tree(RunResult.from_tree(tree))
        write_json(tmp_path / "demo" / "runs" / str(tree["run"]) / "result.json", result)

    run(0)
    for _ in range(2):
        frame = frames_of(one, tmp_path, "smoke", print)["counts"]
        assert frame["phi"].tolist() == [0.5] and frame["side"].tolist() == ["A"]
    assert one.made == [1]
    run(1)
    frames_of(one, tmp_path, "smoke", print)
    frames_of(one, tmp_path, "small", print)
    assert one.made == [1, 2, 2]


def test_times_are_measured_again_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_lab.adapters.resolve", list)
    tree = {"run": "t0000-s0", "trial": 0, "seed": 0, "key": "key", "outcome": "COMPLETED"}
    write_json(tmp_path / "demo" / "runs" / "t0000-s0" / "result.json", to_tree(RunResult.from_tree(tree)))
    for timed, times in ((False, 1), (True, 2)):
        one = Count([], timed)
        for name in ("one machine", "another", "another"):
            monkeypatch.setattr("lora_lab.article.measured.machine", lambda name=name: name)
            frames_of(one, tmp_path, "smoke", print)
        assert len(one.made) == times


@dataclass(frozen=True)
class Nothing(Count):
    """A measurement to one of whose tables no run had anything to give."""

    def __call__(self, runs: Mapping[str, Sequence[object]], budget: str, say: object) -> dict[str, Table]:
        return {**super().__call__(runs, budget, say), "none": Table(("side",), "phi", ())}


def test_a_table_without_rows_is_a_table_that_is_not_there(
    tmp_path: Path, fabricate: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_lab.adapters.resolve", list)
    fabricate({"method.r": {"choices": [4, 8]}}, folder=tmp_path / "demo")
    tables = (TableOf("counts", metric="phi", extras=()), TableOf("none", metric="phi", extras=()))
    section = Section("T1-demo", "", "", (Part("demo"),), tables=tables, measured=Nothing([]))
    for _ in range(2):  # measured, and kept
        tree = reproduction(tmp_path).judge(section, "", print)
        assert [table["title"][0] for table in tree["tables"]] == ["counts: phi (higher is better)"]


def test_a_part_whose_runs_all_failed_does_not_end_the_rest(tmp_path: Path, fabricate: Callable[..., object]) -> None:
    outcomes = {(trial, seed): Outcome.DIVERGED for trial in range(2) for seed in range(2)}
    fabricate({"method.r": {"choices": [4, 8]}}, folder=tmp_path / "demo", outcomes=outcomes)
    section, said = Section("T1-demo", "", "", (Part("demo"),), measured=Count([])), list[str]()
    tree = reproduction(tmp_path).judge(section, "", said.append)
    assert said == ["T1-demo: not measured: demo has no completed run, so nothing can be measured of its adapters."]
    assert tree["notes"] == ["demo: 4 of 4 runs ended DIVERGED"]


def test_one_rank_alone_shares_no_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = ["rank_90", "effective_rank", "amplification", "random_amplification"]
    modules = pd.DataFrame([{"adapter": "8", "role": "query", **dict.fromkeys(columns, 1.0)}])
    alone = Comparison(("8",), modules, pd.DataFrame([]), {}, {})
    monkeypatch.setattr("lora_lab.adapters.compare_adapters", lambda references: alone)
    spec = RunSpec(model=ModelSpec(name="tiny", source="random", config=pairs({"model_type": "llama"})))
    tables = Subspaces("demo")({"demo": [Reference("one", None, spec.model, spec)]}, "smoke", print)
    assert tables["s0_shared"].rows == () and len(tables["s0_used"].rows) == 1


def test_only_a_folder_without_a_record_counts_as_not_trained(tmp_path: Path) -> None:
    section = Section("T1-demo", "", "", (Part("demo"),))
    assert reproduction(tmp_path).judge(section, "", print)["notes"] == ["demo: no results yet"]
    write_json(tmp_path / "demo" / "sweep.json", {"name": "demo"})
    write_json(
        tmp_path / "demo" / "runs" / "t0000-s0" / "result.json",
        {"run": "t0000-s0", "trial": 0, "seed": 0, "key": "key", "outcome": "COMPLETED", "point": {}},
    )
    with pytest.raises(SweepFolderError, match="not the record of a sweep"):
        reproduction(tmp_path).judge(section, "", print)


def test_the_page_shows_what_is_there_and_how_to_get_the_rest(tmp_path: Path) -> None:
    section = sections(["6"])[0]
    sizes = {one.label: Size(one.label, 14e9, 4_194_304, article=14.18e9) for one in section.sizes}
    tree = found(section, frames_of_runs(section, tmp_path), sizes).to_tree()
    facts = {"model": "smollm2_135m", "data": "taskmix", "budget": "small", "date": "2026-11-22"}
    facts |= {"command": "lora-lab reproduce 6", "machine": "2 cores"}
    text = page(facts | {"sections": {section.id: json.loads(json.dumps(tree))}}, EVERY)
    assert "| 14.18 | -1.3% |" in text and "query+value" in text
    assert "lora-lab reproduce Q5-overfit" in text.partition("## Not yet run here")[2]
    assert text.count("not yet run here") == len(EVERY) - 1


def test_scores_before_and_after_stand_beside_each_other(tmp_path: Path) -> None:
    section = sections(["Q2"])[0]
    frames = frames_of_runs(section, tmp_path)
    grid = found(section, frames, {}).tables[-1]
    seeds = frames["q2_domain"]["seed"]
    tasks = [f"offline_arithmetic_{name}.acc" for name in ("2da", "2ds", "4da", "4ds")]
    assert [row[0] for row in grid.rows] == tasks, "what says how sure a score is has no row of its own"
    after = 0.1 + seeds.mean() / 100
    half = 2.776 * seeds.std() / 100 / 5**0.5  # Student's t of five runs
    row = ("200", "0.2500", f"{after:.4f} ±{half:.4f}", f"{after - 0.25:+.4f}")
    assert len(seeds) == 5 and all(one[1:] == row for one in grid.rows)


def test_prepared_files_are_what_the_sections_say(tmp_path: Path) -> None:
    for name in ("q1_data", "q2_domain"):
        prepare(Part(name), tmp_path, scale=0.5)
    read = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    curated, synthetic = read["curated"], read["synthetic"]
    assert len(synthetic) == 50 * len(curated) == 3200
    train, _ = generate(DataSpec(train_size=3200, eval_size=1))
    truth = [(one.instruction, one.input, one.output) for one in train]
    wrong = [one["output"] != answer for one, (_, _, answer) in zip(synthetic, truth, strict=True)]
    assert [tuple(one.values()) for one in curated] == truth[:64]
    assert 0.2 < np.mean(wrong) < 0.3
    prepare(Part("q1_data"), tmp_path / "other", scale=0.5)
    again = json.loads((tmp_path / "other" / "synthetic.json").read_text())
    assert again == synthetic, "the same files everywhere"
    questions = {one["input"] for one in synthetic}
    assert not questions & {one["input"] for one in read["clean"]}
    assert not any(any(c.isdigit() for c in one["prompt"] + one["completion"]) for one in read["instructions"])
    for one in read["sums"]:
        a, sign, b = one["prompt"].removeprefix("\n\nQ: What is ").partition("?")[0].split()
        assert int(one["completion"]) == (int(a) + int(b) if sign == "plus" else int(a) - int(b))


def test_real_data_is_read_from_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "real"
    (folder / "arithmetic").mkdir(parents=True)
    rows = [{"instruction": "Add.", "input": "1 2", "output": "3"}, {"instruction": "Name a hue.", "output": "Blue"}]
    (folder / "alpaca_5k.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"two_digit_addition\.jsonl: missing"):
        prepare(Part("q2_domain"), tmp_path / "data", str(folder))
    for name in ("addition", "subtraction"):
        line = json.dumps({"context": "\n\nQ: What is 1 plus 2?\n\nA:", "completion": " 3"})
        (folder / "arithmetic" / f"two_digit_{name}.jsonl").write_text(line + "\n")
    prepare(Part("q2_domain"), tmp_path / "data", str(folder))
    kept = json.loads((tmp_path / "data" / "instructions.json").read_text())
    assert [one["completion"] for one in kept] == ["Blue"], "nothing with a digit in it"
    assert f"data.path={folder / 'alpaca_5k.json'}" in data_overrides(str(folder))


def test_data_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LORA_LAB_DATA", raising=False)
    with pytest.raises(DataError, match="LORA_LAB_DATA names, and that is not set"):
        chosen_data("real")
    with pytest.raises(DataError, match=r"--data: no file 'none\.json'"):
        chosen_data("none.json")
    with pytest.raises(DataError, match=r"no alpaca\*\.json"):
        data_overrides(str(tmp_path))
