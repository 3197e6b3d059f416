"""Files made to do harm: each ends in a sentence or in data, never in a crash, and in bounded memory."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from lora_lab.data import check, examples
from lora_lab.errors import DataError
from lora_lab.spec import DataSpec

GOOD = '{"instruction": "q", "output": "a"}\n'
MEBI = 2**20


def refused(path: Path, name: str = "alpaca", **fields: object) -> str:
    with pytest.raises(DataError) as caught:
        check(DataSpec(name, str(path), **fields))  # type: ignore[arg-type]
    message = str(caught.value)
    assert len(message) < 800 and message.isprintable()
    return message


# --- memory, measured in a process of its own -------------------------------------------------------------------------

MEASURED = {
    "a line of 10 MB in one cell": "has 10,485,760 characters, and at most 1,048,576 are taken",
    "a line of 40 MB": "longer than 16 MiB",
    "brackets nested 5 million deep": "nested too deeply",
    "an array nested 5 million deep": "nested too deeply",
    "3 million empty lists in a row": 'line 2: "instruction" is missing',
    "100,000 columns": 'line 1: "instruction" is missing',
    "a number of 10 million digits": "not JSON",
    "gzip that unpacks a thousandfold": "times its own size: no text packs like that",
    "an endless device": "is no regular file",
    "a million tiny rows": "100 examples",
    "a text without a line end": "100 examples",
}
SCRIPT = """
import gzip, json, resource, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
from lora_lab.data import examples, load
from lora_lab.errors import DataError
from lora_lab.models.tokenizer import byte_tokenizer
from lora_lab.spec import DataSpec
import numpy, jinja2
GOOD = '{"instruction": "q", "output": "a"}\\n'

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def file(name, parts):
    path = folder / name
    with (gzip.open if name.endswith("gz") else open)(path, "wb") as out:
        for part in parts:
            out.write(part.encode())
    return str(path)

CASES = {
    "a line of 10 MB in one cell": lambda: file("a.jsonl", [GOOD, '{"instruction": "', "x" * 10 * 2**20, '"}']),
    "a line of 40 MB": lambda: file("b.jsonl", [GOOD] + ["x" * 2**20] * 40),
    "brackets nested 5 million deep": lambda: file("c.jsonl", [GOOD, "[" * 5_000_000]),
    "an array nested 5 million deep": lambda: file("d.json", ["[" * 5_000_000, "]" * 5_000_000]),
    "3 million empty lists in a row": lambda: file("e.jsonl", [GOOD, '{"a": [', "[]," * 3_000_000, "0]}"]),
    "100,000 columns": lambda: file("f.jsonl", [json.dumps({f"column {i}": i for i in range(100_000)})]),
    "a number of 10 million digits": lambda: file("g.jsonl", [GOOD, '{"instruction": ', "9" * 10_000_000, "}"]),
    "gzip that unpacks a thousandfold": lambda: file("h.jsonl.gz", [GOOD] + [" " * 2**20] * 400),
    "an endless device": lambda: "/dev/zero",
    "a million tiny rows": lambda: file("i.jsonl", (GOOD.replace("q", str(i)) for i in range(1_000_000))),
    "a text without a line end": lambda: file("j.txt", ["word "] * 1_000_000),
}
examples(DataSpec("alpaca", file("first.jsonl", [GOOD, '{"instruction": "r", "output": "a"}'])))
tokenizer = byte_tokenizer()
load(DataSpec(), tokenizer)
base = peak()
for name, make in CASES.items():
    path = make()
    started = time.monotonic()
    try:
        sizes = dict(train_size=100, eval_size=10)
        if name.startswith("a million"):
            said = f"{len(examples(DataSpec('alpaca', path, **sizes))[0])} examples"
        elif path.endswith(".txt"):
            said = f"{len(load(DataSpec('text', path, **sizes), tokenizer).train)} examples"
        else:
            examples(DataSpec("alpaca", path))
            said = "nothing"
    except DataError as error:
        said = str(error)
    print(json.dumps([name, said, peak() - base, time.monotonic() - started]), flush=True)
"""


def test_hostile_files_cost_bounded_memory_and_no_crash(tmp_path):
    out = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
    )
    assert out.returncode == 0, out.stderr
    found = {name: (said, mebibytes) for name, said, mebibytes, _ in map(json.loads, out.stdout.splitlines())}
    assert set(found) == set(MEASURED)
    for name, expected in MEASURED.items():
        said, mebibytes = found[name]
        assert expected in said, name
        assert len(said) < 800, name
        assert mebibytes < 450, (name, said)  # peaks only grow from case to case


# --- bytes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "name", "said"),
    [
        (GOOD.encode() + b'{"instruction": "a\0b", "output": "c"}', "alpaca", "line 2: a NUL byte (0x00)"),
        (b"[" + GOOD.encode() + b",\n\0]", "alpaca", "line 3: a NUL byte"),
        (b"one\ntwo\0", "text", "line 2: a NUL byte"),
        (b"instruction,output\na,\0b\n", "csv", "line 2: a NUL byte"),
        (GOOD.encode("utf-16"), "alpaca", "is UTF-16, not UTF-8. Convert it: iconv"),
        (GOOD.encode("utf-16-le"), "alpaca", "It may be UTF-16"),
        ("na\u00efve".encode("latin1"), "text", "line 1: byte 0xef is not UTF-8"),
        ("instruction,output\na,na\u00efve\n".encode("latin1"), "csv", "line 2: byte 0xef is not UTF-8"),
        (b"PK\x03\x04rest", "alpaca", "is a zip archive"),
        (b"PAR1 and nothing more", "alpaca", "cannot be read as Parquet"),
        (GOOD.encode() + b'{"instruction": "\\ud800", "output": "c"}', "alpaca", "half of a character"),
        (b'{"\\u001b[31mred": 1}', "alpaca", "columns found: \u00b7[31mred"),
    ],
)
def test_bytes_that_are_no_text_are_refused_where_they_stand(tmp_path, data, name, said):
    path = tmp_path / ("file.csv" if name == "csv" else "file.txt" if name == "text" else "file.jsonl")
    path.write_bytes(data)
    assert said in refused(path, "alpaca" if name == "csv" else name)


def test_a_text_of_broken_bytes_far_in_names_its_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"line\n" * 400_000 + b"caf\xe9 au lait\n")
    assert "a.txt line 400001: byte 0xe9" in refused(path, "text")


# --- gzip -------------------------------------------------------------------------------------------------------------


def test_gzip_is_read_whatever_its_size_field_says(tmp_path):
    path = tmp_path / "lying.jsonl.gz"
    packed = gzip.compress((GOOD * 5).encode())
    path.write_bytes(packed[:-4] + (7).to_bytes(4, "little"))
    assert "damaged gzip file" in refused(path)
    path.write_bytes(packed[:-12])
    assert "damaged gzip file" in refused(path)
    path.write_bytes(packed[:15] + b"\xff\xff" + packed[17:])
    assert "damaged gzip file" in refused(path)
    path.write_bytes(gzip.compress(b""))
    assert "all blank" in refused(path)


def test_gzip_that_claims_nothing_but_unpacks_to_much_is_stopped(tmp_path):
    pack = zlib.compressobj(9, zlib.DEFLATED, 31)
    path = tmp_path / "bomb.txt.gz"
    path.write_bytes(b"".join(pack.compress(b"0" * MEBI) for _ in range(200)) + pack.flush()[:-4] + bytes(4))
    assert "unpacks to more than 64 MiB" in refused(path, "text")


# --- bad rows ---------------------------------------------------------------------------------------------------------

BAD = ["not json", "7", '{"instruction": "q"}', '{"instruction": null, "output": "a"}', "[" * 100_000]


def test_bad_rows_are_skipped_counted_and_told_by_choice(tokenizer, tmp_path):
    from lora_lab.data import load

    path = tmp_path / "train.jsonl"
    path.write_text("".join(f"{GOOD.replace('q', f'q{i}')}{bad}\n" for i, bad in enumerate(BAD * 6)))
    spec = DataSpec("alpaca", str(path), on_bad_row="skip")
    train, evaluation = examples(spec)
    assert len(train) + len(evaluation) == 30
    for cache in (tmp_path, tmp_path):  # made, and read from the cache
        found = load(spec, tokenizer, cache)
        assert found.skipped == 30 and len(found.told) == 20
        assert found.told[0].startswith(f"{path} line 2: not JSON") and "line 4: expected an object" in found.told[1]
    assert "data.on_bad_row=skip leaves such rows out" in refused(path)


def test_nothing_but_bad_rows_is_refused_even_when_they_are_skipped(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(BAD))
    assert "none of its 5 rows can be used. The first:" in refused(path, on_bad_row="skip")


def test_bad_rows_of_arrays_and_tables_are_skipped_too(tmp_path):
    (tmp_path / "a.json").write_text(f"[{GOOD}, 3, {{bad}}, {GOOD.replace('q', 'r')}]")
    train, evaluation = examples(DataSpec("alpaca", str(tmp_path / "a.json"), on_bad_row="skip"))
    assert {r.instruction for r in (*train, *evaluation)} == {"q", "r"}
    (tmp_path / "a.csv").write_text('instruction,output\nq,a\nonly one\n"r","b"\n')
    assert "line 3: 1 cells, and the first line names 2 columns" in refused(tmp_path / "a.csv")
    train, evaluation = examples(DataSpec("alpaca", str(tmp_path / "a.csv"), on_bad_row="skip"))
    assert {r.instruction for r in (*train, *evaluation)} == {"q", "r"}


def test_a_row_that_the_template_refuses_is_a_bad_row(tokenizer, tmp_path):
    from lora_lab.data import load

    path = tmp_path / "talk.jsonl"
    talks = [["q", "a"], ["r", "b"], ["s", "c"]]
    twice = [{"role": "user", "content": "x"}] * 2 + [{"role": "assistant", "content": "a"}]
    path.write_text("\n".join(json.dumps({"messages": m}) for m in [*talks, twice]))
    found = load(DataSpec("chat", str(path), template="chat", on_bad_row="skip"), tokenizer)
    assert found.skipped == 1 and "line 4: data.template=chat" in found.told[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,a\n1,2\n", "columns named twice: a"),
        ("\n\n", "has no line with the names of its columns"),
        ('instruction,output\n"a" b,c\n', "line 2: no CSV"),
        ("instruction,output\n" + "x" * (MEBI + 1) + ",c\n", "field larger than field limit"),
    ],
)
def test_bad_tables_are_refused(tmp_path, text, said):
    path = tmp_path / "a.csv"
    path.write_text(text)
    assert said in refused(path)
