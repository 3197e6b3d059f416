"""TPE draws what Optuna's own would have drawn: SciPy's function is Optuna's, for arrays."""

from __future__ import annotations

import importlib

import numpy as np
import optuna
import pytest
import scipy.special
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.samplers import TPESampler

from lora_lab.study import normal

SPACE = {"r": IntDistribution(1, 256, log=True), "n": IntDistribution(0, 12, step=3), "lr": FloatDistribution(-1, 2)}


def drawn(count: int) -> list[dict[str, float]]:
    study = optuna.create_study(sampler=TPESampler(seed=1))
    for number in range(count):
        trial = study.ask(SPACE)
        study.tell(trial, (trial.params["lr"] - 0.5) ** 2 + abs(trial.params["r"] - 30) / 100 + number % 3)
    return [trial.params for trial in study.trials]


def test_the_function_and_the_draws_are_optunas(monkeypatch: pytest.MonkeyPatch) -> None:
    normal.quicken()
    module = importlib.import_module(normal.MODULE)
    quick = drawn(60)
    ours = getattr(module, normal.FUNCTION)
    assert ours is scipy.special.log_ndtr, "Optuna has moved it: look where TPE spends its time now"
    theirs = np.frompyfunc(module._log_ndtr_single, 1, 1)
    where = np.concatenate([np.linspace(-40, 40, 2001), [-1e3, -20.0, 6.0]])
    np.testing.assert_allclose(ours(where), theirs(where).astype(float), rtol=1e-6, atol=1e-300)
    monkeypatch.setattr(module, normal.FUNCTION, lambda a: theirs(a).astype(float))
    slow = drawn(60)
    assert [p["r"] for p in quick] == [p["r"] for p in slow] and [p["n"] for p in quick] == [p["n"] for p in slow]
    np.testing.assert_allclose([p["lr"] for p in quick], [p["lr"] for p in slow], rtol=1e-6, atol=1e-300)


def test_an_optuna_without_that_place_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(normal, "FUNCTION", "_elsewhere")
    normal.quicken.cache_clear()
    for _ in range(2):
        normal.quicken()
    normal.quicken.cache_clear()
    assert caplog.text.count("TPE draws slowly") == 1
