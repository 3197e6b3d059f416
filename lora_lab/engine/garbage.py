"""Python's cyclic garbage collector, kept out of training steps.

A packed step makes tens of thousands of short-lived objects, for which the collector walks through every object of the
loaded model again and again: up to a tenth of a step. What a step leaves is freed by its reference counts; cycles wait
until its end.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def spared() -> Iterator[None]:
    """Within, what exists already is not looked at; after, all is as it was."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def later() -> Iterator[None]:
    """Within, nothing is collected."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
