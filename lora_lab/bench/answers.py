"""Several adapters that speak from one resident base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_lab.adapters.references import Reference
from lora_lab.bench.generate import Prompts, generate
from lora_lab.methods import Attachment
from lora_lab.methods import load as load_adapter
from lora_lab.models import load as load_base
from lora_lab.packing.paths import Mount

Turns = Sequence[Mapping[str, str]]
"""A conversation: ``{"role": "user" | "assistant", "content": …}`` each."""


@dataclass(eq=False)
class Speakers:
    """Adapters (``None``: the base model) mounted on one base; none is loaded again to take its turn."""

    mount: Mount
    attachments: list[Attachment | None]

    @staticmethod
    def load(references: Sequence[Reference], device: str = "auto") -> Speakers:
        """Load the base once, and every adapter onto it.

        Raises:
            ModelError, CheckpointError, MethodError: one of them cannot be loaded.
        """
        import torch

        where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        base = load_base(references[0].model, where)
        mount = Mount(base)
        attachments = [None if one.folder is None else load_adapter(one.folder, base) for one in references]
        for attachment in attachments:
            if attachment is not None:
                mount.mount(attachment)
        return Speakers(mount, attachments)

    @property
    def tokenizer(self) -> Any:
        """The base's."""
        return self.mount.base.tokenizer

    def ids(self, prompt: str | Turns) -> list[int]:
        """Token ids of a text, or of a conversation in the tokenizer's chat template (plain lines without one)."""
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt)["input_ids"])
        if self.tokenizer.chat_template is None:
            text = "".join(f"{turn['role']}: {turn['content']}\n" for turn in prompt) + "assistant:"
        else:
            text = self.tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(text, add_special_tokens=self.tokenizer.chat_template is None)["input_ids"])

    def answer(
        self, prompts: Sequence[str], max_new_tokens: int, batch_size: int, *, chat: bool = False
    ) -> list[list[str]]:
        """Greedy answers, ``[speaker][prompt]``."""
        ids = [self.ids([{"role": "user", "content": prompt}] if chat else prompt) for prompt in prompts]
        lanes = [Prompts(attachment, ids) for attachment in self.attachments]
        return generate(self.mount, lanes, max_new_tokens, batch_size)

    def reply(self, conversations: Sequence[Turns], max_new_tokens: int) -> list[str]:
        """Each speaker's next turn in its own conversation."""
        lanes = [
            Prompts(attachment, [self.ids(turns)])
            for attachment, turns in zip(self.attachments, conversations, strict=True)
        ]
        return [answers[0] for answers in generate(self.mount, lanes, max_new_tokens, 1)]
