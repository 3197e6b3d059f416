"""A sweep read back from an MLflow store, when its folder is elsewhere: the trees of ``sweep.json`` and
``result.json``.

MLflow was told parameters as text with six significant digits, so a sampled learning rate comes back rounded to that.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from lora_lab.errors import StorageError, nearest
from lora_lab.spec import ROLES, Choices, Domain, IntRange, Masks, RunResult, Space, show, thaw
from lora_lab.tracking.experiment import connect
from lora_lab.tracking.record import SERIES
from lora_lab.tracking.store import first_line, redact

PAGE = 1000
"""Runs that one search gives."""
SIZES = ("lane_bytes", "peak_bytes", "predicted_bytes", "training_bytes")
WHOLE = ("best_step", "steps", "tokens", "trainable_parameters", "total_parameters", *SIZES)


def read_store(sweep: str, uri: str, experiment: str | None = None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The tree of ``sweep.json`` and those of the settled runs' results, of the newest sweep of this name in a store.

    ``uri`` is any MLflow tracking URI; ``experiment`` limits the search (default: all of them). A run without an
    outcome is still going on and left out. ``total_parameters`` and the like are there as far as MLflow was told them.

    Raises:
        StorageError: the store cannot be read, or has no such experiment or sweep; the names that are there are given.
    """
    where = f"the MLflow store {redact(uri)}"
    try:
        client = connect(uri)
        experiments = {e.name: e.experiment_id for e in client.search_experiments()}
    except Exception as error:  # whatever a store can do
        raise StorageError(
            f"{where} cannot be read ({first_line(error)}). Is this the URI that the sweep was sent to?"
        ) from error
    if experiment is not None and experiment not in experiments:
        raise StorageError(
            f"{where} has no experiment {experiment!r}{nearest(experiment, experiments)} "
            f"Experiments: {', '.join(sorted(experiments))}."
        )
    ids = list(experiments.values()) if experiment is None else [experiments[experiment]]
    parents = _search(client, ids, "tags.`lora_lab.kind` = 'sweep'")
    named = [run for run in parents if run.data.tags.get("sweep") == sweep]
    if not named:
        known = sorted({run.data.tags.get("sweep", "") for run in parents})
        raise StorageError(
            f"{where} has no sweep {sweep!r}{nearest(sweep, known)} Sweeps: {', '.join(known) or 'none'}."
        )
    parent = max(named, key=lambda run: run.info.start_time)
    tree = _sweep_tree(client, parent)
    space = Space.from_tree(tree["space"])
    children = _search(client, [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    results = [_result(run.data, space, run.info) for run in children if "outcome" in run.data.tags]
    return tree, sorted(results, key=lambda result: (result["trial"], result["seed"]))


def _search(client: Any, experiments: list[str], condition: str) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = client.search_runs(experiments, filter_string=condition, max_results=PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _sweep_tree(client: Any, parent: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = client.download_artifacts(parent.info.run_id, "sweep.json", folder)
            tree: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        except Exception as error:  # whatever an artifact store can do
            raise StorageError(
                f"sweep {parent.data.tags['sweep']!r}: its sweep.json cannot be read from the MLflow artifacts "
                f"({first_line(error)}). Is the artifact location mounted here?"
            ) from error
    return {"key": parent.data.tags.get("lora_lab.key", "")} | tree


def _result(data: Any, space: Space, info: Any) -> dict[str, Any]:
    """The tree of a run's result as far as MLflow holds it."""
    metrics, tags = data.metrics, data.tags
    point = {path: _value(domain, path, data.params) for path, domain in space.domains}
    tree: dict[str, Any] = {
        "run": tags["lora_lab.run"],
        "trial": int(tags["trial"]),
        "seed": int(tags["seed"]),
        "key": tags["key"],
        "outcome": tags["outcome"],
        "point": point,
        "message": tags.get("message"),
        "attempts": int(tags.get("attempts", 1)),
        "scores": _scores("score.", metrics),
        "base_scores": _scores("base_score.", metrics),
        "started": info.start_time / 1000,
        "ended": info.end_time / 1000 if info.end_time else None,
    }
    for field in fields(RunResult):
        value = metrics.get(f"final_{field.name}" if field.name in SERIES else field.name)
        if field.name not in tree and value is not None:
            tree[field.name] = int(value) if field.name in WHOLE else value
    return tree


def _scores(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def _value(domain: Domain, path: str, params: Mapping[str, str]) -> Any:
    """The typed value of a searched path from MLflow's text; ``None`` where it was not set."""
    if isinstance(domain, Masks):
        return [role for role in ROLES if params.get(f"{path}.{role}") == "True"]
    text = params.get(path)
    if isinstance(domain, Choices):
        for value in domain.values:
            if text in (None if value is None else show(value), str(value), str(thaw(value))):
                return thaw(value)
        return text
    if text is None:
        return None
    return int(text) if isinstance(domain, IntRange) else float(text)
