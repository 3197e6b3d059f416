"""A loop in plain torch with stock PEFT, one run after another: the shortest program that trains the sweep well."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_lab.models import BaseModel
from lora_lab.optim import schedules
from throughput.stock import IGNORED, padded, peft_model
from throughput.timing import Found, Stopwatch
from throughput.workload import Planned, training_flops


def train(base: BaseModel, runs: Sequence[Planned], first: int) -> Found:
    """Train ``runs``; the time of each one's steps after its ``first`` counts."""
    found, watch = Found(), Stopwatch(first, base.device)
    for run in runs:
        found.losses[run.name] = _train(base, run, watch)
    found.seconds = watch.seconds
    found.flops = sum(training_flops(base, run, first) for run in runs)
    return found


def _train(base: BaseModel, run: Planned, watch: Stopwatch) -> float:
    o, batches, total = run.spec.optimizer, run.batches(), 0.0
    with peft_model(base, run.spec) as model:
        model.train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trained,
            lr=o.lr,
            betas=(o.own["beta1"], o.own["beta2"]),
            eps=o.own["eps"],
            weight_decay=o.weight_decay,
            fused=True,
        )
        watch.begin()
        for step, sequences in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = o.lr * schedules.factor(run.spec.schedule, step, len(batches))
            batch = {k: v.to(base.device) for k, v in padded(sequences, base.tokenizer.pad_token_id or 0).items()}
            labels = batch.pop("labels")[:, 1:]
            hidden = base.model.base_model(**batch, use_cache=False).last_hidden_state[:, :-1]
            logits = base.model.get_output_embeddings()(hidden[labels != IGNORED])
            loss = torch.nn.functional.cross_entropy(logits.float(), labels[labels != IGNORED])
            loss.backward()
            if o.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(trained, o.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            total += float(loss.detach())
            watch.step()
        watch.end()
    return total / len(batches)
