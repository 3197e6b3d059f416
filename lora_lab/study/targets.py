"""Any sampler or pruner of Optuna, or of one's own, by its ``_target_``: the dotted name of its class.

A sweep's file may come from a stranger, and importing a package runs its code. So a ``_target_`` outside
:data:`TRUSTED` is imported only with ``sweep.allow_code=true`` on the command line, and whatever it names must be a
class of the kind that is wanted.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from lora_lab.errors import SpecError
from lora_lab.study.made import made

TARGET = "target"
"""The name of a strategy whose options are a ``_target_`` and its arguments."""
TRUSTED = ("lora_lab", "optuna", "torch", "transformers", "peft")


def sampler_target(options: Mapping[str, Any], allow_code: bool, seed: int) -> BaseSampler:
    """The sampler that ``options`` describe: ``_target_`` and arguments, which may hold further ones.

    It gets ``seed`` where it takes one and was given none.

    Raises:
        SpecError: no ``_target_``, code that is not allowed, a class that is missing or of another kind, or arguments
            that it refuses.
    """
    found = _target("sampler", options, allow_code, seed)
    assert isinstance(found, BaseSampler)
    return found


def pruner_target(options: Mapping[str, Any], allow_code: bool) -> BasePruner:
    """The pruner that ``options`` describe; raises as :func:`sampler_target`."""
    found = _target("pruner", options, allow_code, None)
    assert isinstance(found, BasePruner)
    return found


def _target(kind: str, options: Mapping[str, Any], allow_code: bool, seed: int | None) -> Any:
    wanted: type[Any] = BasePruner if kind == "pruner" else BaseSampler
    arguments = dict(options)
    name = arguments.pop("_target_", None)
    if not isinstance(name, str) or "." not in name:
        raise SpecError(
            f"sweep.{kind}={TARGET} needs {kind}.options._target_, the dotted name of a class, as in "
            f"optuna.{kind}s.{wanted.__name__}; got {name!r}."
        )
    found = _imported(kind, name, allow_code)
    if not (inspect.isclass(found) and issubclass(found, wanted)):
        raise SpecError(f"sweep.{kind}: {name} is no {wanted.__name__}.")
    for argument, value in arguments.items():
        if isinstance(value, Mapping) and "_target_" in value:
            arguments[argument] = _target("pruner" if "pruner" in argument else "sampler", value, allow_code, seed)
    takes = inspect.signature(found).parameters
    if seed is not None and "seed" in takes:
        arguments.setdefault("seed", seed)
    for quiet in ("warn_independent_sampling", "warn_asynchronous_seeding"):
        if quiet in takes and takes[quiet].default is True:
            arguments.setdefault(quiet, False)
    return made(kind, name, arguments, lambda: found(**arguments))


def _imported(kind: str, name: str, allow_code: bool) -> Any:
    parts = name.split(".")
    if parts[0] not in TRUSTED and not allow_code:
        raise SpecError(
            f"sweep.{kind}: {name} is code from outside {', '.join(TRUSTED)}. If you trust it, add "
            "sweep.allow_code=true to the command."
        )
    for cut in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise SpecError(f"sweep.{kind}: {name} cannot be imported: {error}.") from error
            continue
        for part in parts[cut:]:
            found = getattr(found, part, None)
        if found is None:
            raise SpecError(f"sweep.{kind}: {module} has no {'.'.join(parts[cut:])}.")
        return found
    raise SpecError(f"sweep.{kind}: no package {parts[0]!r} is installed, which {name} needs.")
