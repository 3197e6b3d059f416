"""Where the time of a packed step goes: the base's products, the lanes' own, what lies between, and Python.

The runs are those of benchmarks/sweep_throughput.py, all of them as lanes of one pack, on a CPU. After the first steps
each part is timed where it is called. The rate of the base's products stands beside the fastest that the machine gives
on the model's own shapes, and beside what the step's own numbers of rows allow: the same products, each alone.

    python benchmarks/step_profile.py [--shape 1x64] [--lanes 16] [--steps 3]

Results are added to benchmarks/results/step_profile.json with the machine they were measured on.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine
import torch
from throughput import packed
from throughput.child import load
from throughput.workload import Shape, planned, points, training_flops
from torch import Tensor

from lora_lab.engine.lane import Lane
from lora_lab.engine.pack import Pack
from lora_lab.packing import head, native, self_attention
from lora_lab.packing.frozen import Frozen

RESULTS = Path(__file__).parent / "results" / "step_profile.json"
BASE = "the layers' products with the base"
KINDS = {
    "add_low_rank": "the lanes' own products (kernel)",
    "causal_softmax": "attention: softmax, rotary, heads (kernels)",
    "split_rotate": "attention: softmax, rotary, heads (kernels)",
    "join": "attention: softmax, rotary, heads (kernels)",
    "add_norm": "norms, SwiGLU, cross-entropy, dropout (kernels)",
    "swiglu": "norms, SwiGLU, cross-entropy, dropout (kernels)",
    "cross_entropy": "norms, SwiGLU, cross-entropy, dropout (kernels)",
    "dropout": "norms, SwiGLU, cross-entropy, dropout (kernels)",
}
"""Kernels by the beginning of their names."""
HEAD = "the head's products"
BATCHED = "attention: products of short sequences"
ATTENTION = "attention: PyTorch's kernel for long sequences, copies"
UPDATE = "clipping, optimizer, schedule"
REST = "Python, and what has no name here"


@dataclass
class Times:
    """Seconds by part, of counted steps only, and of these ``steps`` themselves; ``products`` are the shapes of the
    base's, ``(rows, in, out)``."""

    steps: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    products: list[tuple[int, int, int]] = field(default_factory=list)
    counting: bool = False
    _inside: list[float] = field(default_factory=lambda: [0.0])

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """What is within belongs to ``part``, but for the parts within it."""
        began = time.perf_counter()
        self._inside.append(0.0)
        try:
            yield
        finally:
            took, inner = time.perf_counter() - began, self._inside.pop()
            self._inside[-1] += took
            if self.counting:
                self.seconds[part] += took - inner


@contextmanager
def timed(times: Times, first: int, count: int) -> Iterator[None]:
    """Within, the parts of ``count`` steps after the ``first`` ones report to ``times``."""
    step, done = Pack._one_step, 0

    def stepped(self: Pack) -> Any:
        nonlocal done
        times.counting = first <= done < first + count
        began = time.perf_counter()
        ended = step(self)
        if times.counting:
            times.steps += time.perf_counter() - began
        times.counting, done = False, done + 1
        return ended

    kernel, forward, back, update, bmm = native.call, Frozen.product, Frozen.back, Lane.update, torch.bmm
    wholes = [
        (head, "_blockwise", HEAD, head._blockwise),
        (self_attention, "_bucket", ATTENTION, self_attention._bucket),
        (self_attention, "_bucket_backward", ATTENTION, self_attention._bucket_backward),
    ]

    def called(name: str, *words: Any) -> Any:
        part = next((kind for begin, kind in KINDS.items() if name.startswith(begin)), "other kernels")
        with times.of(part):
            return kernel(name, *words)

    def product(self: Frozen, x: Tensor) -> Tensor:
        with times.of(BASE):
            y = forward(self, x)
        if times.counting:
            times.products.append((len(x), x.shape[1], y.shape[1]))
        return y

    def backward(self: Frozen, dy: Tensor) -> Tensor:
        with times.of(BASE):
            dx = back(self, dy)
        if times.counting:
            times.products.append((len(dy), dy.shape[1], dx.shape[1]))
        return dx

    def updated(self: Lane) -> Any:
        with times.of(UPDATE):
            return update(self)

    def batched(*words: Any, **named: Any) -> Tensor:
        with times.of(BATCHED):
            return bmm(*words, **named)

    def within(part: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called_within(*words: Any) -> Any:
            with times.of(part):
                return real(*words)

        return called_within

    patches: list[tuple[Any, str, Callable[..., Any], Callable[..., Any]]] = [
        (Pack, "_one_step", step, stepped),
        (native, "call", kernel, called),
        (Frozen, "product", forward, product),
        (Frozen, "back", back, backward),
        (Lane, "update", update, updated),
        (torch, "bmm", bmm, batched),
        *((owner, name, real, within(part, real)) for owner, name, part, real in wholes),
    ]
    for owner, name, _, mine in patches:
        setattr(owner, name, mine)
    try:
        yield
    finally:
        for owner, name, real, _ in patches:
            setattr(owner, name, real)


def alone(products: list[tuple[int, int, int]], dtype: torch.dtype) -> float:
    """FLOP/s of these products, each alone with its operands at hand."""
    seconds = flops = 0.0
    counts: dict[tuple[int, int, int], int] = defaultdict(int)
    for shape in products:
        counts[shape] += 1
    for (rows, inputs, outputs), count in counts.items():
        x, weight = torch.randn(rows, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
        torch.nn.functional.linear(x, weight)
        took = []
        for _ in range(5):
            began = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            took.append(time.perf_counter() - began)
        seconds += count * sorted(took)[2]
        flops += count * 2.0 * rows * inputs * outputs
    return flops / seconds


def main() -> None:
    """Train, print where the time went, keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1x64", help="2x96, alpaca, …")
    parser.add_argument("--lanes", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4, help="counted steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--model", nargs="+", default=[], metavar="key=value", help="overrides, e.g. model=tiny")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    shape = Shape.read(args.shape)
    specs = points([*args.model, *shape.overrides, f"budget.steps={args.warmup + args.steps + 1}"], args.lanes)
    base = load(specs[0].model, "cpu")
    runs = planned(base, shape, [f"run{i:02d}" for i in range(args.lanes)], specs)
    times = Times()
    dtype = getattr(torch, specs[0].model.dtype)
    peak = machine.gemm_peak(machine.linear_shapes(base.model), dtype)
    with timed(times, args.warmup, args.steps):
        packed.train(base, runs, args.warmup, args.lanes)  # its last step is followed by an evaluation
    end = args.warmup + args.steps
    flops = sum(training_flops(base, run, args.warmup) - training_flops(base, run, end) for run in runs)
    product = sum(2.0 * rows * inputs * outputs for rows, inputs, outputs in times.products)
    found = {
        "shape": shape.name,
        "model": specs[0].model.name,
        "lanes": args.lanes,
        "steps": args.steps,
        "step_seconds": times.steps / args.steps,
        "peak": peak,
        "share_of_peak": flops / times.steps / peak,
        "parts": {part: seconds / times.steps for part, seconds in times.seconds.items()},
        "base_products": product / times.seconds[BASE],
        "base_products_alone": alone(times.products, dtype),
        "base_products_share_of_flops": product / flops,
    }
    found["parts"][REST] = 1 - sum(found["parts"].values())
    step = f"{found['step_seconds']:.3f} s a step, {found['share_of_peak']:.0%} of the peak"
    print(f"{args.lanes} lanes of {shape.name}: {step}")
    for part, share in sorted(found["parts"].items(), key=lambda item: -item[1]):
        print(f"{share:>7.1%}  {part}")
    rates = (f"{name} {rate / 1e9:.0f}" for name, rate in (("alone", found["base_products_alone"]), ("peak", peak)))
    print(
        f"{BASE}: {found['base_products_share_of_flops']:.0%} of the FLOPs, at "
        f"{found['base_products'] / 1e9:.0f} GFLOP/s; {', '.join(rates)}"
    )
    facts = machine.facts() | {"threads": args.threads}
    machine.keep(args.results, [found | {"machine": facts}])
    print(f"kept in {args.results}")


if __name__ == "__main__":
    main()
