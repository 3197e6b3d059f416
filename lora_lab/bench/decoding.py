"""One step of a model that answers: hidden states of new tokens behind those that a key-value cache holds."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


def hidden_states(
    model: PreTrainedModel,
    embedded: Tensor,
    cache: DynamicCache,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """The last hidden states ``(batch, length, d)`` of ``embedded`` of that shape; ``cache`` grows by ``length``.

    ``mask`` ``(batch, cached + length)`` has 0 at padding, ``positions`` is ``(batch, length)``; without them nothing
    is padded.
    """
    body = model.base_model
    given = {"inputs_embeds": embedded, "attention_mask": mask, "position_ids": positions, _cache_name(body): cache}
    states: Tensor = body(**given, use_cache=True).last_hidden_state
    return states


def _cache_name(body: torch.nn.Module) -> str:
    """transformers 5.24 calls ``cache`` what was ``past_key_values`` before it."""
    return "cache" if "cache" in inspect.signature(body.forward).parameters else "past_key_values"
