"""Batches: packed rows are full and change no loss, grouped batches are of like length, a lane trains on both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_lab import models
from lora_lab.config import compose_run
from lora_lab.data import BatchOrder, load
from lora_lab.data.order import packed
from lora_lab.engine.lane import Lane, LaneJob
from lora_lab.packing.forward import token_losses
from lora_lab.packing.paths import Mount


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(0, 1000))
def test_packed_rows_hold_every_example_once_and_never_too_much(lengths, seed):
    sizes = np.array(lengths)
    rows = packed(sizes, 20, seed)
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(lengths)))
    assert all(sizes[row].sum() <= 20 for row in rows)
    assert len(rows) <= 2 * sizes.sum() / 20 + 1  # no two rows are half empty


def test_rows_of_real_lengths_are_nearly_full():
    lengths = np.random.default_rng(0).integers(20, 200, size=3000)
    assert lengths.sum() / (len(packed(lengths, 512, 0)) * 512) > 0.97


def test_an_epoch_of_packed_rows_sees_every_example_once_each_time_in_another_order():
    lengths = np.random.default_rng(1).integers(1, 9, size=50)
    bins = packed(lengths, 10, 3)
    order = BatchOrder(len(bins), 4, 3, bins=bins)
    epochs = []
    for epoch in range(2):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        batches = [np.concatenate(order.micro_batches(step, 2)) for step in steps]
        epochs.append(np.concatenate(batches).tolist())
        assert sorted(epochs[-1]) == list(range(50))
        assert all(lengths[part].sum() <= 20 for step in steps for part in order.micro_batches(step, 2))
    assert epochs[0] != epochs[1]


def test_grouped_batches_are_of_like_length_and_whole():
    lengths = np.random.default_rng(2).integers(1, 500, size=1003)
    plain, grouped = BatchOrder(1003, 8, 5), BatchOrder(1003, 8, 5, lengths=lengths)
    for epoch in range(2):
        steps = range(epoch * 126, (epoch + 1) * 126)
        assert sorted(np.concatenate([grouped.batch(step) for step in steps]).tolist()) == list(range(1003))
        assert len(grouped.batch(steps[-1])) == 3  # the short batch stays last

    def waste(order):
        batches = [lengths[order.batch(step)] for step in range(125)]
        return 1 - sum(b.sum() for b in batches) / sum(b.max() * len(b) for b in batches)

    assert waste(grouped) < 0.1 < 0.3 < waste(plain)
    means = [lengths[grouped.batch(step)].mean() for step in range(125)]
    assert abs(np.corrcoef(means, range(125))[0, 1]) < 0.3  # long batches do not all come at the end
    assert np.array_equal(grouped.batch(77), BatchOrder(1003, 8, 5, lengths=lengths).batch(77))


@pytest.fixture(scope="module")
def lane_job(tmp_path_factory):
    spec = compose_run(
        ["model=tiny", "data.train_size=40", "data.eval_size=8", "data.pack=true", "data.max_length=160"]
    )
    base = models.load(spec.model, "cpu")
    tokens = load(spec.data, base.tokenizer)
    return base, LaneJob("packed", spec, tokens, tmp_path_factory.mktemp("packed"))


def test_the_loss_of_packed_rows_is_the_loss_of_their_examples(lane_job):
    """Each token's loss in a micro-batch of packed rows equals the one the plain model gives its example alone."""
    base, job = lane_job
    lane = Lane(job, base)
    (micro,) = lane.micro_batches()
    assert len(micro) > 8  # several examples a row
    mount = Mount(base)
    try:
        mount.mount(lane.attachment)
        (result,) = token_losses(mount, [lane.part(micro, 0)])
    finally:
        mount.unmount()
    alone = []
    for ids, supervised in micro:
        logits = base.model(torch.from_numpy(ids)[None]).logits[0].float()
        losses = torch.nn.functional.cross_entropy(logits[:-1], torch.from_numpy(ids[1:]), reduction="none")
        alone.append(losses[torch.from_numpy(supervised[1:])])
    torch.testing.assert_close(result.losses, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_a_lane_counts_packed_rows_as_its_batch(lane_job):
    base, job = lane_job
    lane = Lane(job, base)
    assert lane.order.rows < len(job.data.train) / 2
    assert lane.total == -(-lane.order.rows // job.spec.budget.batch_size)
    plain = Lane(replace(job, spec=job.spec.at({"data.pack": False})), base)
    assert plain.total == len(job.data.train) / job.spec.budget.batch_size
    seen = [ids.tobytes() for lane.step in range(lane.total) for micro in lane.micro_batches() for ids, _ in micro]
    assert sorted(seen) == sorted(job.data.train.tokens(i)[0].tobytes() for i in range(40))
