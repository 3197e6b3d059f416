"""Where the Hydra tree and the shipped sweeps lie: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

from lora_lab.errors import ConfigError, nearest

SUFFIXES = (".yaml", ".yml")


def conf_folder() -> Path:
    """The folder of the Hydra tree (``model/``, ``data/``, … and ``config.yaml``)."""
    return _shipped("conf")


def sweeps_folder() -> Path:
    """The folder of the sweeps that have names."""
    return _shipped("sweeps")


def sweep_names() -> list[str]:
    """The names of the shipped sweeps, sorted; one in a folder is named ``folder/sweep``."""
    folder = sweeps_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def options(group: str) -> list[str]:
    """The shipped options of a config group, sorted."""
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


def sweep_file(name_or_path: str) -> Path:
    """The YAML file of a sweep given by its name or by a path.

    Raises:
        ConfigError: there is no such sweep or file; the nearest name is given.
    """
    names = sweep_names()
    if name_or_path in names:
        return sweeps_folder() / f"{name_or_path}.yaml"
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    remedy = f"Sweeps by name: {', '.join(names)}; a path to a YAML file works as well."
    if path.is_dir():
        inside = sorted(child.name for child in path.iterdir() if child.suffix in SUFFIXES)
        hint = f"; name a file in it, e.g. {path / inside[0]}." if inside else "."
        raise ConfigError(f"{name_or_path} is a folder, not a sweep{hint} {remedy}")
    if "=" in name_or_path:
        raise ConfigError(f"expected a sweep before the override {name_or_path!r}. {remedy}")
    if path.suffix in SUFFIXES:
        raise ConfigError(f"{name_or_path}: no such file in {Path.cwd()}. {remedy}")
    beside = [str(path) + suffix for suffix in SUFFIXES if Path(str(path) + suffix).is_file()]
    hint = f"; did you mean the file {beside[0]}?" if beside else nearest(name_or_path, names)
    raise ConfigError(f"no sweep {name_or_path!r}{hint} {remedy}")


def _shipped(name: str) -> Path:
    package = Path(__file__).resolve().parent.parent
    for parent in (package, package.parent):
        if (parent / name).is_dir():
            return parent / name
    raise ConfigError(f"the folder {name}/ of lora-lab is missing from {package}; install lora-lab again.")
