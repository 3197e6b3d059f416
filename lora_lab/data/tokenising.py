"""From a source's records to :class:`~lora_lab.data.split.Tokens`, a batch at a time."""

from __future__ import annotations

import contextlib
import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lora_lab.data.jinja import Renderer, template_text
from lora_lab.data.reading import pieces
from lora_lab.data.records import Dialogue, Example, Passage, Record, fingerprint
from lora_lab.data.source import Reader
from lora_lab.data.split import Tokens
from lora_lab.data.templates import TEMPLATES, Template, jinja_template, needs_chat_template, render
from lora_lab.errors import DataError
from lora_lab.spec import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH = 512  # records, and …
_BATCH_CHARACTERS = 1 << 21  # … characters of rendered text given to the tokenizer at once


def tokenise(reader: Reader, spec: DataSpec, tokenizer: PreTrainedTokenizerBase, digest: str) -> Tokens:
    """Every record of a source as tokens.

    Instructions and conversations are rendered, and the end-of-sequence token follows each response. A prompt and its
    response are tokenised apart, so that the prompt's tokens are the same in training and in generation. Where earlier
    answers are learned too (``turns``), so is what ends each of them: the tokens of the template up to the first
    special one, or a single one of white space. What exceeds ``max_length`` tokens is cut from the ``truncate`` side.

    Running text becomes consecutive blocks of ``max_length`` tokens; the last may be shorter. Documents are joined by
    the end-of-sequence token; a tokenizer that begins every text with a token of its own begins every block with it.

    Raises:
        DataError: see :class:`~lora_lab.data.source.Reader`; no end-of-sequence token, no chat template, a template
            that refuses a record, or blocks too short to hold a target.
    """
    records = iter(reader)
    place, first = next(records)
    again = chain([(place, first)], records)
    if isinstance(first, Passage):
        return _blocks((found for _, found in again if isinstance(found, Passage)), reader, spec, tokenizer, digest)
    return _examples(again, reader, spec, tokenizer, digest)


def rendered(
    records: Iterator[tuple[str, Record]], reader: Reader, spec: DataSpec, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Record, Example]]:
    """Records with the template of ``spec`` applied.

    Raises:
        DataError: the template cannot be used; or it refuses a record, unless such rows are skipped.
    """
    if spec.template == "chat":
        needs_chat_template(tokenizer)
    with contextlib.ExitStack() as stack:
        template: Template
        if spec.template == "jinja":
            template = jinja_template(stack.enter_context(Renderer(template_text(spec.jinja or ""))))
        else:
            template = TEMPLATES[spec.template]
        for place, record in records:
            if isinstance(record, Passage):
                continue
            try:
                example = render(record, template, tokenizer, spec.turns if spec.mask_prompt else "last")
            except DataError as error:
                reader.skip(DataError(f"{place}: {error}"))
            else:
                yield record, example


def prompts(records: Sequence[Dialogue], spec: DataSpec, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The tokens of each record's prompt as training has them, for an answer to be generated after.

    Raises:
        DataError: the template of ``spec`` cannot be used, or refuses a record.
    """
    if spec.template == "chat":
        needs_chat_template(tokenizer)
    begin = beginning(tokenizer) if spec.template != "chat" else []
    with contextlib.ExitStack() as stack:
        template: Template
        if spec.template == "jinja":
            template = jinja_template(stack.enter_context(Renderer(template_text(spec.jinja or ""))))
        else:
            template = TEMPLATES[spec.template]
        examples = [render(record, template, tokenizer) for record in records]
    texts = [example.prompt for example in examples]
    starts = [[] if _writes_bos(example, spec, tokenizer) else begin for example in examples]
    return [start + ids for start, ids in zip(starts, _encode(tokenizer, texts), strict=True)]


def _examples(
    records: Iterator[tuple[str, Record]],
    reader: Reader,
    spec: DataSpec,
    tokenizer: PreTrainedTokenizerBase,
    digest: str,
) -> Tokens:
    eos = end_of_sequence(tokenizer)
    begin = beginning(tokenizer) if spec.template != "chat" else []  # a chat template writes its own
    added = {token for token, about in tokenizer.added_tokens_decoder.items() if about.special}
    special = frozenset(added | set(tokenizer.all_special_ids))
    ids, supervised = array("i"), bytearray()
    lengths, prompts, full, prints = array("q"), array("i"), array("i"), array("Q")
    answers: list[str] = []
    tasks: list[str] = []
    for batch in _batches(rendered(records, reader, spec, tokenizer)):
        texts = [text for _, example in batch for text in _texts(example)]
        encoded = iter(_encode(tokenizer, texts))
        for record, example in batch:
            said = _texts(example)
            parts = list(islice(encoded, len(said)))
            prints.append(fingerprint(record))
            answers.append(example.response)
            tasks.append(example.task)
            if not parts:
                for column in (lengths, prompts, full):
                    column.append(0)
                continue
            start = [] if _writes_bos(example, spec, tokenizer) else begin
            row, targets = _row(said, parts, start, eos, special, spec.mask_prompt)
            prompt = len(row) - len(parts[-1]) - 1
            full.append(len(row))
            gone = len(row) - spec.max_length
            if gone > 0 and spec.truncate == "left" and spec.max_length > len(start):
                row = start + row[gone + len(start) :]
                targets = bytearray(len(start)) + targets[gone + len(start) :]
                targets[0] = 0
                prompt = max(len(start), prompt - gone)
            elif gone > 0:
                row, targets = row[: spec.max_length], targets[: spec.max_length]
            if not any(targets):
                lengths.append(0)
                prompts.append(prompt)
                continue
            ids.extend(row)
            supervised += targets
            lengths.append(len(row))
            prompts.append(min(prompt, len(row)))
    return Tokens(
        ids=np.frombuffer(ids, dtype=np.int32) if ids else np.zeros(0, np.int32),
        supervised=np.frombuffer(bytes(supervised), dtype=np.uint8),
        offsets=_offsets(np.array(lengths, dtype=np.int64)),
        prompt_lengths=np.array(prompts, dtype=np.int32),
        full_lengths=np.array(full, dtype=np.int32),
        prints=np.array(prints, dtype=np.uint64),
        texts=_packed(answers, tasks),
        digest=digest,
        running=False,
        skipped=reader.skipped,
        told=tuple(reader.told),
    )


def _texts(example: Example) -> list[str]:
    """The texts of an example that are tokenised apart: what is given and what is answered, in turns."""
    if not example.response.strip():
        return []  # its only lesson would be to say nothing
    return [*chain.from_iterable(example.earlier), example.prompt, example.response]


def _row(
    texts: Sequence[str],
    parts: Sequence[list[int]],
    start: list[int],
    eos: int,
    special: frozenset[int],
    mask_prompt: bool,
) -> tuple[list[int], bytearray]:
    """Token ids of an example, and 1 for each that is a target."""
    row, targets = list(start), bytearray(len(start))
    for i, ids in enumerate(parts):
        row += ids
        if i % 2:
            targets += b"\1" * len(ids)
        else:
            stop = _stop(texts[i], ids, special) if i else 0
            targets += b"\1" * stop + bytes(len(ids) - stop)
    row.append(eos)
    targets.append(1)
    if not mask_prompt:
        targets = bytearray(b"\1" * len(row))
    targets[0] = 0
    return row, targets


def _stop(text: str, ids: list[int], special: frozenset[int]) -> int:
    """How many of the tokens after an earlier answer end it: those up to a special one, or one of white space."""
    return next((i + 1 for i, token in enumerate(ids[:3]) if token in special), int(text[:1].isspace()))


def _writes_bos(example: Example, spec: DataSpec, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a template of the user's wrote the beginning-of-sequence token itself."""
    head = example.earlier[0][0] if example.earlier else example.prompt
    return spec.template == "jinja" and bool(tokenizer.bos_token) and head.startswith(str(tokenizer.bos_token))


def _batches(items: Iterator[tuple[Record, Example]]) -> Iterator[list[tuple[Record, Example]]]:
    batch: list[tuple[Record, Example]] = []
    characters = 0
    for item in items:
        batch.append(item)
        characters += sum(map(len, _texts(item[1])))
        if len(batch) == _BATCH or characters > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _blocks(
    passages: Iterator[Passage], reader: Reader, spec: DataSpec, tokenizer: PreTrainedTokenizerBase, digest: str
) -> Tokens:
    start = beginning(tokenizer)
    room = spec.max_length - len(start)
    if spec.max_length < 2 or room < 1:
        raise DataError(
            f"data.max_length={spec.max_length}: a block of text needs 2 tokens or more; raise data.max_length."
        )
    stream = array("i")
    for i, passage in enumerate(passages):
        if i and not passage.goes_on:
            stream.append(end_of_sequence(tokenizer))
        for piece in pieces(passage.text):
            stream.extend(_encode(tokenizer, [piece])[0])
    flat = np.frombuffer(stream, dtype=np.int32) if stream else np.zeros(0, np.int32)
    full = np.full(-(-len(flat) // room), room, dtype=np.int64)
    if len(full):
        full[-1] -= -len(flat) % room
    full += len(start)
    lengths = np.where(full > 1, full, 0)
    offsets = _offsets(lengths)
    ids = np.zeros(int(offsets[-1]), dtype=np.int32)
    supervised = np.ones(len(ids), dtype=np.uint8)
    at = np.arange(len(ids)) - np.repeat(offsets[:-1], lengths)  # the place of each token in its block
    ids[at >= len(start)] = flat[: int((at >= len(start)).sum())]
    if start:
        ids[at == 0] = start[0]
    supervised[at == 0] = 0
    rows = len(full)
    return Tokens(
        ids=ids,
        supervised=supervised,
        offsets=offsets,
        prompt_lengths=np.zeros(rows, dtype=np.int32),
        full_lengths=full.astype(np.int32),
        prints=np.zeros(rows, dtype=np.uint64),
        texts=_packed([""] * rows, [""] * rows),
        digest=digest,
        running=True,
        skipped=reader.skipped,
        told=tuple(reader.told),
    )


def end_of_sequence(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the end-of-sequence token.

    Raises:
        DataError: the tokenizer has none, so that a model could not learn where to stop.
    """
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"The tokenizer {tokenizer.name_or_path or type(tokenizer).__name__} has no end-of-sequence token, so a "
            "model could not learn where an answer ends. Set eos_token in its tokenizer_config.json."
        )
    return int(tokenizer.eos_token_id)


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-sequence token that this tokenizer puts before every text (Llama's does, SmolLM2's does not)."""
    ids = tokenizer("a", verbose=False)["input_ids"]
    return [int(ids[0])] if tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else []


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 (hex) of what decides a tokenizer's output: vocabulary, merges, normaliser, special tokens, template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules = json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()], sort_keys=True)
    else:
        # what stands before is truncation and padding, left over from its last call and not part of what it is
        rules = "".join(backend.to_str().partition('"added_tokens"')[1:])
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template]
    return hashlib.sha256(f"{rules}\n{json.dumps(special, sort_keys=True)}".encode()).hexdigest()


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )["input_ids"]
    return ids


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])


def _packed(answers: list[str], tasks: list[str]) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps([answers, tasks]).encode(), dtype=np.uint8)
