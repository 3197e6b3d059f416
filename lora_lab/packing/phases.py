"""What a stretch of the packed step makes its tensors for, told to whoever listens.

The step names three phases: ``logits`` (the head and what follows it), ``gradients`` (those of parameters) and
``workspace`` (what one lane makes for a moment, before the next one does). All else is the caller's. Without a
listener, as in training, a phase costs a look at a context variable and does nothing. Kernels of this project's own say
what they compute, which no one else can see.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar

from torch import Tensor

Listener = Callable[[str], AbstractContextManager[None]]
"""Given a phase's name, gives the context that the phase runs in."""

Boundary = Callable[[int, Tensor], None]
"""Given a decoder layer's number, and what it is about to read."""

Counter = Callable[[int], None]
"""Given floating-point operations that a kernel of this project's own does."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
_boundary: ContextVar[Boundary | None] = ContextVar("boundary", default=None)
_counter: ContextVar[Counter | None] = ContextVar("counter", default=None)
_UNHEARD: AbstractContextManager[None] = contextlib.nullcontext()


def phase(name: str) -> AbstractContextManager[None]:
    """Within, new tensors belong to phase ``name``; an inner phase ends when the outer one goes on."""
    listener = _listener.get()
    return _UNHEARD if listener is None else listener(name)


def layer_begins(layer: int, hidden: Tensor) -> None:
    """Decoder layer ``layer`` is about to read ``hidden``; the number after the last one says that all are done."""
    boundary = _boundary.get()
    if boundary is not None:
        boundary(layer, hidden)


def computed(flops: Callable[[], int]) -> None:
    """A kernel does ``flops()`` floating-point operations, which is asked for where somebody counts."""
    counter = _counter.get()
    if counter is not None:
        counter(flops())


@contextlib.contextmanager
def heard_by(listener: Listener, boundary: Boundary | None = None) -> Iterator[None]:
    """Within, on this thread, ``listener`` is asked for each phase's context and ``boundary`` told of each layer."""
    tokens = _listener.set(listener), _boundary.set(boundary)
    try:
        yield
    finally:
        _listener.reset(tokens[0])
        _boundary.reset(tokens[1])


@contextlib.contextmanager
def counted_by(counter: Counter) -> Iterator[None]:
    """Within, on this thread, ``counter`` is told what kernels compute."""
    token = _counter.set(counter)
    try:
        yield
    finally:
        _counter.reset(token)
