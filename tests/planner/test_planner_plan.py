"""A plan's counts are exact, its bytes follow what they should follow, and a run that does not fit is told why."""

import resource
import sys
from dataclasses import replace

import pytest

from lora_lab.errors import MethodError, ModelError, SpecError
from lora_lab.models import load_meta
from lora_lab.planner import plan
from lora_lab.planner.depth import depths
from lora_lab.planner.lanes import PARTS, SHARED
from lora_lab.planner.prediction import HEADROOM
from lora_lab.planner.shape import Shape
from lora_lab.planner.step import step_of
from lora_lab.planner.tracing import trace
from lora_lab.spec import (
    ROLES,
    BudgetSpec,
    DataSpec,
    EvaluationSpec,
    MethodSpec,
    ModelSpec,
    OptimizerSpec,
    RunSpec,
    pairs,
)

GB = 10**9
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 256,
}
LLAMA_2_7B = ModelSpec(
    "llama2_7b",
    path="meta-llama/Llama-2-7b-hf",
    config=pairs(
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32000,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
        }
    ),
)


def model(kind="llama", dtype="bfloat16", **changes):
    fields = SHAPE | {"model_type": kind, "tie_word_embeddings": True} | changes
    return ModelSpec(kind, source="random", dtype=dtype, config=pairs(fields))


def spec(base=None, roles=("query", "value"), r=8, rows=4, batch=None, length=32, optimizer="adamw", **method):
    return RunSpec(
        base or model(),
        data=DataSpec(max_length=length),
        method=MethodSpec(r=r, roles=roles, **method),
        optimizer=OptimizerSpec(optimizer),
        budget=BudgetSpec(batch_size=batch or rows, micro_batch_size=rows),
    )


def planned(run, **options):
    return plan(run, **({"memory": GB, "device": "cpu"} | options))


def big(**changes):
    return spec(LLAMA_2_7B, rows=1, batch=128, length=1304, **changes)


@pytest.mark.parametrize(
    ("roles", "r", "count"),
    [(("query", "value"), 8, 4_194_304), (ROLES, 8, 20_277_248), (ROLES, 16, 40_554_496), (ROLES, 256, 648_871_936)],
)
def test_parameters_of_llama_2_7b_are_exact(roles, r, count):
    found = planned(big(roles=roles, r=r), memory=80 * GB)
    assert found.total_parameters == 6_738_415_616
    assert found.trainable_parameters == count == sum(found.by_role.values())
    assert set(found.by_role) == set(roles)


def test_a_plan_of_llama_2_7b_is_near_the_21_33_gb_that_were_measured():
    """The measurement: one A100, query and value, r=8, AdamW, bfloat16, 1 x 1304 tokens."""
    found = planned(big(), memory=80 * GB, device="cuda")
    assert found.trainable_parameters == sum(found.by_role.values()) == 4_194_304
    assert found.total_parameters == 6_738_415_616
    assert found.peak_bytes == pytest.approx(21.33 * GB, rel=0.10)
    assert found.parts["weights"] == pytest.approx(2 * 6_738_415_616, rel=0.02)  # and a merged product
    assert found.flops_per_step == pytest.approx(128 * 4 * 6_738_415_616 * 1304, rel=0.10)


def test_planning_a_7b_model_allocates_next_to_nothing():
    scale = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    planned(big(r=4, optimizer="sgd"), memory=80 * GB)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale - before < 0.2 * GB


def test_the_parts_add_up_to_the_peak():
    found = planned(spec(roles=ROLES), lanes=3)
    assert tuple(found.parts) == PARTS
    assert sum(found.parts.values()) == found.peak_bytes


def test_adapter_gradient_and_optimizer_bytes_are_their_formulas():
    count = 4 * planned(spec()).trainable_parameters  # float32
    adam, momentum, sgd = (
        planned(replace(spec(batch=8), optimizer=optimizer)).parts
        for optimizer in (OptimizerSpec(), OptimizerSpec("sgd", momentum=0.9), OptimizerSpec("sgd"))
    )
    assert [parts["adapters"] for parts in (adam, momentum, sgd)] == [count] * 3
    assert adam["optimizer"] == pytest.approx(2 * count, rel=0.02)  # and a step counter a tensor
    assert momentum["optimizer"] == count
    assert sgd["optimizer"] == 0
    assert count <= adam["gradients"] < 1.5 * count  # accumulated ones, and a new one now and then


def test_adalora_keeps_three_numbers_more_for_each_that_trains():
    sgd = OptimizerSpec("sgd")
    found = planned(replace(spec(name="adalora"), optimizer=sgd))
    assert found.parts["optimizer"] == 3 * 4 * found.trainable_parameters


def test_the_best_adapter_of_several_evaluations_is_a_second_one_of_each_lane():
    once = spec(r=64)
    often = replace(once, evaluation=EvaluationSpec(every_steps=5))
    own = plan(once).trainable_parameters * 4
    for lanes in (1, 3):
        assert plan(often, lanes=lanes).parts["adapters"] == plan(once, lanes=lanes).parts["adapters"] + lanes * own


def test_a_float64_base_has_float64_adapters():
    narrow, wide = planned(spec(model(dtype="float32"))), planned(spec(model(dtype="float64")))
    assert wide.parts["adapters"] == 2 * narrow.parts["adapters"]
    assert wide.parts["weights"] == pytest.approx(2 * narrow.parts["weights"], rel=0.01)


def test_a_tied_head_is_resident_twice_but_counted_once():
    tied, untied = planned(spec(model())), planned(spec(model(tie_word_embeddings=False)))
    assert untied.total_parameters - tied.total_parameters == 320 * 64
    assert untied.parts["weights"] == tied.parts["weights"]


def test_activations_follow_rows_and_length():
    small, rows, long = (planned(s).parts["activations"] for s in (spec(), spec(rows=8), spec(length=64)))
    assert rows == pytest.approx(2 * small, rel=0.05)
    assert 2 * small < long < 4.2 * small  # attention's share grows with the square


def test_dropout_keeps_a_bit_for_each_element_it_looked_at():
    more = planned(spec(dropout=0.1)).parts["activations"] - planned(spec()).parts["activations"]
    layers, modules, rows, width = 2, 2, 4 * 32, 64
    assert more == layers * modules * rows * width // 8


def test_layers_that_keep_only_their_input_take_less_and_compute_more():
    run = spec(model(num_hidden_layers=6), roles=ROLES, length=64)
    less = replace(run, budget=replace(run.budget, checkpointing=True))
    assert less.key == run.key
    assert planned(less).parts["activations"] < 0.7 * planned(run).parts["activations"]
    assert 1.2 < planned(less).flops_per_step / planned(run).flops_per_step < 1.6


def test_fewer_supervised_tokens_mean_fewer_logits():
    head = spec(model(vocab_size=4000), roles=("head",))
    assert 0 < planned(head, supervised=4).parts["logits"] < 0.3 * planned(head).parts["logits"]


def test_shorter_data_counts_below_max_length_and_never_above():
    assert planned(spec(length=64), length=32) == planned(spec(length=32))
    assert planned(spec(length=32), length=64) == planned(spec(length=32))


def test_flops_follow_the_batch_and_not_the_micro_batch():
    whole, parts = planned(spec(rows=8, batch=8)), planned(spec(rows=2, batch=8))
    assert parts.flops_per_step == pytest.approx(whole.flops_per_step)
    assert planned(spec(), lanes=2).flops_per_step == 2 * planned(spec()).flops_per_step


def test_flops_are_those_of_the_matrix_products():
    run = spec(roles=(), rows=1, length=32, batch=1)
    inner = 2 * (64 * (64 + 2 * 32 + 64) + 3 * 64 * 128)
    attention = 2 * 4 * 4 * 32 * 32 * 16
    assert planned(run).flops_per_step == 2 * 32 * inner + attention + 2 * 31 * 64 * 320


def test_an_empty_mask_trains_nothing():
    found = planned(spec(roles=()))
    assert (found.trainable_parameters, found.by_role, found.parts["optimizer"]) == (0, {}, 0)
    assert found.peak_bytes < planned(spec()).peak_bytes


def test_layers_limit_the_adapter():
    assert planned(spec(layers=(1,))).trainable_parameters * 2 == planned(spec()).trainable_parameters
    with pytest.raises(MethodError, match="Choose among those"):
        planned(spec(layers=(7,)))


def test_a_role_that_the_model_lacks_is_refused():
    by_hand = replace(
        model("mamba", state_size=4, num_hidden_layers=1),
        roles=pairs({"mlp": ["in_proj"]}),
        config=pairs(
            {"model_type": "mamba", "hidden_size": 64, "state_size": 4, "num_hidden_layers": 1, "vocab_size": 320}
        ),
    )
    with pytest.raises(MethodError, match="query"):
        planned(spec(by_hand))


@pytest.mark.parametrize(
    ("kind", "layers", "fields"),
    [
        ("llama", 8, {}),
        ("gemma2", 13, {"head_dim": 16, "sliding_window": 8}),
        ("qwen3", 8, {"head_dim": 16}),
        ("phi3", 8, {"pad_token_id": 0}),
        ("gpt_neox", 8, {"num_key_value_heads": None}),
    ],
)
def test_short_versions_of_a_deep_model_tell_its_peak_to_the_byte(kind, layers, fields):
    shape = SHAPE | fields | {"model_type": kind, "num_hidden_layers": layers}
    base = ModelSpec(kind, source="random", config=pairs({k: v for k, v in shape.items() if v is not None}))
    fused = ("query", "key", "value", "mlp") if kind in ("phi3", "gpt_neox") else ("query", "mlp")
    runs = [
        spec(base, roles=fused, dropout=0.1),
        spec(replace(base, quantization="nf4"), roles=ROLES, r=64, length=160),
    ]
    if kind == "llama":
        runs += [spec(base, roles=()), spec(base, roles=("head",)), spec(base, roles=("key",), rows=1, batch=4)]
        runs += [spec(base, roles=ROLES, r=128, length=16, rows=1, optimizer="sgd")]
    assert depths(load_meta(base)) is not None
    for run in runs:
        one = Shape.of(run, "cpu")
        short, whole = trace(one), step_of(one).timeline
        assert short.crests in (whole.crests(SHARED), whole.crests((*SHARED, "logits")))
        assert short.flops == whole.flops


def test_the_layers_of_a_model_that_do_not_repeat_are_all_traced():
    base = model(num_hidden_layers=12)
    shape = Shape.of(spec(base, layers=(3, 11)), "cpu")
    assert trace(shape).crests == step_of(shape).timeline.crests((*SHARED, "logits"))
    gemma = {"head_dim": 16, "layer_types": ["full_attention"] * 11 + ["sliding_attention"], "sliding_window": 8}
    assert depths(load_meta(model("gemma2", num_hidden_layers=12, **gemma))) is None


GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 320}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 16}),
        ("gemma", {"head_dim": 16}),
        ("gemma2", {"head_dim": 16, "sliding_window": 8}),
        ("gemma3_text", {"head_dim": 16, "sliding_window": 8}),
        ("phi", {}),
        ("phi3", {"pad_token_id": 0}),
        ("gpt_neox", {"num_key_value_heads": None}),
    ],
)
@pytest.mark.parametrize("length", [16, 160])
def test_every_architecture_is_traced(kind, fields, length):
    fields = {name: value for name, value in (SHAPE | fields).items() if value is not None}
    base = ModelSpec(kind, source="random", config=pairs(fields | {"model_type": kind}))
    found = planned(spec(base, roles=ROLES, length=length, rows=2))
    assert found.trainable_parameters > 0
    assert found.parts["activations"] > 0


def test_a_fused_matrix_counts_once_under_all_its_roles():
    base = ModelSpec("gpt2", source="random", config=pairs(GPT2 | {"model_type": "gpt2"}))
    found = planned(spec(base, roles=("query", "key", "value", "projection"), length=16))
    assert found.by_role == {"query+key+value": 2 * 8 * (64 + 192), "projection": 2 * 8 * (64 + 64)}
    with pytest.raises(ModelError, match="c_attn"):
        planned(spec(base, roles=("query",), length=16))


def test_attention_scores_are_kept_for_short_sequences_on_a_cpu_only():
    cpu, cuda = (planned(spec(length=64), device=device).parts["activations"] for device in ("cpu", "cuda"))
    assert cuda < cpu
    short, long = (planned(spec(length=n), device="cpu").parts["activations"] for n in (128, 129))
    assert long < short


def test_on_a_gpu_a_solo_lane_holds_no_attention_scores_and_computes_as_much():
    run = spec(length=200).at({"method.name": "full"})
    cpu, cuda = (planned(run, device=device) for device in ("cpu", "cuda"))
    scores = 2 * 4 * 4 * 200 * 200 * 4  # layers, rows, heads, in float32
    assert cpu.parts["activations"] - cuda.parts["activations"] > 0.5 * scores
    assert cuda.flops_per_step == pytest.approx(cpu.flops_per_step, rel=0.1)


def test_a_plan_for_a_gpu_is_the_same_with_and_without_a_compiler_here(monkeypatch):
    """There is no kernel of ours there that unpacks weights: what PyTorch needs for it is in the plan."""
    quantised = replace(LLAMA_2_7B, quantization="nf4")
    run = spec(replace(quantised, config=pairs(dict(quantised.config) | {"num_hidden_layers": 2})), length=64)

    def parts():
        return step_of(Shape.of(run, "cuda")).timeline.crests(SHARED)

    here = parts()
    monkeypatch.setattr("lora_lab.packing.native.library", lambda: None)
    assert parts() == here


def test_lanes_share_the_weights_and_nothing_that_trains():
    one, four = planned(spec()), planned(spec(), lanes=4)
    for part in PARTS:
        if part in SHARED:
            assert four.parts[part] <= one.parts[part]
        else:
            assert four.parts[part] <= 4 * one.parts[part]
    assert four.parts["adapters"] == 4 * one.parts["adapters"]


def test_lanes_that_fit_is_the_largest_plan_that_fits():
    run = spec(r=64, roles=ROLES)
    memory = 50 * 10**6
    lanes = planned(run, memory=memory).lanes_that_fit
    assert lanes > 2
    assert planned(run, memory=memory, lanes=lanes).fits
    assert not planned(run, memory=memory, lanes=lanes + 1).fits


def test_what_does_not_fit_says_why_and_what_would():
    run = spec(model(num_hidden_layers=6), rows=8, length=64)
    memory = int(planned(run).peak_bytes / (1 - HEADROOM) * 0.7)
    found = planned(run, memory=memory)
    assert not found.fits
    assert found.lanes_that_fit == 0
    cause, *remedies = found.reasons
    assert "one lane needs" in cause
    assert "activations" in cause
    assert [remedy.removesuffix(" fits") for remedy in remedies] == [
        "budget.checkpointing=true",
        "budget.micro_batch_size=4",
        "data.max_length=32",
    ]
    for remedy in remedies:
        assert planned(applied(run, remedy), memory=memory).fits, remedy


def applied(run, remedy):
    settings = dict(setting.split("=") for setting in remedy.removesuffix(" fits").split())
    values = {path: text if text.isalnum() and not text.isdigit() else int(text) for path, text in settings.items()}
    return run.at({path: True if value == "true" else value for path, value in values.items()})


def test_a_large_model_is_quantised_and_one_remedy_may_not_be_enough():
    run = spec(model(hidden_size=256, intermediate_size=1024, num_hidden_layers=4), rows=2, length=64)
    for share, wanted in ((0.95, "model.quantization=nf4 fits"), (0.6, "model.quantization=nf4 budget.checkpointing")):
        memory = int(share * planned(run).peak_bytes / (1 - HEADROOM))
        (remedy, *_) = [reason for reason in planned(run, memory=memory).reasons[1:] if reason.startswith(wanted)]
        assert planned(applied(run, remedy), memory=memory).fits


def test_too_many_lanes_are_told_how_many_fit():
    memory = int(planned(spec(), lanes=3).peak_bytes / (1 - HEADROOM)) + 10
    assert planned(spec(), lanes=5, memory=memory).reasons[1:] == ("pack.max_lanes=3 fits",)


def test_a_hopeless_run_is_told_so():
    found = planned(spec(), memory=10_000)
    assert not found.fits
    assert "use a smaller model or a larger device" in found.reasons[-1]


def test_the_memory_of_this_machine_is_the_default():
    assert plan(spec(), device="cpu").memory > 10**6


def test_no_lanes_is_refused():
    with pytest.raises(SpecError, match="lanes: must be 1 or more"):
        planned(spec(), lanes=0)


def test_a_plan_is_json():
    tree = planned(spec()).to_tree()
    assert set(tree) >= {
        "trainable_parameters",
        "total_parameters",
        "peak_bytes",
        "parts",
        "flops_per_step",
        "lanes_that_fit",
        "fits",
        "reasons",
    }
