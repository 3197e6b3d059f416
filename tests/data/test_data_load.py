"""Loading: truncation, dropping, sizes, the cache, batches and their order."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.data import BatchOrder, Split, cache, load
from lora_lab.data.tokenising import tokenizer_fingerprint
from lora_lab.errors import DataError, SpecError
from lora_lab.spec import DataSpec


def instructions(folder: Path, *pairs_of_text: tuple[str, str], name: str = "train.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps({"instruction": q, "output": a}) + "\n" for q, a in pairs_of_text))
    return str(path)


def spec_of(path: str, **fields: object) -> DataSpec:
    return DataSpec(**({"name": "alpaca", "path": path, "eval_path": path, "on_duplicate": "keep"} | fields))  # type: ignore[arg-type]


# --- lengths --------------------------------------------------------------------------------------------------------


def test_a_long_response_is_cut_and_counted(tokenizer, tmp_path):
    path = instructions(tmp_path, ("q", "0123456789"), ("q", "01"))
    tokenised = load(spec_of(path, max_length=8), tokenizer)
    texts = {tokenizer.decode(tokenised.train.tokens(i)[0]) for i in range(2)}
    assert texts == {"q\n012345", "q\n01<eos>"}  # no end where the text did not end
    assert (tokenised.train.truncated, tokenised.truncated, tokenised.dropped) == (1, 2, 0)
    assert set(tokenised.train.answers) == {"0123456789", "01"}


def test_an_exact_fit_is_not_cut(tokenizer, tmp_path):
    tokenised = load(spec_of(instructions(tmp_path, ("q", "01234")), max_length=8), tokenizer)
    assert tokenizer.decode(tokenised.train.tokens(0)[0]) == "q\n01234<eos>" and tokenised.truncated == 0


@pytest.mark.parametrize("mask_prompt", [True, False])
def test_empty_responses_are_dropped_and_counted(tokenizer, tmp_path, mask_prompt):
    path = instructions(tmp_path, ("a", ""), ("b", " \n"), ("c", "yes"))
    train = load(spec_of(path, mask_prompt=mask_prompt), tokenizer).train
    assert train.answers == ["yes"] and train.dropped == 2 and len(train) == 1


def test_a_prompt_that_leaves_no_room_is_dropped_only_when_it_is_masked(tokenizer, tmp_path):
    path = instructions(tmp_path, ("0123456789", "a"), ("q", "a"))
    masked = load(spec_of(path, max_length=8), tokenizer).train
    assert len(masked) == 1 and masked.dropped == 1
    learned = load(spec_of(path, max_length=8, mask_prompt=False), tokenizer).train
    assert len(learned) == 2 and learned.dropped == 0 and learned.truncated == 1
    assert max(map(len, learned.prompts)) == 8


def test_every_split_has_at_least_one_target_per_example(tokenizer, tmp_path):
    path = instructions(tmp_path, *((("q" * n), "a" * (n % 3)) for n in range(30)))
    train = load(spec_of(path, max_length=20), tokenizer).train
    assert all(train.tokens(i)[1].any() for i in range(len(train)))
    assert len(train) + train.dropped == 30


def test_nothing_left_to_learn_is_refused_with_the_length_that_would_do(tokenizer, tmp_path):
    path = instructions(tmp_path, ("0123456789", "a"), ("b", ""))
    with pytest.raises(DataError, match=r"none of the 2 train .* 1 with an empty response.*max_length above 11"):
        load(spec_of(path, max_length=8), tokenizer)


def test_the_real_alpaca_drops_its_four_empty_outputs(real_data, tokenizer):
    tokenised = load(DataSpec("alpaca", str(real_data / "alpaca_5k.json"), max_length=4000), tokenizer)
    assert tokenised.dropped == 4 and len(tokenised.train) + len(tokenised.evaluation) == 4996


@pytest.mark.parametrize(
    ("text", "fields", "said"),
    [
        ("0123", {"max_length": 4}, "has 1 blocks of 4 tokens, too few"),
        ("0123", {"max_length": 1}, "a block of text needs 2 tokens"),
        ("01234567", {"max_length": 4, "train_size": 2}, "data.train_size=2: only 1 are there"),
        ("01234567", {"max_length": 4, "eval_size": 2}, "too few for data.eval_size=2"),
        ("01234", {"max_length": 4}, "the held-out text is too short"),
    ],
)
def test_text_too_short_is_refused(tokenizer, tmp_path, text, fields, said):
    path = tmp_path / "a.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        load(DataSpec("text", str(path), **fields), tokenizer)


def test_a_second_text_is_held_out_whole(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("0123456789")
    (tmp_path / "b.txt").write_text("abcdefgh")
    tokenised = load(DataSpec("text", str(tmp_path / "a.txt"), str(tmp_path / "b.txt"), max_length=4), tokenizer)
    assert (len(tokenised.train), len(tokenised.evaluation)) == (3, 2)


def test_a_long_text_in_pieces_gives_the_tokens_of_the_whole(make_tokenizer, tmp_path, monkeypatch):
    tokenizer = make_tokenizer(merge_newlines=True)
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"line {i}\n  indented\n\n\n" for i in range(200)))
    whole = load(DataSpec("text", str(path), max_length=16), tokenizer)
    assert tokenizer.convert_tokens_to_ids("ĊĊ") in whole.train.sources[0].ids
    monkeypatch.setattr("lora_lab.data.reading.PIECE", 7)
    pieces = load(DataSpec("text", str(path), max_length=16), tokenizer)
    assert np.array_equal(whole.train.sources[0].ids, pieces.train.sources[0].ids)


# --- the cache ------------------------------------------------------------------------------------------------------


def same(a: Split, b: Split) -> bool:
    return (
        len(a) == len(b)
        and all(np.array_equal(x, y) for i in range(len(a)) for x, y in zip(a.tokens(i), b.tokens(i), strict=True))
        and (a.prompts, a.answers, a.tasks, a.truncated, a.dropped)
        == (b.prompts, b.answers, b.tasks, b.truncated, b.dropped)
    )


def never(*args: object, **kwargs: object) -> None:
    raise AssertionError("the data was tokenised again")


@pytest.fixture
def small(tmp_path) -> DataSpec:
    return spec_of(instructions(tmp_path, ("q", "0123456789"), ("é", "01"), ("c", "")), max_length=8)


def test_a_second_load_reads_the_same_tokens_and_tokenises_nothing(small, tokenizer, tmp_path, monkeypatch):
    first = load(small, tokenizer, tmp_path / "cache")
    assert first.train.truncated == 1 and first.train.dropped == 1
    monkeypatch.setattr("lora_lab.data.dataset.tokenise", never)
    second = load(small, tokenizer, tmp_path / "cache")
    assert second.digest == first.digest
    assert same(first.train, second.train) and same(first.evaluation, second.evaluation)
    with pytest.raises(ValueError, match="read-only"):
        second.train.sources[0].ids[0] = 1


def test_without_a_cache_nothing_is_written(small, tokenizer, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    load(small, tokenizer)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_digest_follows_everything_that_decides_the_tokens(small, tokenizer, make_tokenizer, tmp_path):
    def digest(tokenizer=tokenizer, **fields):
        return load(spec_of(small.path, **({"max_length": 8} | fields)), tokenizer).digest

    digests = [
        digest(),
        digest(template="alpaca", max_length=600),
        digest(template="plain", max_length=600),
        digest(mask_prompt=False),
        digest(seed=1, train_size=2),
        digest(make_tokenizer(eos_token="<|im_end|>")),
        digest(make_tokenizer(bos=True)),
    ]
    assert len(set(digests)) == len(digests)
    assert digest() == digests[0]
    Path(small.path).write_text(Path(small.path).read_text().replace("01", "02"))
    assert digest() not in digests


def test_the_sizes_of_a_text_are_in_its_digest(tokenizer, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("0123456789" * 10)
    sizes = [{}, {"train_size": 3}, {"train_size": 4}, {"eval_size": 3}]
    loaded = [load(DataSpec("text", str(path), max_length=10, **s), tokenizer, tmp_path / "cache") for s in sizes]
    assert [(len(t.train), len(t.evaluation)) for t in loaded] == [(9, 1), (3, 1), (4, 1), (7, 3)]
    assert len({t.digest for t in loaded}) == 4


def test_the_fingerprint_forgets_the_last_call(make_tokenizer):
    tokenizer = make_tokenizer()
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert tokenizer_fingerprint(tokenizer) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-3],
        lambda data: data[:40],
        lambda data: data[:5],
        lambda data: b"",
        lambda data: data.replace(b"lora_lab", b"lora-lab"),
        lambda data: b"\xff" * len(data),
    ],
    ids=["tail", "header", "length", "empty", "no digest", "garbage"],
)
def test_a_damaged_cache_file_is_named_and_made_again(small, tokenizer, tmp_path, caplog, damage):
    first = load(small, tokenizer, tmp_path / "cache")
    path = cache.cache_file(tmp_path / "cache", first.train.sources[0].digest)
    whole = path.read_bytes()
    path.unlink()  # the first tokens are a map of it
    path.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING):
        again = load(small, tokenizer, tmp_path / "cache")
    assert same(first.train, again.train)
    assert str(path) in caplog.text and "damaged" in caplog.text
    assert path.read_bytes() == whole


def test_a_file_of_another_data_set_under_the_name_is_not_read(small, tokenizer, tmp_path, caplog):
    first = load(small, tokenizer, tmp_path / "cache")
    other = load(spec_of(small.path, max_length=9), tokenizer, tmp_path / "cache")
    folder = tmp_path / "cache"
    wrong, right = (cache.cache_file(folder, found.train.sources[0].digest) for found in (other, first))
    right.unlink()  # the first tokens are a map of it
    right.write_bytes(wrong.read_bytes())
    assert same(load(small, tokenizer, folder).train, first.train)
    assert "another data set" in caplog.text


def test_a_crash_while_writing_leaves_no_file_under_the_name(small, tokenizer, tmp_path, monkeypatch):
    def crash(handle: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", crash)
        with pytest.raises(KeyboardInterrupt):
            load(small, tokenizer, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert len(load(small, tokenizer, tmp_path / "cache").train) == 2


def test_a_cache_that_cannot_be_written_is_said_and_done_without(small, tokenizer, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file stands here")
    tokenised = load(small, tokenizer, tmp_path / "cache")
    assert len(tokenised.train) == 2
    assert "cannot be written" in caplog.text and "LORA_LAB_CACHE" in caplog.text


def test_taskmix_loads_whole_and_from_the_cache(tokenizer, tmp_path):
    tokenised = load(DataSpec(), tokenizer, tmp_path)
    assert (len(tokenised.train), len(tokenised.evaluation)) == (2000, 200)
    assert tokenised.dropped == tokenised.truncated == 0
    assert tokenised.train.generative and set(tokenised.train.tasks) == set(tokenised.evaluation.tasks)
    assert same(load(DataSpec(), tokenizer, tmp_path).evaluation, tokenised.evaluation)


# --- batches --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**63))
def test_every_epoch_sees_every_example_once(examples, batch_size, seed):
    order = BatchOrder(examples, batch_size, seed)
    steps = -(-examples // batch_size)
    for epoch in range(3):
        batches = [order.batch(epoch * steps + i) for i in range(steps)]
        assert [len(b) for b in batches[:-1]] == [batch_size] * (steps - 1)
        assert sorted(np.concatenate(batches).tolist()) == list(range(examples))
        assert order.epoch((epoch + 1) * steps - 1) == epoch + 1


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 1000), st.integers(0, 200))
def test_any_step_is_the_same_from_a_fresh_start(examples, batch_size, seed, step):
    walked = BatchOrder(examples, batch_size, seed)
    for earlier in range(step):
        walked.batch(earlier)
    assert np.array_equal(walked.batch(step), BatchOrder(examples, batch_size, seed).batch(step))


def test_a_batch_that_is_written_to_does_not_change_the_order():
    order = BatchOrder(10, 4, 0)
    before = order.batch(0).copy()
    order.batch(0)[:] = 0
    assert np.array_equal(order.batch(0), before)


def test_epochs_and_seeds_order_differently_and_as_promised():
    order = BatchOrder(100, 100, 7)
    assert not np.array_equal(order.batch(0), order.batch(1))
    assert not np.array_equal(order.batch(0), BatchOrder(100, 100, 8).batch(0))
    promised = np.random.Generator(np.random.PCG64(np.random.SeedSequence([7, 1]))).permutation(100)
    assert np.array_equal(order.batch(1), promised)
    assert [BatchOrder(10, 4, 0).epoch(step) for step in range(4)] == [0.4, 0.8, 1.0, 1.4]


def test_orders_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="got 0 and 4"):
        BatchOrder(0, 4, 0)
    with pytest.raises(SpecError, match="seed: must be 0 or more, got -1"):
        BatchOrder(4, 4, -1)


# --- the room -------------------------------------------------------------------------------------------------------


def test_the_room_and_its_check_load_nothing_heavy():
    code = (
        "import sys, lora_lab.data as d; from lora_lab.spec import DataSpec\n"
        "d.check(DataSpec()); d.BatchOrder(1, 1, 0)\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pandas') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_public_name_is_there():
    import lora_lab.data as room

    assert all(getattr(room, name) is not None for name in room.__all__)
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        room.laod  # noqa: B018  # the access is the test
