"""Adapters as MLflow models: logged with a signature, loadable by ``mlflow models``, the best one registered.

A logged model holds the adapter's own files, the run's spec, and the name of the module that loads them
(:data:`LOADER`), so that ``mlflow.pyfunc.load_model`` gives something that answers instructions. It needs lora-lab and
the base model where it is loaded, and no network where these are.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_lab.spec import RunSpec, to_tree
from lora_lab.tracking.experiment import Experiment
from lora_lab.tracking.record import PACKAGES, origin
from lora_lab.tracking.store import redact

LOADER = "lora_lab.bench.served"
"""The module whose ``_load_pyfunc`` MLflow calls with the folder ``data`` of the model."""
DATA = "data"
SPEC = "run.json"
BEST = "best"
"""The alias of the best adapter of a sweep in the model registry: ``models:/SWEEP@best``."""
NEW_TOKENS = 64


def model_name(text: str) -> str:
    """``text`` as MLflow allows it for a model: without ``/ : . % " '``."""
    return re.sub(r"[/:.%\"']", "-", text)


def log_model(
    experiment: Experiment, run: str, name: str, adapter: Path, spec: RunSpec, params: Mapping[str, str]
) -> str:
    """Log the adapter in the folder ``adapter`` as the model ``name`` of ``run``, and give the model's id.

    A model of that name and run is gone on with, or taken as it is.
    """
    found = experiment.client.search_logged_models(
        [experiment.id], filter_string=f"name = '{name}' AND source_run_id = '{run}'", max_results=1
    )
    model = (
        found[0]
        if found
        else experiment.client.create_logged_model(
            experiment.id, name=name, source_run_id=run, params=dict(params), model_type="adapter"
        )
    )
    if str(model.status) != "READY":
        with tempfile.TemporaryDirectory() as folder:
            write_model(Path(folder), adapter, spec, run, model.model_id)
            experiment.client.log_model_artifacts(model.model_id, folder)
        experiment.client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def write_model(folder: Path, adapter: Path, spec: RunSpec, run: str, model_id: str) -> None:
    """Write what MLflow's pyfunc flavour reads: ``MLmodel``, requirements, and the data for :data:`LOADER`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow 3.17 warns of its own type hints when it is imported
        from mlflow.models import Model, ModelSignature
        from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    shutil.copytree(adapter, folder / DATA / "adapter")
    text = redact(json.dumps(to_tree(spec), indent=1))
    (folder / DATA / SPEC).write_text(text, encoding="utf-8")
    signature = ModelSignature(
        inputs=Schema([ColSpec("string", "instruction"), ColSpec("string", "input", required=False)]),
        outputs=Schema([ColSpec("string", "response")]),
        params=ParamSchema([ParamSpec("max_new_tokens", "long", NEW_TOKENS)]),
    )
    model = Model(run_id=run, model_uuid=model_id, model_id=model_id, signature=signature)
    python = ".".join(map(str, sys.version_info[:3]))
    environment = {"virtualenv": "python_env.yaml"}
    model.add_flavor("python_function", loader_module=LOADER, data=DATA, env=environment, python_version=python)
    model.save(str(folder / "MLmodel"))
    versions = {package: origin().get(f"version.{package}") for package in PACKAGES if package not in ("optuna",)}
    lines = [f"{package.replace('_', '-')}=={version}" for package, version in versions.items() if version]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "python_env.yaml").write_text(
        f'python: "{python}"\nbuild_dependencies: [pip]\ndependencies: [-r requirements.txt]\n', encoding="utf-8"
    )


def register_best(experiment: Experiment, sweep: str, run: str, model_id: str) -> None:
    """Let ``models:/SWEEP@best`` be the model ``model_id``."""
    client, name = experiment.client, model_name(sweep)
    if not client.search_registered_models(filter_string=f"name = '{name}'", max_results=1):
        client.create_registered_model(name, description=f"Adapters of the lora-lab sweep {redact(sweep)}")
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run}'")
    version = versions[0] if versions else _version(experiment, name, model_id, run)
    client.set_registered_model_alias(name, BEST, version.version)


def _version(experiment: Experiment, name: str, model_id: str, run: str) -> Any:
    """A new version of the registered model; of a database MLflow 3.17 would look the place up in another store."""
    source = f"models:/{model_id}"
    if not experiment.served:
        source = experiment.client.get_logged_model(model_id).artifact_location
    return experiment.client.create_model_version(name, source=source, run_id=run, model_id=model_id)
