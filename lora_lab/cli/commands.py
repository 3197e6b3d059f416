"""Commands as the user can type them here.

In an environment that is not activated (``make sweep`` runs in ``.venv``), ``lora-lab`` and ``mlflow`` are not on
the PATH; a command that is printed then begins with the path of the program.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path


def typed(words: Sequence[str]) -> str:
    """``words`` as a line for the shell, its program found from the working folder."""
    return shlex.join([program(words[0]), *words[1:]])


def program(name: str) -> str:
    """``name`` where the PATH leads to this environment's program of that name, else that program's path."""
    mine = Path(sys.executable).parent / name
    found = shutil.which(name)
    if not mine.exists() or (found is not None and Path(found).exists() and mine.samefile(found)):
        return name
    return str(mine.relative_to(Path.cwd()) if mine.is_relative_to(Path.cwd()) else mine)
