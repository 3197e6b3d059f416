"""A user's Jinja template, rendered where it can do no harm: in a sandbox, in a process with bounds.

A sandbox alone forbids attributes and changes, but not ``'x' * 10**10`` or loops in loops; so the rendering stands in
a child process (:mod:`lora_lab.data.jinja_child`) with bounded memory and processor time, no files and one answer a
row. What the data says is only ever a value in it, never a template.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_lab.data.columns import CELL_CHARACTERS, snippet
from lora_lab.errors import DataError

ROW_SECONDS = 2
"""Processor time that one row may take."""
MEMORY_BYTES = 2**30
"""Address space of the process that renders."""
TEMPLATE_CHARACTERS = 2**16
_PATIENCE = 120.0  # wall seconds; a machine that is busy gives two seconds of its processor in fewer
_CHILD = Path(__file__).with_name("jinja_child.py")


def template_text(said: str) -> str:
    """The template that ``data.jinja`` gives: itself where it has Jinja's brackets in it, else the file of that name.

    Raises:
        DataError: no such file, not UTF-8, or longer than ``TEMPLATE_CHARACTERS``.
    """
    if "{{" in said or "{%" in said:
        text = said
    else:
        file = Path(said).expanduser()
        try:
            with file.open("rb") as stream:
                text = stream.read(4 * TEMPLATE_CHARACTERS + 1).decode("utf-8-sig")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise DataError(
                f"data.jinja={snippet(said)}: has no {{{{ … }}}} in it, and as a file it cannot be read ({reason}). "
                "Give a file, or a template such as 'data.jinja=\"{{ instruction }}\"'."
            ) from error
    if len(text) > TEMPLATE_CHARACTERS:
        raise DataError(f"data.jinja: a template has at most {TEMPLATE_CHARACTERS:,} characters.")
    return text


class Renderer(contextlib.AbstractContextManager["Renderer"]):
    """A compiled template in its process; close it after use.

    Raises:
        DataError: the template cannot be compiled.
    """

    def __init__(self, template: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ.get("PATH", "")},
        )
        self._held = b""
        try:
            limits = {"seconds": ROW_SECONDS, "bytes": MEMORY_BYTES, "characters": CELL_CHARACTERS}
            self._ask({"template": template} | limits)
        except BaseException:
            self.close()
            raise

    def render(self, values: Mapping[str, Any]) -> str:
        """The text for one row.

        Raises:
            DataError: the template refuses the row, fails on it, or takes too long or too much memory for it.
        """
        return self._ask(values)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        with contextlib.suppress(OSError):  # what was not written yet has no reader any more
            self._process.communicate()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, values: Mapping[str, Any]) -> str:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(values).encode() + b"\n")
            self._process.stdin.flush()
            answer: dict[str, str] = json.loads(self._line())
        except (BrokenPipeError, EOFError) as error:
            raise DataError(
                f"data.jinja: the process that renders it ended (exit status {self._process.wait()}); it may "
                f"have needed more than {MEMORY_BYTES // 2**20} MiB. Simplify the template."
            ) from error
        except TimeoutError as error:
            raise DataError(
                f"data.jinja: a row was not rendered within {_PATIENCE:g} s. Simplify the template."
            ) from error
        if "error" in answer:
            raise DataError(f"data.jinja: the template {_complaint(answer['error'])}. Mend it, or the row.")
        return answer["text"]

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        handle, pieces = self._process.stdout.fileno(), [self._held]
        until = time.monotonic() + _PATIENCE
        while b"\n" not in pieces[-1]:
            ready, _, _ = select.select([handle], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                self._process.kill()
                raise TimeoutError
            piece = os.read(handle, 1 << 20)
            if not piece:
                raise EOFError
            pieces.append(piece)
        line, _, self._held = b"".join(pieces).partition(b"\n")
        return line


def _complaint(error: str) -> str:
    said = snippet(error, 300).rstrip(".")
    return said if said.startswith(("takes ", "needs ", "gives ")) else f"fails: {said}"
