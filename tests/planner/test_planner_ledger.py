"""The ledger books every storage once, lets go of it with its last owner, and finds the peak of any number of lanes."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lora_lab.planner.ledger import Ledger


def peak(ledger: Ledger, lanes: int = 1) -> int:
    return max(crest.shared + lanes * crest.own for crest in ledger.crests)


def test_views_share_a_storage_and_freed_tensors_leave():
    with FakeTensorMode(), Ledger() as ledger:
        a = torch.empty(256)  # 1 kB
        view = a.view(16, 16)[3:]
        del a
        assert ledger.live["other"] == 1024
        del view
        assert ledger.live["other"] == 0
    assert peak(ledger) == 1024


def test_what_only_the_graph_holds_is_alive_until_the_backward():
    with FakeTensorMode(), Ledger() as ledger:
        x = torch.empty(256, requires_grad=True)
        y = (x * x).sin()  # the graph keeps x * x, 1 kB, for the backward of sin
        assert ledger.live["other"] == 3 * 1024
        loss = y.sum()
        del y
        assert ledger.live["other"] == 2 * 1024 + 4
        loss.backward()
        del loss
        assert ledger.live["other"] == 2 * 1024  # x and its gradient
        assert x.grad is not None


def test_a_storage_moves_between_parts():
    with FakeTensorMode(), Ledger() as ledger, ledger.phase("activations"):
        a = torch.empty(256)
        ledger.book(a, "gradients")
    assert dict(ledger.live) == {"activations": 0, "gradients": 1024}


def test_the_peak_of_many_lanes_may_be_another_moment_than_that_of_one():
    with FakeTensorMode(), Ledger({"shared"}) as ledger:
        with ledger.phase("shared"):
            wide = torch.empty(1000, dtype=torch.uint8)  # alone: 1000
        del wide
        with ledger.phase("own"):
            kept = torch.empty(700, dtype=torch.uint8)  # every lane its own: 700, 1400, …
    assert peak(ledger, 1) == 1000
    assert peak(ledger, 2) == 1400
    assert kept.shape == (700,)
    assert len(ledger.crests) == 2


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
    assert ledger.live["other"] == 2 * 4096
