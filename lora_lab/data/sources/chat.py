"""Conversations: a ``messages`` column.

Three shapes are read: ``{"role", "content"}`` objects (OpenAI), ``{"from", "value"}`` objects (ShareGPT), and plain
strings that take turns, the user first (LIMA). The last turn of the assistant is the response, all before it is the
prompt; turns after it have no answer and are left out. In a file that holds no lists (CSV) the column is their JSON.
"""

from __future__ import annotations

import json
from typing import Any

from lora_lab.data.columns import CELL_CHARACTERS, Row, cell, column, kind_of, names_of, snippet, text_of
from lora_lab.data.records import Conversation
from lora_lab.errors import DataError
from lora_lab.spec import Pairs

COLUMNS = ("messages", "task")

MESSAGES = 512
"""A conversation has at most this many messages."""

_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


def record(row: Row, columns: Pairs) -> Conversation:
    """One row as a conversation.

    Raises:
        DataError: no messages, a message of another shape or role, or no assistant turn that answers something.
    """
    messages = cell(row, "messages", columns)
    name = dict(columns).get("messages", "messages")
    if isinstance(messages, str) and messages.lstrip().startswith("["):
        messages = _unpacked(row, name, messages)
    if not isinstance(messages, list) or not messages:
        raise DataError(
            f'{row.place}: "{name}" must be a list of messages, found {kind_of(messages)}. '
            'Write e.g. [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}].'
        )
    if len(messages) > MESSAGES:
        raise DataError(
            f'{row.place}: "{name}" has {len(messages):,} messages, and at most {MESSAGES} are taken. Divide it.'
        )
    turns = [_turn(row, i, message) for i, message in enumerate(messages)]
    characters = sum(len(content) for _, content in turns)
    if characters > CELL_CHARACTERS:
        raise DataError(
            f'{row.place}: "{name}" has {characters:,} characters in all, and at most {CELL_CHARACTERS:,} are taken. '
            "Divide it."
        )
    answers = [i for i, (role, _) in enumerate(turns) if role == "assistant"]
    if not answers:
        raise DataError(
            f'{row.place}: no turn of the assistant among {len(turns)} in "{name}", so there is nothing to learn. '
            "Add the answer, or delete the line."
        )
    last = answers[-1]
    if not any(role == "user" for role, _ in turns[:last]):
        raise DataError(
            f'{row.place}: no turn of the user before the assistant\'s last in "{name}". '
            "Add the question, or use data.name=text for text without prompts."
        )
    return Conversation(tuple(turns[:last]), turns[last][1], column(row, "task", columns, default=""))


def _unpacked(row: Row, name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f'{row.place}: "{name}" begins like a JSON list and is none: {snippet(text)}. Mend or delete the row.'
        ) from error


def _turn(row: Row, i: int, message: Any) -> tuple[str, str]:
    place = f"{row.place}, message {i + 1}"
    if isinstance(message, str):
        return ("assistant" if i % 2 else "user"), text_of(row.place, f"message {i + 1}", message)
    if not isinstance(message, dict):
        raise DataError(f"{place}: must be an object with role and content, found {kind_of(message)}.")
    keys = ("from", "value") if "from" in message else ("role", "content")
    for key in keys:
        if key not in message:
            raise DataError(
                f'{place}: "{key}" is missing; found: {names_of(message)}. '
                'Each message needs "role" and "content" (or "from" and "value").'
            )
    role, content = (message[key] for key in keys)
    if not isinstance(role, str) or role not in _ROLES:
        said = repr(snippet(role, 40)) if isinstance(role, str) else kind_of(role)
        raise DataError(f"{place}: unknown role {said}. Known: {', '.join(_ROLES)}.")
    if not isinstance(content, str):
        raise DataError(
            f'{place}: "{keys[1]}" must be a string, found {kind_of(content)}. Only text can be trained on.'
        )
    return _ROLES[role], text_of(place, keys[1], content)
