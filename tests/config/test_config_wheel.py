"""The built wheel composes everything in an empty folder, far from any checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import lora_lab

CHECKOUT = Path(lora_lab.__file__).resolve().parent.parent

PROGRAM = """
import lora_lab, pathlib
from lora_lab.config import compose_run, compose_sweep, conf_folder, sweep_names, sweeps_folder
inside = pathlib.Path(lora_lab.__file__).parent
assert conf_folder() == inside / "conf", conf_folder()
assert sweeps_folder() == inside / "sweeps", sweeps_folder()
for name in sweep_names():
    compose_sweep(name, ["model=tiny"])
pathlib.Path("own.yaml").write_text("sweep: {space: {method.r: [1, 2]}}")
print(inside, len(sweep_names()), compose_sweep("own.yaml", ["model=tiny"]).sweep.planned_trials)
"""


def test_the_wheel_composes_in_an_empty_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(tmp_path)]
    subprocess.run([*build, str(CHECKOUT)], check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("lora_lab-*.whl")
    installed, empty = tmp_path / "installed", tmp_path / "empty folder"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    empty.mkdir()
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=empty,
        env=os.environ | {"PYTHONPATH": str(installed)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split()[0] == str(installed / "lora_lab")
    assert answer.stdout.split()[2] == "2"
