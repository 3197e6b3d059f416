"""Random and mutated files through every loader: data or a DataError, nothing else, and no time without end."""

from __future__ import annotations

import gzip
import json
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_lab.data import load
from lora_lab.data.columns import Row
from lora_lab.data.reading import rows
from lora_lab.errors import DataError
from lora_lab.spec import DataSpec, pairs

BOUNDED = settings(
    max_examples=120, deadline=timedelta(seconds=5), suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SEEDS = [
    b'{"instruction": "q", "input": "i", "output": "a"}\n{"instruction": "r", "output": "b"}\n',
    b'[{"instruction": "q", "output": "a"},\n {"messages": ["q", "a"]}, {"text": "t"}]',
    b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n',
    b'{"prompt": "p", "completion": "c"}\n{"text": "words"}\n',
    b'instruction,output\r\n"q, ""x""\nq2",a\r\nr,b\r\n',
    gzip.compress(b'{"instruction": "q", "output": "a"}\n' * 3),
    "\ufeffna\u00efve \u2028 \U0001f600\n".encode(),
]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)
columns = ("instruction", "input", "output", "messages", "prompt", "completion", "text", "task")


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good file with bytes replaced, put in, taken out or repeated."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 8)))
        data[start:end] = draw(st.binary(max_size=8) | st.just(bytes(data[start:end]) * 3))
    return bytes(data)


@st.composite
def odd_rows(draw: st.DrawFn) -> bytes:
    """JSON Lines of the right columns with anything in them."""
    lines = draw(st.lists(st.dictionaries(st.sampled_from(columns), values, max_size=5), min_size=1, max_size=4))
    return "\n".join(json.dumps(line) for line in lines).encode()


@BOUNDED
@given(
    data=mutated() | odd_rows() | st.binary(max_size=200), kind=st.sampled_from(["jsonl", "json", "csv", "tsv", "txt"])
)
@pytest.mark.parametrize("name", ["alpaca", "chat", "completion", "text"])
def test_any_file_gives_data_or_a_sentence(tokenizer, tmp_path: Path, name: str, data: bytes, kind: str):
    path = tmp_path / f"fuzz.{kind}"
    path.write_bytes(data)
    for on_bad_row in ("error", "skip"):
        spec = DataSpec(
            name, str(path), on_bad_row=on_bad_row, turns="all", template="chatml", max_length=64, on_duplicate="keep"
        )
        try:
            split = load(spec, tokenizer).train
        except DataError as error:
            assert len(str(error)) < 1500
        else:
            for i in range(len(split)):
                ids, supervised = split.tokens(i)
                assert 0 < len(ids) <= 64 and not supervised[0] and supervised.any()


@BOUNDED
@given(
    st.lists(
        st.dictionaries(st.text(min_size=1, max_size=5), st.text(max_size=10), min_size=1, max_size=3), min_size=1
    ),
    st.sampled_from(["lines", "array", "indented"]),
)
def test_what_was_written_is_what_is_read(tmp_path: Path, written: list[dict[str, str]], how: str):
    text = {
        "lines": lambda: "\n".join(json.dumps(row, ensure_ascii=False) for row in written),
        "array": lambda: json.dumps(written),
        "indented": lambda: json.dumps(written, indent=1, ensure_ascii=False),
    }[how]()
    path = tmp_path / "a.json"
    path.write_bytes(text.encode())
    read = list(rows(str(path)))
    assert all(isinstance(row, Row) for row in read)
    assert [row.values for row in read if isinstance(row, Row)] == written


@BOUNDED
@given(st.lists(st.lists(st.text(max_size=12).filter(lambda t: "\0" not in t), min_size=2, max_size=2), max_size=5))
def test_a_table_that_was_written_is_read(tmp_path: Path, cells: list[list[str]]):
    import csv

    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["one", "two"], *cells])
    read = [row for row in rows(str(path)) if isinstance(row, Row)]
    # csv reads a carriage return in a quoted cell as it stands, and a row of two empty cells as one
    assert [list(row.values.values()) for row in read] == cells


@pytest.mark.parametrize("mapping", [{"instruction": "x" * 1000}, {"output": "\x1b[2J"}])
def test_odd_names_of_columns_stay_out_of_messages(tmp_path, tokenizer, mapping):
    path = tmp_path / "a.jsonl"
    path.write_text('{"\\u0007": 1}')
    with pytest.raises(DataError):
        load(DataSpec("alpaca", str(path), columns=pairs(mapping)), tokenizer)
