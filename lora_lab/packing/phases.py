"""What a stretch of the packed step makes its tensors for, told to whoever listens.

The step names three phases: ``logits`` (the head and what follows it), ``gradients`` (those of parameters) and
``workspace`` (what one lane makes for a moment, before the next one does). All else is the caller's. Without a
listener, as in training, a phase costs a look at a context variable and does nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar

Listener = Callable[[str], AbstractContextManager[None]]
"""Given a phase's name, gives the context that the phase runs in."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
_UNHEARD: AbstractContextManager[None] = contextlib.nullcontext()


def phase(name: str) -> AbstractContextManager[None]:
    """Within, new tensors belong to phase ``name``; an inner phase ends when the outer one goes on."""
    listener = _listener.get()
    return _UNHEARD if listener is None else listener(name)


@contextlib.contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Within, on this thread, ``listener`` is asked for the context of every phase."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
