"""Every error that lora-lab raises on purpose, on one page.

::

    LoraLabError                 something lora-lab understands went wrong
    ├── BadInput                 what the user gave cannot be used         (exit code 2)
    │   ├── SpecError            a value is out of its domain, or two fields contradict
    │   ├── ConfigError          unknown sweep, config key, group or type
    │   ├── SpaceError           a path that does not exist, an empty or inverted domain
    │   ├── DataError            a file, line or column of a data set
    │   ├── ModelError           a base model, its tokenizer, its roles
    │   ├── MethodError          a PEFT method that cannot be attached as asked
    │   ├── SweepFolderError     the sweep's folder: taken, unwritable, full
    │   ├── StorageError         a study storage or tracking store that cannot be reached
    │   └── LauncherError        a scheduler that is missing, away, or refuses a job
    ├── RunFailed                a run ended without a result              (exit code 1)
    │   └── OutOfMemory          the device had too little memory for it
    ├── CheckpointError          a checkpoint or adapter file is torn or of another run
    └── Interrupted              the user stopped it; everything is saved  (exit code 130)

Each message says the cause, the value that was seen and the remedy.  Anything that is *not* a
:class:`LoraLabError` is a bug in lora-lab and is shown with its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LoraLabError(Exception):
    """Root of the tree. ``exit_code`` is what the command line ends with."""

    exit_code = 1


class BadInput(LoraLabError):
    """What the user gave cannot be used; nothing was started and nothing is lost."""

    exit_code = 2


class SpecError(BadInput):
    """A value is out of its domain, or two fields contradict each other."""


class ConfigError(BadInput):
    """An unknown sweep, config key, config group, or a value of the wrong type."""


class SpaceError(BadInput):
    """A search space with an unknown path, or with an empty or inverted domain."""


class DataError(BadInput):
    """A data set that is missing, unreadable, empty, or malformed at a named line."""


class ModelError(BadInput):
    """A base model or tokenizer that cannot be loaded, or lacks what is asked of it."""


class MethodError(BadInput):
    """A PEFT method that cannot be attached as asked."""


class SweepFolderError(BadInput):
    """A sweep folder that belongs to another sweep, cannot be written, or is full."""


class StorageError(BadInput):
    """A study storage or a tracking store that cannot be reached."""


class LauncherError(BadInput):
    """A launcher's scheduler is missing, cannot be reached, or refuses a job."""


class RunFailed(LoraLabError):
    """A run ended without a result."""


class OutOfMemory(RunFailed):
    """The device had too little memory for the run."""


class CheckpointError(LoraLabError):
    """A checkpoint or adapter file is torn, truncated, or belongs to another run."""


class Interrupted(LoraLabError):
    """The user stopped the program; what was running is saved and can be resumed."""

    exit_code = 130


def nearest(name: str, known: Iterable[str]) -> str:
    """End of a sentence: ``"; did you mean 'x'?"`` with the known name closest to ``name``, or ``"."``.

    Every "unknown name" sentence ends with it, so that a typing error is mended by reading.
    """
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{matches[0]}'?" if matches else "."
