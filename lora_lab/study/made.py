"""Samplers and pruners from their names and options: what is refused, in one sentence."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from optuna.exceptions import ExperimentalWarning

from lora_lab.errors import SpecError, nearest
from lora_lab.spec import Strategy, thaw

Made = TypeVar("Made")


def options_of(kind: str, strategy: Strategy, allowed: tuple[str, ...]) -> dict[str, Any]:
    """The options of a strategy; ``kind`` is ``sampler`` or ``pruner``.

    Raises:
        SpecError: one that is not ``allowed``, with the nearest that is.
    """
    options: dict[str, Any] = thaw(strategy.options)
    for option in options:
        if option not in allowed:
            takes = f"It takes: {', '.join(allowed)}." if allowed else "It takes none."
            raise SpecError(f"sweep.{kind}: {strategy.name} has no option {option!r}{nearest(option, allowed)} {takes}")
    return options


def made(kind: str, name: str, options: Mapping[str, Any], make: Callable[[], Made]) -> Made:
    """What ``make`` makes, with its refusals as a :class:`SpecError` that names the options."""
    with warnings.catch_warnings():
        # "experimental" in Optuna's words: its interface may change; the tests here would tell.
        warnings.simplefilter("ignore", ExperimentalWarning)
        try:
            return make()
        except (TypeError, ValueError, ImportError) as error:
            raise SpecError(f"sweep.{kind}: {name} refuses its options {dict(options)!r}: {error}") from error
