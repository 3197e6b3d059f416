"""Scores that are found after a run has ended, brought to where the run is in MLflow."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from lora_lab.errors import StorageError
from lora_lab.files import read_json
from lora_lab.tracking.experiment import connect
from lora_lab.tracking.store import redact


def record_scores(sweep: Path, run: str, scores: Mapping[str, float], step: int) -> list[str]:
    """Log ``scores`` as ``score.<name>`` at ``step`` on every MLflow run that ``run`` of this sweep folder has.

    Returns the stores' URIs without secrets. A store whose URI holds a password is found through
    ``MLFLOW_TRACKING_URI``, for the folder does not know it.

    Raises:
        StorageError: a store that is known does not take them.
    """
    path = sweep / "tracking.json"
    if not path.is_file():
        return []
    told = []
    for store in read_json(path)["stores"].values():
        said = os.environ.get("MLFLOW_TRACKING_URI", "")
        uri = said if redact(said) == store["uri"] else store["uri"]
        if run not in store["runs"] or "***" in uri:
            continue
        _log(uri, store["runs"][run], scores, step)
        told.append(store["uri"])
    return told


def _log(uri: str, run: str, scores: Mapping[str, float], step: int) -> None:
    client = connect(uri)
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    now = int(time.time() * 1000)
    try:
        client.log_batch(
            run, metrics=[Metric(f"score.{name}", float(value), now, step) for name, value in scores.items()]
        )
    except MlflowException as error:
        raise StorageError(
            f"{redact(uri)}: the MLflow run {run} does not take the scores ({redact(str(error)).splitlines()[0]}). "
            "They were printed; --no-record leaves MLflow alone."
        ) from error
