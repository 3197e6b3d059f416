"""Every template and every source, to the letter: the rendered text and which bytes of it are learned."""

from __future__ import annotations

import gzip
import json
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import PreTrainedTokenizerFast

from lora_lab.data import load
from lora_lab.data.jinja import Renderer
from lora_lab.data.records import Conversation, Example, Instruction
from lora_lab.data.templates import TEMPLATES, jinja_template, render
from lora_lab.errors import DataError
from lora_lab.spec import DataSpec, pairs
from lora_lab.spec.data import TEMPLATES as TEMPLATE_NAMES

WITH_INPUT = Instruction("Add.", "1 + 2", "3", "sums")
WITHOUT_INPUT = Instruction("Say hi.", "", "Hi")
TALK = Conversation((("system", "Be kind."), ("user", "q1"), ("assistant", "a1"), ("user", "q2")), "a2")


def twice(name: str, path: Path, **fields: Any) -> DataSpec:
    """Both sides from one file."""
    return DataSpec(name, str(path), str(path), on_duplicate="keep", **fields)


ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)

GOLDENS = [
    ("plain", WITH_INPUT, "Add.\n1 + 2\n"),
    ("plain", WITHOUT_INPUT, "Say hi.\n"),
    ("plain", TALK, "Be kind.\nq1\na1\nq2\n"),
    ("alpaca", WITH_INPUT, ALPACA_INPUT + "### Instruction:\nAdd.\n\n### Input:\n1 + 2\n\n### Response:"),
    ("alpaca", WITHOUT_INPUT, ALPACA + "### Instruction:\nSay hi.\n\n### Response:"),
    (
        "alpaca",
        TALK,
        "Be kind.\n\n### Instruction:\nq1\n\n### Response:a1\n\n### Instruction:\nq2\n\n### Response:",
    ),
    ("chatml", WITH_INPUT, "<|im_start|>user\nAdd.\n1 + 2<|im_end|>\n<|im_start|>assistant\n"),
    ("chatml", WITHOUT_INPUT, "<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\n"),
    (
        "chatml",
        TALK,
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n",
    ),
    ("raw", WITH_INPUT, "Add.\n1 + 2"),
    ("raw", WITHOUT_INPUT, "Say hi."),
    ("raw", TALK, "Be kind.q1a1q2"),
    (
        "chat",
        WITH_INPUT,
        "<|im_start|>system\nBe helpful<|im_end|>\n<|im_start|>user\nAdd.\n1 + 2<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "chat",
        WITHOUT_INPUT,
        "<|im_start|>system\nBe helpful<|im_end|>\n<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "chat",
        TALK,
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n",
    ),
]


@pytest.mark.parametrize(("template", "record", "prompt"), GOLDENS)
def test_a_template_renders_to_the_letter(tokenizer, template, record, prompt):
    response = record.output if isinstance(record, Instruction) else record.response
    assert render(record, template, tokenizer) == Example(prompt, response, record.task)


def test_every_template_has_its_goldens():
    covered = {template for template, _, _ in GOLDENS} | {"llama2", "jinja"}
    assert {*TEMPLATES, "jinja"} == set(TEMPLATE_NAMES) == covered


@pytest.mark.parametrize(("template", "record", "prompt"), GOLDENS)
@pytest.mark.parametrize("mask_prompt", [True, False])
def test_what_is_learned_is_the_response_and_the_end(tokenizer, tmp_path, template, record, prompt, mask_prompt):
    if isinstance(record, Instruction):
        values = {"instruction": record.instruction, "input": record.input, "output": record.output}
        name, response = "alpaca", record.output
    else:
        messages = [*record.turns, ("assistant", record.response)]
        values = {"messages": [{"role": role, "content": content} for role, content in messages]}
        name, response = "chat", record.response
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(values) + "\n")
    spec = twice(name, path, template=template, mask_prompt=mask_prompt, max_length=999)
    split = load(spec, tokenizer).train
    ids, supervised = split.tokens(0)
    assert tokenizer.decode(ids) == f"{prompt}{response}<eos>"
    learned = f"{response}<eos>" if mask_prompt else tokenizer.decode(ids[1:])
    assert tokenizer.decode(ids[supervised]) == learned
    assert not supervised[0]
    assert supervised.tolist() == sorted(supervised.tolist())
    assert tokenizer.decode(split.prompts[0]) == prompt
    assert split.answers == [response]


def test_taskmix_to_the_letter(tokenizer):
    split = load(DataSpec(train_size=40, eval_size=2, tasks=("units", "unique")), tokenizer).train
    shown = []
    for i in range(4):
        ids, supervised = split.tokens(i)
        shown.append((split.tasks[i], tokenizer.decode(ids[~supervised]), tokenizer.decode(ids[supervised])))
    assert shown == GOLDEN_TASKS


GOLDEN_TASKS = [
    ("units", "In days?\n22 weeks\n", "154 days<eos>"),
    ("unique", "Keep each word once.\nrock gas pond gas\n", "rock gas pond<eos>"),
    ("units", "Convert to minutes.\n32 hours\n", "1920 minutes<eos>"),
    ("unique", "Remove repeated words.\nrug snow snow wolf\n", "rug snow wolf<eos>"),
]


def test_text_is_cut_into_blocks_that_are_learned_whole(tokenizer, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("0123456789abcdefghijklmno")
    tokens = load(DataSpec("text", str(path), max_length=10), tokenizer)
    assert [tokenizer.decode(tokens.train.tokens(i)[0]) for i in range(2)] == ["0123456789", "abcdefghij"]
    assert tokenizer.decode(tokens.evaluation.tokens(0)[0]) == "klmno"
    for split in (tokens.train, tokens.evaluation):
        assert split.tokens(0)[1].tolist() == [False] + [True] * (split.lengths[0] - 1)
        assert not split.generative and split.prompts == [[]] * len(split)


@pytest.mark.parametrize("template", ["plain", "alpaca", "chatml"])
def test_a_tokenizer_that_begins_every_text_begins_prompts_too(make_tokenizer, tmp_path, template):
    path = tmp_path / "train.jsonl"
    path.write_text('{"instruction": "q", "output": "a"}\n')
    spec = twice("alpaca", path, template=template, max_length=500)
    split = load(spec, make_tokenizer(bos=True)).train
    assert split.prompts[0][0] == 257 and split.prompts[0].count(257) == 1
    assert len(split.prompts[0]) == 1 + len(load(spec, make_tokenizer()).train.prompts[0])


def test_a_chat_template_writes_its_own_beginning(make_tokenizer, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"instruction": "q", "output": "a"}\n')
    spec = twice("alpaca", path, template="chat", max_length=500)
    template = "{{ bos_token }}{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    split = load(spec, make_tokenizer(bos=True, chat_template=template)).train
    assert split.prompts[0] == [257, *make_tokenizer()("[q]")["input_ids"]]


def test_blocks_of_text_begin_as_the_tokenizer_begins(make_tokenizer, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("0123456789" * 3)
    tokenizer = make_tokenizer(bos=True)
    tokens = load(DataSpec("text", str(path), max_length=11), tokenizer)
    assert [tokenizer.decode(tokens.train.tokens(i)[0]) for i in range(2)] == ["<bos>0123456789"] * 2


def test_chat_without_a_chat_template_names_the_others(make_tokenizer):
    with pytest.raises(DataError, match=r"no chat template .* Choose data.template=chatml, alpaca or plain."):
        load(DataSpec(template="chat", train_size=2, eval_size=1), make_tokenizer(chat_template=None))


def test_a_conversation_that_the_chat_template_refuses_is_shown(tokenizer, tmp_path):
    path = tmp_path / "train.jsonl"
    turns = [{"role": "user", "content": "q1"}, {"role": "user", "content": "q2"}]
    path.write_text(json.dumps({"messages": [*turns, {"role": "assistant", "content": "a"}]}) + "\n")
    with pytest.raises(DataError, match=r"roles must alternate\); its roles: user, user. Its last turn: 'q2'"):
        load(twice("chat", path, template="chat"), tokenizer)


def test_no_end_of_sequence_token_is_refused(make_tokenizer):
    with pytest.raises(DataError, match=r"no end-of-sequence token.*Set eos_token in its tokenizer_config.json"):
        load(DataSpec(train_size=2, eval_size=1), make_tokenizer(eos_token=None))


def test_shakespeare_is_divided_in_order(real_data: Path, tokenizer):
    path = real_data / "tinyshakespeare.txt"
    tokens = load(DataSpec("text", str(path), max_length=512, eval_size=200), tokenizer)
    text = "".join(
        tokenizer.decode(split.tokens(i)[0]) for split in (tokens.train, tokens.evaluation) for i in range(len(split))
    )
    assert text == path.read_text()
    assert len(tokens.evaluation) == 200


# --- Llama 2 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "prompt", "response"),
    [
        (WITH_INPUT, "[INST] Add.\n1 + 2 [/INST]", " 3 "),
        (WITHOUT_INPUT, "[INST] Say hi. [/INST]", " Hi "),
        (TALK, "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nq1 [/INST] a1 <eos><bos>[INST] q2 [/INST]", " a2 "),
    ],
)
def test_llama2_to_the_letter(tokenizer, record, prompt, response):
    """The strings of Llama's own chat_completion: B_INST, E_INST and <<SYS>> with their spaces, every turn stripped."""
    assert render(record, "llama2", tokenizer) == Example(prompt, response, record.task)


def test_llama2_gives_no_second_space_to_a_tokenizer_that_begins_with_one():
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.BPE(vocab={sign: i for i, sign in enumerate("▁aHi")}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.add_special_tokens(["<s>", "</s>"])
    sentencepiece = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    assert render(WITHOUT_INPUT, "llama2", sentencepiece).response == "Hi "


# --- a template of the user's -----------------------------------------------------------------------------------------

JINJA = """\
{% if system %}{{ system }}
{% endif %}
{% for message in messages if message.role == "user" %}
Q: {{ message.content }}
{% endfor %}
A:"""


@pytest.mark.parametrize(
    ("record", "prompt"),
    [(WITH_INPUT, "Q: Add.\n1 + 2\nA:"), (TALK, "Be kind.\nQ: q1\nQ: q2\nA:")],
)
def test_a_template_of_the_users_to_the_letter(tokenizer, record, prompt):
    with Renderer(JINJA) as renderer:
        assert render(record, jinja_template(renderer), tokenizer).prompt == prompt


@pytest.mark.parametrize("as_file", [True, False])
def test_a_jinja_template_from_a_file_or_a_string(tokenizer, tmp_path, as_file):
    text = "{{ bos_token }}<{{ instruction }}|{{ input }}|{{ task }}>{{ '{{ instruction }}' }}"
    (tmp_path / "mine.jinja").write_text(text)
    (tmp_path / "train.jsonl").write_text(json.dumps({"instruction": "{{ 7 * 7 }}", "output": "{% o %}", "task": "t"}))
    jinja = str(tmp_path / "mine.jinja") if as_file else text
    split = load(twice("alpaca", tmp_path / "train.jsonl", template="jinja", jinja=jinja), tokenizer).train
    ids, supervised = split.tokens(0)
    assert tokenizer.decode(ids[~supervised]) == "<bos><{{ 7 * 7 }}||t>{{ instruction }}"  # data is never a template
    assert tokenizer.decode(ids[supervised]) == "{% o %}<eos>"


# --- every answer of a conversation -----------------------------------------------------------------------------------

EVERY_TURN = {
    "plain": "Be kind.\nq1\n[a1\n]q2\n[a2<eos>]",
    "raw": "Be kind.q1[a1]q2[a2<eos>]",
    "alpaca": "Be kind.\n\n### Instruction:\nq1\n\n### Response:[a1\n]\n### Instruction:\nq2\n\n### Response:[a2<eos>]",
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n"
    "[a1<|im_end|>]\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n[a2<eos>]",
    "chat": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n"
    "[a1<|im_end|>]\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n[a2<eos>]",
    "llama2": "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nq1 [/INST][ a1 <eos>]<bos>[INST] q2 [/INST][ a2 <eos>]",
}


@pytest.mark.parametrize("template", EVERY_TURN)
def test_every_answer_is_learned_with_what_ends_it(tokenizer, tmp_path, template):
    path = tmp_path / "talk.jsonl"
    messages = [{"role": role, "content": content} for role, content in (*TALK.turns, ("assistant", TALK.response))]
    path.write_text(json.dumps({"messages": messages}))
    split = load(twice("chat", path, template=template, turns="all", max_length=999), tokenizer).train
    ids, supervised = split.tokens(0)
    assert marked(tokenizer, ids, supervised) == EVERY_TURN[template]
    assert split.answers == ["a2"] or template == "llama2"
    assert tokenizer.decode(split.prompts[0]) == tokenizer.decode(ids)[: -len(split.answers[0] + "<eos>")]
    last = load(twice("chat", path, template=template, max_length=999), tokenizer).train
    assert last.tokens(0)[0].tolist() == ids.tolist()  # the same tokens, whatever is learned of them


def marked(tokenizer, ids, supervised) -> str:
    runs = groupby(zip(ids.tolist(), supervised.tolist(), strict=True), key=lambda pair: pair[1])
    texts = [(tokenizer.decode([token for token, _ in run]), learned) for learned, run in runs]
    return "".join(f"[{text}]" if learned else text for text, learned in texts)


def test_a_template_that_rewrites_earlier_turns_cannot_learn_them(make_tokenizer, tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps({"messages": ["q1", "a1", "q2", "a2"]}))
    last_only = make_tokenizer(chat_template="{{ messages[-1]['content'] }}>")
    with pytest.raises(DataError, match=r"line 1: data.turns=all: .* Choose data.turns=last, or data.template=chatml"):
        load(twice("chat", path, template="chat", turns="all"), last_only)


# --- every source -----------------------------------------------------------------------------------------------------

SOURCES = {
    "alpaca.json": ("alpaca", {}, '[{"instruction": "q", "input": "i", "output": "a"}]', "q\ni\n[a<eos>]"),
    "lima.jsonl": ("chat", {"messages": "conversations"}, '{"conversations": ["q", "a"]}', "q\n[a<eos>]"),
    "chat.jsonl": (
        "chat",
        {},
        '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}',
        "q\n[a<eos>]",
    ),
    "completion.jsonl": ("completion", {}, '{"prompt": "q:", "completion": " a"}', "q:\n[ a<eos>]"),
    "quoted.csv": ("alpaca", {}, 'instruction,output\r\n"q, ""x""\nq2",a\r\n', 'q, "x"\nq2\n[a<eos>]'),
    "mapped.tsv": ("completion", {"prompt": "Q", "completion": "A"}, "Q\tA\nq,\ta\n", "q,\n[a<eos>]"),
    "talk.csv": ("chat", {}, 'messages\n"[""q"", ""a""]"\n', "q\n[a<eos>]"),
    "notes.txt": ("text", {}, "one two", "o[ne two]"),
    "pages.jsonl": ("text", {"text": "body"}, '{"body": "one"}\n{"body": "two"}', "o[ne<eos>two]"),
}


@pytest.mark.parametrize("packed", [False, True], ids=["", "gzip"])
@pytest.mark.parametrize("file", SOURCES)
def test_every_kind_of_file_to_the_letter(tokenizer, tmp_path, file, packed):
    name, columns, text, golden = SOURCES[file]
    path = tmp_path / (f"{file}.gz" if packed else file)
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    split = load(twice(name, path, columns=pairs(columns)), tokenizer).train
    assert marked(tokenizer, *split.tokens(0)) == golden and len(split) == 1


SUMS = [{"instruction": "q", "input": "i", "output": "a"}] * 2


def test_rows_of_a_function_to_the_letter(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "golden_rows.py").write_text(f"def rows(): return {SUMS}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LORA_LAB_ALLOW_CODE", "1")
    spec = DataSpec("callable", call=pairs({"_target_": "golden_rows.rows"}), on_duplicate="keep")
    split = load(spec, tokenizer).train
    assert marked(tokenizer, *split.tokens(0)) == "q\ni\n[a<eos>]" and len(split) == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_the_hub_to_the_letter(tokenizer, tmp_path, streaming):
    datasets.disable_progress_bars()
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SUMS))
    sizes = {"train_size": 1, "eval_size": 1}
    spec = DataSpec(
        "hf", str(tmp_path), streaming=streaming, on_duplicate="keep", template="alpaca", max_length=300, **sizes
    )
    split = load(spec, tokenizer).train
    asked = ALPACA_INPUT + "### Instruction:\nq\n\n### Input:\ni\n\n### Response:"
    assert marked(tokenizer, *split.tokens(0)) == f"{asked}[a<eos>]"


def test_a_mixture_to_the_letter(tokenizer, tmp_path):
    (tmp_path / "own.json").write_text(json.dumps([{"instruction": f"q{i}", "output": f"a{i}"} for i in range(9)]))
    (tmp_path / "book.txt").write_text("0123456789" * 9)
    sources = {
        "own": {"name": "alpaca", "path": str(tmp_path / "own.json"), "template": "chatml"},
        "book": {"name": "text", "path": str(tmp_path / "book.txt"), "max_length": 10},
    }
    split = load(DataSpec("mixture", sources=pairs(sources), on_duplicate="keep"), tokenizer).train
    texts = {marked(tokenizer, *split.tokens(i)) for i in range(len(split))}
    own = {f"<|im_start|>user\nq{i}<|im_end|>\n<|im_start|>assistant\n[a{i}<eos>]" for i in range(9)}
    assert len(texts & own) == 8 and texts - own == {"0[123456789]"}


@pytest.mark.parametrize(
    ("mask_prompt", "golden"), [(True, "[INST] Hi. [/INST][ a <eos>]"), (False, "[[INST] Hi. [/INST] a <eos>]")]
)
def test_what_llama2_learns(tokenizer, tmp_path, mask_prompt, golden):
    (tmp_path / "a.json").write_text(json.dumps([{"instruction": " Hi. \n", "output": "a "}]))
    spec = twice("alpaca", tmp_path / "a.json", template="llama2", mask_prompt=mask_prompt)
    assert marked(tokenizer, *load(spec, tokenizer).train.tokens(0)) == golden


def test_parquet_to_the_letter(tokenizer, tmp_path):
    import pyarrow
    from pyarrow import parquet

    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    parquet.write_table(pyarrow.table({"messages": [talk] * 3}), tmp_path / "talk.parquet")
    split = load(twice("chat", tmp_path / "talk.parquet"), tokenizer).train
    assert [marked(tokenizer, *split.tokens(i)) for i in range(3)] == ["q\n[a<eos>]"] * 3
