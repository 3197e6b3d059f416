"""What a source reads, before any template: instructions, conversations, passages; and what a template makes of it."""

from __future__ import annotations

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
    """Running text without a prompt; every token of it is a target."""

    text: str

    @property
    def parts(self) -> tuple[str, ...]:
        """Everything it says, as strings; equal parts are the same record."""
        return ("passage", self.text)


Record = Instruction | Conversation | Passage


@dataclass(frozen=True, slots=True)
class Example:
    """A rendered record: the prompt with its template applied, and the response without the end-of-sequence token."""

    prompt: str
    response: str
    task: str = ""
