"""What the three budgets change in a section's sweeps, and what ``--model`` and ``--data`` do, as overrides.

The sweep files are the small budget as they stand. The full one has the article's settings: Llama-2-7B, 50,000 Alpaca
examples, batches of 128 in micro-batches of one, learning rate 3e-4, 100 steps of warm-up, dropout 0.05.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lora_lab.article.section import Part
from lora_lab.config.places import options
from lora_lab.errors import DataError

ALPACA_FILE = "alpaca_5k.json"
"""What a folder given as ``--data`` holds (or another ``alpaca*.json``)."""
BUILT_IN = "taskmix"

_SMOKE = (
    "model=tiny",
    "data.max_length=96",
    "data.eval_size=16",
    "budget.batch_size=4",
    "evaluation.batch_size=16",
    "pack.max_lanes=8",
    "sweep.repeats=2",
)
_FULL = (
    "model=llama2_7b",
    "data=hf",
    "data.path=tatsu-lab/alpaca",
    "data.max_length=1304",
    "data.mask_prompt=false",
    "data.eval_size=512",
    "data.train_size=null",
    "budget.steps=null",
    "budget.epochs=1",
    "budget.batch_size=128",
    "budget.micro_batch_size=1",
    "evaluation.batch_size=4",
    "optimizer.lr=3e-4",
    "schedule.warmup_steps=100",
    "sweep.repeats=2",
)
_ARTICLE_RUN = (
    "model=llama2_7b",
    "data=alpaca",
    "data.path=alpaca_data.json",
    "data.max_length=1304",
    "data.mask_prompt=false",
    "method.dropout=0.05",
    "method.dtype=bfloat16",
    "budget.batch_size=128",
    "budget.micro_batch_size=1",
)
_GROUPS = ("model", "data", "method", "optimizer", "schedule")


def overrides_of(part: Part, budget: str, model: str | None, data: str | None, folder: Path) -> list[str]:
    """The overrides of a section's sweep under a budget; its folder is ``folder/<name>``.

    Raises:
        DataError: a folder of data without an Alpaca file.
    """
    said = [
        f"sweep.dir={folder / part.name}",
        f"sweep.name={part.name}",
        "tracking=none",
        "launcher.keep_checkpoints=false",
    ]
    if budget == "smoke":
        said += [*_of_smoke(part), *part.smoke]
    if budget == "full":
        said += [*_own(_FULL, part), *part.full]
    if part.own_data:
        said += prepared_paths(part, folder / "data") if budget != "full" or part.name == "q2_domain" else []
    elif data is not None and data != BUILT_IN:
        said += data_overrides(data)
    if model is not None:
        said += model_overrides(model)
    return ordered(said)


def planned_run(overrides: Sequence[str]) -> list[str]:
    """The overrides of a configuration whose memory is planned: the article's run, changed by these."""
    return ordered([*_ARTICLE_RUN, *overrides])


def model_overrides(model: str) -> list[str]:
    """``--model``: one of the shipped models, or a hub id or folder."""
    return [f"model={model}"] if model in options("model") else ["model=hf", f"model.path={model}"]


def data_overrides(data: str) -> list[str]:
    """``--data``: a file of Alpaca's form, a folder that holds one, or a hub id.

    Raises:
        DataError: the folder holds none.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        path = alpaca_in(path)
    if path.is_file():
        return ["data=alpaca", f"data.path={path}", "data.max_length=256"]
    return ["data=hf", f"data.path={data}", "data.max_length=256"]


def alpaca_in(folder: Path) -> Path:
    """The Alpaca file of a data folder.

    Raises:
        DataError: there is none.
    """
    found = [folder / ALPACA_FILE, *sorted(folder.glob("alpaca*.json*"))]
    for path in found:
        if path.is_file():
            return path
    raise DataError(f"{folder}: no alpaca*.json in this folder. Name a file with instruction, input and output.")


def chosen_data(said: str | None) -> str:
    """``--data`` as given; ``real`` is the folder that LORA_LAB_DATA names.

    Raises:
        DataError: LORA_LAB_DATA is not set, or there is no such file or folder.
    """
    if said is None or said == BUILT_IN:
        return BUILT_IN
    if said != "real":
        if said.endswith((".json", ".jsonl", ".csv", ".parquet")) and not Path(said).expanduser().is_file():
            raise DataError(f"--data: no file {said!r} in {Path.cwd()}.")
        return said
    folder = os.environ.get("LORA_LAB_DATA")
    if not folder or not Path(folder).is_dir():
        raise DataError(
            "--data real reads the folder that LORA_LAB_DATA names, and that is "
            f"{'not set' if not folder else f'no folder: {folder}'}. Set it, or give a file: --data alpaca.json."
        )
    return folder


def prepared_paths(part: Part, folder: Path) -> list[str]:
    """The overrides that point a sweep at the files that :mod:`lora_lab.article.prepared` writes."""
    if part.name == "q1_data":
        files = f"[{folder / 'curated.json'},{folder / 'synthetic.json'}]"
        return [
            f"sweep.space.data.path={files}",
            f"data.path={folder / 'curated.json'}",
            f"data.eval_path={folder / 'clean.json'}",
        ]
    if part.name == "q2_domain":
        return [f"data.path={folder / 'instructions.json'}", f"data.eval_path={folder / 'sums.json'}"]
    return []


def _of_smoke(part: Part) -> list[str]:
    """A few steps, each with a rate at which a random model moves, and as few examples as they need."""
    said = [*_SMOKE, "optimizer.lr=1e-2"]
    if part.name != "5_epochs":
        said.append("budget.steps=4")
    if not part.own_data and part.name not in ("5_epochs", "q5_overfit"):
        said.append("data.train_size=64")
    return said


def _own(common: Sequence[str], part: Part) -> list[str]:
    """The article's settings without those of the data, where a sweep is about its own."""
    return [one for one in common if not (part.own_data and one.startswith(("data=", "data.")))]


def ordered(said: Sequence[str]) -> list[str]:
    """Group choices before single keys, the last word on each key: Hydra refuses a key given twice."""
    last: dict[str, str] = {}
    for one in said:
        key = one.partition("=")[0].lstrip("+")
        last.pop(key, None)
        last[key] = one
    return sorted(last.values(), key=lambda one: one.partition("=")[0] not in _GROUPS)
