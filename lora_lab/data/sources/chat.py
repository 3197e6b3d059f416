"""Conversations: a ``messages`` column in JSON Lines (or a JSON array).

Three shapes are read: ``{"role", "content"}`` objects (OpenAI), ``{"from", "value"}`` objects (ShareGPT), and plain
strings that take turns, the user first (LIMA). The last turn of the assistant is the response, all before it is the
prompt; turns after it have no answer and are left out.
"""

from __future__ import annotations

from typing import Any

from lora_lab.data.reading import Row, cell, check_columns, column, kind_of, read_rows
from lora_lab.data.records import Conversation
from lora_lab.errors import DataError
from lora_lab.spec import Pairs

COLUMNS = ("messages", "task")

_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


def read(path: str, columns: Pairs, field: str = "data.path") -> list[Conversation]:
    """The conversations of a file, in its order.

    Raises:
        DataError: see :func:`lora_lab.data.reading.read_rows` and :func:`record`.
    """
    check_columns(columns, COLUMNS, "chat")
    return [record(row, columns) for row in read_rows(path, field)]


def record(row: Row, columns: Pairs) -> Conversation:
    """One row as a conversation.

    Raises:
        DataError: no messages, a message of another shape or role, or no assistant turn that answers something.
    """
    messages = cell(row, "messages", columns)
    name = dict(columns).get("messages", "messages")
    if not isinstance(messages, list) or not messages:
        raise DataError(
            f'{row.place}: "{name}" must be a list of messages, found {kind_of(messages)}. '
            'Write e.g. [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}].'
        )
    turns = [_turn(row, i, message) for i, message in enumerate(messages)]
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


def _turn(row: Row, i: int, message: Any) -> tuple[str, str]:
    if isinstance(message, str):
        return ("assistant" if i % 2 else "user"), message
    place = f"{row.place}, message {i + 1}"
    if not isinstance(message, dict):
        raise DataError(f"{place}: must be an object with role and content, found {kind_of(message)}.")
    keys = ("from", "value") if "from" in message else ("role", "content")
    for key in keys:
        if key not in message:
            raise DataError(
                f'{place}: "{key}" is missing; found: {", ".join(message) or "nothing"}. '
                'Each message needs "role" and "content" (or "from" and "value").'
            )
    role, content = (message[key] for key in keys)
    if role not in _ROLES:
        raise DataError(f"{place}: unknown role {role!r}. Known: {', '.join(_ROLES)}.")
    if not isinstance(content, str):
        raise DataError(
            f'{place}: "{keys[1]}" must be a string, found {kind_of(content)}. Only text can be trained on.'
        )
    return _ROLES[role], content
