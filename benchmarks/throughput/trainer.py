"""What people do today: Optuna, HF ``Trainer`` and PEFT, one run after another on one loaded model.

Made as fast as its options allow: no logging, saving or evaluation while it trains, no workers, no tqdm, no look for
NaN at each step, fused AdamW, padding to the longest of a batch, logits only where some sequence has a label
(``logits_to_keep``, with ``shift_labels``), and the attention that was fastest for the shape.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lora_lab.models import BaseModel
from lora_lab.packing.inputs import Sequences
from lora_lab.spec import RunSpec
from throughput.stock import IGNORED, padded, peft_model
from throughput.timing import Found, Stopwatch
from throughput.workload import Planned, training_flops


class Collator:
    """A batch as ``Trainer`` takes it. ``every_logit``: as most people have it, with logits of all positions."""

    def __init__(self, pad: int, every_logit: bool) -> None:
        self.pad, self.every_logit = pad, every_logit

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = padded([row["sequence"] for row in rows], self.pad)
        if self.every_logit:
            return batch
        following = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
        kept = (following != IGNORED).any(0).nonzero().squeeze(1)
        return batch | {"logits_to_keep": kept, "shift_labels": following[:, kept]}


def arguments(spec: RunSpec, folder: Path, steps: int, device: torch.device) -> Any:
    """The fastest ``TrainingArguments`` that train ``spec`` as it is meant."""
    from transformers import TrainingArguments

    o = spec.optimizer
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=spec.budget.batch_size,
        per_device_eval_batch_size=spec.evaluation.batch_size,
        learning_rate=o.lr,
        weight_decay=o.weight_decay,
        adam_beta1=o.own["beta1"],
        adam_beta2=o.own["beta2"],
        adam_epsilon=o.own["eps"],
        max_grad_norm=o.max_grad_norm or 0.0,
        lr_scheduler_type=spec.schedule.name,
        warmup_steps=spec.schedule.warmup_steps or 0,
        optim="adamw_torch_fused",
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        label_names=["labels"],
        prediction_loss_only=True,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=device.type == "cuda",
        average_tokens_across_devices=False,
        use_cpu=device.type == "cpu",
        seed=spec.seed,
    )


def each_trial(count: int, train: Callable[[int], float]) -> None:
    """Have Optuna hand out ``count`` trials, whose points are known, and tell it each one's value."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize")
    for index in range(count):
        study.enqueue_trial({"point": index})
    study.optimize(lambda trial: train(trial.suggest_int("point", 0, max(1, count - 1))), n_trials=count)


def train(base: BaseModel, runs: Sequence[Planned], first: int, *, every_logit: bool = False) -> Found:
    """Train ``runs``; the time of each one's steps after its ``first`` counts."""
    from transformers import PrinterCallback, Trainer, TrainerCallback

    found, watch = Found(), Stopwatch(first, base.device)

    class Watcher(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            watch.step()

    def one(index: int) -> float:
        run = runs[index]
        rows: list[Sequences] = [sequence for batch in run.batches() for sequence in batch]
        steps = run.spec.budget.total_steps(len(run.data.train))
        with tempfile.TemporaryDirectory() as folder, peft_model(base, run.spec) as model:
            trainer = Trainer(
                model=model,
                args=arguments(run.spec, Path(folder), steps, base.device),
                train_dataset=[{"sequence": sequence} for sequence in rows],
                data_collator=Collator(base.tokenizer.pad_token_id or 0, every_logit),
                callbacks=[Watcher()],
            )
            trainer.remove_callback(PrinterCallback)
            watch.begin()
            loss = float(trainer.train().training_loss)
            watch.end()
        found.losses[run.name] = loss
        return loss

    each_trial(len(runs), one)
    found.seconds = watch.seconds
    found.flops = sum(training_flops(base, run, first) for run in runs)
    return found
