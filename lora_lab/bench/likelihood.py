"""Log-likelihoods of continuations for several lanes at once, each distinct beginning computed once a lane.

16-bit logits are too coarse to compare: many labels share one value. Where the model is narrow, the logit of each
label, and of each token that may be as likely, is computed again in float32 from the same hidden state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lora_lab.bench.beginnings import Asked, Pass, Plan, plan
from lora_lab.bench.shared import Carried, SharedLayout
from lora_lab.methods import Attachment
from lora_lab.models import frozen_weight
from lora_lab.packing import decoder
from lora_lab.packing.attention import packed
from lora_lab.packing.cross_entropy import losses_into
from lora_lab.packing.passes import PASS_ROWS
from lora_lab.packing.paths import Mount
from lora_lab.packing.stacks import Share

PASS_ROWS_CUDA = 16384
BLOCK = 256
"""Rows whose logits are held at once."""
SOLO_TOKENS = 1024
"""Tokens of one forward of a lane that has a forward of its own, which gives all their logits."""


@dataclass(frozen=True, eq=False)
class Likelihoods:
    """For each request: ``log`` (nats, summed over its judged tokens), whether each of them is what greedy decoding
    gives (``greedy``), and whether some other token is exactly as likely as one of them (``tied``: not greedy)."""

    log: NDArray[np.float64]
    greedy: NDArray[np.bool_]
    tied: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Read:
    """What was asked of some rows: ``(queries,)`` each."""

    log: Tensor
    greedy: Tensor
    tied: Tensor


@torch.no_grad()
def likelihoods(mount: Mount, lanes: Sequence[Attachment | None], requests: Sequence[Asked]) -> list[Likelihoods]:
    """The likelihoods of ``requests`` under each of ``lanes`` (``None``: the base model), which are mounted.

    Lanes that can share a forward do; a lane with virtual tokens shares it with lanes that have as many.
    """
    found: dict[int, Likelihoods] = {}
    groups: dict[int, list[int]] = {}
    for i, lane in enumerate(lanes):
        if lane is not None and lane.solo is not None:
            found[i] = _alone(mount, lane, requests)
        else:
            groups.setdefault(0 if lane is None or lane.prompt is None else len(lane.prompt()), []).append(i)
    for virtual, members in groups.items():
        before = tuple(range(-virtual, 0))
        asked = [Asked(before + request.ids, request.start + virtual) for request in requests]
        found |= dict(zip(members, _together(mount, [lanes[i] for i in members], asked), strict=True))
    return [found[i] for i in range(len(lanes))]


def _together(mount: Mount, lanes: Sequence[Attachment | None], requests: Sequence[Asked]) -> list[Likelihoods]:
    most = PASS_ROWS if mount.kernels == "cpu" else PASS_ROWS_CUDA
    laid = plan(requests, max(1, most // len(lanes)))
    carried: Carried = []
    reads: list[list[_Read]] = [[] for _ in lanes]
    for step in laid.passes:
        layout = SharedLayout(step, len(lanes), mount.base.device, carried)
        hidden = _hidden(mount, lanes, step, layout)
        carried = layout.shared.layers
        for lane, read in zip(reads, _judged(mount, lanes, step, hidden), strict=True):
            lane.append(read)
    return [_gathered(lane, laid) for lane in reads]


def _gathered(reads: Sequence[_Read], laid: Plan) -> Likelihoods:
    log, greedy, tied = (
        torch.cat([getattr(read, name) for read in reads]).cpu().numpy() for name in ("log", "greedy", "tied")
    )
    return Likelihoods(
        np.array([log[q].astype(np.float64).sum() for q in laid.queries]),
        np.array([bool(greedy[q].all()) for q in laid.queries]),
        np.array([bool(tied[q].any()) for q in laid.queries]),
    )


def _hidden(mount: Mount, lanes: Sequence[Attachment | None], step: Pass, layout: SharedLayout) -> Tensor:
    """``(lanes n, d)`` last hidden states."""
    model = mount.model
    tokens = torch.from_numpy(step.tokens).to(mount.base.device)
    embedded = model.get_input_embeddings()(tokens.clamp(min=0)).repeat(len(lanes), 1, 1)
    virtual = (tokens < 0).nonzero().squeeze(1)
    if len(virtual):
        for i, lane in enumerate(lanes):
            assert lane is not None and lane.prompt is not None
            embedded[i, virtual] = lane.prompt()[tokens[virtual]].to(embedded.dtype)
    embedded = embedded.flatten(0, 1)
    shares = [Share(lane, a, b) for lane, (a, b) in zip(lanes, layout.spans, strict=True)]
    with mount.shares(shares):
        if decoder.serves(model) and not mount.along_blocks:
            return decoder.hidden_states(mount, embedded, layout)
        with packed(model, layout):
            states: Tensor = model.base_model(
                inputs_embeds=embedded.unsqueeze(0), position_ids=layout.positions, use_cache=False
            ).last_hidden_state[0]
            return states


def _judged(mount: Mount, lanes: Sequence[Attachment | None], step: Pass, hidden: Tensor) -> list[_Read]:
    """What is asked of a pass, by lane. Lanes without a path of their own on the head share its product."""
    if not len(step.asked):
        nothing = torch.empty(0, device=hidden.device)
        return [_Read(nothing, nothing.bool(), nothing.bool()) for _ in lanes]
    name = mount.head[0]
    rows, places = np.unique(step.asked, return_inverse=True)
    hidden = hidden.view(len(lanes), -1, hidden.shape[1]).index_select(1, torch.from_numpy(rows).to(hidden.device))
    asked, labels = (torch.from_numpy(x).to(hidden.device) for x in (places, step.labels))
    own = [i for i, lane in enumerate(lanes) if lane is not None and (name in lane.factors or name in lane.paths)]
    groups = [[i for i in range(len(lanes)) if i not in own], *([i] for i in own)]
    found: dict[int, _Read] = {}
    for group in (group for group in groups if group):
        head = _Head(mount, lanes[group[0]] if group[0] in own else None)
        states = hidden[group].flatten(0, 1)
        offsets = torch.arange(len(group), device=asked.device).unsqueeze(1) * len(rows)
        read = head.read(states, (asked + offsets).flatten(), labels.repeat(len(group)))
        parts = zip(*(x.view(len(group), -1) for x in (read.log, read.greedy, read.tied)), strict=True)
        found |= {i: _Read(*part) for i, part in zip(group, parts, strict=True)}
    return [found[i] for i in range(len(lanes))]


class _Head:
    """The output embedding, with the path of one lane on it if it has one."""

    def __init__(self, mount: Mount, lane: Attachment | None) -> None:
        self.mount, self.lane = mount, lane
        self.name, self.module = mount.head
        self.softcap = getattr(mount.model.config, "final_logit_softcapping", None)
        self.exact = lane is None or self.name not in lane.paths

    def read(self, hidden: Tensor, rows: Tensor, labels: Tensor) -> _Read:
        """What ``hidden (n, d)`` says of ``labels`` at ``rows`` (ascending)."""
        parts = []
        for start in range(0, len(hidden), BLOCK):
            block = hidden[start : start + BLOCK]
            a, b = torch.searchsorted(rows, torch.tensor([start, start + len(block)], device=rows.device)).tolist()
            parts.append(self._block(block, rows[a:b] - start, labels[a:b]))
        return _Read(*(torch.cat([getattr(part, name) for part in parts]) for name in ("log", "greedy", "tied")))

    def _block(self, hidden: Tensor, rows: Tensor, labels: Tensor) -> _Read:
        logits = self._logits(hidden)
        narrow = self.exact and logits.dtype in (torch.bfloat16, torch.float16)
        wide = partial(self._wide, hidden) if narrow else None
        return judge(logits, rows, labels, self.mount.kernels, wide)

    def _logits(self, hidden: Tensor) -> Tensor:
        if self.lane is None:
            logits = torch.nn.functional.linear(hidden, frozen_weight(self.module), self.module.bias)
        else:
            with self.mount.shares([Share(self.lane, 0, len(hidden))]):
                logits = self.mount.linear((self.name,), hidden)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def _wide(self, hidden: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
        """The logits of ``tokens`` at ``rows`` in float32."""
        x = hidden[rows].float()
        logits = (x * frozen_weight(self.module)[tokens].float()).sum(-1)
        if self.module.bias is not None:
            logits += self.module.bias[tokens].float()
        if self.lane is not None and self.name in self.lane.factors:
            factor = self.lane.factors[self.name]
            A, B = (f.float() for f in factor.product())
            logits += factor.scaling * ((x @ A.t()) * B[tokens]).sum(-1)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


Wide = Callable[[Tensor, Tensor], Tensor]
"""Given rows and tokens, their logits in float32."""


def judge(logits: Tensor, rows: Tensor, labels: Tensor, kernels: str, wide: Wide | None = None) -> _Read:
    """What ``logits (n, vocabulary)`` say of ``labels`` at ``rows``; ``wide(rows, tokens)`` gives them more exactly."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    normalisers, unused = (logits.new_empty(len(logits), dtype=dtype) for _ in range(2))
    nobody = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    losses_into(logits, nobody, unused, normalisers, logits.new_empty(len(logits), dtype=torch.bool), kernels)
    top, first = logits.max(-1)
    top = top.to(dtype)
    there = logits[rows, labels].to(dtype)
    slack = torch.zeros_like(there)
    value = there
    if wide is not None:
        slack = top[rows].abs() * torch.finfo(logits.dtype).eps
        value = wide(rows, labels)
        best = wide(torch.arange(len(logits), device=logits.device), first)
        normalisers = normalisers + torch.log1p((best - normalisers).exp() - (top - normalisers).exp())
    greedy = there >= top[rows] - slack
    tied = torch.zeros_like(greedy)
    near = greedy.nonzero().squeeze(1)
    if len(near):
        limit = (there - slack)[near]
        which, token = (logits[rows[near]] >= limit.unsqueeze(1)).nonzero().unbind(1)
        other = token != labels[near[which]]
        which, token = near[which[other]], token[other]
        rival = wide(rows[which], token) if wide is not None else logits[rows[which], token].to(dtype)
        greedy[which[rival >= value[which]]] = False
        tied[which[rival == value[which]]] = True
    return _Read(value - normalisers[rows], greedy, tied)


def _alone(mount: Mount, lane: Attachment, requests: Sequence[Asked]) -> Likelihoods:
    """By the lane's own forward: equal inputs once, sequences of like length together, padded on the right."""
    assert lane.solo is not None
    inputs: dict[tuple[int, ...], list[int]] = {}
    for i, request in enumerate(requests):
        inputs.setdefault(request.ids[:-1], []).append(i)
    order = sorted(inputs, key=len, reverse=True)
    log, greedy, tied = np.zeros(len(requests)), np.zeros(len(requests), bool), np.zeros(len(requests), bool)
    while order:
        count = max(1, SOLO_TOKENS // len(order[0]))
        some, order = order[:count], order[count:]
        width = len(some[0])
        ids = torch.zeros(len(some), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(some):
            ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), 1
        logits = lane.solo(ids.to(mount.base.device), mask.to(mount.base.device))
        for row, tokens in enumerate(some):
            for i in inputs[tokens]:
                request = requests[i]
                places = torch.arange(request.start - 1, len(tokens), device=logits.device)
                labels = torch.tensor(request.ids[request.start :], device=logits.device)
                mine = torch.arange(len(places), device=logits.device)
                read = judge(logits[row, places], mine, labels, mount.kernels)
                log[i] = float(read.log.double().sum())
                greedy[i], tied[i] = bool(read.greedy.all()), bool(read.tied.any())
    return Likelihoods(log, greedy, tied)
