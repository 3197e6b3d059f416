"""The house stands: rooms are light to import, verbs keep their form, the wheel is complete."""

import importlib
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import lora_lab
from lora_lab.cli.main import VERBS, verb_of

PACKAGE = Path(lora_lab.__file__).parent
ROOT = PACKAGE.parent
ROOMS = sorted(folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file())
HEAVY = {"torch", "transformers", "peft", "optuna", "mlflow", "pandas", "scipy", "hydra", "omegaconf", "rich", "numpy"}


def python(program, *argv):
    """Standard output of a program in a fresh interpreter, far from any test's imports."""
    command = [sys.executable, "-W", "error", "-c", program, *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(program):
    """Which heavy packages a program has imported when it is done."""
    out = python(f"import sys\n{program}\nprint('loaded:', *sys.modules)")
    return HEAVY & set(out.splitlines()[-1].split())


def test_importing_lora_lab_loads_nothing_heavy():
    assert loaded("import lora_lab; lora_lab.__version__; lora_lab.LoraLabError; lora_lab.Sweep") == set()


@pytest.mark.parametrize("room", ROOMS)
def test_importing_a_room_loads_nothing_heavy(room):
    assert loaded(f"import lora_lab.{room}") == set()
    assert (importlib.import_module(f"lora_lab.{room}").__doc__ or "").strip(), "a room says what it is for"


@pytest.mark.parametrize("name", sorted(lora_lab.__all__))
def test_the_public_names_are_there(name):
    assert getattr(lora_lab, name) is not None


@pytest.mark.parametrize("room", ROOMS)
def test_the_public_names_of_a_room_are_there(room):
    module = importlib.import_module(f"lora_lab.{room}")
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None, name
    with pytest.raises(AttributeError):
        _ = module.no_such_name


HELP = "import sys; from lora_lab.cli.main import main; code = main({argv}); assert code == 0, code"


def test_help_loads_nothing_heavy():
    assert loaded(HELP.format(argv=["--help"])) == set()


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_explains_itself_without_loading_anything(verb):
    module = verb_of(verb)
    assert module.HELP
    assert "\n" not in module.HELP
    assert module.EXAMPLE.startswith(f"lora-lab {verb}")
    assert loaded(HELP.format(argv=[verb, "--help"])) == set()


def test_no_room_for_leftovers():
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc", "manager"}


def test_constraints_pin_a_version_in_range_of_all_that_is_asked_for_but_torch():
    """The Makefile pins torch, which is installed before the rest."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    for requirement in map(Requirement, asked):
        if requirement.name != "torch":
            assert requirement.specifier.contains(pinned[requirement.name]), requirement


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (file,) = folder.glob("*.whl")
    return file


def test_the_wheel_holds_the_package_its_config_and_its_sweeps(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder, inside in (("lora_lab", "lora_lab"), ("conf", "lora_lab/conf"), ("sweeps", "lora_lab/sweeps")):
        files = [p for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        assert files
        missing = {f"{inside}/{p.relative_to(ROOT / folder).as_posix()}" for p in files} - names
        assert not missing
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "docs/"))]


def test_the_wheel_answers_in_an_empty_folder(wheel, tmp_path):
    inside, empty = tmp_path / "inside", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(inside)

    def lora_lab(*words):
        command = [sys.executable, "-m", "lora_lab.cli.main", *words]
        there = os.environ | {"PYTHONPATH": str(inside)}
        done = subprocess.run(command, cwd=empty, env=there, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert '"fits": true' in lora_lab("plan", "rank_alpha", "model=tiny", "--memory=1GB", "--json")
    assert not list(empty.iterdir())
    small = ("data.train_size=16", "data.eval_size=4", "budget.steps=2", "sweep.space.method.r=[2,4]")
    said = lora_lab("sweep", "rank_alpha", "model=tiny", "tracking=none", *small)
    assert "base model" in said
    assert len(list((empty / "runs" / "rank_alpha" / "runs").glob("*/result.json"))) == 12
