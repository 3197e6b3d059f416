"""Ties never resolve by position: what a tie could have been counts at its worst."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lora_lab.bench.ties import Strict


def accuracy(doc, results):
    """lm-eval's own way: the first of the largest."""
    logs = np.array([log for log, _ in results])
    sizes = np.array([float(len(choice)) for choice in doc["choices"]])
    gold = doc["gold"] if isinstance(doc["gold"], list) else [doc["gold"]]
    return {"acc": float(np.argmax(logs) in gold), "acc_norm": float(np.argmax(logs / sizes) in gold)}


def answered(logs, gold=0, choices=None):
    strict = Strict(accuracy, lambda doc: doc["choices"])
    doc = {"choices": choices or ["abcd"] * len(logs), "gold": gold}
    return strict(doc, [(log, False) for log in logs]), strict.ties


@pytest.mark.parametrize("gold", [0, 1, 2])
def test_a_constant_scorer_is_never_right(gold):
    assert answered([-3.0, -3.0, -3.0], gold) == ({"acc": 0.0, "acc_norm": 0.0}, 1)
    assert answered([math.nan] * 3, gold) == ({"acc": 0.0, "acc_norm": 0.0}, 1)
    assert answered([-math.inf] * 3, gold) == ({"acc": 0.0, "acc_norm": 0.0}, 1)


def test_without_a_tie_at_the_top_nothing_is_different():
    assert answered([-1.0, -3.0, -3.0]) == ({"acc": 1.0, "acc_norm": 1.0}, 0)
    assert answered([-1.0, -1.0 + 1e-9, -3.0]) == ({"acc": 0.0, "acc_norm": 0.0}, 0)


def test_a_tie_of_right_answers_is_right():
    assert answered([-1.0, -1.0, -3.0], gold=[0, 1]) == ({"acc": 1.0, "acc_norm": 1.0}, 1)
    assert answered([-1.0, -1.0, -3.0], gold=[0, 2]) == ({"acc": 0.0, "acc_norm": 0.0}, 1)


def test_a_tie_by_length_does_not_touch_what_is_no_tie():
    found, ties = answered([-1.0, -2.0], choices=["ab", "abcd"])
    assert (found, ties) == ({"acc": 1.0, "acc_norm": 0.0}, 1)


def test_continuous_metrics_keep_their_value():
    strict = Strict(lambda doc, results: {"acc": math.exp(results[0][0])}, lambda doc: ["a", "b"])
    assert strict(None, [(-1.0, False), (-1.0, False)]) == {"acc": math.exp(-1.0)}
