"""A checkpoint is written from where the tensors lie, and read back as they were."""

import tracemalloc

import pytest
import torch

from lora_lab.engine import checkpoint
from lora_lab.errors import CheckpointError
from lora_lab.methods import attach
from lora_lab.models import load
from lora_lab.spec import MethodSpec, ModelSpec, pairs

TENSORS = {
    "generator": torch.arange(7, dtype=torch.uint8),  # odd, and narrower than what comes after it by name
    "optimizer.step": torch.tensor(3.0),
    "best.w": torch.randn(5, 3).bfloat16(),
    "adapter.w": torch.randn(4, 6).t(),
    "none": torch.empty(0, 4, dtype=torch.float64),
}


def test_what_is_written_is_read(tmp_path):
    checkpoint.write(tmp_path, TENSORS, {"step": 3})
    tensors, state = checkpoint.read(tmp_path)
    assert state == {"step": 3}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


@pytest.mark.parametrize("at", [-1, -40, 9, 300])
def test_a_flipped_bit_is_seen(tmp_path, at):
    checkpoint.write(tmp_path, TENSORS, {"step": 3})
    path = tmp_path / checkpoint.FILE
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        checkpoint.read(tmp_path)


def test_nothing_is_copied_on_the_way_to_the_disk(tmp_path):
    """Of a fully fine-tuned model a copy is gigabytes, at a moment when memory is as full as was planned."""
    config = {"model_type": "llama", "vocab_size": 20_000, "hidden_size": 64, "num_hidden_layers": 1}
    config |= {"intermediate_size": 64, "num_attention_heads": 2, "tie_word_embeddings": True}
    base = load(ModelSpec("wide", source="random", dtype="float32", config=pairs(config)))
    full = attach(base, MethodSpec("full"), 0)
    tensors = {name: parameter.detach() for name, parameter in full.parameters().items()}
    for write in (
        lambda: checkpoint.write(tmp_path, tensors, {}),
        lambda: full.save(tmp_path / "adapter", base_name="wide"),
    ):
        tracemalloc.start()
        write()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < sum(tensor.nbytes for tensor in tensors.values()) / 4
