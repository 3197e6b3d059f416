"""Every kind of bad input: refused before a model loads, exit code 2, one message with the remedy, nothing lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from permissions import ordinary

from lora_lab.cli.main import main

TINY = ("model=tiny", "tracking=none")


@pytest.fixture(autouse=True)
def in_a_folder_where_no_model_may_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded before the input was refused")

    monkeypatch.setattr("lora_lab.models.base.load", refuse)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message with which ``lora-lab words…`` is refused."""
    code = main(list(words))
    captured = capsys.readouterr()
    assert code == 2, captured.out + captured.err
    assert "Traceback" not in captured.err
    assert captured.err.startswith("error: ") and captured.err.count("error: ") == 1
    return captured.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sweep", "rank_alhpa"), ("rank_alhpa", "rank_alpha")),
        (("sweep", "nowhere/mine.yaml"), ("nowhere/mine.yaml",)),
        (("sweep", "rank_alpha", "sweep.space={method.rr: {choices: [1]}}"), ("method.rr", "method.r")),
        (("sweep", "rank_alpha", "sweep.space={method.r: {choices: []}}"), ("method.r", "at least one")),
        (("sweep", "rank_alpha", "sweep.space={method.r: {int: [8, 2]}}"), ("low=8", "high=2")),
        (("sweep", "rank_alpha", "sweep.space={optimizer.lr: {float: {low: 0.0, high: 1.0, log: true}}}"), ("log",)),
        (("sweep", "rank_alpha", "sweep.space={method.r: {choices: [0, 8]}}"), ("method.r", "1 or more")),
        (("sweep", "rank_alpha", "method.alpha=16"), ("alpha_over_r", "null")),
        (("train", "method.alpha=16", "method.alpha_over_r=2"), ("alpha_over_r", "null")),
        (("train", "method.r=-1"), ("method.r", "1 or more")),
        (("train", "method.rank=4"), ("method.rank", "method.r")),
        (("train", "optimizer=adamv"), ("adamv", "adamw")),
        (("train", "method.r=four"), ("method.r", "four")),
        (("train", "model=tiny", "method.roles=[quary]"), ("quary", "query")),
        (("train", "data=alpaca", "data.path=missing.jsonl"), ("missing.jsonl",)),
        (("train", "budget.steps=5", "budget.epochs=1"), ("budget.steps", "budget.epochs")),
        (("sweep", "rank_alpha", "sampler=tpe"), ("sweep.trials",)),
        (("sweep", "rank_alpha", "sampler=greed"), ("greed", "grid")),
        (("sweep", "rank_alpha", "device=gpu"), ("device", "gpu")),
        (("sweep", "rank_alpha", "model=tiny", "method.layers=[0,7]"), ("method.layers", "7", "layers 0 to 1")),
        (("sweep", "rank_alpha", "data.tasks=[sortign]"), ("data.tasks", "sorting")),
        (("sweep", "rank_alpha", "data.max_length=2"), ("data.max_length",)),
        (("sweep", "rank_alpha", "pack.max_lanes=0"), ("pack.max_lanes",)),
        (("sweep", "rank_alpha", "sweep.storage=postgresql+psycopg://nobody@127.0.0.1:1/none"), ("127.0.0.1",)),
        (("sweep", "rank_alpha", "tracking=mlflow", "tracking.uri=http://127.0.0.1:1"), ("127.0.0.1:1",)),
        (("sweeep",), ("sweeep", "sweep")),
        (("report", "never_run"), ("never_run",)),
        (("status",), ("runs",)),
    ],
)
def test_bad_words(words: tuple[str, ...], said: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    if words[0] in ("sweep", "train") and not any(w.startswith("model") for w in words) and len(words) > 1:
        words = (*words, "model=tiny")
    message = refused(capsys, *words)
    for part in said:
        assert part in message, message
    assert not Path("runs").exists() or not list(Path("runs").rglob("sweep.json"))


GOOD = {"instruction": "Say a.", "input": "", "output": "a"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ("empty",)),
        (json.dumps(GOOD) + "\n{not json\n", ("data.jsonl", "line 2")),
        (json.dumps({"instruction": "Say a.", "response": "a"}), ("output", "response", "data.columns")),
    ],
)
def test_bad_data_files(text: str, said: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    Path("data.jsonl").write_text(text)
    for words in (("train",), ("sweep", "rank_alpha", "tracking=none")):
        message = refused(capsys, *words, "model=tiny", "data=alpaca", "data.path=data.jsonl")
        for part in said:
            assert part in message, message
    assert not Path("runs/rank_alpha").exists()


def test_too_little_text(capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.txt").write_text("One line is not enough to train on and to hold out.")
    message = refused(capsys, "sweep", "rank_alpha", *TINY, "data=text", "data.path=text.txt")
    assert "text.txt" in message and "data.eval_path" in message
    assert not Path("runs").exists()


def test_unreadable_data_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("data.jsonl").write_text(json.dumps(GOOD))
    Path("data.jsonl").chmod(0)
    with ordinary():
        message = refused(capsys, "train", "model=tiny", "data=alpaca", "data.path=data.jsonl")
    assert "data.jsonl" in message and "permissions" in message


def model_folder(folder: Path, config: dict[str, object], **specials: str) -> str:
    """A local model with a tokenizer and a weights file nobody should open."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", **specials).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    return f"model.path={folder}"


def test_a_role_the_model_lacks(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """GPT-2 has one matrix for query, key and value: a mask of query alone cannot be attached."""
    config = {"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 1, "vocab_size": 320}
    gpt2 = model_folder(tmp_path / "gpt2", config, pad_token="</s>")
    message = refused(capsys, "train", "model=hf", gpt2, "method.roles=[query]")
    assert "query" in message and "value" in message


def test_a_tokenizer_without_pad_token(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    message = refused(capsys, "train", "model=hf", model)
    assert "pad" in message and "</s>" in message


@pytest.mark.parametrize("where", ["a file", "read-only", "nowhere"])
def test_a_folder_that_cannot_be_written(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = "/proc/lora-lab" if where == "nowhere" else "taken/sweep"
    if where == "a file":
        Path("taken").write_text("not a folder")
    else:
        Path("taken").mkdir(mode=0o500)
    with ordinary():
        message = refused(capsys, "sweep", "rank_alpha", *TINY, f"sweep.dir={folder}")
    assert folder in message and "sweep.dir" in message


def test_a_full_disk(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    real = shutil.disk_usage("/")
    monkeypatch.setattr("shutil.disk_usage", lambda path: real._replace(free=1000))
    message = refused(capsys, "sweep", "rank_alpha", *TINY)
    assert "free" in message and "sweep.dir" in message


def test_a_folder_of_another_space(capsys: pytest.CaptureFixture[str]) -> None:
    from lora_lab.config import compose_sweep
    from lora_lab.study import Study

    composed = compose_sweep("rank_alpha", TINY)
    Study.open(composed.sweep, composed.execution).close()
    before = Path("runs/rank_alpha/sweep.json").read_bytes()
    message = refused(capsys, "sweep", "rank_alpha", *TINY, "sweep.space={method.r: {choices: [4]}}")
    assert "method.r" in message and "--fresh" in message
    assert Path("runs/rank_alpha/sweep.json").read_bytes() == before
