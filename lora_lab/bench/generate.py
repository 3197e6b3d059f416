"""Greedy generation for several lanes at once, with one key-value cache over the resident base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from lora_lab.methods import Attachment
from lora_lab.packing.paths import Mount
from lora_lab.packing.stacks import Share


@dataclass(frozen=True, eq=False)
class Prompts:
    """What one adapter (``None``: the base model) is asked: token ids of each prompt."""

    attachment: Attachment | None
    ids: Sequence[Sequence[int]]


@torch.no_grad()
def generate(mount: Mount, lanes: Sequence[Prompts], max_new_tokens: int, batch_size: int) -> list[list[str]]:
    """The greedy answers of every lane, decoded, cut at the end-of-sequence token.

    ``batch_size`` prompts of each lane run together, of like length, padded on the left.
    """
    answers = [[""] * len(lane.ids) for lane in lanes]
    orders = [sorted(range(len(lane.ids)), key=[len(ids) for ids in lane.ids].__getitem__) for lane in lanes]
    longest = max((len(order) for order in orders), default=0)
    for start in range(0, longest, batch_size):
        chunks = [order[start : start + batch_size] for order in orders]
        texts = _greedy(mount, lanes, chunks, max_new_tokens)
        for lane, chunk in enumerate(chunks):
            for i in chunk:
                answers[lane][i] = texts.pop(0)
    return answers


def _greedy(mount: Mount, lanes: Sequence[Prompts], chunks: list[list[int]], max_new_tokens: int) -> list[str]:
    model, tokenizer, device = mount.base.model, mount.base.tokenizer, mount.base.device
    prompts = [list(lane.ids[i]) for lane, chunk in zip(lanes, chunks, strict=True) for i in chunk]
    width = max(len(p) for p in prompts)
    stop = int(tokenizer.eos_token_id)
    ids = torch.full((len(prompts), width), stop, dtype=torch.long)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    produced: list[torch.Tensor] = []
    for _ in range(max_new_tokens):
        with mount.shares(_shares(lanes, chunks, ids.shape[1])):
            hidden = model.base_model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            ).last_hidden_state[:, -1]
        with mount.shares(_shares(lanes, chunks, 1)):
            token = model.get_output_embeddings()(hidden).argmax(-1)
        token = torch.where(alive, token, stop)
        produced.append(token)
        alive &= token != stop
        if not bool(alive.any()):
            break
        ids = token.unsqueeze(1)
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        positions = positions[:, -1:] + 1
    rows = torch.stack(produced, dim=1).tolist()
    cut = [row[: row.index(stop)] if stop in row else row for row in rows]
    return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in cut]


def _shares(lanes: Sequence[Prompts], chunks: list[list[int]], length: int) -> list[Share]:
    shares, start = [], 0
    for lane, chunk in zip(lanes, chunks, strict=True):
        stop = start + len(chunk) * length
        shares.append(Share(lane.attachment, start, stop))
        start = stop
    return shares
