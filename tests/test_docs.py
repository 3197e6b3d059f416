"""The documents are true: links resolve, commands parse and compose, YAML is a sweep, Python runs."""

import argparse
import re
import shlex
from pathlib import Path

import pytest
import yaml

import lora_lab
from lora_lab.cli.main import ALLOW_CODE, VERBS, verb_of
from lora_lab.config import compose_run, compose_sweep

ROOT = Path(lora_lab.__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(*languages):
    """Every fenced block in these languages: (document, text)."""
    found = []
    for document in DOCUMENTS:
        for language, text in FENCE.findall(document.read_text(encoding="utf-8")):
            if language in languages:
                found.append(pytest.param(text, id=f"{document.name}:{text.splitlines()[0][:40]}"))
    return found


def commands(program):
    """Every line of a shell block that starts with ``program``, as words."""
    lines = [line for block in blocks("sh", "bash") for line in block.values[0].splitlines()]
    consoles = [line for block in blocks("console") for line in block.values[0].splitlines()]
    lines += [line.removeprefix("$ ") for line in consoles if line.startswith("$ ")]
    mine = [line for line in lines if line.startswith(f"{program} ")]
    return [shlex.split(line, comments=True) for line in mine]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_resolve(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "#")):
            assert (document.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("words", commands("lora-lab"), ids=" ".join)
def test_commands_of_lora_lab_parse_and_compose(words):
    verb = words[1]
    assert verb in VERBS
    module = verb_of(verb)
    parser = argparse.ArgumentParser(exit_on_error=False)
    module.configure(parser)
    args = parser.parse_intermixed_args(words[2:])
    if verb not in ("sweep", "train", "plan", "measure", "doctor", "data"):
        return
    said = [word for word in (getattr(args, "sweep", None), *args.overrides) if word]
    overrides = [word for word in said if "=" in word and word != ALLOW_CODE]
    (name,) = [word for word in said if "=" not in word] or [None]
    if name is None:
        compose_run(overrides)
    elif not name.endswith(".yaml"):
        compose_sweep(name, overrides)


def test_the_verbs_of_the_readme_are_all_there_are():
    table = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(table) == sorted(VERBS)


@pytest.mark.parametrize("words", commands("make"), ids=" ".join)
def test_targets_of_make_exist(words):
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {word for word in words[1:] if "=" not in word} <= set(targets)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_is_a_sweep(text, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    assert compose_sweep(str(file)).sweep.planned_trials > 0


@pytest.mark.parametrize("text", blocks("yml"))
def test_other_yaml_is_a_kubernetes_job_of_workers(text):
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    verb_of(container["args"][0]).configure(parser := argparse.ArgumentParser(exit_on_error=False))
    parser.parse_args(container["args"][1:])


@pytest.mark.parametrize("text", blocks("python"))
def test_python_runs(text, tmp_path, monkeypatch, fabricate):
    program = compile(text, "README.md", "exec")
    if "path/to/the/base/model" in text:
        return  # the reader's own model: it compiles; test_methods_lora loads an adapter this way
    space = {"method.r": {"choices": [2, 8]}, "method.alpha_over_r": {"choices": [1, 2]}}
    fabricate(space, folder=tmp_path / "runs" / "rank_alpha", name="rank_alpha")
    monkeypatch.chdir(tmp_path)
    exec(program, {})


def test_there_is_something_to_check():
    assert len(commands("lora-lab")) >= 5
    assert blocks("yaml")
    assert blocks("python")


ROOM = re.compile(r"^\| \d \| (`.+?`) \|", re.MULTILINE)


def test_the_architecture_names_every_room():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = {name for row in ROOM.findall(text) for name in re.findall(r"`(\w+)`", row)}
    package = ROOT / "lora_lab"
    rooms = {path.parent.name for path in package.glob("*/__init__.py")} | {
        path.stem for path in package.glob("*.py") if path.stem != "__init__"
    }
    assert named == rooms
