"""``lora-lab doctor``: a healthy machine passes, and each thing that is wrong has its remedy."""

import json
import shutil
import sqlite3
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest
import torch

from lora_lab.cli import doctor
from lora_lab.cli.main import main
from lora_lab.spec import Execution, ModelSpec, pairs

TINY = ["rank_alpha", "model=tiny"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("lora_lab.planner.device.container_free", lambda: 8 * doctor.GB)


def examine(capsys, *argv, code=0):
    """Exit code as expected; the checks by name."""
    found = main(["doctor", *TINY, *argv, "--json"])
    tree = json.loads(capsys.readouterr().out)
    assert found == code, [check for check in tree["checks"] if check["status"] == "fail"]
    assert tree["ok"] is (code == 0)
    return {check["name"]: check for check in tree["checks"]}


def only(checks):
    (check,) = checks
    return check


def test_a_healthy_machine_passes_and_is_described(capsys):
    checks = examine(capsys)
    assert checks["torch"]["value"] == metadata.version("torch")
    assert {"Python", "processor", "bfloat16", "memory", "sweep folder", "cache", "model", "storage"} <= set(checks)
    assert "GB free" in checks["memory"]["value"]
    assert checks["storage"]["value"] == "journal file in runs/rank_alpha"
    assert "mlflow ui" in checks["tracking"]["value"]
    assert not list(Path().iterdir()), "doctor leaves nothing behind"


def test_the_default_is_the_first_sweep(capsys):
    main(["doctor", "model=tiny", "--json"])
    names = {check["name"]: check["value"] for check in json.loads(capsys.readouterr().out)["checks"]}
    assert "runs/rank_alpha" in names["sweep folder"]


def test_for_people_each_check_is_a_line_and_a_remedy_stands_below(capsys):
    Path("taken").write_text("a file")
    assert main(["doctor", *TINY, "sweep.dir=taken/here"]) == 1
    lines = capsys.readouterr().out.splitlines()
    (at,) = [i for i, line in enumerate(lines) if line.startswith("fail")]
    assert "sweep folder" in lines[at]
    assert lines[at + 1].strip() == "Choose another place: sweep.dir=FOLDER."
    assert lines[-1].endswith("1 fail")


def test_packages_that_are_missing_or_too_old(monkeypatch):
    wanted = ["no-such-package>=1.0", "torch>=99", "rich", "no-such-extra>=2; extra == 'hf'", "ruff; extra == 'dev'"]
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    checks = {check.name: check for check in doctor.check_packages()}
    assert checks["no-such-package"].status == "fail"
    assert "pip install 'no-such-package>=1.0'" in checks["no-such-package"].remedy
    assert checks["torch"].status == "fail"
    assert ">=99 is needed" in checks["torch"].value
    assert "pip install 'torch>=99'" in checks["torch"].remedy
    assert checks["rich"].status == "ok"
    assert checks["no-such-extra"].status == "ok"
    assert "lora-lab[hf]" in checks["no-such-extra"].value
    assert "ruff" not in checks


def test_a_checkout_that_is_not_installed(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    checks = {check.name: check for check in doctor.check_packages()}
    assert (checks["lora-lab"].status, checks["lora-lab"].remedy) == ("warn", "Install it: `make setup`.")


@pytest.mark.parametrize(
    ("flags", "dtype", "status", "said"),
    [
        ("flags\t: avx2 avx512_bf16 amx_bf16", "bfloat16", "ok", "AMX, AVX512"),
        ("flags\t: sse avx2", "bfloat16", "warn", "emulated"),
        ("flags\t: sse avx2", "float32", "ok", "not in hardware"),
        ("Features\t: fp asimd bf16", "bfloat16", "ok", "Arm"),
        ("", "bfloat16", "ok", "unknown"),
    ],
)
def test_bfloat16_by_processor(tmp_path, flags, dtype, status, said):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: Test CPU 9000\n{flags}\n")
    model = ModelSpec("m", source="random", dtype=dtype, config=pairs({"model_type": "llama"}))
    processor, check = doctor.check_processor(model, cpuinfo)
    assert "Test CPU 9000" in processor.value
    assert check.status == status
    assert said in check.value
    assert ("model.dtype=float32" in check.remedy) == (status == "warn")


def test_gpus_are_listed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (40 * doctor.GB, 80 * doctor.GB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "A GPU")
    checks = list(doctor.check_cuda())
    assert [check.name for check in checks] == ["cuda:0", "cuda:1"]
    assert "A GPU, 40.0 of 80.0 GB free" in checks[0].value


def test_a_gpu_that_torch_cannot_see(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    check = only(doctor.check_cuda())
    assert check.status == "warn"
    assert "pytorch.org" in check.remedy


@pytest.mark.parametrize(("free", "status"), [(8e9, "ok"), (2e9, "warn"), (1e8, "fail")])
def test_little_memory(monkeypatch, free, status):
    monkeypatch.setattr("lora_lab.planner.device.container_free", lambda: int(free))
    monkeypatch.setattr("psutil.virtual_memory", lambda: namedtuple("Memory", "available")(16 * doctor.GB))
    check = only(doctor.check_memory(Execution("runs/x")))
    assert check.status == status
    assert ("pack.max_lanes" in check.remedy) == (status != "ok")


@pytest.mark.parametrize(("free", "status"), [(9e9, "ok"), (2e9, "warn"), (1e8, "fail")])
def test_little_disk_space(monkeypatch, tmp_path, free, status):
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, int(free)))
    check = only(doctor.check_folder("cache", tmp_path / "not" / "yet", "export LORA_LAB_CACHE=FOLDER"))
    assert check.status == status
    assert ("export LORA_LAB_CACHE=FOLDER" in check.remedy) == (status != "ok")


def test_a_model_that_is_not_there(capsys):
    checks = examine(capsys, "model=hf", "model.path=./nowhere", code=1)
    assert checks["model"]["status"] == "fail"
    assert "nowhere" in checks["model"]["value"]
    assert "Give an existing folder" in checks["model"]["remedy"]
    assert checks["tracking"]["status"] == "ok", "one failure hides no other check"


def test_a_sqlite_storage(capsys):
    assert "free" in examine(capsys, "sweep.storage=sqlite:///study.db")["storage"]["value"]
    with sqlite3.connect("study.db") as connection:
        connection.execute("create table t (x)")
    assert examine(capsys, "sweep.storage=sqlite:///study.db")["storage"]["value"] == "sqlite:///study.db"
    Path("broken.db").write_bytes(b"this is no database" * 100)
    check = examine(capsys, "sweep.storage=sqlite:///broken.db", code=1)["storage"]
    assert "not a database" in check["value"]
    assert "sweep.storage=sqlite:///PATH" in check["remedy"]


@pytest.mark.parametrize("url", ["postgresql+psycopg://me:secret@127.0.0.1:9/optuna", "nonsense://me:secret@x/y"])
def test_a_database_that_cannot_be_used_is_named_without_its_password(capsys, url):
    check = examine(capsys, f"sweep.storage='{url}'", code=1)["storage"]
    assert check["status"] == "fail"
    assert check["remedy"]
    assert "secret" not in json.dumps(check)


def test_a_tracking_server_that_does_not_answer(capsys):
    check = examine(capsys, "tracking.uri=http://127.0.0.1:9", code=1)["tracking"]
    assert "127.0.0.1:9" in check["value"]
    assert check["remedy"]


def test_no_tracking_is_fine(capsys):
    assert examine(capsys, "tracking=none")["tracking"]["status"] == "ok"


def test_a_damaged_installation_is_a_line_of_its_own(monkeypatch, capsys):
    def broken(device):
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr("lora_lab.planner.device.device_memory", broken)
    check = examine(capsys, code=1)["memory"]
    assert "libgomp.so.1" in check["value"]
    assert "make setup" in check["remedy"]


def test_a_sweep_that_does_not_compose_is_bad_input(capsys):
    assert main(["doctor", "rank_alpah"]) == 2
    assert "rank_alpha" in capsys.readouterr().err
