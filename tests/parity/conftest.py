"""Tiny base models, tokenised data and lanes' jobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from parity.lanes import tiny

from lora_lab import data, models
from lora_lab.data import Tokenised
from lora_lab.engine.lane import LaneJob
from lora_lab.models import BaseModel
from lora_lab.spec import DataSpec, RunSpec


@pytest.fixture(scope="session")
def bases() -> Callable[[str, str], BaseModel]:
    """Each base model once a session, by shape and dtype."""
    made: dict[tuple[str, str], BaseModel] = {}

    def get(shape: str, dtype: str = "float64") -> BaseModel:
        if (shape, dtype) not in made:
            made[shape, dtype] = models.load(tiny(shape, dtype))
        return made[shape, dtype]

    return get


@pytest.fixture(scope="session")
def tokens(bases: Callable[..., BaseModel]) -> Callable[[DataSpec], Tokenised]:
    """Tokenised data by spec, each once a session."""
    made: dict[DataSpec, Tokenised] = {}

    def get(spec: DataSpec) -> Tokenised:
        if spec not in made:
            made[spec] = data.load(spec, bases("llama-tied-gqa", "float64").tokenizer)
        return made[spec]

    return get


@pytest.fixture
def job(tokens: Callable[[DataSpec], Tokenised], tmp_path: Path) -> Callable[..., LaneJob]:
    """A lane's job in its own folder."""

    def make(run: str, spec: RunSpec, folder: str = "") -> LaneJob:
        return LaneJob(run, spec, tokens(spec.data), tmp_path / folder / run)

    return make
