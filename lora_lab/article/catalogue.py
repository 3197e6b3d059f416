"""The sections by name, in the article's order, and their sweeps."""

from __future__ import annotations

from collections.abc import Sequence

from lora_lab.article.questions import QUESTIONS
from lora_lab.article.results import RESULTS
from lora_lab.article.section import Part, Section
from lora_lab.errors import ConfigError, nearest


def sections(names: Sequence[str] = ()) -> list[Section]:
    """The sections of these names in the article's order, all of them without names.

    ``Q5``, ``q5-overfit`` and ``Q5_overfit`` name one section.

    Raises:
        ConfigError: no such section; the nearest is named.
    """
    every = (*RESULTS, *QUESTIONS)
    known = {alias: section for section in every for alias in _aliases(section.id)}
    for name in names:
        if _plain(name) not in known:
            ids = [section.id for section in every]
            near = nearest(name, [*ids, *(id.partition("-")[0] for id in ids)])
            raise ConfigError(f"no section {name!r} of the article{near} Sections: {', '.join(ids)}.")
    wanted = {known[_plain(name)].id for name in names}
    return [section for section in every if not names or section.id in wanted]


def parts_of(chosen: Sequence[Section]) -> list[Part]:
    """The sweeps of these sections, each once: two sections may look at one."""
    parts: dict[str, Part] = {}
    for section in chosen:
        for part in section.parts:
            parts.setdefault(part.name, part)
    return list(parts.values())


def _aliases(name: str) -> tuple[str, ...]:
    head, _, tail = _plain(name).partition("-")
    return _plain(name), head, tail


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
