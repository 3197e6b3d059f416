"""Greedy generation for several lanes at once, with one key-value cache over the resident base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from lora_lab.bench.decoding import hidden_states
from lora_lab.methods import Attachment
from lora_lab.packing.paths import Mount
from lora_lab.packing.stacks import Share


@dataclass(frozen=True, eq=False)
class Prompts:
    """What one adapter (``None``: the base model) is asked: token ids of each prompt."""

    attachment: Attachment | None
    ids: Sequence[Sequence[int]]


@torch.no_grad()
def generate(
    mount: Mount, lanes: Sequence[Prompts], max_new_tokens: int, batch_size: int, stop: Sequence[str] = ()
) -> list[list[str]]:
    """The greedy answers of every lane, decoded, cut at the end-of-sequence token and at the first ``stop`` string.

    ``batch_size`` prompts of each lane run together, of like length, padded on the left.
    """
    answers = [[""] * len(lane.ids) for lane in lanes]
    orders = [sorted(range(len(lane.ids)), key=[len(ids) for ids in lane.ids].__getitem__) for lane in lanes]
    longest = max((len(order) for order in orders), default=0)
    alone = [i for i, lane in enumerate(lanes) if lane.attachment is not None and lane.attachment.solo is not None]
    groups = [[i] for i in alone] + [[i for i in range(len(lanes)) if i not in alone]]
    for group in groups:
        for start in range(0, longest if group else 0, batch_size):
            chunks = [orders[i][start : start + batch_size] for i in group]
            if not any(chunks):
                break
            if group[0] in alone:
                prompts = [list(lanes[group[0]].ids[i]) for i in chunks[0]]
                found = _greedy_alone(mount, lanes[group[0]], prompts, max_new_tokens, stop)
            else:
                found = _greedy(mount, [lanes[i] for i in group], chunks, max_new_tokens, stop)
            for lane, chunk in zip(group, chunks, strict=True):
                for i in chunk:
                    answers[lane][i] = cut(_text(mount, found.pop(0)), stop)
    return answers


def cut(text: str, stop: Sequence[str]) -> str:
    """``text`` up to the first place where one of the ``stop`` strings begins."""
    return text[: min((place for word in stop if (place := text.find(word)) >= 0), default=len(text))]


def _stopped(mount: Mount, tokens: list[int], stop: Sequence[str]) -> bool:
    """Whether an answer goes beyond what will be kept of it."""
    return bool(stop) and cut(text := _text(mount, tokens), stop) != text


def _text(mount: Mount, tokens: list[int]) -> str:
    stop = int(mount.base.tokenizer.eos_token_id)
    kept = tokens[: tokens.index(stop)] if stop in tokens else tokens
    return str(mount.base.tokenizer.decode(kept, skip_special_tokens=True))


@torch.no_grad()
def _greedy_alone(
    mount: Mount, lane: Prompts, prompts: list[list[int]], max_new_tokens: int, words: Sequence[str]
) -> list[list[int]]:
    """Tokens after each prompt by a lane's own model, which keeps no cache."""
    assert lane.attachment is not None and lane.attachment.solo is not None
    stop = int(mount.base.tokenizer.eos_token_id)
    texts, alive = [list(prompt) for prompt in prompts], set(range(len(prompts)))
    for _ in range(max_new_tokens):
        rows = sorted(alive)
        width = max(len(texts[row]) for row in rows)
        ids = torch.full((len(rows), width), stop, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(texts[row])] = torch.tensor(texts[row])
            mask[place, : len(texts[row])] = 1
        logits = lane.attachment.solo(ids.to(mount.base.device), mask.to(mount.base.device))
        tokens = logits[torch.arange(len(rows)), mask.sum(1) - 1].argmax(-1).tolist()
        for row, token in zip(rows, tokens, strict=True):
            texts[row].append(token)
        alive -= {row for row, token in zip(rows, tokens, strict=True) if token == stop}
        alive -= {row for row in alive if _stopped(mount, texts[row][len(prompts[row]) :], words)}
        if not alive:
            break
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


def _greedy(
    mount: Mount, lanes: Sequence[Prompts], chunks: list[list[int]], max_new_tokens: int, words: Sequence[str]
) -> list[list[int]]:
    model, tokenizer, device = mount.base.model, mount.base.tokenizer, mount.base.device
    stop = int(tokenizer.eos_token_id)
    virtual = [_virtual(lane) for lane in lanes]
    prompts = [
        [stop] * (0 if tokens is None else len(tokens)) + list(lane.ids[i])
        for lane, chunk, tokens in zip(lanes, chunks, virtual, strict=True)
        for i in chunk
    ]
    width = max(len(p) for p in prompts)
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
    embedded = model.get_input_embeddings()(ids)
    row = 0
    for chunk, tokens in zip(chunks, virtual, strict=True):
        for _ in chunk:
            if tokens is not None:
                start = width - len(prompts[row])
                embedded[row, start : start + len(tokens)] = tokens.to(embedded.dtype)
            row += 1
    for _ in range(max_new_tokens):
        with mount.shares(_shares(lanes, chunks, embedded.shape[1])):
            hidden = hidden_states(model, embedded, cache, mask, positions)[:, -1]
        with mount.shares(_shares(lanes, chunks, 1)):
            token = model.get_output_embeddings()(hidden).argmax(-1)
        token = torch.where(alive, token, stop)
        produced.append(token)
        alive &= token != stop
        if words:
            so_far = torch.stack(produced, dim=1).tolist()
            alive &= ~torch.tensor([_stopped(mount, tokens, words) for tokens in so_far], device=device)
        if not bool(alive.any()):
            break
        embedded = model.get_input_embeddings()(token.unsqueeze(1))
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return torch.stack(produced, dim=1).tolist()


def _virtual(lane: Prompts) -> torch.Tensor | None:
    """``(n, d)`` virtual tokens that stand before each of the lane's prompts."""
    return lane.attachment.prompt() if lane.attachment is not None and lane.attachment.prompt is not None else None


def _shares(lanes: Sequence[Prompts], chunks: list[list[int]], length: int) -> list[Share]:
    shares, start = [], 0
    for lane, chunk in zip(lanes, chunks, strict=True):
        stop = start + len(chunk) * length
        shares.append(Share(lane.attachment, start, stop))
        start = stop
    return shares
