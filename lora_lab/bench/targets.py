"""What can be scored: the base model, the adapter of a run, or an adapter folder from anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_lab.errors import CheckpointError, ConfigError
from lora_lab.files import read_json
from lora_lab.methods.attachment import ADAPTER_CONFIG, METHOD_CONFIG
from lora_lab.spec import ModelSpec, RunResult, RunSpec, Sweep, from_tree, thaw
from lora_lab.tracking.spool import FILE, read_spool

BASE = "base"


@dataclass(frozen=True)
class Target:
    """Something to score. ``adapter`` is its folder, ``None`` for the base model itself.

    ``model`` is the base model it was trained on: a run's own spec, or what an adapter from elsewhere calls it;
    ``None`` where nothing is known. ``run`` is the folder of the run that it belongs to.
    """

    name: str
    adapter: Path | None = None
    model: ModelSpec | str | None = None
    run: Path | None = None


def target(word: str, root: Path = Path("runs")) -> Target:
    """What ``word`` names: ``base``, the folder of an adapter or a run, or ``SWEEP/RUN`` (``rank_alpha/t0003-s0``).

    Raises:
        ConfigError: there is no such thing.
        CheckpointError: a run without an adapter, or with a torn result.
    """
    if word == BASE:
        return Target(BASE)
    sweep, _, run = word.rpartition("/")
    for folder in (Path(word).expanduser(), root / sweep / "runs" / run):
        if (folder / ADAPTER_CONFIG).is_file() or (folder / METHOD_CONFIG).is_file():
            owner = folder.parent if _is_run(folder.parent) else None
            return Target(word, folder, _model_of_run(owner) if owner else _model_of_adapter(folder), owner)
        if _is_run(folder):
            return Target(word, _adapter_of(folder), _model_of_run(folder), folder)
    raise ConfigError(
        f"{word}: neither an adapter's folder (with {ADAPTER_CONFIG}) nor a run's (with result.json). "
        f"Give one of these, a run as SWEEP/RUN (rank_alpha/t0003-s0, in {root}/), or `{BASE}`."
    )


def _is_run(folder: Path) -> bool:
    return (folder / "result.json").is_file()


def _result(run: Path) -> RunResult:
    return RunResult.from_tree(read_json(run / "result.json"))


def _sweep_folder(run: Path) -> Path:
    """The folder that a run's files are named from: its sweep's, or its own where it was trained alone."""
    above = run.absolute().parent.parent
    return above if (above / "sweep.json").is_file() else run


def _adapter_of(run: Path) -> Path:
    result = _result(run)
    if result.adapter is None:
        raise CheckpointError(f"{run}: this run ended {result.outcome} and has no adapter. Choose another one.")
    folder = _sweep_folder(run) / result.adapter
    if not folder.is_dir():
        raise CheckpointError(f"{run}: its adapter {folder} is not there; was it removed by prune-files?")
    return folder


def _model_of_run(run: Path) -> ModelSpec | None:
    """From the run's own record; else from its sweep (a run that shared its result with another has no record)."""
    if (run / FILE).is_file():
        for record in read_spool(run / FILE)[0]:
            if record["kind"] == "started":
                return from_tree(RunSpec, record["spec"]).model
    sweep = _sweep_folder(run) / "sweep.json"
    if not sweep.is_file():
        return None
    tree = read_json(sweep)
    tree.pop("key", None)
    result = _result(run)
    return Sweep.from_tree(tree).spec_of(thaw(result.point), result.seed).model


def _model_of_adapter(folder: Path) -> str | None:
    path = folder / ADAPTER_CONFIG
    named = read_json(path).get("base_model_name_or_path") if path.is_file() else None
    return str(named) if named else None
