"""Prompt templates: from a record to a prompt and a response. One table, ``TEMPLATES``.

======== ===========================================================================================================
chat     the tokenizer's own chat template, with the generation prompt
chatml   ChatML without the system turn that some chat templates add; a system turn in the data is kept
alpaca   the two texts of Stanford Alpaca (with and without an input), to the letter
plain    ``instruction``, newline, ``input``, newline: the fewest tokens
======== ===========================================================================================================

The response follows the prompt with nothing between; the end-of-sequence token is added when tokens are made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from lora_lab.data.records import Conversation, Example, Instruction
from lora_lab.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = tuple[tuple[str, str], ...]

_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)


def render(record: Instruction | Conversation, template: str, tokenizer: PreTrainedTokenizerBase) -> Example:
    """Apply ``template`` (a key of :data:`TEMPLATES`) to a record.

    Raises:
        DataError: template ``chat`` with a tokenizer that has no chat template, or one that refuses the turns.
    """
    return TEMPLATES[template](record, tokenizer)


def _turns(record: Instruction | Conversation) -> Turns:
    if isinstance(record, Conversation):
        return record.turns
    return (("user", f"{record.instruction}\n{record.input}" if record.input else record.instruction),)


def _response(record: Instruction | Conversation) -> str:
    return record.response if isinstance(record, Conversation) else record.output


def _chat(record: Instruction | Conversation, tokenizer: PreTrainedTokenizerBase) -> Example:
    import jinja2

    if not tokenizer.chat_template:
        raise DataError(
            "data.template=chat: this tokenizer has no chat template (a base model, most likely). "
            "Choose data.template=chatml, alpaca or plain."
        )
    turns = _turns(record)
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        prompt: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except jinja2.TemplateError as error:
        roles = ", ".join(role for role, _ in turns)
        raise DataError(
            f"data.template=chat: the tokenizer's chat template refuses a conversation ({error}); its roles: {roles}. "
            f"Its last turn: {turns[-1][1][:60]!r}. Mend the data, or choose data.template=chatml."
        ) from error
    return Example(prompt, _response(record), record.task)


def _chatml(record: Instruction | Conversation, _: PreTrainedTokenizerBase) -> Example:
    prompt = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in _turns(record))
    return Example(f"{prompt}<|im_start|>assistant\n", _response(record), record.task)


def _alpaca(record: Instruction | Conversation, _: PreTrainedTokenizerBase) -> Example:
    if isinstance(record, Instruction):
        if record.input:
            prompt = (
                f"{_ALPACA_INPUT}### Instruction:\n{record.instruction}\n\n### Input:\n{record.input}\n\n### Response:"
            )
        else:
            prompt = f"{_ALPACA}### Instruction:\n{record.instruction}\n\n### Response:"
        return Example(prompt, record.output, record.task)
    system = "".join(f"{content}\n\n" for role, content in record.turns if role == "system")
    blocks = {"user": "### Instruction:\n{}\n\n", "assistant": "### Response:\n{}\n\n", "system": ""}
    prompt = "".join(blocks[role].format(content) for role, content in record.turns)
    return Example(f"{system or _ALPACA}{prompt}### Response:", record.response, record.task)


def _plain(record: Instruction | Conversation, _: PreTrainedTokenizerBase) -> Example:
    return Example("".join(f"{content}\n" for _, content in _turns(record)), _response(record), record.task)


TEMPLATES: Mapping[str, Callable[[Instruction | Conversation, PreTrainedTokenizerBase], Example]] = {
    "chat": _chat,
    "chatml": _chatml,
    "alpaca": _alpaca,
    "plain": _plain,
}
"""Template name -> how it renders a record."""
