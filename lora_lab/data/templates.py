"""Prompt templates: from a record to a prompt and a response. One table, ``TEMPLATES``.

======== ===========================================================================================================
chat     the tokenizer's own chat template, with the generation prompt
chatml   ChatML without the system turn that some chat templates add; a system turn in the data is kept
llama2   Llama 2's chat format (arXiv:2307.09288; its reference code strips every turn, and so does this)
alpaca   the two texts of Stanford Alpaca (with and without an input), to the letter
plain    ``instruction``, newline, ``input``, newline: the fewest tokens
raw      the prompt as it stands
jinja    a template of the user's, which is given ``messages``, ``instruction``, ``input``, ``system``, ``task``,
         ``bos_token``, ``eos_token`` and ``add_generation_prompt`` (true), and writes the prompt
======== ===========================================================================================================

The response follows the prompt with nothing between; the end-of-sequence token is added when tokens are made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_lab.data.jinja import Renderer
from lora_lab.data.records import Conversation, Dialogue, Example, Instruction
from lora_lab.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = tuple[tuple[str, str], ...]
Template = Callable[[Dialogue, "PreTrainedTokenizerBase"], Example]

_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)


def render(
    record: Dialogue, template: Template | str, tokenizer: PreTrainedTokenizerBase, turns: str = "last"
) -> Example:
    """Apply ``template`` (itself, or a key of :data:`TEMPLATES`) to a record.

    With ``turns="all"`` the earlier answers of a conversation are told apart from what stands between them: the prompt
    of each answer must then begin with all that comes before.

    Raises:
        DataError: a template that refuses the turns; or one that rewrites earlier turns, where all are to be learned.
    """
    apply = TEMPLATES[template] if isinstance(template, str) else template
    whole = apply(record, tokenizer)
    if turns == "last" or not isinstance(record, Conversation):
        return whole
    earlier: list[tuple[str, str]] = []
    done = ""
    for i, (role, content) in enumerate(record.turns):
        if role != "assistant" or i == 0:
            continue
        part = apply(Conversation(record.turns[:i], content), tokenizer)
        answer = next(
            (a for a in (part.response, content, content.strip()) if whole.prompt.startswith(part.prompt + a)), None
        )
        if answer is None or not part.prompt.startswith(done):
            raise DataError(
                "data.turns=all: the template writes an earlier turn another way once the conversation goes on, so "
                "earlier answers cannot be learned where they stand. Choose data.turns=last, or data.template=chatml."
            )
        if answer.strip():
            earlier.append((part.prompt[len(done) :], answer))
            done = part.prompt + answer
    return replace(whole, prompt=whole.prompt[len(done) :], earlier=tuple(earlier))


def needs_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer without chat template.

    Raises:
        DataError: it has none; the other templates are named.
    """
    if not tokenizer.chat_template:
        raise DataError(
            "data.template=chat: this tokenizer has no chat template (a base model, most likely). "
            "Choose data.template=chatml, alpaca or plain."
        )


def jinja_template(renderer: Renderer) -> Template:
    """The template ``jinja`` in the process that renders it."""

    def apply(record: Dialogue, tokenizer: PreTrainedTokenizerBase) -> Example:
        turns = _turns(record)
        asked = [content for role, content in turns if role == "user"]
        values = {
            "messages": [{"role": role, "content": content} for role, content in turns],
            "instruction": record.instruction if isinstance(record, Instruction) else asked[-1] if asked else "",
            "input": record.input if isinstance(record, Instruction) else "",
            "system": next((content for role, content in turns if role == "system"), ""),
            "task": record.task,
            "bos_token": tokenizer.bos_token or "",
            "eos_token": tokenizer.eos_token or "",
            "add_generation_prompt": True,
        }
        return Example(renderer.render(values), _response(record), record.task)

    return apply


def _turns(record: Dialogue) -> Turns:
    if isinstance(record, Conversation):
        return record.turns
    return (("user", f"{record.instruction}\n{record.input}" if record.input else record.instruction),)


def _response(record: Dialogue) -> str:
    return record.response if isinstance(record, Conversation) else record.output


def _chat(record: Dialogue, tokenizer: PreTrainedTokenizerBase) -> Example:
    import jinja2

    turns = _turns(record)
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        prompt: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except jinja2.TemplateError as error:
        roles = ", ".join(role for role, _ in turns[:12])
        raise DataError(
            f"data.template=chat: the tokenizer's chat template refuses a conversation ({error}); its roles: {roles}. "
            f"Its last turn: {turns[-1][1][:60]!r}. Mend the data, or choose data.template=chatml."
        ) from error
    return Example(prompt, _response(record), record.task)


def _chatml(record: Dialogue, _: PreTrainedTokenizerBase) -> Example:
    prompt = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in _turns(record))
    return Example(f"{prompt}<|im_start|>assistant\n", _response(record), record.task)


def _llama2(record: Dialogue, tokenizer: PreTrainedTokenizerBase) -> Example:
    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
    gap = "" if _begins_with_a_space(tokenizer) else " "
    prompt, system = "", ""
    for role, content in _turns(record):
        text = content.strip()
        if role == "system":
            system = f"<<SYS>>\n{text}\n<</SYS>>\n\n"
        elif role == "user":
            prompt += f"[INST] {system}{text} [/INST]"
            system = ""
        else:
            prompt += f" {text} {eos}{bos}"
    return Example(prompt, f"{gap}{_response(record).strip()} ", record.task)


def _begins_with_a_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer takes every text to begin with a space, as Llama's does: it must not be given another."""
    first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"][:1])
    return bool(first) and first[0].startswith("\u2581")


def _alpaca(record: Dialogue, _: PreTrainedTokenizerBase) -> Example:
    if isinstance(record, Instruction):
        if record.input:
            prompt = (
                f"{_ALPACA_INPUT}### Instruction:\n{record.instruction}\n\n### Input:\n{record.input}\n\n### Response:"
            )
        else:
            prompt = f"{_ALPACA}### Instruction:\n{record.instruction}\n\n### Response:"
        return Example(prompt, record.output, record.task)
    system = "".join(f"{content}\n\n" for role, content in record.turns if role == "system")
    heads = {"user": "### Instruction:\n", "assistant": "### Response:"}  # an answer begins as the last one does
    prompt = "".join(f"{heads[role]}{content}\n\n" for role, content in record.turns if role != "system")
    return Example(f"{system or _ALPACA}{prompt}### Response:", record.response, record.task)


def _plain(record: Dialogue, _: PreTrainedTokenizerBase) -> Example:
    return Example("".join(f"{content}\n" for _, content in _turns(record)), _response(record), record.task)


def _raw(record: Dialogue, _: PreTrainedTokenizerBase) -> Example:
    return Example("".join(content for _, content in _turns(record)), _response(record), record.task)


TEMPLATES: Mapping[str, Template] = {
    "chat": _chat,
    "chatml": _chatml,
    "llama2": _llama2,
    "alpaca": _alpaca,
    "plain": _plain,
    "raw": _raw,
}
"""Template name -> how it renders a record; ``jinja`` is made for its text by :func:`jinja_template`."""
