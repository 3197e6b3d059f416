"""The page that reports what was found: Markdown from the evidence file's tree, and a section on a screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_lab.analysis.rendering import Grid
from lora_lab.article.section import Section

MARKS = {"supported": "supported", "contradicted": "**contradicted**", "inconclusive": "inconclusive", None: "–"}
SOURCE = "https://magazine.sebastianraschka.com/p/practical-tips-for-finetuning-llms"


def page(evidence: Mapping[str, Any], every: Sequence[Section]) -> str:
    """The whole page as Markdown; sections without evidence are listed with their command."""
    have = evidence["sections"]
    head = [
        "# The article, reproduced",
        f"What [*Practical Tips for Finetuning LLMs Using LoRA*]({SOURCE}) claims, asked of "
        f"**{evidence['model']}** on **{evidence['data']}** (budget `{evidence['budget']}`). "
        "A verdict is about this model and this data, at this size; it says nothing of the article's own.",
        f"Made by `{evidence['command']}` on {evidence['date']}, {evidence['machine']}.",
        "*Supported*: the 95 % interval of the effect lies on the claimed side. *Contradicted*: it lies below the "
        "smallest effect worth claiming. *Inconclusive*: it holds both, and the power says whether the runs could have "
        "told. Tests are paired over seeds; the claims of one section are Holm-corrected. A section is supported where "
        "all of its claims are, contradicted where one is. `±` is half the 95 % interval of a mean. Losses are in nats "
        "a token; time is a run's share of its pack's, and depends on what else the machine did. "
        "[What the tests are](analysis.md#verdicts).",
        _summary(have, every),
    ]
    missing = [section for section in every if section.id not in have]
    body = [section_text(section, have[section.id]) for section in every if section.id in have]
    if missing:
        names = " ".join(section.id for section in missing)
        body.append(
            "## Not yet run here\n\n"
            + "\n".join(f"- {section.title}: `lora-lab reproduce {section.id}`" for section in missing)
            + f"\n\nAll at once: `lora-lab reproduce {names}`."
        )
    return "\n\n".join([*head, *body]) + "\n"


def section_text(section: Section, tree: Mapping[str, Any]) -> str:
    """One section as Markdown."""
    parts = [f"## {section.title}", f"> {section.says}", section.here]
    parts += [grid_of(grid).markdown().rstrip("\n") for grid in tree["tables"]]
    if tree["verdicts"]:
        parts.append("\n".join(f"- {_marked(verdict)}" for verdict in tree["verdicts"]))
    parts += tree["notes"]
    return "\n\n".join(parts)


def screen(section: Section, tree: Mapping[str, Any]) -> str:
    """One section as plain text for a terminal or a pipe."""
    parts = [f"== {section.title}: {tree['status'] or 'not judged'}", section.says, ""]
    parts += [grid_of(grid).plain() for grid in tree["tables"]]
    parts += [f"- {verdict['sentence']}" for verdict in tree["verdicts"]]
    parts += tree["notes"]
    return "\n".join(parts) + "\n"


def grid_of(tree: Mapping[str, Any]) -> Grid:
    """A grid as it was kept in JSON."""
    return Grid(
        title=tuple(tree["title"]),
        head=tuple(tree["head"]),
        rows=tuple(map(tuple, tree["rows"])),
        labels=tree["labels"],
        best=None if tree["best"] is None else (tree["best"][0], tree["best"][1]),
        footer=None if tree["footer"] is None else tuple(tree["footer"]),
        notes=tuple(tree["notes"]),
    )


def _summary(have: Mapping[str, Any], every: Sequence[Section]) -> str:
    rows = []
    for section in every:
        tree = have.get(section.id)
        said = "not yet run here" if tree is None else MARKS[tree["status"]]
        count = "" if tree is None else _count(tree["verdicts"])
        rows.append(f"| {section.title} | {section.says} | {said} | {count} |")
    return "\n".join(["| section | the article says | verdict here | claims |", "|:--|:--|:--|:--|", *rows])


def _count(verdicts: Sequence[Mapping[str, Any]]) -> str:
    statuses = [verdict["status"] for verdict in verdicts]
    return ", ".join(f"{statuses.count(one)} {one}" for one in dict.fromkeys(statuses))


def _marked(verdict: Mapping[str, Any]) -> str:
    status = str(verdict["status"])
    return str(verdict["sentence"]).replace(f": {status}.", f": **{status}**.", 1)
