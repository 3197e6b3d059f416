"""From names, files and overrides to specs: Hydra composes, the specs refuse what cannot be."""

from __future__ import annotations

import dataclasses
import functools
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from lora_lab.config.overrides import Overrides, edit_space, flat_space, read_overrides
from lora_lab.config.places import conf_folder, options, sweep_file, sweep_names
from lora_lab.config.refusals import refusals
from lora_lab.config.schema import RUN, SWEEP, check_tree
from lora_lab.config.sweepfile import read_sweep_file, resolved_yaml
from lora_lab.errors import ConfigError, SpaceError, nearest
from lora_lab.spec import (
    Execution,
    Expression,
    LauncherSpec,
    Objective,
    RunSpec,
    Space,
    Stop,
    Strategy,
    Sweep,
    TrackingSpec,
    from_tree,
    mask_of,
    pairs,
    read_size,
)

VERSION_BASE = "1.3"
RUN_ROOT = "lora_lab_run"
SWEEP_ROOT = "lora_lab_sweep"
_HYDRA = threading.Lock()


@dataclass(frozen=True)
class Composed:
    """A sweep, how it is carried out, and the fully resolved configuration that says both.

    ``yaml`` given to :func:`compose_sweep` as a file makes the same sweep (equal ``Sweep.key``).
    """

    sweep: Sweep
    execution: Execution
    yaml: str


def compose_sweep(name_or_path: str, overrides: Sequence[str] = ()) -> Composed:
    """Compose the sweep of that name, or of that YAML file, with command-line overrides.

    The file's own ``GROUP/OPTION.yaml`` neighbours can be chosen like the shipped options.

    Raises:
        ConfigError: no such sweep; an unknown key, group or option, or a value of the wrong type, with the
            nearest valid name; an override or file that cannot be read.
        SpecError, SpaceError: a value out of its domain, or two that contradict each other.
    """
    path = sweep_file(name_or_path)
    said = read_overrides(SWEEP, overrides)
    file = read_sweep_file(path, said.groups)
    root = {
        "defaults": [
            "lora_lab_sweep_schema",
            "config",
            "sweep",
            "_self_",
            *({f"override {group}": option} for group, option in file.choices.items()),
        ],
        **file.body,
        "hydra": {"searchpath": [f"file://{path.resolve().parent}"]},
    }
    tree, raw = _composed(SWEEP_ROOT, root, said, {SWEEP_ROOT: str(path)})
    check_tree(SWEEP, tree, str(path))
    tree["sweep"]["space"] = edit_space(tree["sweep"]["space"], said.space)
    tree["sweep"]["name"] = _name(tree["sweep"]["name"], name_or_path, path)
    tree["method"]["roles"] = _roles(tree["method"]["roles"])
    sweep, execution = _sweep(tree), _execution(tree)
    if sweep.base.model.divided and execution.max_lanes not in (None, 1):
        raise ConfigError(
            f"pack.max_lanes={execution.max_lanes} and model.shard={sweep.base.model.shard}: a run that is wider than "
            "a device trains alone. Leave pack.max_lanes out, or give model.shard=none."
        )
    title = f"Sweep {sweep.name}, fully resolved: `lora-lab sweep THIS_FILE` makes it again."
    return Composed(sweep, execution, resolved_yaml(tree, raw, title))


def compose_run(overrides: Sequence[str] = ()) -> RunSpec:
    """Compose one run from the root config and command-line overrides.

    Raises:
        ConfigError, SpecError: as :func:`compose_sweep`.
    """
    return run_of(composed_run(read_overrides(RUN, overrides)))


def composed_run(said: Overrides) -> dict[str, Any]:
    """The resolved tree of a run (the keys of ``schema.RUN``)."""
    tree, _ = _composed(RUN_ROOT, run_root(), said, {})
    return tree


def run_root() -> dict[str, Any]:
    """Hydra's primary config of a single run."""
    return {"defaults": ["lora_lab_run_schema", "config", "_self_"]}


def run_of(tree: Mapping[str, Any]) -> RunSpec:
    """The run that a resolved tree describes."""
    check_tree(RUN, tree, "the configuration")
    parts = {field.name: tree[field.name] for field in dataclasses.fields(RunSpec)}
    parts["method"] = dict(parts["method"]) | {"roles": _roles(parts["method"]["roles"])}
    return from_tree(RunSpec, parts)


def device_of(tree: Mapping[str, Any]) -> str:
    """The device that a resolved tree asks for: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    device = str(tree["device"])
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ConfigError(f"device: must be auto, cpu, cuda or cuda:N, got {device!r}.")
    return device


def memory_of(tree: Mapping[str, Any]) -> int | None:
    """Bytes of memory that a resolved tree says the device has; ``None`` where it does not say.

    Raises:
        SpecError: it is not a size.
    """
    said = tree["device_memory"]
    return None if said is None else read_size(str(said), "device.memory")


def store_root(root: str, node: Mapping[str, Any]) -> None:
    """Make ``node`` Hydra's primary config ``root``, and the schemas known to Hydra."""
    _store_schemas()
    ConfigStore.instance().store(name=root, node=OmegaConf.create(dict(node)))


@functools.cache
def _store_schemas() -> None:
    ConfigStore.instance().store(name="lora_lab_run_schema", node=RUN)
    ConfigStore.instance().store(name="lora_lab_sweep_schema", node=SWEEP)


@contextmanager
def hydra_session() -> Iterator[None]:
    """Hydra's compose API on the shipped tree; one at a time, because Hydra's state is the process's.

    A program that is itself in a Hydra session goes on with it afterwards.
    """
    with _HYDRA, warnings.catch_warnings():
        warnings.filterwarnings("error", message="provider=hydra.searchpath", category=UserWarning)
        outer = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(conf_folder()), job_name="lora-lab", version_base=VERSION_BASE):
                yield
        finally:
            GlobalHydra.instance().hydra = outer


def _composed(
    root: str, node: Mapping[str, Any], said: Overrides, files: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The resolved tree of a composition, and the unresolved one."""
    with refusals(files), hydra_session():
        store_root(root, node)
        config = compose(root, list(said.hydra))
        return plain(config), plain(config, resolve=False)


def plain(config: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """A composed config as plain dicts and lists; nothing is missing in it."""
    tree = OmegaConf.to_container(config, resolve=resolve, throw_on_missing=True)
    if not isinstance(tree, dict):
        raise TypeError(f"a composed config is a mapping, got {type(tree).__name__}")
    return {str(key): value for key, value in tree.items()}


def _sweep(tree: Mapping[str, Any]) -> Sweep:
    section = tree["sweep"]
    if not isinstance(section["space"], Mapping):
        raise SpaceError(f"sweep.space: a mapping of config path to domain, got {section['space']!r}.")
    repeats, max_repeats = _repeats(section["repeats"])
    base, space = run_of({name: tree[name] for name in _run_keys()}), Space.from_tree(section["space"])
    pruner = _strategy(tree, "pruner")
    if pruner.name != "none" and base.evaluation.every_steps is None and "evaluation.every_steps" not in space.paths:
        raise ConfigError(
            f"pruner={pruner.name} judges at evaluations, and there are none before the end; give "
            "evaluation.every_steps=N, in optimizer steps."
        )
    return Sweep(
        name=section["name"],
        base=base,
        space=space,
        objective=from_tree(Objective, section["objective"], "sweep.objective"),
        sampler=_strategy(tree, "sampler"),
        pruner=pruner,
        trials=section["trials"],
        repeats=repeats,
        max_repeats=max_repeats,
        seed=section["seed"],
        constraints=tuple(map(Expression, section["constraints"])),
        objectives=_objectives(section["objectives"]),
        enqueue=tuple(pairs(flat_space(point)) for point in section["enqueue"]),
        imports=tuple(str(Path(folder).expanduser()) for folder in section["imports"]),
        stop=from_tree(Stop, section["stop"], "sweep.stop"),
    )


def _objectives(said: Any) -> tuple[Objective, ...]:
    if not isinstance(said, list):
        raise ConfigError(
            f"sweep.objectives: a list such as [eval_loss minimize, lane_bytes minimize]; got {said!r}. "
            "A single one is sweep.objective.metric=METRIC."
        )
    return tuple(Objective.read(one, "sweep.objectives") for one in said)


def _repeats(said: Any) -> tuple[int, int | None]:
    """``(min, max)`` of ``3`` or of ``{min: 1, max: 5}``."""
    least, most = (said.get("min", 1), said.get("max")) if isinstance(said, Mapping) else (said, None)
    numbers = [least] if most is None else [least, most]
    unknown = set(said) - {"min", "max"} if isinstance(said, Mapping) else set()
    if unknown or any(isinstance(number, bool) or not isinstance(number, int) for number in numbers):
        raise ConfigError(f"sweep.repeats: a whole number, or {{min: 1, max: 5}} for racing; got {said!r}.")
    return least, most


def _execution(tree: Mapping[str, Any]) -> Execution:
    section, lanes = tree["sweep"], tree["pack"]["max_lanes"]
    if lanes is not None and lanes != "auto" and (isinstance(lanes, bool) or not isinstance(lanes, int)):
        raise ConfigError(f"pack.max_lanes: must be a whole number, or auto, got {lanes!r}.")
    folder = Path(section["dir"]).expanduser() if section["dir"] else Path("runs") / section["name"]
    return Execution(
        folder=str(folder),
        storage=section["storage"],
        allow_code=section["allow_code"],
        tracking=from_tree(TrackingSpec, tree["tracking"], "tracking"),
        launcher=_launcher(tree),
        max_lanes=None if lanes == "auto" else lanes,
        device=device_of(tree),
        device_memory=memory_of(tree),
    )


def _run_keys() -> list[str]:
    return [field.name for field in dataclasses.fields(RUN)]


def _strategy(tree: Mapping[str, Any], group: str) -> Strategy:
    strategy = from_tree(Strategy, tree[group], group)
    _known(group, strategy.name)
    return strategy


def _launcher(tree: Mapping[str, Any]) -> LauncherSpec:
    launcher = from_tree(LauncherSpec, tree["launcher"], "launcher")
    _known("launcher", launcher.name)
    return launcher


def _known(group: str, name: str) -> None:
    known = options(group)
    if name not in known:
        raise ConfigError(f"{group}: no option {name!r}{nearest(name, known)} Options: {', '.join(known)}.")


def _roles(said: Any) -> list[str]:
    if not isinstance(said, (str, Sequence)) or not all(isinstance(role, str) for role in said):
        raise ConfigError(f"method.roles: a list of roles, or query+value, all, none; got {said!r}.")
    return list(mask_of(said))


def _name(said: str | None, name_or_path: str, path: Path) -> str:
    if said is None:
        return name_or_path.replace("/", "-") if name_or_path in sweep_names() else path.stem
    if not said or said.startswith(".") or set(said) & set("/\\\0") or len(said) > 200:
        raise ConfigError(
            f"sweep.name: {said!r} cannot name a folder; use letters, digits, '-' and '_'. "
            "A sweep is moved with sweep.dir=FOLDER."
        )
    return said
