"""Predicted against measured: the training loop's own forward, backward and update, on real tensors."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lora_lab.methods import attach
from lora_lab.models import load
from lora_lab.models.quantised import constants
from lora_lab.optim.optimizers import build
from lora_lab.optim.sophia import Sophia
from lora_lab.packing.curvature import gauss_newton_bartlett, hutchinson
from lora_lab.packing.forward import Part, in_passes, token_losses
from lora_lab.packing.paths import Mount
from lora_lab.planner import plan
from lora_lab.planner.ledger import Ledger
from lora_lab.spec import ROLES, BudgetSpec, DataSpec, MethodSpec, ModelSpec, OptimizerSpec, RunSpec, pairs
from lora_lab.spec.method import METHODS


def base(dtype, quantization="none", double_quant=False):
    shape = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    return ModelSpec(
        "small",
        source="random",
        dtype=dtype,
        quantization=quantization,
        double_quant=double_quant,
        config=pairs(shape),
    )


def measured(spec, lanes):
    """Peak of live tensors over the second step of a pack, weights included, in bytes; its FLOPs; a lane's count."""
    model = load(spec.model)
    mount = Mount(model)
    attachments = [attach(model, spec.method, seed) for seed in range(lanes)]
    parameters = [list(attachment.parameters().values()) for attachment in attachments]
    optimizers = [build(spec.optimizer, attachment.parameters()) for attachment in attachments]
    ledger = Ledger(data=True)
    scales = [tensor for module in model.model.modules() for tensor in constants(module)]
    trained = [parameter for mine in parameters for parameter in mine]
    adalora = [a.allocator for a in attachments if a.spec.name == "adalora"]
    remembered = [t for a in adalora for each in (a.ipt, a.exp_avg_ipt, a.exp_avg_unc) for t in each.values()]
    for tensor in (*scales, *model.model.parameters(), *model.model.buffers(), *trained, *remembered):
        ledger.book(tensor, "all")
    length = spec.data.max_length
    sequences = [(np.zeros(length, dtype=np.int64), np.ones(length, dtype=bool))] * spec.budget.micro

    def step():
        parts = [Part(attachment, sequences, 0, spec.budget.checkpointing) for attachment in attachments]
        for together in in_passes(parts, "cpu"):
            sum(lane.losses.sum() for lane in token_losses(mount, [parts[i] for i in together])).backward()
        for optimizer, attachment in zip(optimizers, attachments, strict=True):
            if isinstance(optimizer, Sophia):  # kept until the step is done, as the engine keeps it
                how = gauss_newton_bartlett if optimizer.gauss_newton else hutchinson
                diagonal = how(model, attachment, [sequences], torch.Generator())
                optimizer.observe(dict(zip(attachment.parameters().values(), diagonal, strict=True)))
            optimizer.step()
            diagonal = None
        for parameter in trained:
            parameter.grad = None

    for attachment in attachments:
        mount.mount(attachment)
    with ledger:
        step()
        ledger.begin()
        step()
    return max(sum(live) for _, live in ledger.moments), ledger.flops, attachments[0].count


BASIC = RunSpec(base("bfloat16"), data=DataSpec(max_length=64), budget=BudgetSpec(batch_size=4))


@pytest.mark.parametrize(
    ("spec", "lanes"),
    [
        (BASIC, 1),
        (replace(BASIC, method=MethodSpec(r=64, roles=ROLES)), 1),
        (replace(BASIC, method=MethodSpec(r=64, roles=ROLES), optimizer=OptimizerSpec("sgd")), 1),
        (replace(BASIC, method=MethodSpec(roles=ROLES, dropout=0.1)), 1),
        (replace(BASIC, data=DataSpec(max_length=200), method=MethodSpec(roles=("key", "mlp"))), 1),
        (replace(BASIC, model=base("float32"), method=MethodSpec(roles=("projection", "head"))), 1),
        (replace(BASIC, method=MethodSpec(roles=("value", "mlp", "head"), layers=(0, 2))), 1),
        (replace(BASIC, model=base("bfloat16", "nf4")), 1),
        (replace(BASIC, model=base("float32", "fp4", True), method=MethodSpec(r=64, roles=ROLES)), 1),
        (replace(BASIC, budget=BudgetSpec(batch_size=8, checkpointing=True)), 1),
        (replace(BASIC, method=MethodSpec(r=16, dora=True, dtype="bfloat16")), 1),
        *((replace(BASIC, method=MethodSpec(name)), 1) for name in METHODS if name not in ("lora", "bitfit")),
        (replace(BASIC, method=MethodSpec("bitfit", add_biases=True)), 1),
        (BASIC, 3),
        (replace(BASIC, model=base("float32"), method=MethodSpec(r=64, roles=ROLES)), 3),
        (replace(BASIC, data=DataSpec(max_length=400), budget=BudgetSpec(batch_size=3)), 5),
        (replace(BASIC, method=MethodSpec("prefix_tuning")), 2),
        (replace(BASIC, optimizer=OptimizerSpec("sophiah", hessian_every=1)), 1),
        (replace(BASIC, optimizer=OptimizerSpec("sophiag", hessian_every=1), method=MethodSpec("ia3")), 1),
        (replace(BASIC, optimizer=OptimizerSpec("sophiah", hessian_every=1), method=MethodSpec("p_tuning_v2")), 1),
    ],
)
def test_the_predicted_peak_is_the_measured_one(spec, lanes):
    bytes_there, flops_there, count = measured(spec, lanes)
    found = plan(spec, memory=10**9, device="cpu", lanes=lanes)
    assert found.trainable_parameters == count
    assert found.peak_bytes == pytest.approx(bytes_there, rel=0.02)
    assert found.flops_per_step == pytest.approx(flops_there, rel=0.02)
