"""The article's six tasks over local copies of their data: lm-eval's own definitions, with other data files.

What is written is a folder of lm-eval task YAML, which ``lm_eval --include_path`` reads as well.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_lab.errors import DataError
from lora_lab.models.cache import cache_folder, made_once

VERSION = 1
"""Of what is written; another one is written anew."""
SPACE = 16 * 2**20
"""Bytes that the folder may take."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Local:
    """A task: its YAML in lm-eval's package, its file in the user's folder, and how that becomes rows of a split."""

    definition: str
    file: str
    split: str
    rows: Callable[[Path], Rows]


def _lines(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _truthfulqa(path: Path) -> Rows:
    """As the hub has it: ``{choice: label}`` becomes a list of choices and one of labels, in the file's order."""
    targets = ("mc1_targets", "mc2_targets")
    return [
        {"question": row["question"]}
        | {name: {"choices": list(row[name]), "labels": list(row[name].values())} for name in targets}
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]


def _mmlu(path: Path) -> Rows:
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {"question": question, "choices": choices, "answer": "ABCD".index(answer)}
            for question, *choices, answer in csv.reader(file)
        ]


ARTICLE: Mapping[str, Local] = {
    "truthfulqa_mc1": Local("truthfulqa/truthfulqa_mc1.yaml", "truthfulqa_mc_task.json", "validation", _truthfulqa),
    "truthfulqa_mc2": Local("truthfulqa/truthfulqa_mc2.yaml", "truthfulqa_mc_task.json", "validation", _truthfulqa),
    "arithmetic_2ds": Local(
        "arithmetic/arithmetic_2ds.yaml", "arithmetic/two_digit_subtraction.jsonl", "validation", _lines
    ),
    "arithmetic_4ds": Local(
        "arithmetic/arithmetic_4ds.yaml", "arithmetic/four_digit_subtraction.jsonl", "validation", _lines
    ),
    "blimp_causative": Local("blimp/causative.yaml", "blimp_causative.jsonl", "train", _lines),
    "mmlu_global_facts": Local("mmlu/default/mmlu_global_facts.yaml", "mmlu_global_facts_test.csv", "test", _mmlu),
}
"""By lm-eval's names."""


def local_tasks(data: Path, definitions: Path) -> Path:
    """A folder of task YAML for those of :data:`ARTICLE` whose file is in ``data``.

    ``definitions`` is the folder of lm-eval's own tasks.

    Raises:
        DataError: none of the files is there, or one is not what it should be.
        ModelError: the cache cannot be written.
    """
    present = {name: task for name, task in ARTICLE.items() if (data / task.file).is_file()}
    if not present:
        wanted = sorted({task.file for task in ARTICLE.values()})
        raise DataError(
            f"evaluation.task_data={data}: none of {', '.join(wanted)} is there. Give the folder that holds them, "
            "or leave it out to take the data from the hub."
        )
    about = [str(VERSION), str(definitions), *present]
    about += [hashlib.sha256((data / task.file).read_bytes()).hexdigest() for task in present.values()]
    folder = cache_folder() / "tasks" / hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]

    def write(beside: Path) -> None:
        beside.mkdir(parents=True)
        for name, task in present.items():
            try:
                rows = task.rows(data / task.file)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    f"{data / task.file}: not the data of {name} ({type(error).__name__}: {error}). "
                    "Copy it again from where the task's documentation says."
                ) from error
            (beside / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            files = {"data_files": {task.split: str(folder / f"{name}.jsonl")}}
            lines = {"include": str(definitions / task.definition), "task": name, "dataset_path": "json"}
            tree = {**lines, "dataset_name": None, "dataset_kwargs": files}
            if name.startswith("mmlu"):
                tree["fewshot_split"] = None  # the file has the test split alone
            (beside / f"{name}.yaml").write_text(json.dumps(tree, indent=1), encoding="utf-8")  # JSON is YAML

    return made_once(folder, write, SPACE, "the data of benchmark tasks")
