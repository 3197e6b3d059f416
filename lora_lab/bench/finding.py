"""Benchmark tasks by name: lm-eval's, the user's own YAML, and those of lora-lab that need no download."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Template
from jinja2.sandbox import SandboxedEnvironment

from lora_lab.bench.local import ARTICLE, local_tasks
from lora_lab.bench.ties import Strict
from lora_lab.errors import DataError, LoraLabError, nearest
from lora_lab.spec import EvaluationSpec

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

log = logging.getLogger(__name__)

OFFLINE = Path(__file__).parent / "tasks"
"""The tasks of lora-lab itself, in lm-eval's form."""
OFFLINE_TASKS = tuple(sorted(path.stem for path in OFFLINE.glob("offline_*.yaml")))
SEED = 1234
"""Of few-shot examples, as on lm-eval's command line."""
ALLOW = "LORA_LAB_ALLOW_CODE"
_NAMED = re.compile(r"""^["']?(?:task|group)["']?:[ \t]*(\S+)[ \t]*$""", re.MULTILINE)


def find(spec: EvaluationSpec) -> dict[str, Any]:
    """lm-eval's dictionary of ``spec.tasks``, loaded with their data; made once a process.

    Raises:
        DataError: lm-eval is not installed, a name is unknown, a task's data cannot be had, or a YAML runs code.
    """
    return _find(spec.tasks, spec.include_path, spec.task_data, spec.num_fewshot)


@functools.lru_cache(maxsize=8)
def _find(
    names: tuple[str, ...], include_path: str | None, task_data: str | None, num_fewshot: int | None
) -> dict[str, Any]:
    if importlib.util.find_spec("lm_eval") is None:
        raise DataError(
            f"evaluation.tasks={','.join(names)}: lm-evaluation-harness is not installed. "
            "Install it with: pip install 'lora-lab[eval]'."
        )
    import lm_eval.tasks
    import lm_eval.utils
    from lm_eval.tasks import TaskManager

    from lora_lab.bench.harness import quietly

    _sandbox(lm_eval.utils)
    definitions = Path(lm_eval.tasks.__file__).parent
    folders = [OFFLINE]
    if task_data is not None:
        folders.append(local_tasks(_folder("evaluation.task_data", task_data), definitions))
    if include_path is not None:
        folders.append(_folder("evaluation.include_path", include_path))
        _check_code(folders[-1], definitions)
    with quietly():
        manager = TaskManager(include_defaults=False, include_path=folders)
        known = set(manager.all_tasks)
        wanted = {name: _spelled(name, known, definitions) for name in names}
        rest = [name for name in names if wanted[name] is None]
        if rest:
            _check_names(rest, known, definitions)
            manager = TaskManager(include_path=folders)  # reads thousands of files to know its own tasks
        found = _load(manager, [wanted[name] or name for name in names], names)
    for name, task in found["tasks"].items():
        if num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        elif num_fewshot:  # as lm-eval has it
            log.warning("%s is asked without examples whatever evaluation.num_fewshot says: so it is defined", name)
        task.set_fewshot_seed(seed=SEED)
        if task.OUTPUT_TYPE == "multiple_choice":
            task.process_results = Strict(task.process_results, task.doc_to_choice)
    return found


def _load(manager: TaskManager, wanted: list[str], names: Sequence[str]) -> dict[str, Any]:
    try:
        return dict(manager.load(wanted))
    except LoraLabError:
        raise
    except Exception as error:  # whatever a task's data can do: a hub, a network, a file, a function
        lines = (line.strip().rstrip(".") for line in str(error).splitlines())
        said = next(filter(None, lines), type(error).__name__)
        raise DataError(
            f"evaluation.tasks={','.join(names)}: a task or its data cannot be loaded: {said}. Without a network, "
            "evaluation.task_data=FOLDER takes local copies of the article's tasks, evaluation.include_path=FOLDER "
            f"your own YAML with local data files, and {', '.join(OFFLINE_TASKS)} need nothing."
        ) from error


def _spelled(name: str, known: set[str], definitions: Path) -> str | None:
    """How the manager is asked for a task: by name where it is in the user's folders, by file where that is known."""
    if name in known:
        return name
    return str(definitions / ARTICLE[name].definition) if name in ARTICLE else None


def _check_names(names: Sequence[str], known: set[str], definitions: Path) -> None:
    """Refuse a name that stands in none of lm-eval's files, and name the nearest one that does."""
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in definitions.rglob("*.y*ml"))
    theirs = {found.strip("\"'") for found in _NAMED.findall(text)}
    for name in names:
        if name not in text:
            raise DataError(
                f"evaluation.tasks: no task {name!r}{nearest(name, [*known, *ARTICLE, *theirs])} "
                f"`lm_eval ls tasks` lists lm-eval's; without a download there are {', '.join(OFFLINE_TASKS)}. "
                "A task of your own is a YAML in evaluation.include_path=FOLDER."
            )


def _folder(field: str, value: str) -> Path:
    folder = Path(value).expanduser().absolute()
    if not folder.is_dir():
        raise DataError(f"{field}={value}: no such folder. Give the folder itself, not a file in it.")
    return folder


def _check_code(folder: Path, definitions: Path) -> None:
    """A task YAML can name a Python file, which is run when it is loaded, and include other YAML that does."""
    if os.environ.get(ALLOW, "").lower() in ("1", "true"):
        return
    from lm_eval.tasks._yaml_loader import load_yaml

    waiting = sorted(path for path in folder.rglob("*") if path.suffix in (".yaml", ".yml"))
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop().resolve()
        if path in seen or path.is_relative_to(definitions):
            continue
        seen.add(path)
        try:
            text = path.read_text(encoding="utf-8")
            included = load_yaml(path, resolve_func=False, recursive=False).get("include", [])
        except (OSError, ValueError, yaml.YAMLError) as error:
            said = " ".join(str(error).split())
            raise DataError(f"{path}: not a task YAML ({said}). Mend it, or move it out of {folder}.") from error
        if "!function" in text:
            raise DataError(
                f"{path}: its !function runs Python code. If you trust it, add allow_code=true to the command line."
            )
        waiting += [path.parent / name for name in (included if isinstance(included, list) else [included])]


class _Templates(SandboxedEnvironment):
    """Jinja's sandbox; a template that is asked for again is not compiled again, as lm-eval does for each document."""

    @functools.lru_cache(maxsize=1024)  # noqa: B019 - there is one environment
    def _compiled(self, source: str) -> Template:
        return super().from_string(source)

    def from_string(self, source: Any, globals: Any = None, template_class: Any = None) -> Template:
        """See Jinja."""
        if isinstance(source, str) and globals is None and template_class is None:
            return self._compiled(source)
        return super().from_string(source, globals, template_class)


def _sandbox(utils: Any) -> None:
    """Let lm-eval render the templates of task YAML in Jinja's sandbox: what it renders is the same."""
    own = utils.env
    if not isinstance(own, _Templates):
        utils.env = _Templates(
            loader=own.loader, undefined=own.undefined, keep_trailing_newline=own.keep_trailing_newline
        )
        utils.env.filters.update(own.filters)
