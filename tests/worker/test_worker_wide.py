"""A run that is wider than a device: two processes that hold the base together come to what one alone comes to."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import troubled_shards
from parity.lanes import Listener, tiny
from processes import lost_shard
from safetensors.torch import load_file

from lora_lab.engine import checkpoint
from lora_lab.errors import Interrupted, LoraLabError, SpecError, SweepFolderError
from lora_lab.planner import plan
from lora_lab.spec import (
    BudgetSpec,
    DataSpec,
    EvaluationSpec,
    LauncherSpec,
    MethodSpec,
    OptimizerSpec,
    Outcome,
    RunResult,
    RunSpec,
)
from lora_lab.worker import wide
from lora_lab.worker.capacity import Capacity
from lora_lab.worker.devices import check_devices
from lora_lab.worker.interrupt import Interrupt
from lora_lab.worker.single import train_one

SPEC = RunSpec(
    model=tiny("llama-tied-gqa", "float64"),
    data=DataSpec(train_size=24, eval_size=7),
    method=MethodSpec(roles=("query", "value", "mlp", "head"), r=4),
    optimizer=OptimizerSpec(lr=1e-2, weight_decay=0.01, max_grad_norm=0.5),
    budget=BudgetSpec(steps=6, batch_size=5, micro_batch_size=3),
    evaluation=EvaluationSpec(every_steps=3, exact_match=True, exact_match_size=2, max_new_tokens=3),
)
"""Five examples a step in micro-batches of three and two: the second process has one of each."""
FULL = replace(SPEC, method=MethodSpec("full"), optimizer=replace(SPEC.optimizer, lr=1e-3))
FULL_AVERAGED = replace(FULL, optimizer=replace(FULL.optimizer, name="schedulefree_adamw"))


def divided(spec: RunSpec) -> RunSpec:
    return replace(spec, model=replace(spec.model, shard="fsdp", shards=2))


def trained(spec: RunSpec, folder: Path, heard: Listener) -> RunResult:
    return train_one(spec, folder, device="cpu", memory=8 << 30, recorder=heard)


def saved(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "adapter").glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("spec", [SPEC, FULL, FULL_AVERAGED], ids=["lora", "full", "schedule-free"])
def test_two_processes_come_to_what_one_comes_to(spec: RunSpec, tmp_path: Path) -> None:
    one, two = Listener(), Listener()
    alone, together = trained(spec, tmp_path / "one", one), trained(divided(spec), tmp_path / "two", two)
    assert together.outcome is alone.outcome is Outcome.COMPLETED, together.message
    for name in ("base_eval_loss", "eval_loss", "best_eval_loss", "train_loss"):
        assert getattr(together, name) == pytest.approx(getattr(alone, name), rel=1e-9), name
    same: Any = ("steps", "tokens", "trainable_parameters", "total_parameters", "exact_match", "base_exact_match")
    assert [getattr(together, name) for name in same] == [getattr(alone, name) for name in same]
    assert two.losses(together.run) == pytest.approx(one.losses(alone.run), rel=1e-9)
    norms = [[m.grad_norm for m in heard.steps[alone.run]] for heard in (one, two)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-8)
    assert together.lane_bytes <= alone.lane_bytes * (0.6 if spec.method.name == "full" else 1.0), "each has its part"
    expected, found = saved(tmp_path / "one"), saved(tmp_path / "two")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-9, msg=name)
    config = "config.json" if spec.method.name == "full" else "adapter_config.json"
    texts = [(tmp_path / place / "adapter" / config).read_text() for place in ("one", "two")]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("spec", [SPEC, FULL], ids=["lora", "full"])
def test_it_is_saved_when_it_is_interrupted_and_goes_on(
    spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = divided(spec)
    whole, parts = Listener(), Listener()
    trained(spec, tmp_path / "whole", whole)
    with monkeypatch.context() as patch:
        patch.setattr(
            Interrupt, "requested", property(lambda self: sum(map(len, parts.steps.values())) >= 2), raising=False
        )
        patch.setattr(Interrupt, "__init__", lambda self: setattr(self, "_before", {}))
        with pytest.raises(Interrupted):
            trained(spec, tmp_path / "parts", parts)
    found = checkpoint.read(tmp_path / "parts")
    assert found is not None and 2 <= found[1]["step"] < 6
    result = trained(spec, tmp_path / "parts", parts)
    assert result.outcome is Outcome.COMPLETED, result.message
    assert parts.losses(result.run) == whole.losses(result.run), "bit for bit"
    expected = saved(tmp_path / "whole")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in saved(tmp_path / "parts").items())


def test_a_process_that_is_lost_ends_the_run_and_not_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wide.shard, "hold", lost_shard)
    result = trained(divided(SPEC), tmp_path, Listener())
    assert result.outcome is Outcome.FAILED and "shard 1 of 2 ended with code 3" in str(result.message)


@pytest.mark.parametrize("last", [troubled_shards.half_a_message, troubled_shards.a_question])
def test_a_process_that_is_lost_while_it_speaks_is_told_by_its_exit_code(last: Callable[[Any], None]) -> None:
    context = multiprocessing.get_context("forkserver")
    mine, theirs = context.Pipe()
    process = context.Process(target=last, args=(theirs,), name="shard 0")
    process.start()
    theirs.close()
    process.join()
    queue = Listener()
    ended = wide.serve([mine], [process], queue, queue)
    assert ended.lost is not None and "shard 0 of 1 ended with code 3" in ended.lost.message
    mine.close()


def test_too_little_memory_in_one_process_is_met_with_smaller_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wide.shard, "hold", troubled_shards.short_of_memory)
    result = trained(divided(SPEC), tmp_path, Listener())
    assert result.outcome is Outcome.COMPLETED, result.message
    assert result.message == "trained in micro-batches of 1"


def test_a_divided_run_that_cannot_be_planned_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unplanned(*asked: Any) -> int:
        raise LoraLabError("no plan")

    monkeypatch.setattr(Capacity, "halvings", unplanned)
    result = trained(divided(SPEC), tmp_path, Listener())
    assert result.outcome is Outcome.FAILED and "no plan" in str(result.message)


def test_a_full_disk_is_the_studys_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide.shard, "hold", troubled_shards.no_space)
    with pytest.raises(SweepFolderError, match="no space left"):
        trained(divided(SPEC), tmp_path, Listener())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.quantization": "nf4", "model.dtype": "float32"}, "quantised weights cannot be divided"),
        ({"model.shards": 1}, "give 2 or more"),
        ({"method.name": "ia3"}, "lora and full can be trained"),
        ({"method.dora": True}, "look at whole weights"),
        ({"method.init": "pissa"}, "look at whole weights"),
        ({"method.name": "full", "optimizer.name": "adafactor"}, "Use one of adamw, sgd, lion, schedulefree_adamw"),
        ({"optimizer.name": "sophiag"}, "cannot be differentiated twice"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_what_cannot_be_divided_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        divided(SPEC).at(change)


def test_more_parts_than_devices_are_refused_and_so_is_company(tmp_path: Path) -> None:
    many = divided(SPEC).at({"model.shards": 4096})
    with pytest.raises(SpecError, match=r"model.shards=4096: this process sees \d+ cores"):
        trained(many, tmp_path, Listener())
    with pytest.raises(SpecError, match="it takes GPUs 0 to 1"):
        check_devices(divided(SPEC), "cuda:1")
    with pytest.raises(SpecError, match="whose runs train alone"):
        plan(divided(SPEC), memory=8 << 30, lanes=2, device="cpu")
    assert plan(divided(SPEC), memory=8 << 30, device="cpu").lanes_that_fit == 1
    one, two = (plan(divided(FULL), memory=1 << 30, device=kind).memory for kind in ("cpu", "cuda"))
    assert two == 2 * one, "two GPUs have twice the memory, two processes of one machine have not"


@pytest.mark.parametrize(
    ("launcher", "said"),
    [
        ({"name": "slurm", "gpus_per_node": 8}, "a worker has 1 of the GPUs"),
        ({"name": "slurm", "gpus_per_node": 2, "gpus_per_worker": 4}, "gpus_per_node=2"),
        ({"name": "ray", "gpus_per_worker": 2}, "a worker has 2 of the GPUs"),
        ({"name": "slurm", "gpus_per_node": 4, "gpus_per_worker": 4}, None),
        ({"name": "slurm"}, None),
        ({"name": "ray", "gpus_per_worker": 4}, None),
        ({"name": "ray"}, None),
        ({"workers": 2}, "a worker has 1 of the GPUs"),
    ],
)
def test_workers_elsewhere_are_held_to_what_their_launcher_gives_them(
    launcher: dict[str, Any], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few devices this machine, a login node, has itself."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4 if "workers" in launcher else 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: "workers" in launcher)
    with contextlib.nullcontext() if said is None else pytest.raises(SpecError, match=said):
        check_devices(divided(SPEC).at({"model.shards": 4}), "auto", LauncherSpec(**launcher))


def test_a_divided_base_is_part_of_the_experiment() -> None:
    assert divided(SPEC).key != SPEC.key == replace(SPEC, model=replace(SPEC.model, shards=8)).key
