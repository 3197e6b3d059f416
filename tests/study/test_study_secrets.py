import json

import pytest

from lora_lab.spec import Execution, TrackingSpec
from lora_lab.study.folder import SweepFolder


@pytest.mark.parametrize(
    ("storage", "kept"),
    [
        ("postgresql+psycopg://ada:hunter2@db/study", "postgresql+psycopg://ada@db/study"),
        ("postgresql+psycopg://ada@db/study?password=hunter2", "postgresql+psycopg://ada@db/study"),
        ("sqlite:///study.db", "sqlite:///study.db"),
        (None, None),
    ],
)
def test_no_password_is_written_beside_a_sweep(tmp_path, storage, kept):
    tracking = TrackingSpec(uri="http://ada:hunter2@host:5000")
    SweepFolder(tmp_path).store_execution(Execution(str(tmp_path), storage=storage, tracking=tracking), "s")
    text = (tmp_path / "execution.json").read_text()
    assert "hunter2" not in text
    assert json.loads(text)["storage"] == kept and json.loads(text)["tracking"]["uri"] == "http://host:5000"
