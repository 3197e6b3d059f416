"""Free memory, a container's limit, and sizes as people write them."""

import pytest

from lora_lab.errors import SpecError
from lora_lab.planner import device_memory
from lora_lab.planner.device import container_free, device_kind
from lora_lab.spec import read_size, show_size


def test_free_memory_of_this_machine_is_plausible():
    assert 10**6 < device_memory("cpu") < 10**14


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "CPU", ""])
def test_an_unknown_device_is_refused_with_the_known_ones(device):
    with pytest.raises(SpecError, match="Use auto, cpu, cuda or cuda:N"):
        device_kind(device)


def test_a_cuda_device_that_is_not_there_is_refused():
    with pytest.raises(SpecError, match="CUDA devices"):
        device_kind("cuda:999")
    assert device_kind("cuda:999", present=False) == "cuda"


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_container_limit_counts_and_droppable_pages_are_free(tmp_path):
    files = {"memory.max": "1000\n", "memory.current": "700\n", "memory.stat": "anon 400\ninactive_file 200\n"}
    assert container_free(write(tmp_path, files)) == 500


def test_the_older_kind_of_container_limit(tmp_path):
    files = {
        "memory/memory.limit_in_bytes": "1000",
        "memory/memory.usage_in_bytes": "900",
        "memory/memory.stat": "cache 1\ntotal_inactive_file 50",
    }
    assert container_free(write(tmp_path, files)) == 150


@pytest.mark.parametrize("limit", ["max", str(2**63 - 4096)])
def test_no_limit(tmp_path, limit):
    files = {"memory.max": limit, "memory.current": "700", "memory.stat": "inactive_file 0"}
    assert container_free(write(tmp_path, files)) is None
    assert container_free(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GB", 24e9), ("16GiB", 16 * 2**30), ("800 MB", 8e8), ("1e9", 1e9), ("2g", 2e9), ("0.5TB", 5e11), ("64B", 64)],
)
def test_sizes(text, size):
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "lots", "-3GB", "0", "24 XB", "1.2.3GB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(SpecError, match="not a size"):
        read_size(text)


def test_sizes_shown():
    assert [show_size(n) for n in (19.844e9, 5.12e8, 1500, 12)] == ["19.84 GB", "512 MB", "2 kB", "12 B"]
