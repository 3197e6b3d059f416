"""Two counts of one step agree: what the planner's trace multiplies, and what a run's own ``flops`` says of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lora_lab.engine.cost import Flops
from lora_lab.methods import attach
from lora_lab.models import load
from lora_lab.packing.narrow import Narrow, Stretch
from lora_lab.planner.ledger import Ledger
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
LEFT_OUT = {"bottleneck": 0.07, "llama_adapter": 0.08}
"""Of these the run's count leaves more out: that nothing goes back into the lowest layer's own products when what
trains stands after them (an eighth of these layers' backward), and a LLaMA-Adapter's second query and output."""


def counted(method, device="cpu", prompt=1, checkpointing=False):
    """FLOPs by the trace, and by the run's count, of sequences that begin with so many tokens that are no targets."""
    run = RunSpec(
        MODEL,
        data=DataSpec(max_length=LENGTH),
        method=method,
        budget=BudgetSpec(batch_size=ROWS, micro_batch_size=ROWS, checkpointing=checkpointing),
    )
    base = load(MODEL, "cpu")
    ids, supervised = np.zeros(LENGTH, dtype=np.int64), np.ones(LENGTH, dtype=bool)
    supervised[:prompt] = False
    said = Flops(base).training([(ids, supervised)] * ROWS, attach(base, method, 0))
    return step_of(Shape.of(run, device, supervised=LENGTH - prompt)).timeline.flops, said


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_counted_by_what_it_multiplies(name):
    method = MethodSpec(name, r=16, roles=ROLES, add_biases=name == "bitfit", virtual_tokens=6, top_layers=4)
    traced, said = counted(method)
    assert said == pytest.approx(traced, rel=LEFT_OUT.get(name, 0.015))


@pytest.mark.parametrize("roles", MASKS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_low_rank_products_are_counted_on_every_device(roles, device):
    traced, said = counted(MethodSpec(r=16, roles=MASKS[roles]), device)
    assert said == pytest.approx(traced, rel=0.015)


@pytest.mark.parametrize("name", ["lora", "last_layers", "full"])
def test_the_head_is_counted_where_it_is_computed(name):
    """At the targets of a packed lane, and at every token of a solo one."""
    traced, said = counted(MethodSpec(name, r=64, roles=("head",), top_layers=1), prompt=30)
    assert said == pytest.approx(traced, rel=0.015)


def test_learned_positions_are_looked_up_and_not_multiplied():
    fields = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 320}
    short, long = (
        Flops(load(ModelSpec("gpt2", source="random", dtype="float32", config=pairs(fields | {"n_positions": n}))))
        for n in (64, 512)
    )
    sequence = [(np.zeros(8, dtype=np.int64), np.ones(8, dtype=bool))]
    assert short.forward(sequence, None) == long.forward(sequence, None)


def test_a_plan_has_what_checkpointing_computes_again_and_a_run_has_not():
    """A run's cost depends on nothing that its key leaves out."""
    method = MethodSpec(r=16, roles=ROLES)
    (plain, said), (again, said_again) = (counted(method, checkpointing=on) for on in (False, True))
    base, ids = load(MODEL, "cpu"), np.zeros(LENGTH, dtype=np.int64)
    lane = attach(base, replace(method, roles=tuple(role for role in ROLES if role != "head")), 0)
    layers = Flops(base).forward([(ids, np.zeros(LENGTH, dtype=bool))] * ROWS, lane)
    assert said == said_again
    assert again - plain == pytest.approx(layers, rel=0.001)


def test_a_kernel_is_counted_by_whoever_follows():
    """The products of the low-rank kernel are in no operator call, with data and without."""
    rows, width, r = 6, 32, 4
    A, B = torch.zeros(r, width), torch.zeros(width, r)
    kernel = Narrow([Stretch(A, B, 1.0, 0, rows, 0)])
    with Ledger(data=True) as ledger:
        kernel.add(torch.zeros(rows, width), torch.zeros(rows, width))
    assert ledger.flops == 2 * rows * r * 2 * width


def test_layers_below_the_lowest_that_trains_go_forward_only():
    high, low = (counted(MethodSpec(r=2, layers=(layer,))) for layer in (7, 0))
    for less, more in zip(high, low, strict=True):
        assert less < 0.75 * more
