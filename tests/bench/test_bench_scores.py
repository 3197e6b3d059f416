"""Scores are lm-eval's own: in one process against its Hugging Face model, and against its command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_lab import models
from lora_lab.bench.finding import OFFLINE, OFFLINE_TASKS, find
from lora_lab.bench.local import ARTICLE, local_tasks
from lora_lab.bench.scores import Score, benchmark, flat
from lora_lab.errors import DataError
from lora_lab.methods import Attachment, attach
from lora_lab.models import BaseModel
from lora_lab.packing.paths import Mount
from lora_lab.spec import EvaluationSpec, MethodSpec, ModelSpec, pairs

DATA = os.environ.get("LORA_LAB_DATA")
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 320,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
OWN = {
    "own_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "own_rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "own_answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n", "e"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def base() -> BaseModel:
    config = pairs(LLAMA)
    return models.load(ModelSpec("tiny", source="random", dtype="float64", config=config))


@pytest.fixture(scope="module")
def lane(base: BaseModel) -> Attachment:
    return adapter(base)


def adapter(base: BaseModel) -> Attachment:
    found = attach(base, MethodSpec(r=4, roles=("query", "value")), 0)
    for factor in found.factors.values():
        torch.nn.init.normal_(factor.B, std=0.5, generator=torch.Generator().manual_seed(1))
    return found


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: task YAML with a local data file."""
    folder = tmp_path_factory.mktemp("own")
    rows = [
        {"question": f"{i} is a {'x' * i}", "choices": [f" {i}", f" {i + 1}00", " no"], "gold": i % 3} for i in range(9)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, fields in OWN.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, "test_split": "test", **data, **fields}))
    return folder


def scores_of(base: BaseModel, lanes: list[Attachment | None], spec: EvaluationSpec) -> list[list[Score]]:
    mount = Mount(base)
    for lane in lanes:
        if lane is not None:
            mount.mount(lane)
    try:
        return benchmark(mount, lanes, spec)
    finally:
        mount.unmount()


def harness(model: Any, tokenizer: Any, spec: EvaluationSpec) -> dict[str, float]:
    """The same tasks by lm-eval's own model and evaluator."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from lora_lab.bench.harness import quietly

    with quietly():
        tasks = TaskManager(include_defaults=False, include_path=[OFFLINE, spec.include_path]).load(list(spec.tasks))
        found = evaluate(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3), tasks, limit=spec.limit)
    return values(found)


def values(found: Any) -> dict[str, float]:
    return {
        f"{task}.{key.partition(',')[0]}": value
        for task, metrics in found["results"].items()
        for key, value in metrics.items()
        if key.endswith(",none") and isinstance(value, float)
    }


def test_every_kind_of_task_is_as_lm_eval_has_it(base: BaseModel, lane: Attachment, own: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    spec = EvaluationSpec(tasks=(*OWN, "offline_arithmetic_2ds"), limit=8, batch_size=4, include_path=str(own))
    found = scores_of(base, [None, lane], spec)
    lane.save(tmp_path / "adapter", base_name="tiny")
    plain = harness(base.model, base.tokenizer, spec)
    wrapped = PeftModel.from_pretrained(base.model, str(tmp_path / "adapter"))
    try:
        adapted = harness(wrapped, base.tokenizer, spec)
    finally:
        wrapped.unload()
    for scores, expected in zip(found, (plain, adapted), strict=True):
        got = flat(scores)
        assert set(expected) <= set(got)
        for name, value in expected.items():
            assert got[name] == pytest.approx(value, rel=1e-9), name
        assert all(score.n == 8 and score.ties == 0 for score in scores)
    assert flat(found[0])["own_rolling.word_perplexity"] != flat(found[1])["own_rolling.word_perplexity"]


def test_offline_tasks_are_right_and_always_the_same() -> None:
    for name in OFFLINE_TASKS:
        task = find(EvaluationSpec(tasks=(name,)))["tasks"][name]
        docs = list(task.eval_docs)
        assert len({doc["context"] for doc in docs}) == 2000
        for doc in docs:
            said = doc["context"].removeprefix("Question: What is ").removesuffix("?\nAnswer:")
            assert eval(said.replace("plus", "+").replace("minus", "-")) == int(doc["completion"])  # our own digits
    task = find(EvaluationSpec(tasks=("offline_arithmetic_2ds",)))["tasks"]["offline_arithmetic_2ds"]
    assert task.eval_docs[0] == FIRST


def test_a_task_that_wants_no_examples_says_so(caplog: pytest.LogCaptureFixture) -> None:
    task = find(EvaluationSpec(tasks=("offline_arithmetic_2ds",), num_fewshot=3))["tasks"]["offline_arithmetic_2ds"]
    assert task.get_config("num_fewshot") == 0
    assert "offline_arithmetic_2ds is asked without examples" in caplog.text


FIRST = {"context": "Question: What is 80 minus 36?\nAnswer:", "completion": " 44"}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (EvaluationSpec(tasks=("own_choise",), include_path="OWN"), "did you mean 'own_choice'"),
        (EvaluationSpec(tasks=("own_choice",), include_path="nowhere"), "no such folder"),
        (EvaluationSpec(tasks=("arithmetic_2ds",), task_data="OWN"), "two_digit_subtraction.jsonl"),
    ],
    ids=["name", "folder", "data"],
)
def test_what_cannot_be_found_is_said(spec: EvaluationSpec, said: str, own: Path) -> None:
    from dataclasses import replace

    changed = {name: str(own) for name in ("include_path", "task_data") if getattr(spec, name) == "OWN"}
    with pytest.raises(DataError, match=said):
        find(replace(spec, **changed))


def test_task_files_run_no_code_unasked(own: Path, tmp_path: Path) -> None:
    (tmp_path / "evil.yaml").write_text("task: evil\ninclude: ../above.yaml\n")
    above = tmp_path.parent / "above.yaml"
    above.write_text("custom_dataset: !function os.getcwd\n")
    with pytest.raises(DataError, match="allow_code=true"):
        find(EvaluationSpec(tasks=("evil",), include_path=str(tmp_path)))
    escape = "{{ question.__class__.__mro__ }}"
    fields = json.loads((own / "own_choice.yaml").read_text()) | {"doc_to_text": escape, "task": "escape"}
    folder = tmp_path / "escape"
    folder.mkdir()
    (folder / "escape.yaml").write_text(json.dumps(fields))
    with pytest.raises(DataError, match="unsafe"):
        find(EvaluationSpec(tasks=("escape",), include_path=str(folder)))


@pytest.mark.skipif(DATA is None, reason="LORA_LAB_DATA is not set: no local copies of the article's benchmarks")
def test_the_articles_six_equal_lm_evals_command_line(tmp_path: Path) -> None:
    """In float32: a model in float64 has other rotary frequencies when transformers loads it from files."""
    import lm_eval.tasks

    assert DATA is not None
    base = models.load(ModelSpec("tiny", source="random", dtype="float32", config=pairs(LLAMA)))
    lane = adapter(base)
    spec = EvaluationSpec(tasks=tuple(ARTICLE), limit=6, task_data=DATA)
    found = flat(scores_of(base, [None, lane], spec)[1])
    tasks = local_tasks(Path(DATA), Path(lm_eval.tasks.__file__).parent)
    base.model.save_pretrained(tmp_path / "model")
    base.tokenizer.save_pretrained(tmp_path / "model")
    lane.save(tmp_path / "adapter", base_name="tiny")
    arguments = f"pretrained={tmp_path / 'model'},peft={tmp_path / 'adapter'},dtype=float32"
    words = ["--model", "hf", "--model_args", arguments, "--tasks", ",".join(ARTICLE), "--device", "cpu"]
    words += ["--include_path", str(tasks), "--limit", "6", "--batch_size", "4", "--output_path", str(tmp_path / "out")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", "run", *words], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = (tmp_path / "out").rglob("results*.json")
    theirs = values(json.loads(file.read_text()))
    assert {name.partition(".")[0] for name in theirs} == set(ARTICLE)
    assert not any(value for name, value in found.items() if name.endswith(".ties"))
    for name, value in theirs.items():
        if name.startswith("truthfulqa_mc2"):  # a mean of probabilities: to the last of the four digits it prints
            assert found[name] == pytest.approx(value, abs=5e-5), name
        else:
            assert found[name] == value, name
    assert 0 < found["truthfulqa_mc2.acc"] < 1
