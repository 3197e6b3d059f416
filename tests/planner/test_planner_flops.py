"""Two counts of one step agree: what the planner's trace multiplies, and what a run's own ``flops`` says of it."""

import numpy as np
import pytest

from lora_lab.engine.cost import Flops
from lora_lab.methods import attach
from lora_lab.models import load
from lora_lab.planner.shape import Shape
from lora_lab.planner.step import step_of
from lora_lab.spec import ROLES, BudgetSpec, DataSpec, MethodSpec, ModelSpec, RunSpec, pairs
from lora_lab.spec.method import METHODS

LENGTH, ROWS = 40, 2
MODEL = ModelSpec(
    "llama",
    source="random",
    dtype="float32",
    config=pairs(
        {
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 320,
            "max_position_embeddings": 128,
        }
    ),
)
MASKS = {"all roles": ROLES, "query and value": ("query", "value"), "the head": ("head",)}


def counted(method, device="cpu"):
    """FLOPs by the trace, and by the run's count."""
    run = RunSpec(
        MODEL,
        data=DataSpec(max_length=LENGTH),
        method=method,
        budget=BudgetSpec(batch_size=ROWS, micro_batch_size=ROWS),
    )
    base = load(MODEL, "cpu")
    ids, supervised = np.zeros(LENGTH, dtype=np.int64), np.ones(LENGTH, dtype=bool)
    supervised[0] = False
    said = Flops(base).training([(ids, supervised)] * ROWS, attach(base, method, 0))
    return step_of(Shape.of(run, device)).timeline.flops, said


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_counted_by_what_it_multiplies(name):
    method = MethodSpec(name, r=16, roles=ROLES, add_biases=name == "bitfit", virtual_tokens=6, top_layers=4)
    traced, said = counted(method)
    assert said == pytest.approx(traced, rel=0.15 if name == "llama_adapter" else 0.06)


@pytest.mark.parametrize("roles", MASKS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_low_rank_products_are_counted_on_every_device(roles, device):
    traced, said = counted(MethodSpec(r=16, roles=MASKS[roles]), device)
    assert said == pytest.approx(traced, rel=0.06)


def test_layers_below_the_lowest_that_trains_go_forward_only():
    high, low = (counted(MethodSpec(r=2, layers=(layer,))) for layer in (7, 0))
    for less, more in zip(high, low, strict=True):
        assert less < 0.75 * more
