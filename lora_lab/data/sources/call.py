"""Rows from a Python function of the user's: ``data.call._target_`` is its name, the other entries its arguments.

The function gives an iterable of mappings, which are read like the rows of a file
(:mod:`lora_lab.data.sources.table`). A sweep file may come from a stranger, and a function may do anything; so none is
called unless the user says so where no file can: ``allow_code=true`` on the command line, or ``LORA_LAB_ALLOW_CODE=1``
in the environment.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from lora_lab.data.columns import Row, check_columns, kind_of
from lora_lab.data.sources import table
from lora_lab.errors import DataError
from lora_lab.spec import DataSpec, thaw

ALLOW = "LORA_LAB_ALLOW_CODE"


def check(spec: DataSpec) -> Callable[..., Any]:
    """The function that ``spec`` names.

    Raises:
        DataError: running code is not allowed, or there is no such function.
    """
    check_columns(spec.columns, table.COLUMNS, "callable")
    target = str(dict(spec.call)["_target_"])
    if os.environ.get(ALLOW, "").lower() not in ("1", "true"):
        raise DataError(
            f"data.call._target_={target}: names a Python function, and running it may do anything on this machine. "
            f"If you trust where this name comes from, add allow_code=true to the command (or set {ALLOW}=1)."
        )
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise DataError(
            f"data.call._target_={target}: cannot be imported ({error}). Give package.module.function; a module in the "
            "current folder is found with PYTHONPATH=."
        ) from error
    if not callable(found):
        raise DataError(f"data.call._target_={target}: is no function but {kind_of(found)}.")
    function: Callable[..., Any] = found
    return function


def rows(spec: DataSpec) -> Iterator[Row | DataError]:
    """What the function gives, row by row.

    Raises:
        DataError: as :func:`check`; it raises, or gives something other than rows.
    """
    function = check(spec)
    arguments = {name: thaw(value) for name, value in spec.call if name != "_target_"}
    target = dict(spec.call)["_target_"]
    try:
        given: Iterable[Any] = function(**arguments)
        if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
            raise DataError(
                f"{target}: must give an iterable of rows such as {{'instruction': …, 'output': …}}, "
                f"gave {kind_of(given)}."
            )
        for number, values in enumerate(given, start=1):
            place = f"{target} row {number}"
            if isinstance(values, Mapping):
                yield Row(place, values)
            else:
                yield DataError(f"{place}: expected a mapping of columns, found {kind_of(values)}.")
    except DataError:
        raise
    except Exception as error:  # the user's own code: whatever it raises is about that code
        raise DataError(f"{target}: failed with {type(error).__name__}: {error}. Mend it, or its arguments.") from error
