"""What Hydra and OmegaConf refuse, said in one sentence with the remedy."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import yaml
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationValidationError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from lora_lab.config.overrides import PATHS
from lora_lab.config.schema import GROUPS, SWEEP, kinds, unknown_key
from lora_lab.errors import ConfigError, nearest

TYPES: Mapping[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
LISTS: Mapping[Any, str] = {int: "0, 1", str: "a, b"}


@contextmanager
def refusals(files: Mapping[str, str]) -> Iterator[None]:
    """Turn every error of Hydra, OmegaConf and PyYAML into a :class:`ConfigError` of one sentence.

    Args:
        files: Hydra's name of a config -> what the user knows it by.
    """
    try:
        yield
    except MissingConfigException as error:
        raise ConfigError(_missing(error)) from error
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, UserWarning) as error:
        raise ConfigError(_sentence(error, files)) from error


def _missing(error: MissingConfigException) -> str:
    name = error.missing_cfg_file or ""
    group = next((group for group in GROUPS if name.startswith(f"{group}/")), name.rpartition("/")[0])
    option = name.removeprefix(f"{group}/")
    if not group or not error.options:
        return _first_line(error)
    remedy = PATHS.get(group, "").format(value=option)
    known = ", ".join(error.options)
    return f"{group}: no option {option!r}{nearest(option, error.options)} Options: {known}. {remedy}".rstrip()


def _sentence(error: BaseException, files: Mapping[str, str]) -> str:
    cause = _deepest(error)
    where = _file(error, files)
    if not isinstance(cause, OmegaConfBaseException) or not cause.full_key:
        return f"{where}{_first_line(cause)}"
    key = str(cause.full_key)
    if isinstance(cause, MissingMandatoryValue):
        return f"{key} has no value; give one with {key}=…"
    if isinstance(cause, InterpolationValidationError):
        source = re.search(r"\$\{(\.?)([\w.]+)\}.*'None'", str(cause))
        if source:
            wanted = f"{key.rpartition('.')[0]}.{source[2]}" if source[1] else source[2]
            return f"{wanted} has no value; give one with {wanted}=…"
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)) and not key.startswith("hydra."):
        return f"{where}{unknown_key(SWEEP, key)}"
    if isinstance(cause, ValidationError):
        wanted_type = _wanted(key)
        if wanted_type is not None:
            return f"{where}{key}: expected {wanted_type}, got {_said(cause.value)}."
    return f"{where}{key}: {_first_line(cause)}"


def _said(value: Any) -> str:
    """A value as it stands in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def _wanted(key: str) -> str | None:
    """What a value at config path ``key`` is, in words."""
    kind = kinds(SWEEP).get(key.partition("[")[0])
    options = [option for option in typing.get_args(kind) if option is not type(None)]
    if typing.get_origin(kind) is list:
        return TYPES.get(options[0]) if "[" in key else f"a list, as in {key}=[{LISTS.get(options[0], 'a, b')}]"
    if typing.get_origin(kind) in (typing.Union, types.UnionType) and options[0] in TYPES:
        return f"{TYPES[options[0]]}, or null"
    return TYPES.get(kind)


def _deepest(error: BaseException) -> BaseException:
    """The OmegaConf error, with its key, that a Hydra error was made from; or the error itself."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OmegaConfBaseException) and (link.full_key or link is error):
            return link
        link = link.__cause__ or link.__context__
    return error


def _file(error: BaseException, files: Mapping[str, str]) -> str:
    """``"FILE: "`` where Hydra says in which config it found the error."""
    line = str(error)
    if not line.startswith("In '"):
        return ""
    name = line[4:].partition("'")[0]
    return f"{files.get(name, f'conf/{name}.yaml')}: "


def _first_line(error: BaseException) -> str:
    line = str(error).strip().partition("\n")[0]
    return line if line.endswith(".") else f"{line}."
