"""What is read from files, and what is said (file, line, what was found, remedy) when it cannot be."""

from __future__ import annotations

import errno
import json
import re
import sys
import types
from pathlib import Path

import pytest

from lora_lab.data import check, examples
from lora_lab.data.records import Conversation, Instruction, Passage, Record
from lora_lab.data.source import Reader, Source
from lora_lab.data.sources import hf
from lora_lab.errors import DataError
from lora_lab.spec import DataSpec, Pairs, pairs

GOOD = '{"instruction": "Add.", "input": "1 2", "output": "3"}'


def written(folder: Path, text: str | bytes, name: str = "train.jsonl") -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def rows(*values: object) -> str:
    return "\n".join(json.dumps(value) for value in values) + "\n"


def read(name: str, path: str, columns: Pairs) -> list[Record]:
    return [record for _, record in Reader(Source(DataSpec(name, path, columns=columns)))]


# --- what is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        GOOD + "\n",
        GOOD,
        "\n\n" + GOOD + "\r\n\r\n",
        "[" + GOOD + "]",
        "  [\n" + GOOD + "\n]",
        b"\xef\xbb\xbf" + GOOD.encode(),
    ],
    ids=["lines", "no newline", "blank lines and CRLF", "array", "indented array", "byte-order mark"],
)
def test_json_and_json_lines_give_the_same_record(tmp_path, text):
    assert read("alpaca", written(tmp_path, text), pairs()) == [Instruction("Add.", "1 2", "3")]


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path):
    line = json.dumps({"instruction": "a\u2028b\x85c", "output": "d"}, ensure_ascii=False)
    (record,) = read("alpaca", written(tmp_path, line), pairs())
    assert record.instruction == "a\u2028b\x85c"


def test_columns_are_mapped_and_text_is_kept_to_the_byte(tmp_path):
    path = written(tmp_path, rows({"context": "\n\nQ: What is 1 plus 2?\n\nA:", "completion": " 3", "kind": "sum"}))
    columns = pairs({"instruction": "context", "output": "completion", "task": "kind"})
    assert read("alpaca", path, columns) == [Instruction("\n\nQ: What is 1 plus 2?\n\nA:", "", " 3", "sum")]


@pytest.mark.parametrize(
    "text",
    ["Noinput", "<no input>", "No input.", "No input required.", "`<noinput>`", '"<noinput>"', "N/A", "<noinput"],
)
def test_inputs_that_say_there_is_none_are_empty(tmp_path, text):
    path = written(tmp_path, rows({"instruction": "i", "input": text, "output": "o"}))
    assert read("alpaca", path, pairs())[0].input == ""


@pytest.mark.parametrize("text", ["Nonetheless", "no inputs were harmed", "<noinput> 8", "Innovation", "No"])
def test_inputs_that_only_look_like_none_are_kept(tmp_path, text):
    path = written(tmp_path, rows({"instruction": "i", "input": text, "output": "o"}))
    assert read("alpaca", path, pairs())[0].input == text


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ({}, {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}),
        (
            {"messages": "conversations"},
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        ),
        ({"messages": "conversations"}, {"conversations": ["q", "a"], "source": "stackexchange"}),
        (
            {},
            {
                "messages": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a"},
                    {"role": "user", "content": "unanswered"},
                ]
            },
        ),
    ],
    ids=["openai", "sharegpt", "lima", "last turn unanswered"],
)
def test_three_shapes_of_conversation(tmp_path, columns, values):
    path = written(tmp_path, rows(values))
    assert read("chat", path, pairs(columns)) == [Conversation((("user", "q"),), "a")]


def test_the_last_answer_of_several_is_the_response(tmp_path):
    path = written(tmp_path, rows({"messages": ["q1", "a1", "q2", "a2"], "task": "t"}))
    expected = Conversation((("user", "q1"), ("assistant", "a1"), ("user", "q2")), "a2", "t")
    assert read("chat", path, pairs()) == [expected]


# --- how it is divided ----------------------------------------------------------------------------------------------


def numbered(folder: Path, count: int, name: str = "train.jsonl") -> str:
    return written(folder, rows(*({"instruction": f"q{i}", "output": f"a{i}"} for i in range(count))), name)


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (9, 1), (30, 3), (6000, 512)])
def test_a_tenth_is_held_out_at_least_one_at_most_512(tmp_path, count, held_out):
    train, evaluation = examples(DataSpec("alpaca", numbered(tmp_path, count)))
    assert len(evaluation) == held_out and len(train) == count - held_out
    assert {r.instruction for r in train} | {r.instruction for r in evaluation} == {f"q{i}" for i in range(count)}


def test_the_split_is_shuffled_by_the_seed_and_stays(tmp_path):
    path = numbered(tmp_path, 20)
    train, evaluation = examples(DataSpec("alpaca", path, eval_size=4))
    assert [r.instruction for r in evaluation] == ["q17", "q15", "q19", "q3"]  # golden: same on every machine
    assert examples(DataSpec("alpaca", path, eval_size=4, train_size=5)) == (train[:5], evaluation)
    assert examples(DataSpec("alpaca", path, eval_size=4, seed=1))[1] != evaluation


def test_a_second_file_is_the_held_out_side(tmp_path):
    path, other = numbered(tmp_path, 3), written(tmp_path, rows({"instruction": "x", "output": "y"}), "eval.jsonl")
    train, evaluation = examples(DataSpec("alpaca", path, eval_path=other))
    assert len(train) == 3 and evaluation == [Instruction("x", "", "y")]


def test_a_record_that_is_held_out_is_not_trained_on_either(tmp_path):
    values = [{"instruction": f"q{i % 10}", "output": "a"} for i in range(40)]
    train, evaluation = examples(DataSpec("alpaca", written(tmp_path, rows(*values)), eval_size=3))
    assert not set(train) & set(evaluation)
    assert 0 < len(train) < 37


def test_text_comes_whole(tmp_path):
    path = written(tmp_path, "one\ntwo\n", "a.txt")
    assert examples(DataSpec("text", path)) == ([Passage("one\ntwo\n")], [])
    assert examples(DataSpec("text", path, eval_path=path)) == ([Passage("one\ntwo\n")], [Passage("one\ntwo\n")])


# --- what is refused ------------------------------------------------------------------------------------------------

BAD_LINES = [
    ("alpaca", GOOD + "\nnot json\n" + GOOD, "train.jsonl line 2: not JSON", "Each line must be one JSON object"),
    ("alpaca", GOOD + "\n" + GOOD[:30], "train.jsonl line 2: not JSON (Unterminated string", "may be cut off"),
    ("alpaca", GOOD + "\n[1, 2]\n", "train.jsonl line 2: expected an object, found a list ([1, 2])", "object"),
    ("alpaca", GOOD + "\n\n\n7\n", "train.jsonl line 4: expected an object, found a number (7)", "object"),
    ("alpaca", "{\n" + GOOD + "\n}", "train.jsonl line 1: not JSON", "one array [ ... ]"),
    ("alpaca", "[" + GOOD + ",\n" + GOOD[:20], "train.jsonl line 2: not JSON", "must be one JSON array"),
    ("alpaca", "[" + GOOD + ", 3]", "train.jsonl record 2: expected an object, found a number (3)", "columns"),
    ("alpaca", "[]", "train.jsonl: the JSON array is empty", "at least one record"),
    ("alpaca", (GOOD + "\n").encode() + b'{"instruction": "caf\xe9"}', "train.jsonl line 2: byte 0xe9", "iconv"),
    ("alpaca", b"", "train.jsonl is empty (0 bytes)", "Give a file with data"),
    ("alpaca", b" \n\n", "train.jsonl is empty (3 bytes, all blank)", "Give a file with data"),
    ("alpaca", b"\xef\xbb\xbf", "train.jsonl is empty (3 bytes, all blank)", "Give a file with data"),
    ("alpaca", "\u00a0\n", "train.jsonl is empty (3 bytes, all blank)", "Give a file with data"),
    (
        "alpaca",
        GOOD + '\n{"instruction": "a", "response": "b"}',
        'line 2: "output" is missing; columns found: instruction, response.',
        "Map it with data.columns.output=response.",
    ),
    (
        "alpaca",
        '{"Prompt": "a", "zzz": "b"}',
        'line 1: "instruction" is missing; columns found: Prompt, zzz.',
        "Map it with data.columns.instruction=Prompt.",
    ),
    ("alpaca", "{}", '"instruction" is missing; columns found: none.', "data.columns.instruction=NAME."),
    ("alpaca", '{"instruction": "a", "output": 3}', '"output" must be a string, found a number (3)', "quotes"),
    ("alpaca", '{"instruction": "a", "output": null}', '"output" must be a string, found null', "quotes"),
    ("alpaca", '{"instruction": ["a"], "output": ""}', '"instruction" must be a string, found a list', "quotes"),
    ("chat", '{"conversations": ["a", "b"]}', '"messages" is missing', "data.columns.messages=conversations."),
    ("chat", '{"messages": []}', '"messages" must be a list of messages, found a list ([])', '"role": "user"'),
    ("chat", '{"messages": "hi"}', "found a string", "Write e.g."),
    ("chat", '{"messages": ["only a question"]}', "no turn of the assistant among 1", "Add the answer"),
    (
        "chat",
        '{"messages": [{"role": "assistant", "content": "a"}]}',
        "no turn of the user before",
        "data.name=text",
    ),
    (
        "chat",
        '{"messages": [{"role": "bot", "content": "a"}]}',
        "line 1, message 1: unknown role 'bot'",
        "Known: system, user, human, assistant, gpt.",
    ),
    ("chat", '{"messages": [{"role": "user"}]}', 'message 1: "content" is missing; found: role', '"from" and "value"'),
    ("chat", '{"messages": [7]}', "message 1: must be an object with role and content, found a number", "object"),
    (
        "chat",
        '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}',
        '"content" must be a string, found a list',
        "Only text",
    ),
    ("alpaca", GOOD, "has 1 examples, too few for a held-out example", "data.eval_path"),
    ("alpaca", GOOD + "\n" + GOOD, "every training example also occurs among the 1 held-out", "Remove the repeated"),
]


@pytest.mark.parametrize(("name", "text", "cause", "remedy"), BAD_LINES, ids=[case[2][:50] for case in BAD_LINES])
def test_a_bad_file_is_refused_with_place_cause_and_remedy(tmp_path, name, text, cause, remedy):
    path = written(tmp_path, text)
    with pytest.raises(DataError) as caught:
        check(DataSpec(name, path))
    assert path in str(caught.value)
    assert cause in str(caught.value) and remedy in str(caught.value)


def test_a_missing_file_names_the_nearest_one(tmp_path):
    numbered(tmp_path, 3)
    with pytest.raises(DataError, match=r"data.path: .*tarin.jsonl does not exist in .*did you mean 'train.jsonl'\?"):
        check(DataSpec("alpaca", str(tmp_path / "tarin.jsonl")))
    with pytest.raises(DataError, match="nor does its folder"):
        check(DataSpec("alpaca", str(tmp_path / "nowhere" / "train.jsonl")))
    with pytest.raises(DataError, match=r"data.eval_path: .*does not exist"):
        check(DataSpec("alpaca", str(tmp_path / "train.jsonl"), eval_path=str(tmp_path / "held-out.json")))


def test_a_folder_is_refused_with_the_files_in_it(tmp_path):
    numbered(tmp_path, 3)
    with pytest.raises(DataError, match=r"is a folder; give a file in it: train.jsonl"):
        check(DataSpec("alpaca", str(tmp_path)))


def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    path = numbered(tmp_path, 3)

    def denied(self: Path, *_: object) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(DataError, match=r"train.jsonl cannot be read \(Permission denied\). Check .* permissions"):
        check(DataSpec("alpaca", path))
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"cannot be read \(Not a directory\)"):
        check(DataSpec("alpaca", path + "/part.jsonl"))


@pytest.mark.parametrize(
    ("name", "columns", "said"),
    [
        (
            "alpaca",
            {"outptu": "x"},
            "data.columns.outptu: data.name=alpaca reads no such column; did you mean 'output'?",
        ),
        ("alpaca", {"output": 3}, "data.columns.output: must be the name of a column in the file, found 3."),
        ("alpaca", {"input": "ctx"}, '"ctx" (data.columns.input) is missing; columns found: instruction, output.'),
        ("text", {"txet": "body"}, "data.columns.txet: data.name=text reads no such column; did you mean 'text'?"),
    ],
)
def test_a_bad_mapping_of_columns_is_refused(tmp_path, name, columns, said):
    with pytest.raises(DataError, match=re.escape(said)):
        check(DataSpec(name, numbered(tmp_path, 3), columns=pairs(columns)))


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"train_size": 10}, "data.train_size=10: only 9 are there"),
        ({"eval_size": 10}, "has 10 examples, too few for data.eval_size=10"),
    ],
)
def test_sizes_beyond_the_data_are_refused(tmp_path, sizes, said):
    with pytest.raises(DataError, match=said):
        check(DataSpec("alpaca", numbered(tmp_path, 10), **sizes))


def test_an_eval_size_beyond_the_second_file_is_refused(tmp_path):
    spec = DataSpec("alpaca", numbered(tmp_path, 3), eval_path=numbered(tmp_path, 2, "eval.jsonl"), eval_size=3)
    with pytest.raises(DataError, match=r"data.eval_size=3: only 2 are there in .*eval.jsonl"):
        check(spec)


# --- the hub --------------------------------------------------------------------------------------------------------


def stub_hub(monkeypatch: pytest.MonkeyPatch, load: object) -> None:
    """Stand in for the outside world: a package ``datasets`` with one function."""
    module = types.ModuleType("datasets")
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]  # find_spec only asks whether there is one
    module.load_dataset = load  # type: ignore[attr-defined]
    module.config = types.SimpleNamespace(HF_HUB_OFFLINE=False)  # type: ignore[attr-defined]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hf, "_answers", lambda endpoint: True)
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_the_hub_without_its_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=re.escape("pip install 'lora-lab[hf]'")):
        check(DataSpec("hf", "owner/name"))


def test_rows_of_the_hub_are_read_by_their_columns(monkeypatch):
    asked = []

    def load(name, configuration, **more):
        asked.append((name, configuration))
        return {
            "train": [{"question": f"q{i}", "answer": f"a{i}"} for i in range(4)],
            "talk": [{"messages": ["q", "a"]}],
            "prose": [{"text": "once upon"}],
        }

    stub_hub(monkeypatch, load)
    columns = pairs({"instruction": "question", "output": "answer"})
    train, evaluation = examples(DataSpec("hf", "owner/name:main", columns=columns))
    assert asked[0] == ("owner/name", "main")
    assert len(train) == 3 and evaluation[0].output.startswith("a")
    _, talk = examples(DataSpec("hf", "owner/name", eval_path="talk", columns=columns))
    assert talk == [Conversation((("user", "q"),), "a")]
    with pytest.raises(DataError, match="running text on one side and prompts with responses on the other"):
        examples(DataSpec("hf", "owner/name", eval_path="prose", columns=columns))
    with pytest.raises(DataError, match=r"owner/name train row 1: .*Map it with data.columns.output=answer"):
        examples(DataSpec("hf", "owner/name", columns=pairs({"instruction": "question"})))


def test_running_text_of_the_hub(monkeypatch):
    stub_hub(monkeypatch, lambda name, configuration, **more: {"train": [{"text": "one"}, {"text": "two"}]})
    assert examples(DataSpec("hf", "owner/name")) == ([Passage("one"), Passage("two")], [])


def test_the_hubs_own_troubles_are_told_with_a_remedy(monkeypatch, tmp_path):
    def offline(name, configuration, **more):
        raise ConnectionError("could not reach the hub")

    stub_hub(monkeypatch, offline)
    with pytest.raises(DataError, match=r"owner/name: datasets.load_dataset failed \(ConnectionError.*Check the id"):
        examples(DataSpec("hf", "owner/name"))
    with pytest.raises(DataError, match=r"the folder \./nowhere does not exist"):
        check(DataSpec("hf", "./nowhere"))
    stub_hub(monkeypatch, lambda name, configuration, **more: {"train": [{"text": "a"}], "test": []})
    with pytest.raises(DataError, match="no split 'tset'; did you mean 'test'"):
        examples(DataSpec("hf", "owner/name", eval_path="tset"))
    with pytest.raises(DataError, match="'test' has no rows"):
        examples(DataSpec("hf", "owner/name", eval_path="test"))


def test_a_local_folder_through_the_real_package(tmp_path):
    import datasets

    datasets.disable_progress_bars()
    numbered(tmp_path, 12)
    train, evaluation = examples(DataSpec("hf", str(tmp_path)))
    assert len(train) == 11 and len(evaluation) == 1


# --- the public files -----------------------------------------------------------------------------------------------


def test_the_real_alpaca_file(real_data):
    records = read("alpaca", str(real_data / "alpaca_5k.json"), pairs())
    assert len(records) == 5000
    assert [i for i, r in enumerate(records) if not r.output] == [284, 1223, 1347, 1736]
    without = sum(not r.input for r in records)
    assert without == 2834 + 86  # empty, and those that say so


def test_the_real_arithmetic_file(real_data):
    columns = pairs({"instruction": "context", "output": "completion"})
    records = read("alpaca", str(real_data / "arithmetic" / "two_digit_subtraction.jsonl"), columns)
    assert len(records) == 2000
    assert all(r.output.startswith(" ") and r.instruction.startswith("\n\nQ:") for r in records)
    assert sum(int(r.output) < 0 for r in records) == 974
