"""``lora-lab data`` and docs/data.md, whose commands are run here as they stand; and two processes at one cache."""

from __future__ import annotations

import json
import logging
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import lora_lab
from lora_lab.cli.main import main
from lora_lab.data import load, survey
from lora_lab.spec import DataSpec

PAGE = Path(lora_lab.__file__).parent.parent / "docs" / "data.md"
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def instructions(folder: Path, rows: list[tuple[str, str]]) -> str:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps({"instruction": q, "output": a}) + "\n" for q, a in rows))
    return str(path)


def test_a_survey_counts_what_a_reader_would(tokenizer, tmp_path):
    rows = [("q" * 10, "a" * 10), ("q", "aaa"), ("q", "aaa"), ("qq", ""), ("q" * 30, "a")]
    path = instructions(tmp_path, rows)
    spec = DataSpec("alpaca", path, path, on_duplicate="keep", max_length=16)
    found = survey(spec, tokenizer, shown=9)
    train = found.train
    assert (train.examples, train.tokens, train.supervised_tokens) == (3, 16 + 6 + 6, 5 + 4 + 4)
    assert (train.truncated, train.dropped, train.repeated, found.duplicates) == (1, 2, 1, 5)
    assert (train.shortest, train.median, train.longest) == (6, 6.0, 16)
    assert train.histogram == ((6, 7, 2), *((n, n + 1, 0) for n in (8, 10, 12, 14)), (16, 17, 1))
    assert sorted(found.shown) == sorted(
        [(("q\n", False), ("aaa<eos>", True))] * 2 + [(("q" * 10 + "\n", False), ("a" * 5, True))]
    )
    assert json.dumps(found.to_tree())


@pytest.mark.parametrize(("side", "text"), [("right", "qqq\naaaa"), ("left", "aaaaaaa<eos>")])
def test_the_side_that_is_cut(tokenizer, tmp_path, side, text):
    path = instructions(tmp_path, [("qqq", "a" * 9)])
    spec = DataSpec("alpaca", path, path, on_duplicate="keep", max_length=8, truncate=side)
    split = load(spec, tokenizer).train
    ids, supervised = split.tokens(0)
    assert tokenizer.decode(ids) == text and split.truncated == 1
    assert supervised.sum() == (4 if side == "right" else 7)
    assert [len(p) for p in split.prompts] == [4 if side == "right" else 0]


def test_the_left_side_is_cut_after_the_beginning_token(make_tokenizer, tmp_path):
    path = instructions(tmp_path, [("qqq", "aaa")])
    spec = DataSpec("alpaca", path, path, on_duplicate="keep", max_length=6, truncate="left")
    tokenizer = make_tokenizer(bos=True)
    split = load(spec, tokenizer).train
    ids, supervised = split.tokens(0)
    assert tokenizer.decode(ids) == "<bos>\naaa<eos>" and supervised.tolist() == [False, False] + [True] * 4
    assert tokenizer.decode(split.prompts[0]) == "<bos>\n"


def test_what_is_lost_is_logged_once(tokenizer, tmp_path, caplog):
    path = instructions(tmp_path, [(f"q{i}", "a" * 20) for i in range(12)])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            load(DataSpec("alpaca", path, max_length=10), tokenizer)
    (record,) = caplog.records
    assert "11 training and 1 held-out examples are cut at the end, to data.max_length=10" in record.getMessage()


def test_the_verb_prints_numbers_or_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path))
    words = ["data", "model=tiny", "data.train_size=60", "data.eval_size=6", "data.max_length=40"]
    assert main([*words, "--examples", "1"]) == 0
    shown = capsys.readouterr().out
    assert "train: " in shown and "are cut at the end, to data.max_length=40" in shown and "⟦" in shown
    assert main([*words, "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["train"]["truncated"] > 0 and 0 < tree["train"]["supervised_share"] < 1
    assert tree["shown"][0][-1]["learned"] is True
    assert main(["data", "model=tiny", "data=alpaca", "data.path=nowhere.jsonl"]) == 2
    assert "nowhere.jsonl does not exist" in capsys.readouterr().err


def test_the_commands_of_the_page_do_what_it_says(tmp_path, monkeypatch, capsys):
    """In one folder, from the top of the page to the end, as its reader would."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LORA_LAB_ALLOW_CODE", "0")  # put back at the end
    monkeypatch.syspath_prepend(str(tmp_path))
    ran = []
    for block in BLOCKS:
        for command in re.split(r"^(?=(?:PYTHONPATH=\. )?lora-lab )", block, flags=re.MULTILINE):
            line, _, rest = command.partition("\n") if "lora-lab " in command[:24] else ("", "", command)
            words = [word for word in shlex.split(line) if word != "PYTHONPATH=."]
            if words[1:2] == ["data"]:
                assert main(words[1:]) == 0, (words, capsys.readouterr().err)
                ran.append(capsys.readouterr().out)
            if rest.strip():
                subprocess.run(["bash", "-euc", rest], check=True)
    assert len(ran) == 12
    text = "\n".join(ran)
    assert "skipped: 1 rows" in text and "line 3: not JSON" in text and "packed: " in text
    assert "Task: Name a" in text and "Double " in text


CHILD = """
import sys, time
from pathlib import Path
from lora_lab.data import load, dataset
from lora_lab.models.tokenizer import byte_tokenizer
from lora_lab.spec import DataSpec
inner, made = dataset.tokenise, []
def counted(*args):
    made.append(1)
    time.sleep(1.0)
    return inner(*args)
dataset.tokenise = counted
tokenizer = byte_tokenizer()
print("ready", flush=True)
sys.stdin.readline()
found = load(DataSpec("alpaca", sys.argv[1]), tokenizer, Path(sys.argv[2]))
print(len(made), len(found.train), found.digest)
"""


def test_two_processes_tokenise_once(tmp_path):
    path = instructions(tmp_path, [(f"q{i}", "a") for i in range(50)])
    command = [sys.executable, "-c", CHILD, path, str(tmp_path / "cache")]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = sorted(process.communicate(timeout=60)[0].split() for process in processes)
    assert [answer[0] for answer in answers] == ["0", "1"]
    assert answers[0][1:] == answers[1][1:] and answers[0][1] == "45"
