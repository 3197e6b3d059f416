"""What every method promises, on every kind of base: one suite, a line of :data:`METHODS` a method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from reference_forward import logits
from torch import Tensor, nn

from lora_lab.errors import BadInput, MethodError
from lora_lab.methods import Attachment, attach, count, load
from lora_lab.methods.attachment import ADAPTER_CONFIG
from lora_lab.models import BaseModel
from lora_lab.spec import MethodSpec

pytestmark = pytest.mark.filterwarnings(
    "ignore:fan_in_fan_out is set to",  # stock PEFT on GPT-2, as expected
    "ignore:The following rank_pattern keys did not match",  # stock PEFT, of AdaLoRA's own pattern
)

Base = Callable[..., BaseModel]
BASES = ("llama", "gpt2", "nf4")
ROLES = ("query", "key", "value", "projection", "mlp")
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"roles": (*ROLES, "head"), "r": 3},
    "lora-bf16": {"roles": ROLES, "r": 3, "rslora": True, "dtype": "bfloat16"},
    "lora-dora": {"roles": ROLES, "r": 3, "dora": True},
    "lora-orthogonal": {"roles": ROLES, "r": 4, "init": "orthogonal"},
    "lora-pissa": {"roles": ROLES, "r": 3, "init": "pissa", "dora": True},
    "lora-pissa-niter": {"roles": ROLES, "r": 3, "init": "pissa_niter_4", "rslora": True},
    "lora-olora": {"roles": ROLES, "r": 3, "init": "olora", "rank_shape": "linear", "r_last": 1},
    "lora-eva": {"roles": ROLES, "r": 3, "init": "eva", "calibration_sequences": 16},
    "lora-loftq": {"roles": ROLES, "r": 3, "init": "loftq"},
    "lora-budget": {"roles": ROLES, "r": 8, "rank_shape": "decay", "r_last": 2, "rank_budget": 31, "alpha": 9.0},
    "adalora": {"roles": ROLES, "r": 2, "init_r": 4},
    "vera": {"roles": ROLES, "r": 6},
    "ia3": {"roles": (*ROLES, "head")},
    "bottleneck-houlsby": {"r": 4, "placement": "houlsby", "activation": "gelu"},
    "bottleneck-pfeiffer": {"r": 4, "placement": "pfeiffer"},
    "bottleneck-parallel": {"r": 4, "placement": "parallel", "activation": "tanh"},
    "bitfit": {"roles": ROLES},
    "bitfit-new": {"roles": ROLES, "add_biases": True, "dtype": "bfloat16"},
    "last_layers": {"roles": (*ROLES, "head"), "top_layers": 1},
    "prompt_tuning": {"virtual_tokens": 3},
    "prompt_tuning-text": {"virtual_tokens": 5, "prompt_init": "text", "prompt_text": "Say:"},
    "p_tuning": {"virtual_tokens": 3, "encoder_size": 12},
    "p_tuning-lstm": {"virtual_tokens": 3, "encoder": "lstm", "encoder_size": 8},
    "prefix_tuning": {"virtual_tokens": 3, "encoder_size": 12},
    "p_tuning_v2": {"virtual_tokens": 3},
    "llama_adapter": {"virtual_tokens": 3, "top_layers": 1},
    "full": {},
    "full-wide": {"dtype": "float32"},
}
NOT_THE_IDENTITY = {"lora-loftq", "prompt_tuning", "prompt_tuning-text", "p_tuning", "p_tuning-lstm"} | {
    "prefix_tuning",
    "p_tuning_v2",
}
"""Methods that do not start as the base model; LoftQ starts nearer to the model before quantisation."""
REFUSED = {
    ("lora-loftq", "llama"): "model.quantization=nf4",
    ("lora-loftq", "gpt2"): "model.quantization=nf4",
    ("bitfit", "llama"): "method.add_biases=true",
    ("bitfit", "nf4"): "method.add_biases=true",
    ("full", "nf4"): "model.quantization=none",
    ("full-wide", "nf4"): "model.quantization=none",
}
"""What a method cannot do, and the remedy that its message must name."""
IDS = torch.tensor([[5, 6, 7, 250, 31, 8], [9, 10, 11, 12, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])

matrix = pytest.mark.parametrize(
    ("kind", "method"), [(b, m) for b in BASES for m in METHODS if (m, b) not in REFUSED], ids=lambda value: value
)


def spec_of(method: str, **changes: Any) -> MethodSpec:
    return MethodSpec(method.split("-")[0], **(METHODS[method] | changes))


def calibration(n: int) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 320, (6 + i % 3,), generator=generator).numpy() for i in range(n)]


def made(base: BaseModel, method: str, seed: int = 3, **changes: Any) -> Attachment:
    return attach(base, spec_of(method, **changes), seed, calibration)


def shown(base: BaseModel, attachment: Attachment | None) -> Tensor:
    """Logits of the real tokens."""
    with torch.no_grad():
        return logits(base, attachment, IDS, MASK)[MASK.bool()].clone()


def picture(model: nn.Module) -> list[Any]:
    """Everything about a model that an attachment might disturb, bits of its weights included."""
    modules = [(name, id(module), module.training, type(module)) for name, module in model.named_modules()]
    weights = [(name, id(p), p.requires_grad, p.grad, p.detach().clone()) for name, p in model.named_parameters()]
    hooks = [(list(m._forward_hooks), list(m._forward_pre_hooks), "forward" in vars(m)) for m in model.modules()]
    return [modules, weights, hooks, sorted(vars(model)), model.config.to_dict()]


def same(now: list[Any], before: list[Any]) -> bool:
    bits = all(torch.equal(a[-1], b[-1]) for a, b in zip(now[1], before[1], strict=True))
    names = [w[:-1] for w in now[1]] == [w[:-1] for w in before[1]]
    return bits and names and now[:1] + now[2:] == before[:1] + before[2:]


def train(base: BaseModel, attachment: Attachment, steps: int = 10, lr: float = 0.01) -> list[float]:
    """Plain Adam on next-token prediction; the losses."""
    optimizer = torch.optim.Adam(attachment.parameters().values(), lr=lr)
    losses = []
    for step in range(steps):
        out = logits(base, attachment, IDS, MASK)[:, :-1].float()
        targets = torch.where(MASK[:, 1:].bool(), IDS[:, 1:], -100)
        loss = nn.functional.cross_entropy(out.flatten(0, 1), targets.flatten())
        penalty = attachment.penalty()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        attachment.after_step(step, steps)
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")  # of stock PEFT's own call
@matrix
def test_conformance(kind: str, method: str, tiny_base: Base, tmp_path: Path) -> None:
    base = tiny_base(kind)
    before, plain, rng = picture(base.model), shown(base, None), torch.get_rng_state()
    attachment = made(base, method)

    # It trains its own parameters, as many as its formula says, and nothing else.
    parameters = attachment.parameters()
    assert attachment.count == count(base, attachment.spec) > 0
    assert all(p.is_leaf and p.requires_grad for p in parameters.values())
    own = {id(p) for p in base.model.parameters()}
    assert not own & {id(p) for p in parameters.values()}
    assert same(picture(base.model), before)
    assert torch.equal(torch.get_rng_state(), rng)

    # It starts as the base model, and from its seed.
    start = shown(base, attachment)
    assert torch.allclose(start, plain, atol=2e-5) is (method not in NOT_THE_IDENTITY)
    again = made(base, method)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in attachment.state_dict().items())

    # It learns, and leaves the base alone, bit for bit.
    initial = {name: p.detach().clone() for name, p in parameters.items()}
    losses = train(base, attachment)
    assert losses[-1] < losses[0]
    stuck = [name for name, p in parameters.items() if torch.equal(p, initial[name])]
    assert not [name for name in stuck if not name.endswith("lora_E")]  # AdaLoRA has put some values out
    assert same(picture(base.model), before)
    assert torch.equal(shown(base, None), plain)

    # Its state brings another of its kind to the same point.
    other = made(base, method, seed=4)
    other.load_state_dict({name: value.clone() for name, value in attachment.state_dict().items()})
    trained = shown(base, attachment)
    assert not torch.allclose(trained, start, atol=1e-4)
    assert torch.equal(shown(base, other), trained)

    # Saved and loaded it is the same function, here and in stock PEFT.
    assert attachment.save(tmp_path, base_name="some/base")
    loaded = load(tmp_path, base)
    assert torch.allclose(shown(base, loaded), trained, atol=2e-5)
    assert same(picture(base.model), before)
    if (tmp_path / ADAPTER_CONFIG).exists():
        stock = PeftModel.from_pretrained(tiny_base(kind).model, str(tmp_path))
        with torch.no_grad():
            theirs = stock(input_ids=IDS, attention_mask=MASK, use_cache=False).logits[:, -IDS.shape[1] :]
        assert torch.allclose(theirs[MASK.bool()], trained, atol=5e-3 if method == "lora-bf16" else 2e-5)


@pytest.mark.parametrize(("method", "kind"), REFUSED)
def test_what_a_method_cannot_do_is_refused_with_the_remedy(method: str, kind: str, tiny_base: Base) -> None:
    base = tiny_base(kind)
    before = picture(base.model)
    with pytest.raises(MethodError) as refused:
        made(base, method)
    assert REFUSED[method, kind] in str(refused.value)
    assert same(picture(base.model), before)


@matrix
def test_sixteen_bits_stay_finite(kind: str, method: str, tiny_base: Base) -> None:
    base = tiny_base(kind, "bfloat16")
    attachment = made(base, method)
    start = shown(base, attachment)
    assert start.dtype == (torch.float32 if method == "full-wide" else torch.bfloat16) and start.isfinite().all()
    assert all(torch.isfinite(torch.tensor(train(base, attachment, steps=3))))
    assert shown(base, attachment).isfinite().all()
    assert all(p.isfinite().all() for p in attachment.parameters().values())


@pytest.mark.parametrize("method", METHODS)
def test_a_target_that_matches_nothing_is_refused(method: str, tiny_base: Base) -> None:
    base, spec = tiny_base("llama"), spec_of(method)
    changes: list[dict[str, Any]] = []
    if spec.reads("layers"):
        changes.append({"layers": (0, 99)})
    if spec.reads("top_layers"):
        changes.append({"top_layers": 99})
    if spec.reads("rank_pattern"):
        changes.append({"rank_pattern": MethodSpec(rank_pattern=(("no_such", 2),)).rank_pattern})
    for change in changes:
        with pytest.raises(MethodError, match=r"99|no_such"):
            made(base, method, **change)
        with pytest.raises(MethodError, match=r"99|no_such"):
            count(base, spec_of(method, **change))
    if spec.reads("roles"):
        del base.roles["mlp"]
        with pytest.raises(BadInput, match="mlp"):
            made(base, method, roles=ROLES)


def test_what_may_train_in_the_base_is_left_as_it_was(tiny_base: Base) -> None:
    base = tiny_base("llama")
    base.model.get_input_embeddings().weight.requires_grad_(True)
    for method in METHODS:
        if (method, "llama") not in REFUSED:
            made(base, method)
            trains = [name for name, parameter in base.model.named_parameters() if parameter.requires_grad]
            assert trains == ["model.embed_tokens.weight"], method
