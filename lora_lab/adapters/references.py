"""Which adapter is meant: a folder, a run, the best run of a sweep, or ``base`` for none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from lora_lab.analysis import best_configuration, find_sweep, load_results
from lora_lab.config.compose import compose_run, run_of
from lora_lab.errors import ConfigError, MethodError, SpecError, SweepFolderError
from lora_lab.files import read_json
from lora_lab.methods.attachment import ADAPTER_CONFIG, METHOD_CONFIG
from lora_lab.spec import MethodSpec, ModelSpec, RunResult, RunSpec, Sweep, from_tree

BASE = "base"
"""The reference to no adapter."""
BEST = "best:"


@dataclass(frozen=True)
class Reference:
    """An adapter and the model it stands on.

    ``folder`` is that of the adapter's files, ``None`` for the base model itself (``base``, or an empty mask). ``spec``
    and ``result`` are those of the run that made it, where lora-lab did; ``sweep`` is that run's sweep.
    """

    name: str
    folder: Path | None
    model: ModelSpec
    spec: RunSpec | None = None
    result: RunResult | None = None
    sweep: str | None = None

    @property
    def method(self) -> str:
        """The method's name, as its files say it; ``base`` for none."""
        if self.folder is None:
            return BASE
        if self.spec is not None:
            return self.spec.method.name
        if (self.folder / METHOD_CONFIG).is_file():
            return from_tree(MethodSpec, read_json(self.folder / METHOD_CONFIG)["method"], "method").name
        return str(read_json(self.folder / ADAPTER_CONFIG).get("peft_type")).lower()


def resolve(names: Sequence[str], overrides: Sequence[str] = ()) -> list[Reference]:
    """The adapters of ``names``, all on one base model.

    A name is ``best:SWEEP`` (the run of the best configuration), ``SWEEP/RUN`` (``rank_alpha/t0003-s1``), the folder
    of a run, the folder of an adapter (lora-lab's or stock PEFT's), or ``base``. ``overrides`` (``model=hf``,
    ``model.path=…``, ``model.dtype=…``) say or change the base model: a stock adapter's is what its config names, and
    ``base`` alone has none. ``model.trust_remote_code`` is never taken from a file.

    Raises:
        SweepFolderError: a sweep or run that is not there, or has no adapter.
        CheckpointError: a torn file.
        ConfigError: no adapter of that name, no base model, or adapters of several ones.
    """
    found = [_found(name, overrides) for name in names]
    models = {reference.name: reference.model for reference in found if reference.model is not None}
    if not models:
        chosen = _asked(overrides)
        if chosen is None:
            raise ConfigError("base: which model? Name it, as in model=smollm2_135m or model=hf model.path=FOLDER.")
        return [Reference(one.name, None, chosen) for one in found]
    (first, model), *others = models.items()
    for name, other in others:
        if _identity(other) != _identity(model):
            raise ConfigError(
                f"{name} is an adapter of {other.name}, and {first} of {model.name}: adapters are taken together on "
                "one base model. If it is the same one, say so with model=… for all."
            )
    return [Reference(one.name, one.folder, model, one.spec, one.result, one.sweep) for one in found]


@dataclass(frozen=True)
class _Found:
    name: str
    folder: Path | None
    model: ModelSpec | None = None
    spec: RunSpec | None = None
    result: RunResult | None = None
    sweep: str | None = None


def _identity(model: ModelSpec) -> Any:
    tree = {"name": model.name, "source": model.source, "path": model.path, "config": model.config}
    return (tree["source"], tree["path"]) if model.path else (tree["source"], model.config, model.init_seed)


def _found(name: str, overrides: Sequence[str]) -> _Found:
    if name == BASE:
        return _Found(name, None)
    if name.startswith(BEST):
        sweep = find_sweep(name.removeprefix(BEST) or None)
        best = best_configuration(load_results(sweep))
        if best is None:
            raise SweepFolderError(f"{name}: no run of {sweep} has completed. Wait for one: lora-lab status {sweep}.")
        return _of_run(name, sweep / "runs" / best.run, overrides)
    path = Path(name).expanduser()
    if (path / ADAPTER_CONFIG).is_file() or (path / METHOD_CONFIG).is_file():
        if (path.parent / "result.json").is_file():
            return replace(_of_run(name, path.parent, overrides), folder=path)
        return _Found(name, path, _elsewhere(path, overrides))
    if (path / "result.json").is_file():
        return _of_run(name, path, overrides)
    if any(path.glob("*.bin")):
        raise MethodError(
            f"{name}: {next(path.glob('*.bin')).name} is a pickle, which can run code when it is read, and is refused. "
            "If you trust it, convert it: torch.load(…, weights_only=True), then safetensors.torch.save_file to "
            "adapter_model.safetensors; its adapter_config.json belongs beside it."
        )
    sweep_name, _, run = name.rpartition("/")
    if sweep_name or run.startswith("t"):
        sweep = find_sweep(sweep_name or None)
        if (sweep / "runs" / run / "result.json").is_file():
            return _of_run(name, sweep / "runs" / run, overrides)
        if sweep_name:
            raise SweepFolderError(f"{name}: {sweep} has no settled run {run}. See: lora-lab report {sweep} --csv.")
    raise ConfigError(
        f"{name}: no adapter. Give best:SWEEP, SWEEP/RUN (as in rank_alpha/t0003-s1), a folder with "
        f"{ADAPTER_CONFIG} or {METHOD_CONFIG}, or base."
    )


def _of_run(name: str, run: Path, overrides: Sequence[str]) -> _Found:
    result = RunResult.from_tree(read_json(run / "result.json"))
    sweep = run.parent.parent
    if (sweep / "sweep.json").is_file():
        tree = read_json(sweep / "sweep.json")
        spec, title = Sweep.from_tree(tree).spec_of(dict(result.point), result.seed), str(tree["name"])
        adapter = None if result.adapter is None else sweep / result.adapter
    else:
        spec, title = _trained(run), None
        adapter = None if result.adapter is None else run / result.adapter
    if adapter is None and not spec.method.attaches_nothing:
        raise SweepFolderError(f"{name}: run {result.run} ended as {result.outcome} and left no adapter. Take another.")
    if adapter is not None and not adapter.is_dir():
        raise SweepFolderError(f"{name}: {adapter} is gone. Train the run again, or take another.")
    return _Found(name, adapter, _changed(spec, overrides), spec, result, title)


def _trained(run: Path) -> RunSpec:
    """The spec of ``lora-lab train``'s run, from the configuration that Hydra has kept beside it."""
    path = run / ".hydra" / "config.yaml"
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise SweepFolderError(
            f"{run}: what was trained there is not known ({error}). Give its adapter's folder, and model=… ."
        ) from error
    return run_of(tree)


def _changed(spec: RunSpec, overrides: Sequence[str]) -> ModelSpec:
    """The run's model with ``overrides``; ``trust_remote_code`` only where they say so."""
    chosen = _asked(overrides)
    if chosen is not None:
        return chosen
    point = dict(_pair(line) for line in overrides)
    return replace(spec, model=replace(spec.model, trust_remote_code=False)).at(point).model


def _asked(overrides: Sequence[str]) -> ModelSpec | None:
    """The model that ``overrides`` name by ``model=OPTION``."""
    for line in overrides:
        if not line.lstrip("+").startswith(("model=", "model.")):
            raise ConfigError(f"{line}: only the base model can be said here, as in model=hf model.path=FOLDER.")
    if not any(line.startswith("model=") for line in overrides):
        return None
    return compose_run(list(overrides)).model


def _pair(line: str) -> tuple[str, Any]:
    key, _, value = line.lstrip("+").partition("=")
    return key, yaml.safe_load(value)


def _elsewhere(folder: Path, overrides: Sequence[str]) -> ModelSpec:
    """The base model of an adapter that no run of ours is known to have made."""
    chosen = _asked(overrides)
    if chosen is not None:
        return chosen
    own = folder / METHOD_CONFIG
    tree: Mapping[str, Any] = read_json(own if own.is_file() else folder / ADAPTER_CONFIG)
    path = str(tree.get("base") or tree.get("base_model_name_or_path") or "")
    if not path:
        raise ConfigError(f"{folder}: its config names no base model. Say which: model=hf model.path=FOLDER.")
    source = "wheel" if path.endswith(".gguf") else "pretrained"
    model = ModelSpec(path, source=source, path=path)
    try:
        return replace(RunSpec(model), model=model).at(dict(_pair(line) for line in overrides)).model
    except SpecError as error:
        raise ConfigError(f"{folder}: {error}") from error
