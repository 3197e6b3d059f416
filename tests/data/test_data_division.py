"""Which rows are trained on and which are held out: duplicates, folds, resplits, mixtures; and what the key says."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_lab.data import check, examples, load
from lora_lab.errors import DataError, SpecError
from lora_lab.spec import DataSpec, ModelSpec, RunSpec, pairs, to_tree


def numbered(folder: Path, count: int, name: str = "a.jsonl", sign: str = "q") -> str:
    path = folder / name
    path.write_text("".join(json.dumps({"instruction": f"{sign}{i}", "output": f"a{i}"}) + "\n" for i in range(count)))
    return str(path)


def texts(records: list[Any]) -> list[str]:
    return [record.instruction for record in records]


# --- duplicates -----------------------------------------------------------------------------------------------------


def test_duplicates_are_dropped_kept_or_refused_by_choice(tokenizer, tmp_path):
    spec = DataSpec("alpaca", numbered(tmp_path, 30), numbered(tmp_path, 4, "b.jsonl"))
    dropped = load(spec, tokenizer)
    assert (len(dropped.train), dropped.train.dropped, dropped.duplicates) == (26, 4, 4)
    assert not set(dropped.train.answers) & set(dropped.evaluation.answers)
    kept = load(replace(spec, on_duplicate="keep"), tokenizer)
    assert (len(kept.train), kept.train.dropped, kept.duplicates) == (30, 0, 4)
    for refuse in (check, examples, lambda s: load(s, tokenizer)):
        with pytest.raises(DataError, match=r"a.jsonl: 4 of 30 training examples also occur among the 4 held-out"):
            refuse(replace(spec, on_duplicate="error"))


def test_only_what_is_held_out_is_taken_from_training(tokenizer, tmp_path):
    spec = DataSpec("alpaca", numbered(tmp_path, 30), numbered(tmp_path, 30, "b.jsonl"), eval_size=3)
    found = load(spec, tokenizer)
    assert (len(found.train), len(found.evaluation), found.duplicates) == (27, 3, 3)


# --- folds and resplits ---------------------------------------------------------------------------------------------


def test_folds_hold_out_every_example_once(tmp_path):
    spec = DataSpec("alpaca", numbered(tmp_path, 23), folds=5, on_duplicate="keep")
    sides = [examples(replace(spec, fold=fold)) for fold in range(5)]
    held_out = [text for _, evaluation in sides for text in texts(evaluation)]
    assert sorted(held_out) == sorted(f"q{i}" for i in range(23))
    for train, evaluation in sides:
        assert len(train) + len(evaluation) == 23 and not set(texts(train)) & set(texts(evaluation))
        assert len(evaluation) in (4, 5)


def test_folds_of_a_text_are_stretches_of_it(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("abcdefghijkl")
    spec = DataSpec("text", str(tmp_path / "a.txt"), max_length=2, folds=3, fold=1)
    found = load(spec, tokenizer)
    decoded = [tokenizer.decode(found.evaluation.tokens(i)[0]) for i in range(2)]
    assert decoded == ["ef", "gh"] and len(found.train) == 4


def test_a_resplit_follows_the_seed_of_the_run(tmp_path):
    spec = DataSpec("alpaca", numbered(tmp_path, 40), resplit_by_seed=True, seed=7)
    held_out = [texts(examples(spec.at_seed(seed))[1]) for seed in range(3)]
    assert len({tuple(side) for side in held_out}) == 3
    assert held_out[2] == texts(examples(replace(spec, seed=9, resplit_by_seed=False))[1])
    folded = replace(spec, folds=4, fold=3)
    assert [folded.at_seed(seed).fold for seed in range(5)] == [3, 0, 1, 2, 3]
    assert replace(spec, resplit_by_seed=False).at_seed(5).seed == 7


def test_all_sizes_folds_and_seeds_share_one_tokenised_file(tokenizer, tmp_path):
    spec = DataSpec("alpaca", numbered(tmp_path, 40), seed=3)
    smaller = [load(replace(spec, train_size=size), tokenizer, tmp_path / "cache") for size in (5, 10, 20)]
    assert [s.train.answers for s in smaller[:2]] == [smaller[2].train.answers[:n] for n in (5, 10)]
    load(replace(spec, folds=4, fold=2), tokenizer, tmp_path / "cache")
    load(replace(spec, seed=4), tokenizer, tmp_path / "cache")
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1


# --- mixtures -------------------------------------------------------------------------------------------------------


def mixture(**fields: Any) -> DataSpec:
    sources = fields.pop("sources")
    return DataSpec(name="mixture", sources=pairs(sources), **fields)


def test_a_mixture_holds_its_sources_by_weight_from_the_first_example_on(tmp_path):
    one, other = numbered(tmp_path, 400), numbered(tmp_path, 400, "b.jsonl", "p")
    sources = {"many": {"name": "alpaca", "path": one, "weight": 3}, "few": {"name": "alpaca", "path": other}}
    train, evaluation = examples(mixture(sources=sources, train_size=200, eval_size=40))
    assert Counter(text[0] for text in texts(train)) == {"q": 150, "p": 50}
    assert Counter(text[0] for text in texts(evaluation)) == {"q": 30, "p": 10}
    for start in range(4, 200, 4):
        assert abs(Counter(text[0] for text in texts(train[:start]))["p"] - start / 4) <= 1
    assert texts(examples(mixture(sources=sources, train_size=80, eval_size=40))[0]) == texts(train[:80])


def test_a_mixture_without_sizes_ends_where_a_source_does(tmp_path):
    one, other = numbered(tmp_path, 100), numbered(tmp_path, 20, "b.jsonl", "p")
    sources = {"a": {"name": "alpaca", "path": one}, "b": {"name": "alpaca", "path": other}}
    train, _ = examples(mixture(sources=sources))
    assert Counter(text[0] for text in texts(train)) == {"q": 18, "p": 18}  # 18: twenty less the held-out tenth
    with pytest.raises(DataError, match=r"data.train_size=60: .* 30 examples of data.sources.b, which has 18"):
        examples(mixture(sources=sources, train_size=60))


def test_what_one_source_holds_out_no_other_trains_on(tmp_path):
    path, same = numbered(tmp_path, 60), numbered(tmp_path, 60, "b.jsonl")
    sources = {"a": {"name": "alpaca", "path": path, "seed": 1}, "b": {"name": "alpaca", "path": same, "seed": 2}}
    train, evaluation = examples(mixture(sources=sources))
    assert evaluation and not set(texts(train)) & set(texts(evaluation))
    with pytest.raises(DataError, match="also occur among"):
        examples(mixture(sources=sources, on_duplicate="error"))


def test_sources_of_a_mixture_may_differ_in_kind_and_template(tokenizer, tmp_path):
    (tmp_path / "book.txt").write_text("x" * 400)
    sources = {
        "book": {"name": "text", "path": str(tmp_path / "book.txt"), "max_length": 20},
        "sums": {"name": "taskmix", "tasks": ["addition"], "weight": 2, "template": "chatml"},
        "own": {"name": "alpaca", "path": numbered(tmp_path, 30)},
    }
    found = load(mixture(sources=sources, max_length=200), tokenizer)
    assert Counter(found.train.tasks) == {"book": 18, "addition": 37, "own": 18}
    by_task = {found.train.tasks[i]: tokenizer.decode(found.train.tokens(i)[0]) for i in range(len(found.train))}
    assert by_task["book"] == "x" * 20 and by_task["addition"].startswith("<|im_start|>user")
    assert by_task["own"].startswith("q") and found.train.generative


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ({}, "needs the sources it mixes"),
        ({"a": 3}, "data.sources.a: a mapping such as"),
        ({"a": {"weight": 0}}, "data.sources.a.weight: must be a positive number, got 0."),
        ({"a": {"wieght": 1}}, "data.sources.a.wieght: no such field; did you mean 'weight'?"),
        ({"a": {"name": "mixture"}}, "data.sources.a.name: is said once, for the whole mixture."),
        ({"a": {"pack": True}}, "data.sources.a.pack: is said once, for the whole mixture."),
        ({"a": {"name": "alpaca"}}, "data.sources.a: data.path: data.name=alpaca needs one"),
    ],
)
def test_a_bad_mixture_is_refused(sources, said):
    with pytest.raises(SpecError, match=re.escape(said)):
        mixture(sources=sources)


# --- specs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"fold": 1}, "data.fold=1: needs data.folds"),
        ({"folds": 1, "name": "alpaca", "path": "a"}, "2 folds or more"),
        ({"folds": 3, "fold": 3, "name": "alpaca", "path": "a"}, "numbered from 0"),
        ({"folds": 3}, "taskmix makes its held-out examples apart"),
        ({"folds": 3, "eval_size": 5, "name": "alpaca", "path": "a"}, "set data.eval_size=null"),
        ({"resplit_by_seed": True, "diversity": 3}, "name them by data.tasks"),
        ({"pack": True, "order": "grouped"}, "give one of them"),
        ({"template": "jinja"}, "data.template=jinja and data.jinja belong together"),
        ({"jinja": "{{ instruction }}"}, "data.template=jinja and data.jinja belong together"),
        ({"name": "hf", "path": "o/n", "streaming": True}, "give data.train_size and data.eval_size"),
        ({"name": "callable"}, "data.call._target_"),
        ({"path": "a.jsonl"}, "data.path=a.jsonl: data.name=taskmix makes its own examples"),
        ({"turns": "every"}, "data.turns: unknown value 'every'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields, said):
    with pytest.raises(SpecError, match=re.escape(said)):
        DataSpec(**fields)


def key(**fields: Any) -> str:
    return RunSpec(ModelSpec("tiny", source="random", config=pairs({"model_type": "llama"})), DataSpec(**fields)).key


BEFORE = sorted(
    "name path eval_path columns template mask_prompt max_length train_size eval_size seed tasks diversity".split()  # noqa: SIM905
)
"""The fields of the first keys."""


def test_keys_from_before_are_the_same_and_new_settings_change_them():
    tree = to_tree(DataSpec())
    DataSpec().canonical(tree)
    assert sorted(tree) == BEFORE
    assert key(split="validation", streaming=False) == key()  # says nothing about taskmix
    different = [{"turns": "all"}, {"truncate": "left"}, {"pack": True}, {"order": "grouped"}, {"on_bad_row": "skip"}]
    assert len({key(), *(key(**fields) for fields in different)}) == 1 + len(different)
    assert key(mask_prompt=False, turns="all") == key(mask_prompt=False)
