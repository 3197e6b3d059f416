"""Every command of docs/sweeps.md does what the page says, with the training left out."""

import shlex
from pathlib import Path
from typing import get_args

import pytest
from omegaconf import OmegaConf
from simulated import Simulated
from test_docs import FENCE

import lora_lab
from lora_lab.config import compose_sweep
from lora_lab.config.places import options
from lora_lab.spec import Domain, FloatRange, IntRange, Space, Stop
from lora_lab.study import Study

PAGE = Path(lora_lab.__file__).parent.parent / "docs" / "sweeps.md"
LINES = [
    line
    for language, text in FENCE.findall(PAGE.read_text(encoding="utf-8"))
    if language == "sh"
    for line in text.splitlines()
]


def figures(spec, name):
    return {"parameters": 5000.0 * spec.method.r, "peak_memory": 1e8}.get(name, 1.0)


def composed(line, folder):
    program, verb, name, *overrides = shlex.split(line)
    assert (program, verb) == ("lora-lab", "sweep")
    return compose_sweep(name, [*overrides, f"sweep.dir={folder}"])


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.removeprefix("lora-lab sweep ")[:70])
def test_the_examples_search_as_they_stand(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "sweep.imports" in line:
        first = composed("lora-lab sweep rank_alpha model=tiny", tmp_path / "runs" / "rank_alpha")
        with Study.open(first.sweep, first.execution) as study:
            Simulated(study, steps=24, every=12).work()
    here = composed(line, tmp_path / "sweep")
    sweep = here.sweep
    with Study.open(sweep, here.execution, figures) as study:
        done = Simulated(study, lanes=9, steps=24, every=sweep.base.evaluation.every_steps or 24).work()
        counts = study.counts()
        assert counts.runs == counts.planned_runs > 0 and not study.waiting()
        assert study.best() is not None or sweep.pruner.name == "threshold"
        assert (counts.refused > 0) == bool(sweep.constraints)
        early = [Stop(trials=4), Stop(no_improvement=2), Stop(target=1.5), Stop(expected_improvement=0.01)]
        assert (counts.stopped is not None) == (sweep.stop in early)
        if sweep.imports:
            assert len(done.begun) == counts.runs - 12, "two thirds are taken over"
        if sweep.max_repeats:
            assert counts.runs > counts.trials


def test_the_page_shows_every_sampler_pruner_and_stop_rule():
    text = "\n".join(LINES)
    assert all(f"sampler={name}" in text for name in options("sampler"))
    assert all(f"pruner={name}" in text for name in options("pruner") if name != "none")
    assert all(f"sweep.stop.{name}=" in text for name in Stop.__dataclass_fields__)


def test_the_page_shows_every_kind_of_domain():
    (text,) = [text for language, text in FENCE.findall(PAGE.read_text(encoding="utf-8")) if language == "yaml"]
    tree = OmegaConf.to_container(OmegaConf.create(text))
    space = Space.from_tree(tree["sweep"]["space"])
    kinds = {type(domain) for _, domain in space.domains}
    ranges = [domain for _, domain in space.domains if isinstance(domain, (IntRange, FloatRange))]
    assert kinds == set(get_args(Domain)) and space.conditions
    assert any(r.log for r in ranges) and any(r.step not in (None, 1) for r in ranges)
