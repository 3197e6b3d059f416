"""What docs/adapters.md says, on the adapters of a sweep: each verb as the page has it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import LORA_LAB, environment
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import lora_lab
from lora_lab import load_results
from lora_lab.adapters.combining import distance
from lora_lab.cli.main import main
from lora_lab.config import compose_run
from lora_lab.methods import load as load_adapter
from lora_lab.methods.combining import low_rank
from lora_lab.models import load

SWEEP = (
    "rank_alpha",
    "model=tiny",
    "sweep.name=demo",
    "data.train_size=48",
    "data.eval_size=8",
    "budget.steps=8",
    "budget.batch_size=4",
    "evaluation.every_steps=null",
    "evaluation.exact_match=false",
    "optimizer.lr=1e-2",
    "tracking=none",
    "sweep.repeats=2",
    "sweep.space={method.r: {choices: [2, 4]}}",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which ``lora-lab sweep`` has left ``runs/demo``."""
    where = tmp_path_factory.mktemp("adapters")
    assert not sweep(where, *SWEEP)
    return where


def sweep(where: Path, *words: str, code: int = 0) -> str:
    """Runs ``lora-lab sweep`` in a folder; what it complained of where that is expected."""
    ran = subprocess.run(
        [LORA_LAB, "sweep", *words],
        cwd=where,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ran.returncode == code, ran.stderr
    return ran.stderr if code else ""


@pytest.fixture
def verb(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a verb there and gives what it printed."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "140")

    def run(*words: str, code: int = 0) -> str:
        assert main(words) == code
        said = capsys.readouterr()
        return said.out if code == 0 else said.err

    return run


def test_the_best_run_is_merged_verified_and_undone(verb: Callable[..., str], folder: Path) -> None:
    said = verb("merge", "best:demo", "--out", "merged", "--verify", "--reversible", "--gguf", "merged.gguf")
    assert "rounding explains" in said and "merged.gguf" in said
    model = AutoModelForCausalLM.from_pretrained(folder / "merged")
    assert model.config.model_type == "llama"
    card = (folder / "merged" / "README.md").read_text()
    assert "| exact match |" not in card and "| loss (nats a token) |" in card and "demo / t000" in card
    provenance = json.loads((folder / "merged" / "lora_lab_merge.json").read_text())
    assert provenance["run"]["outcome"] == "COMPLETED" and provenance["sweep"] == "demo"
    assert "restored bit for bit" in verb("merge", "merged", "--undo", "--out", "base-again")
    assert "something is there already" in verb("merge", "best:demo", "--out", "merged", code=2)


def test_runs_are_combined_and_the_result_is_an_adapter_like_any(verb: Callable[..., str]) -> None:
    said = verb("combine", "demo/t0000-s0", "demo/t0001-s0", "--weights", "1", "0.5", "--out", "both")
    assert "rank         6" in said
    assert "merged       both" in verb("merge", "both", "model=tiny", "--out", "both-merged", "--verify")
    said = verb("combine", "demo/t0000-s0", "demo/t0001-s0", "--method", "linear", "--out", "linear", code=2)
    assert "different ranks" in said


def test_subspaces_of_a_sweep_are_a_screen_a_page_and_ranks(verb: Callable[..., str], folder: Path) -> None:
    said = verb("subspace", "--sweep", "demo", "--html", "subspace.html", "--suggest-ranks", "ranks.yaml")
    assert "Rank used, by role" in said and "phi(1,1)" in said
    page = (folder / "subspace.html").read_text()
    assert "heatmap" in page and page.count("<figure>") == 1 + 2 * 6
    assert "rank_pattern" in (folder / "ranks.yaml").read_text()
    found = json.loads(verb("subspace", "demo/t0000-s0", "demo/t0000-s1", "--json"))
    assert {row["side"] for row in found["pairs"]} == {"A", "B"}


def test_prompts_are_answered_by_base_and_adapters_in_one_pass(verb: Callable[..., str], folder: Path) -> None:
    (folder / "prompts.txt").write_text("2 + 2 =\n\nreverse: abc\n")
    words = ("generate", "base", "best:demo", "--prompts", "prompts.txt", "--max-new-tokens", "4")
    assert "2 prompts, 2 answers each" in verb(*words, "--out", "answers.jsonl")
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    alone = [json.loads(line) for line in _alone(verb, folder)]
    assert [row["prompt"] for row in rows] == ["2 + 2 =", "reverse: abc"]
    assert [row["answers"]["best:demo"] for row in rows] == [row["answers"]["best:demo"] for row in alone]
    (folder / "bad.jsonl").write_text('{"text": "no"}\n')
    assert "bad.jsonl line 1" in verb("generate", "base", "best:demo", "--prompts", "bad.jsonl", code=2)


def _alone(verb: Callable[..., str], folder: Path) -> list[str]:
    verb("generate", "best:demo", "--prompts", "prompts.txt", "--max-new-tokens", "4", "--out", "alone.jsonl")
    return (folder / "alone.jsonl").read_text().splitlines()


def test_one_talks_to_an_adapter_beside_the_base(folder: Path) -> None:
    words = [LORA_LAB, "chat", "best:demo", "--compare", "base", "--max-new-tokens", "3"]
    ran = subprocess.run(
        words,
        cwd=folder,
        env=environment(),
        input="hello\n/new\nhello\n",
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    first, again = (lines[: len(lines) // 2], lines[len(lines) // 2 :])
    assert first == again, "a new conversation knows nothing of the one before"
    assert any(line.startswith("[best:demo]") for line in first) and any(line.startswith("[base]") for line in first)


def test_latency_has_a_row_a_variant_and_a_verdict(verb: Callable[..., str]) -> None:
    words = ("latency", "best:demo", "--methods", "bottleneck", "prefix_tuning", "--batches", "1", "2")
    found = json.loads(verb(*words, "--prompt", "8", "--new", "2", "--rounds", "3", "--json"))
    rows = {(row["variant"], row["batch"], row["phase"]) for row in found["rows"]}
    assert ("best:demo merged", 2, "decode") in rows and ("prefix_tuning", 1, "prefill") in rows
    assert ("prefix_tuning", 1, "decode") not in rows
    assert found["verdicts"].keys() == {"best:demo", "best:demo merged", "bottleneck", "prefix_tuning"}


def test_a_stock_adapter_from_elsewhere_is_taken_and_a_pickle_refused(verb: Callable[..., str], folder: Path) -> None:
    base = load(compose_run(["model=tiny"]).model)
    base.model.save_pretrained(folder / "stock-base")
    base.tokenizer.save_pretrained(folder / "stock-base")
    torch.manual_seed(0)
    stock = get_peft_model(base.model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    stock.peft_config["default"].base_model_name_or_path = str(folder / "stock-base")
    stock.save_pretrained(folder / "stock")
    said = verb("merge", "stock", "model.dtype=float32", "--out", "stock-merged", "--verify")
    assert "(lora)" in said
    stock.save_pretrained(folder / "pickled", safe_serialization=False)
    assert "is a pickle" in verb("merge", "pickled", "model.dtype=float32", "--out", "no", code=2)
    assert "no adapter. Give best:SWEEP" in verb("merge", "nothing-here", "--out", "no", code=2)
    assert "only the base model" in verb("merge", "stock", "method.r=2", "--out", "no", code=2)


def test_weights_are_found_by_a_sweep(verb: Callable[..., str], folder: Path) -> None:
    page = (Path(lora_lab.__file__).parent.parent / "docs" / "adapters.md").read_text()
    text = page.partition("# weights.yaml")[2].partition("```")[0]
    (folder / "weights.yaml").write_text(text)
    shared = [word for word in SWEEP if word.startswith(("data.", "evaluation."))]
    sweep(folder, "weights.yaml", "sweep.name=weights", "tracking=none", *shared)
    frame = load_results(folder / "runs" / "weights")
    assert (frame["outcome"] == "COMPLETED").all() and (frame["steps"] == 0).all()
    assert len(frame) == 8 and frame["method.weights.one"].nunique() == 8
    assert frame["eval_loss"].nunique() > 1
    best = frame.loc[frame["eval_loss"].idxmin()]
    words = ["--weights", str(best["method.weights.one"]), str(best["method.weights.two"]), "--out", "by-hand"]
    verb("combine", "demo/t0000-s0", "demo/t0001-s0", *words)
    assert "merged       best:weights" in verb("merge", "best:weights", "--out", "weighted", "--verify")
    run = folder / "runs" / "weights" / best["adapter"]
    base = load(compose_run(["model=tiny"]).model)
    one, other = (low_rank(load_adapter(path, base), "it") for path in (run, folder / "by-hand"))
    assert distance(one, other) < 1e-5
    wrong = ("weights.yaml", "sweep.name=wrong", "tracking=none", "method.adapters.two=runs/demo/runs/t0009-s0")
    assert "no adapter is in runs/demo/runs/t0009-s0" in sweep(folder, *wrong, code=2)
