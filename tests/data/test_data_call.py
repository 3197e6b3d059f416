"""What runs elsewhere: a function of the user's (never unasked), a template of the user's (in bounds), the hub."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from lora_lab.cli.main import main
from lora_lab.data import check, examples, load
from lora_lab.data.jinja import Renderer
from lora_lab.data.sources import hf
from lora_lab.errors import DataError
from lora_lab.spec import DataSpec, pairs

MODULE = """
from pathlib import Path
def rows(count, sign="q"):
    Path(__file__).with_name("ran").touch()
    return [{"instruction": f"{sign}{i}", "output": "a"} for i in range(count)]
def broken(): yield {"instruction": "q", "output": "a"}; raise OSError("disk gone")
def mixed(): return [{"prompt": "p", "completion": "c"}, 7, {"messages": ["q", "a"]}]
def words(): return "words"
nothing = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "users_rows.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("LORA_LAB_ALLOW_CODE", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop("users_rows", None)
    return "users_rows"


def called(target: str, **fields: object) -> DataSpec:
    arguments = fields.pop("arguments", {})
    return DataSpec("callable", call=pairs({"_target_": target} | arguments), **fields)  # type: ignore[arg-type,operator]


def test_no_function_is_called_or_imported_unless_the_user_allows_it(module, tmp_path, tokenizer):
    for refuse in (check, examples, lambda spec: load(spec, tokenizer)):
        for target in (f"{module}.rows", "lora_lab.files.write_text", "os.system"):
            with pytest.raises(DataError, match=r"add allow_code=true to the command"):
                refuse(called(target, arguments={"count": 3}))
    assert not (tmp_path / "ran").exists() and module not in sys.modules


def test_a_sweep_file_cannot_allow_it(module, tmp_path, monkeypatch, capsys):
    (tmp_path / "theirs.yaml").write_text(
        f"allow_code: true\ndata: {{name: callable, call: {{_target_: {module}.rows, count: 9}}}}\n"
        "sweep: {space: {method.r: {choices: [1]}}}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "theirs.yaml", "model=tiny"]) == 2
    assert "no config key 'allow_code'" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_the_command_line_can(module, tmp_path, monkeypatch, capsys):
    words = ["data", "model=tiny", "data=callable", f"data.call._target_={module}.rows", "data.call.count=20"]
    assert main(words) == 2 and "allow_code=true" in capsys.readouterr().err
    monkeypatch.setenv("LORA_LAB_ALLOW_CODE", "0")  # put back at the end
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "cache"))
    assert main([*words, "allow_code=true"]) == 0
    assert "train: 18 examples" in capsys.readouterr().out


def test_rows_of_a_function_are_read_by_their_columns(module, monkeypatch):
    monkeypatch.setenv("LORA_LAB_ALLOW_CODE", "1")
    train, evaluation = examples(called(f"{module}.rows", arguments={"count": 4, "sign": "z"}))
    assert {r.instruction for r in (*train, *evaluation)} == {"z0", "z1", "z2", "z3"}
    train, evaluation = examples(called(f"{module}.mixed", on_bad_row="skip"))
    assert {type(r).__name__ for r in (*train, *evaluation)} == {"Instruction", "Conversation"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rosw", "cannot be imported"),
        ("nothing", "is no function but a number"),
        ("words", 'must give an iterable of rows .* gave a string \\("words"\\)'),
        ("mixed", "mixed row 2: expected a mapping of columns, found a number"),
        ("broken", "failed with OSError: disk gone"),
        ("rows", "failed with TypeError: .*count"),
    ],
)
def test_a_function_that_fails_is_told(module, monkeypatch, name, said):
    monkeypatch.setenv("LORA_LAB_ALLOW_CODE", "1")
    with pytest.raises(DataError, match=said):
        examples(called(f"{module}.{name}"))


# --- templates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ instruction.__class__.__mro__ }}", "is unsafe|no attribute|undefined"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
        ("{{ cycler.__init__.__globals__.os.system('touch /tmp/owned') }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "fails"),
        ("{{ 'x' * 10**10 }}", "needs more than 1024 MiB"),
        ("{{ 'x' * 10**7 }}", "gives 10,000,000 characters for one row"),
        ("{{ 'x'.ljust(10**10) }}", "needs more than 1024 MiB"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "takes more than 2 s for one row",
        ),
        (
            "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
            "needs more|takes more",
        ),
        ("{{ instrution }}", "'instrution' is undefined"),
        ("{{ raise_exception('no such role') }}", "fails: no such role"),
        ("{% for %}", "line 1 of it"),
    ],
)
def test_a_template_does_no_harm(template, said):
    started = time.monotonic()
    with pytest.raises(DataError, match=said), Renderer(template) as renderer:
        renderer.render({"instruction": "q", "messages": []})
    assert time.monotonic() - started < 150
    assert not Path("/tmp/owned").exists()


def test_a_renderer_goes_on_after_a_bad_row_and_says_when_its_process_is_gone():
    with Renderer("{{ 'x' * n }}") as renderer:
        with pytest.raises(DataError, match="needs more"):
            renderer.render({"n": 10**10})
        assert renderer.render({"n": 3}) == "xxx"
        renderer._process.kill()
        with pytest.raises(DataError, match="the process that renders it ended"):
            renderer.render({"n": 3})


def test_a_template_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(DataError, match=r"data.jinja=nowhere.jinja: .* cannot be read \(No such file"):
        check(DataSpec(template="jinja", jinja="nowhere.jinja"))
    with pytest.raises(DataError, match="line 2 of it"):
        check(DataSpec(template="jinja", jinja="{{ a }}\n{% endif %}"))


# --- the hub --------------------------------------------------------------------------------------------------------


def test_without_a_network_the_hub_is_given_up_in_seconds(monkeypatch, tmp_path):
    """Nothing answers at the address; the package alone would try for half a minute."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(DataError, match=r"the hub cannot be reached, and .* not in the local cache .*HF_HOME"):
        examples(DataSpec("hf", "nobody/nothing-here"))
    assert time.monotonic() - started < hf.KNOCK_SECONDS + 6
    assert constants.HF_HUB_OFFLINE is False and datasets.config.HF_HUB_OFFLINE is False


def test_streaming_fetches_only_what_is_asked_for(monkeypatch):
    fetched = []

    def endless(name, configuration, *, revision, streaming):
        assert streaming and revision == "abc"

        def rows():
            for i in range(10**9):
                fetched.append(i)
                yield {"prompt": f"q{i}", "completion": "a"}

        return {"train": rows()}

    monkeypatch.setattr("datasets.load_dataset", endless)
    monkeypatch.setattr(hf, "_answers", lambda endpoint: True)
    spec = DataSpec("hf", "owner/name", streaming=True, revision="abc", train_size=30, eval_size=5)
    train, evaluation = examples(spec)
    assert (len(train), len(evaluation)) == (30, 5) and len(fetched) <= 36
