"""What MLflow is told of a sweep and of a run: names and values, no calls."""

from __future__ import annotations

import functools
import importlib.metadata
import math
import socket
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

from lora_lab.spec import ROLES, Outcome, RunResult, RunSpec, Sweep, show, to_tree
from lora_lab.tracking.facts import Facts
from lora_lab.tracking.store import redact

PACKAGES = ("lora_lab", "torch", "transformers", "peft", "optuna", "mlflow")
STATUS: Mapping[Outcome, str] = {Outcome.COMPLETED: "FINISHED", Outcome.PRUNED: "KILLED"}
"""MLflow's status of an outcome; the others are FAILED. The tag ``outcome`` keeps them apart."""
SERIES = ("train_loss", "lr", "grad_norm", "tokens_per_second", "epoch", "eval_loss", "eval_accuracy")
"""Metrics with a value at many steps."""
AXIS = "axis."
"""Begins the names of searched settings and of objectives a second time, so that they come first.

MLflow's compare page begins with the first three parameters, by name, in which runs differ. Under their own names
these would be what follows from an axis (``method.alpha`` where ``r`` is searched). Its metric is the one whose row in
the store is the oldest, which no name changes; typing ``axis.`` finds the objective there, and all of these as columns
of the table.
"""
PREDICTED, MEASURED = "memory.predicted.", "memory.measured."
"""Begin the names of bytes by part: what the planner says of the run alone, and what was found while it trained."""
TEXT_LIMIT = 5000
"""Characters of a parameter or tag; MLflow takes 6,000 and 8,000."""


def run_params(spec: RunSpec) -> dict[str, str]:
    """A run's flat parameters: every config path that is set, ``alpha`` both ways, the mask as six booleans."""
    params = dict(_leaves(to_tree(spec)))
    method = spec.method
    params["method.alpha"] = show(float(method.effective_alpha))
    params["method.alpha_over_r"] = show(float(method.effective_alpha / method.r))
    params["method.roles"] = show(method.roles)
    for role in ROLES:
        params[f"method.roles.{role}"] = str(role in method.mask)
    return params


def axis_params(sweep: Sweep, params: Mapping[str, str]) -> dict[str, str]:
    """The searched settings among a run's ``params``, named to come first; roles as 0 and 1, which can be plotted."""
    axes: dict[str, str] = {}
    for path in sweep.space.paths:
        if path == "method.roles":
            axes |= {f"{AXIS}{path}.{role}": str(int(params[f"{path}.{role}"] == "True")) for role in ROLES}
        elif path in params:
            axes[f"{AXIS}{path}"] = params[path]
    return axes


def sweep_params(sweep: Sweep) -> dict[str, str]:
    """What all runs of a sweep share, and the search itself. (What may change on a resume is in the tags.)"""
    searched = set(sweep.space.paths)
    fixed = {
        path: value
        for path, value in run_params(sweep.base).items()
        if path not in searched
        and not (path.startswith("method.roles") and "method.roles" in searched)
        and not (path.startswith("method.alpha") and searched & {"method.alpha", "method.alpha_over_r", "method.r"})
        and path != "seed"
    }
    search = {
        "sweep.sampler": sweep.sampler.name,
        "sweep.pruner": sweep.pruner.name,
        "sweep.metric": sweep.objective.metric,
        "sweep.direction": sweep.objective.direction,
        "sweep.seed": str(sweep.seed),
        "sweep.searched": ", ".join(sweep.space.paths),
    }
    space = {f"sweep.space.{path}": _text(domain) for path, domain in sweep.space.to_tree().items()}
    return fixed | search | space


def step_metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a ``step`` or ``evaluation`` line of a spool; of other lines none."""
    if record["kind"] == "evaluation":
        scores = {f"score.{name}": value for name, value in record.get("scores", {}).items()}
        return {"eval_loss": record["loss"], "eval_accuracy": record["accuracy"], **scores}
    if record["kind"] != "step":
        return {}
    metrics = {"train_loss": record["loss"]} | {name: record[name] for name in ("lr", "grad_norm", "epoch")}
    if record["seconds"] > 0:
        metrics["tokens_per_second"] = record["tokens"] / record["seconds"]
    return metrics


def final_metrics(result: RunResult) -> dict[str, float]:
    """Every number of a result but its identity; those that are also series stand as ``final_…`` too."""
    metrics: dict[str, float] = {}
    for name, value in vars(result).items():
        if name in ("trial", "seed", "attempts", "started", "ended"):
            continue
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            metrics[name] = float(value)
            if name in SERIES:
                metrics[f"final_{name}"] = float(value)
    for prefix, scores in (("score", result.scores), ("base_score", result.base_scores)):
        for name, value in scores:
            if isinstance(value, (int, float)) and math.isfinite(value):
                metrics[f"{prefix}.{name}"] = float(value)
    return metrics


def axis_metrics(sweep: Sweep, metrics: Mapping[str, float]) -> dict[str, float]:
    """What the sweep optimises, among a run's final ``metrics``, named to come first."""
    found = {name: metrics.get(name, metrics.get(f"score.{name}")) for name in _wanted(sweep)}
    return {f"{AXIS}{name}": value for name, value in found.items() if value is not None}


def axis_unknown(sweep: Sweep) -> dict[str, float]:
    """What the sweep optimises first, not known yet: a number that a run has from its beginning is the one that
    MLflow's compare page begins with."""
    return {f"{AXIS}{_wanted(sweep)[0]}": math.nan}


def _wanted(sweep: Sweep) -> list[str]:
    return [objective.metric for objective in sweep.objectives or (sweep.objective,)]


def memory_metrics(predicted: Mapping[str, int], measured: Mapping[str, int]) -> dict[str, float]:
    """Bytes by part, as planned for the run alone and as measured."""
    planned = {f"{PREDICTED}{part}_bytes": float(size) for part, size in predicted.items()}
    return planned | {f"{MEASURED}{part}_bytes": float(size) for part, size in measured.items()}


def score_errors(result: RunResult, spec: RunSpec, facts: Facts) -> dict[str, float]:
    """The standard error of ``exact_match``, a share of so many prompts; other scores bring theirs with them."""
    if result.exact_match is None or facts.data is None:
        return {}
    prompts = min(facts.data.evaluation, spec.evaluation.exact_match_size or facts.data.evaluation)
    if prompts < 2:
        return {}
    return {"exact_match_stderr": math.sqrt(result.exact_match * (1 - result.exact_match) / (prompts - 1))}


def sweep_tags(sweep: Sweep) -> dict[str, str]:
    """The tags of a sweep's parent run."""
    lengths = {"sweep.trials": str(sweep.planned_trials), "sweep.repeats": str(sweep.repeats)}
    return {"sweep": sweep.name, "lora_lab.kind": "sweep", "lora_lab.key": sweep.key, **lengths, **origin()}


def run_tags(sweep: Sweep, run: str, trial: int, spec: RunSpec, facts: Facts) -> dict[str, str]:
    """The tags of a run, known when it starts: who it is, and where it trains."""
    identity = {"sweep": sweep.name, "trial": str(trial), "seed": str(spec.seed), "key": spec.key}
    return {**identity, "lora_lab.kind": "run", "lora_lab.run": run, **fact_tags(facts)}


def fact_tags(facts: Facts) -> dict[str, str]:
    """Where a run trained; where it does not say, this process's origin."""
    tags = {name: redact(value)[:TEXT_LIMIT] for name, value in facts.tags.items()} or origin()
    return tags | ({"data_digest": facts.data.digest} if facts.data is not None else {})


def result_tags(result: RunResult) -> dict[str, str]:
    """The tags that a result adds: how it ended, and from whose checkpoint it began, if from anybody's."""
    tags = {"outcome": str(result.outcome), "attempts": str(result.attempts)}
    if result.message:
        tags["message"] = redact(result.message)[:TEXT_LIMIT]
    if result.parent is not None:
        tags |= {"parent": result.parent, "parent_step": str(result.parent_step)}
    if result.stage is not None:
        tags["stage"] = result.stage
    return tags


@functools.cache
def _origin() -> tuple[tuple[str, str], ...]:
    tags = {"host": socket.gethostname(), "mlflow.source.name": "lora-lab"}
    for package in PACKAGES:
        try:
            tags[f"version.{package}"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = git_commit()
    if commit is not None:
        tags |= {"git_commit": commit, "mlflow.source.git.commit": commit}
    return tuple(tags.items())


def origin() -> dict[str, str]:
    """Where this was made: host, package versions, and the git commit of the working folder if it has one."""
    return dict(_origin())


def git_commit() -> str | None:
    """The commit of the working folder's repository; ``None`` outside one, or without git."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        elif value is not None and value != []:
            yield f"{prefix}{name}", _text(value)


def _text(value: Any) -> str:
    shown = show(value) if not isinstance(value, (list, dict)) else str(value)
    return redact(shown)[:TEXT_LIMIT]
