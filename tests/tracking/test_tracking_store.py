"""Which store, whether it answers, and what of its URI is shown."""

from __future__ import annotations

import http.server
import os
import socket
import threading

import pytest

from lora_lab.errors import StorageError
from lora_lab.spec import TrackingSpec
from lora_lab.tracking import check, redact, resolve_uri, ui_command


@pytest.fixture(autouse=True)
def empty_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_default_is_what_a_bare_mlflow_ui_opens(tmp_path):
    uri = resolve_uri(TrackingSpec())
    assert uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert ui_command(uri) == ["mlflow", "ui"]


def test_the_spec_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert resolve_uri(TrackingSpec()) == "http://host:5000"
    assert resolve_uri(TrackingSpec(uri="http://other:1")) == "http://other:1"


def test_a_relative_sqlite_path_means_the_same_elsewhere(tmp_path):
    uri = resolve_uri(TrackingSpec(uri="sqlite:///deep/lab.db"))
    assert uri == f"sqlite:///{tmp_path}/deep/lab.db"
    assert ui_command(uri) == ["mlflow", "ui", "--backend-store-uri", uri]


def test_the_store_is_named_where_a_bare_mlflow_ui_would_open_an_older_one(tmp_path):
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("")
    uri = resolve_uri(TrackingSpec())
    assert ui_command(uri) == ["mlflow", "ui", "--backend-store-uri", uri]


def test_a_server_is_its_own_ui():
    assert ui_command("http://host:5000")[-1] == "http://host:5000"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg://me:s3cret@db:5432/lab", "postgresql+psycopg://me:***@db:5432/lab"),
        ("https://me:s3cr@et:x@host/path", "https://me:***@host/path"),
        ("https://ghp_s3cret@github.com/a/b", "https://***@github.com/a/b"),
        (
            "postgresql://db/lab?user=me&password=s3cret&sslmode=require",
            "postgresql://db/lab?user=me&password=***&sslmode=require",
        ),
        ("s3://bucket/x?X-Amz-Security-Token=s3cret", "s3://bucket/x?X-Amz-Security-Token=***"),
        ("could not connect to mysql://a:s3cret@h/d, retrying", "could not connect to mysql://a:***@h/d, retrying"),
        ("sqlite:////home/me/mlflow.db", "sqlite:////home/me/mlflow.db"),
        (
            "mail me@host.org about http://host:5000/#/experiments",
            "mail me@host.org about http://host:5000/#/experiments",
        ),
    ],
)
def test_secrets_are_not_shown(text, shown):
    assert redact(text) == shown
    assert redact(shown) == shown


@pytest.fixture
def server():
    """A tracking server's ``/health``; ``status`` is what it answers."""

    class Health(http.server.BaseHTTPRequestHandler):
        status = 200

        def do_GET(self):
            self.send_response(self.status if self.path == "/health" else 404)
            self.end_headers()
            self.wfile.write(b"OK")

        def log_message(self, *args):
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", Health
        running.shutdown()
        thread.join()


def test_a_server_that_answers_is_fine(server):
    check(TrackingSpec(uri=server[0]))
    check(TrackingSpec(uri=server[0].replace("127.0.0.1", "me:s3cret@127.0.0.1") + "/"))


@pytest.mark.parametrize(("status", "fine"), [(401, True), (404, False), (500, False)])
def test_what_a_server_may_answer(server, status, fine):
    server[1].status = status
    if fine:
        check(TrackingSpec(uri=server[0]))
    else:
        with pytest.raises(StorageError, match=f"answers {status}"):
            check(TrackingSpec(uri=server[0]))


def test_a_dead_server_is_refused_with_the_remedies():
    with pytest.raises(StorageError, match=r"refused.*Start it.*tracking=none") as caught:
        check(TrackingSpec(uri="http://me:s3cret@127.0.0.1:9"))
    assert "s3cret" not in str(caught.value)


def test_a_server_that_never_answers_is_given_up_soon(monkeypatch):
    monkeypatch.setattr("lora_lab.tracking.store.ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(StorageError, match="timed out"):
            check(TrackingSpec(uri=f"http://127.0.0.1:{port}"))


@pytest.mark.parametrize("uri", ["postgresql://me:s3cret@127.0.0.1:9/lab", "http://host:port"])
def test_other_stores_that_cannot_be_reached(uri):
    with pytest.raises(StorageError) as caught:
        check(TrackingSpec(uri=uri))
    assert "s3cret" not in str(caught.value)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    tmp_path.chmod(0o755)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(StorageError, match="cannot be written"):
            check(TrackingSpec(uri=f"sqlite:///{tmp_path}/locked/deep/mlflow.db"))
    finally:
        if root:
            os.seteuid(0)


def test_checking_creates_nothing(tmp_path):
    check(TrackingSpec())
    check(TrackingSpec(uri="sqlite:///deep/er/lab.db"))
    check(TrackingSpec(name="none"))
    assert list(tmp_path.iterdir()) == []
