"""The ledger books every storage once and lets go of it with its last owner; its timeline knows every pack's peak."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lora_lab.planner.ledger import Ledger
from lora_lab.planner.timeline import Timeline, extended


def crests(ledger: Ledger, shared=()):
    return Timeline.of(ledger.parts, ledger.moments, ledger.marks, ledger.flops).crests(shared)


def peak(ledger: Ledger, lanes: int = 1, shared=()) -> int:
    return max(crest.shared + lanes * crest.own for crest in crests(ledger, shared))


def test_views_share_a_storage_and_freed_tensors_leave():
    with FakeTensorMode(), Ledger() as ledger:
        a = torch.empty(256)  # 1 kB
        view = a.view(16, 16)[3:]
        del a
        assert ledger.live["all"] == 1024
        del view
        assert ledger.live["all"] == 0
    assert peak(ledger) == 1024


def test_what_only_the_graph_holds_is_alive_until_the_backward():
    with FakeTensorMode(), Ledger() as ledger:
        x = torch.empty(256, requires_grad=True)
        y = (x * x).sin()  # the graph keeps x * x, 1 kB, for the backward of sin
        assert ledger.live["all"] == 3 * 1024
        loss = y.sum()
        del y
        assert ledger.live["all"] == 2 * 1024 + 4
        loss.backward()
        del loss
        assert ledger.live["all"] == 2 * 1024  # x and its gradient
        assert x.grad is not None


def test_a_storage_moves_between_parts():
    with FakeTensorMode(), Ledger(("gradients", "activations")) as ledger, ledger.phase("activations"):
        a = torch.empty(256)
        ledger.book(a, "gradients")
    assert ledger.live == {"activations": 0, "gradients": 1024}


def test_the_peak_of_many_lanes_may_be_another_moment_than_that_of_one():
    with FakeTensorMode(), Ledger(("shared", "own")) as ledger:
        with ledger.phase("shared"):
            wide = torch.empty(1000, dtype=torch.uint8)  # alone: 1000
        del wide
        with ledger.phase("own"):
            kept = torch.empty(700, dtype=torch.uint8)  # every lane its own: 700, 1400, …
    assert peak(ledger, 1, {"shared"}) == 1000
    assert peak(ledger, 2, {"shared"}) == 1400
    assert kept.shape == (700,)
    assert len(crests(ledger, {"shared"})) == 2


def test_flops_are_two_per_multiply_add_forward_and_backward():
    with FakeTensorMode(), Ledger() as ledger:
        x, w = torch.empty(5, 7, requires_grad=True), torch.empty(7, 11)
        (x @ w).sum().backward()
    assert ledger.flops == 2 * (2 * 5 * 7 * 11)


def test_flops_of_products_in_place_and_into_a_tensor_are_counted():
    with FakeTensorMode(), Ledger() as ledger:
        x, w, out = torch.empty(5, 7), torch.empty(7, 11), torch.empty(5, 11)
        out.addmm_(x, w)
        torch.mm(x, w, out=out)
    assert ledger.flops == 2 * (2 * 5 * 7 * 11)


def test_flops_of_the_cpu_attention_kernel_are_counted():
    with FakeTensorMode(), Ledger() as ledger:
        q = torch.empty(2, 3, 64, 16, requires_grad=True)
        out = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        forward = ledger.flops
        out.sum().backward()
    assert forward == 2 * (2 * 2 * 3 * 64 * 64 * 16)
    assert ledger.flops == forward + 5 * forward // 2  # five products for the forward's two: it recomputes one


def test_an_operator_that_only_writes_is_not_run():
    with FakeTensorMode(), Ledger() as ledger:
        parameter = torch.nn.Parameter(torch.empty(1024))
        parameter.grad = torch.empty(1024)
        torch.optim.SGD([parameter], lr=0.1, fused=True).step()  # has no rule for tensors without data
    assert ledger.live["all"] == 2 * 4096


def test_on_real_tensors_everything_is_run():
    with Ledger(data=True) as ledger:
        parameter = torch.nn.Parameter(torch.ones(1024))
        parameter.grad = torch.ones(1024)
        torch.optim.SGD([parameter], lr=0.5, fused=True).step()
        assert ledger.live["all"] == 2 * 4096
    assert float(parameter.detach()[0]) == 0.5


def test_what_comes_before_the_beginning_is_held_and_not_counted():
    with FakeTensorMode(), Ledger() as ledger:
        kept = torch.empty(1, 256)
        kept @ torch.empty(256, 64)
        ledger.begin()
        kept @ torch.empty(256, 1)
    assert peak(ledger) == 2 * 1024 + 4
    assert ledger.flops == 2 * 256


def stack(layers: int, special: int = 8) -> Timeline:
    """``layers`` matrix products that keep what they are given, the lowest of them narrower, and their gradients."""
    ledger = Ledger()
    with FakeTensorMode(), ledger:
        weights = [torch.empty(special if i == 0 else 32, 32, requires_grad=True) for i in range(layers)]
        ledger.begin()
        x = torch.empty(64, special)
        for i, weight in enumerate(weights):
            ledger.mark(("forward", i))
            if x.requires_grad:
                x.register_hook(lambda _, i=i: ledger.mark(("backward", i - 1)))
            x = torch.sin(x @ weight)
        ledger.mark(("middle", 0))
        x.register_hook(lambda _: ledger.mark(("backward", layers - 1)))
        x.sum().backward()
        ledger.mark(("after", 0))
        norms = [torch.linalg.vector_norm(weight.grad) for weight in weights]
        torch.stack(norms)
    return Timeline.of(ledger.parts, ledger.moments, ledger.marks, ledger.flops)


def test_two_short_stacks_tell_the_peak_of_a_tall_one():
    for height in (4, 9, 40):
        found, whole = extended(stack(2), stack(3), 2, 1, height - 2), stack(height)
        assert found is not None
        assert found.bytes.max() == whole.bytes.max()
        assert found.flops == whole.flops


def test_stacks_that_do_not_repeat_are_not_extended():
    one, other = stack(2), stack(3)
    renamed = Timeline(other.parts, (*other.names[:20], "else", *other.names[21:]), other.bytes, other.marks, 0)
    assert extended(one, renamed, 2, 1, 5) is None
    assert extended(one, Timeline(other.parts, other.names, other.bytes, other.marks[:-2], 0), 2, 1, 5) is None
    assert extended(one, stack(4), 2, 1, 5) is None
