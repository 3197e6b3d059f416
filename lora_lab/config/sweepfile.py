"""A sweep's YAML file: a ``defaults`` list of group choices, and settings.

The file is Hydra's in syntax, but may lie anywhere and needs no package header. These spellings mean the
same group choice, ``grid`` for ``sampler``:

- ``defaults: [{override /sampler: grid}]`` (or ``{sampler: grid}``),
- ``sweep: {sampler: grid}``,
- a section that names itself, ``sampler: {name: grid, options: {…}}``.

A section with a ``name`` that is no option of its group stands alone: nothing of a default option is
mixed into it. A fully resolved configuration (see :func:`resolved_yaml`) is such a file with every group
chosen as ``null``: nothing but what stands in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import yaml
from omegaconf import OmegaConf

from lora_lab.config.places import options
from lora_lab.config.schema import GROUPS, SWEEP, check_tree
from lora_lab.errors import ConfigError, nearest

SECRET = re.compile("password|passwd|secret|token", re.IGNORECASE)
"""Names of URL parameters that are not stored."""


@dataclass(frozen=True)
class SweepFile:
    """What a sweep's YAML file says."""

    path: Path
    choices: Mapping[str, str | None]
    """Config group -> the option chosen in the file (``None``: no option, the file has it all)."""
    body: Mapping[str, Any]
    """The settings, interpolations unresolved."""


def read_sweep_file(path: Path, overridden: Mapping[str, str]) -> SweepFile:
    """Read and check a sweep's YAML file.

    Args:
        path: an existing file.
        overridden: config group -> option chosen on the command line. It takes the place of the whole
            section of the file, if that section names an option itself.

    Raises:
        ConfigError: not YAML (the line is named), an unknown key or group, one thing said twice.
    """
    body = _load(path)
    choices = _choices(path, body.pop("defaults", None))
    sweep = body.get("sweep")
    for group in ("sampler", "pruner"):
        if isinstance(sweep, dict) and group in sweep:
            if group in body or group in choices:
                raise ConfigError(f"{path}: the {group} is chosen twice; keep sweep.{group} or the other one.")
            said = sweep.pop(group)
            body[group] = said if isinstance(said, Mapping) else {"name": said}
    check_tree(SWEEP, body, str(path))
    if isinstance(sweep, dict) and sweep.get("allow_code"):
        raise ConfigError(f"{path}: no file allows itself to run code; give sweep.allow_code=true on the command line.")
    for group in GROUPS:
        section = body.get(group)
        name = section.get("name") if isinstance(section, Mapping) else None
        if name is None:
            continue
        if group in overridden:
            del body[group]
        elif group not in choices:
            known = options(group)
            if group != "model" and name not in known:
                raise ConfigError(
                    f"{path}: {group} has no option {name!r}{nearest(str(name), known)} Options: {', '.join(known)}."
                )
            own = (path.parent / group / f"{name}.yaml").is_file()
            choices[group] = str(name) if own or name in known else None
    return SweepFile(path, choices, body)


def resolved_yaml(tree: Mapping[str, Any], raw: Mapping[str, Any], title: str) -> str:
    """The YAML text of a fully resolved configuration, which reads as a sweep file of its own.

    This text is stored and uploaded, so ``sweep.storage`` and ``tracking.uri`` show no secret: they stand as
    in ``raw`` (the unresolved tree), ``${oc.env:…}`` and all, and a password written in them is left out.
    """
    tree = {name: dict(value) if isinstance(value, Mapping) else value for name, value in tree.items()}
    tree["sweep"]["storage"] = without_password(raw["sweep"]["storage"])
    tree["sweep"]["allow_code"] = False  # whoever runs it again says so again
    tree["tracking"]["uri"] = without_password(raw["tracking"]["uri"])
    head = {"defaults": [{f"override /{group}": None} for group in GROUPS]}
    return f"# {title}\n" + OmegaConf.to_yaml(OmegaConf.create(head | tree))


def without_password(url: str | None) -> str | None:
    """``url`` less its password, which PGPASSWORD, ~/.pgpass or MLFLOW_TRACKING_PASSWORD give as well."""
    if url is None or "${" in url:
        return url
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    query = [pair for pair in parts.query.split("&") if not SECRET.search(pair.partition("=")[0])]
    if not parts.password and "&".join(query) == parts.query:
        return url
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}{at}{host}", query="&".join(query)))


def _load(path: Path) -> dict[str, Any]:
    try:
        loaded = OmegaConf.load(path)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8; a sweep is a YAML file.") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}).") from error
    tree = OmegaConf.to_container(loaded, resolve=False)
    if not tree:
        raise ConfigError(
            f"{path}: empty; a sweep has at least `sweep: {{space: {{method.r: {{choices: [4, 16]}}}}}}`."
        )
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(f"{path}: a sweep file is a mapping of settings, not {type(tree).__name__}.")
    return {str(key): value for key, value in tree.items()}


def _choices(path: Path, defaults: Any) -> dict[str, str | None]:
    if defaults is None:
        return {}
    if not isinstance(defaults, list):
        raise ConfigError(
            f"{path}: defaults is a list, as in `defaults: [{{override /model: tiny}}]`; got {defaults!r}."
        )
    out: dict[str, str | None] = {}
    for entry in defaults:
        if entry == "_self_":
            continue
        if not isinstance(entry, Mapping) or len(entry) != 1:
            raise ConfigError(f"{path}: defaults holds {entry!r}; write {{override /GROUP: OPTION}}.")
        ((key, value),) = entry.items()
        group = str(key).removeprefix("override").strip().removeprefix("/")
        if group not in GROUPS:
            raise ConfigError(
                f"{path}: defaults: no config group {group!r}{nearest(group, GROUPS)} Groups: {', '.join(GROUPS)}."
            )
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{path}: defaults: {group} takes the name of an option, not {value!r}.")
        out[group] = value
    return out
