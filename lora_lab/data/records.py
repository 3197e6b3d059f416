"""What a source reads, before any template: instructions, conversations, passages; and what a template makes of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction, an optional input, and the wanted output (Alpaca's three columns)."""

    instruction: str
    input: str
    output: str
    task: str = ""

    @property
    def parts(self) -> tuple[str, ...]:
        """Everything it says, as strings; equal parts are the same record."""
        return ("instruction", self.instruction, self.input, self.output, self.task)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns as ``(role, content)`` with role ``system``, ``user`` or ``assistant``, and the assistant's last answer."""

    turns: tuple[tuple[str, str], ...]
    response: str
    task: str = ""

    @property
    def parts(self) -> tuple[str, ...]:
        """Everything it says, as strings; equal parts are the same record."""
        return ("conversation", *(text for turn in self.turns for text in turn), self.response, self.task)


@dataclass(frozen=True, slots=True)
class Passage:
    """Running text without a prompt; every token of it is a target. ``goes_on``: it follows the one before without a
    break, as the next piece of the same document."""

    text: str
    goes_on: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """Everything it says, as strings; equal parts are the same record."""
        return ("passage", self.text)


Dialogue = Instruction | Conversation
Record = Instruction | Conversation | Passage


def fingerprint(record: Record) -> int:
    """64 bits of SHA-256 over everything a record says; equal records have equal ones."""
    return int.from_bytes(hashlib.sha256(json.dumps(record.parts).encode()).digest()[:8], "little")


@dataclass(frozen=True, slots=True)
class Example:
    """A rendered record: the prompt with its template applied, and the response without the end-of-sequence token.

    ``earlier`` are the answers of earlier turns that are learned too: each as ``(text before it, answer)``. They come
    first, and ``prompt`` is then what stands between the last of them and the response.
    """

    prompt: str
    response: str
    task: str = ""
    earlier: tuple[tuple[str, str], ...] = ()
