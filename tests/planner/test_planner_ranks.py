"""Steps at a few traced ranks tell those at all others: what is derived is what a trace of its own gives."""

import random

import pytest

from lora_lab.planner import tracing
from lora_lab.planner.points import planned_points
from lora_lab.planner.ranks import step_at, tells_ranks
from lora_lab.planner.shape import Shape
from lora_lab.planner.step import step_of
from lora_lab.spec import (
    ROLES,
    BudgetSpec,
    Choices,
    DataSpec,
    MethodSpec,
    ModelSpec,
    OptimizerSpec,
    RunSpec,
    Space,
    Sweep,
    pairs,
)

RANKS = (1, 2, 5, 8, 15, 16, 17, 24, 32, 64, 100, 128)
MOST = 3
"""Traces that tell all ranks: there are that many unknowns."""


def spec(layers=2, optimizer="adamw", rows=2, batch=4, quantization="none", checkpointing=False, **method):
    shape = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 320,
        "max_position_embeddings": 256,
    }
    return RunSpec(
        ModelSpec("llama", source="random", dtype="bfloat16", quantization=quantization, config=pairs(shape)),
        data=DataSpec(max_length=48),
        method=MethodSpec(**method),
        optimizer=OptimizerSpec(optimizer),
        budget=BudgetSpec(batch_size=batch, micro_batch_size=rows, checkpointing=checkpointing),
    )


CASES = {
    "query and value": {"device": "cpu"},
    "a GPU's batched products, every role": {"device": "cuda", "roles": ROLES},
    "16-bit factors with dropout": {"device": "cpu", "dtype": "bfloat16", "dropout": 0.1, "roles": ROLES},
    "PiSSA's two products on a quantised base": {"device": "cuda", "init": "pissa", "quantization": "nf4"},
    "Adafactor's rows and columns": {"device": "cpu", "optimizer": "adafactor", "roles": ("query", "mlp")},
    "Sophia's second pass": {"device": "cpu", "optimizer": "sophiah", "rows": 4},
    "momentum, layers computed twice": {"device": "cuda", "optimizer": "sgd", "checkpointing": True, "roles": ROLES},
}


@pytest.mark.parametrize("case", CASES)
def test_what_traced_ranks_tell_is_what_a_trace_gives(case):
    device, fields = CASES[case]["device"], {key: value for key, value in CASES[case].items() if key != "device"}
    ranks = random.Random(case).sample(RANKS, 8)
    known = {}
    for rank in ranks:
        shape = Shape.of(spec(r=rank, **fields), device)
        assert tells_ranks(shape)
        direct, told = step_of(shape), step_at(shape, known)
        if told is None:
            known[rank] = direct
            continue
        assert (told.timeline.bytes == direct.timeline.bytes).all(), (rank, list(known))
        assert told.timeline.flops == direct.timeline.flops
        assert (told.by_role, told.own_bytes) == (direct.by_role, direct.own_bytes)
    assert len(known) <= MOST


@pytest.mark.parametrize("fields", [{"dora": True}, {"optimizer": "muon"}, {"name": "adalora"}, {"rank_budget": 8}])
def test_ranks_whose_square_matters_are_each_traced(fields):
    assert not tells_ranks(Shape.of(spec(**fields), "cpu"))


def test_a_space_of_many_ranks_is_planned_by_a_few_traces(monkeypatch):
    traced = []
    monkeypatch.setattr(tracing, "step_of", lambda shape, layers=None: traced.append(layers) or step_of(shape, layers))
    base = spec(layers=8, batch=2)

    def plans(*ranks):
        tracing.trace.cache_clear()
        tracing.KNOWN.clear()
        space = Space((("method.r", Choices(ranks)), ("optimizer.lr", Choices((1e-3, 1e-2)))))
        return [row.plan for row in planned_points(Sweep("ranks", base, space), memory=10**9, device="cuda")]

    found = plans(*RANKS)
    assert len(traced) <= 2 * MOST
    assert [plan.trainable_parameters for plan in found] == [rank * found[0].trainable_parameters for rank in RANKS]
    (alone,) = plans(100)
    assert found[RANKS.index(100)] == alone
