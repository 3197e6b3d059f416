"""The packed step names its phases to a listener, needs none, and looks at no value."""

import contextlib

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lora_lab.methods import Attachment, LowRank
from lora_lab.models import load, load_meta
from lora_lab.packing.forward import Part, _Exchange, losses_of, token_losses
from lora_lab.packing.inputs import Inputs, count_targets
from lora_lab.packing.paths import Mount, Paths
from lora_lab.packing.phases import heard_by, phase
from lora_lab.spec import MethodSpec, ModelSpec, pairs

MODEL = ModelSpec(
    "small",
    source="random",
    config=pairs(
        {
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 320,
        }
    ),
)
MODULES = {"model.layers.0.self_attn.q_proj": (32, 32), "lm_head": (32, 320)}
SPANS = ((3, 9, 4), (5,))


def attachment():
    factors = {
        name: LowRank(torch.nn.Parameter(torch.zeros(2, inputs)), torch.nn.Parameter(torch.zeros(outputs, 2)), 2.0)
        for name, (inputs, outputs) in MODULES.items()
    }
    return Attachment(MethodSpec(r=2, dropout=0.1), packable=True, factors=factors, dropout=0.1)


def groups():
    return [[(np.arange(n), np.arange(n) % 3 > 0) for n in lengths] for lengths in SPANS]


def parts():
    return [Part(attachment(), group, noise=0) for group in groups()]


class Ear:
    def __init__(self):
        self.heard = []

    @contextlib.contextmanager
    def __call__(self, name):
        self.heard.append(name)
        yield


def test_an_unheard_phase_is_nothing():
    assert phase("logits") is phase("workspace")
    with phase("logits"), phase("workspace"):
        pass


def test_a_listener_hears_until_it_goes_even_by_an_error():
    ear = Ear()
    with pytest.raises(RuntimeError), heard_by(ear), phase("logits"):
        raise RuntimeError
    with phase("workspace"):
        pass
    assert ear.heard == ["logits"]


def test_a_step_computes_the_same_heard_or_not():
    mount, ear = Mount(load(MODEL)), Ear()
    lanes = parts()
    for part in lanes:
        mount.mount(part.attachment)
    alone = [lane.losses for lane in token_losses(mount, parts())]
    with heard_by(ear):
        heard = [lane.losses for lane in token_losses(mount, lanes)]
        sum(losses.sum() for losses in heard).backward()
    assert all(torch.equal(a, b) for a, b in zip(alone, heard, strict=True))
    assert set(ear.heard) == {"logits", "gradients"}


def test_a_step_runs_on_tensors_without_data():
    inputs = Inputs.of(groups(), torch.device("cpu"))
    model = load_meta(MODEL)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu").requires_grad_(False)
        paths, lanes = Paths(model, "cpu"), parts()
        for part in lanes:
            paths.mount(part.attachment)
        found = losses_of(paths, lanes, inputs)
        sum(lane.losses.sum() for lane in found).backward()
    assert [len(lane.losses) for lane in found] == [count_targets(part.sequences) for part in lanes]
    assert all(p.grad.shape == p.shape for part in lanes for p in part.attachment.parameters().values())


@pytest.mark.parametrize(("kernels", "chosen"), [(None, "cpu"), ("cuda", "cuda")])
def test_tensors_on_a_cpu_may_stand_for_others(kernels, chosen):
    assert Inputs.of(groups(), torch.device("cpu"), kernels).layout.kernels == chosen


def test_inputs_say_which_row_predicts_which_label():
    inputs = Inputs.of(groups(), torch.device("cpu"))
    assert inputs.layout.spans == [(0, 16), (16, 21)]
    assert inputs.targets == [(0, 2 + 6 + 2), (10, 10 + 3)]
    assert torch.equal(inputs.ids[inputs.predicting + 1], inputs.labels)
    assert not set(inputs.predicting.tolist()) & {2, 11, 15, 20}  # the last of a sequence predicts nothing


def test_each_process_gets_the_gradients_of_its_own_losses():
    others = torch.tensor([5.0, 0.0, 7.0, 0.0])

    class Two:
        def add(self, tensors):
            tensors[0].add_(others)

    own = torch.tensor([1.0, 2.0, 9.0], requires_grad=True)  # the last one stands for none
    losses = _Exchange.apply(own, torch.tensor([1, 3]), 4, Two())
    assert losses.tolist() == [5.0, 1.0, 7.0, 2.0]
    (losses * torch.tensor([10.0, 20.0, 30.0, 40.0])).sum().backward()
    assert own.grad.tolist() == [20.0, 40.0, 0.0]
