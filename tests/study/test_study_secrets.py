import json
from dataclasses import replace

import pytest
from postgres import Postgres, server
from processes import until

from lora_lab.errors import StorageError
from lora_lab.spec import Execution, TrackingSpec
from lora_lab.study import Study
from lora_lab.study.folder import SweepFolder
from lora_lab.study.lease import Lease
from lora_lab.study.log import Unreachable
from lora_lab.study.look import execution_of
from lora_lab.study.storage import gone


@pytest.fixture
def own_server():
    yield from server()


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


def test_what_a_driver_says_has_no_password_in_it():
    url = "postgresql+psycopg://ada:hunter2@db/study"
    away = Unreachable(url, OSError("ada:hunter2@db does not answer\nsecond line"))
    assert str(away) == "ada:***@db does not answer"
    assert "hunter2" not in str(gone(url, away.cause))


def test_a_database_that_goes_away_is_logged_without_its_password(own_server: Postgres, make_sweep, tmp_path, caplog):
    url = own_server.database("study").replace("postgres@", "postgres:hunter2-s3cret@")
    caplog.set_level("INFO")
    with Study.open(make_sweep(), Execution(str(tmp_path / "sweep"), storage=url)) as study:
        lease = Lease(study._session.log, "worker", 0.5)
        own_server.stop()
        until(lambda: "cannot renew its lease" in caplog.text, "the loss to be seen")
        own_server.start()
        assert study.next_run() is not None
        lease.end()
    assert "hunter2" not in caplog.text


def test_a_password_in_a_file_opens_the_database_for_all_workers(
    own_server: Postgres, make_sweep, result_of, tmp_path, monkeypatch
):
    """PostgreSQL's library reads the file, which the URL names; the URL is kept, the password nowhere."""
    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.pgpass
    url = own_server.database("study").replace("postgres@", "ada@")
    own_server.ask_for_password("ada", "hunter2-s3cret")
    execution = Execution(str(tmp_path / "sweep"), storage=url)
    with pytest.raises(StorageError, match="password"):
        Study.open(make_sweep(), execution)
    secret = tmp_path / "pgpass"
    secret.write_text("127.0.0.1:*:*:ada:hunter2-s3cret\n")
    secret.chmod(0o600)
    execution = replace(execution, storage=f"{url}?passfile={secret}")
    with Study.open(make_sweep(), execution) as study:
        run = study.next_run()
        kept = execution_of(tmp_path / "sweep")["storage"]
        assert kept.endswith((f"?passfile={secret}", "%2Fpgpass"))
        with Study.join(tmp_path / "sweep", kept, make_sweep().name, execution.launcher) as other:
            assert other.next_run().id != run.id
        assert study.settle(run, result_of(run))
    files = [file for file in (tmp_path / "sweep").rglob("*") if file.is_file()]
    assert [file for file in files if b"hunter2" in file.read_bytes()] == []
