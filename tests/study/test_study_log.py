"""One suite for every log: one order for all writers, whole transactions, counters beside them."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from processes import until
from sqlalchemy.engine import make_url

from lora_lab.study import lines
from lora_lab.study.lines import file_lock
from lora_lab.study.log import Log
from lora_lab.study.opening import open_log

Open = Callable[[], Log]


@pytest.fixture(params=["file", "sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    if request.param == "file":
        return None
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    url: str = request.getfixturevalue("postgres").database(f"log{abs(hash(tmp_path)) % 10**9}")
    return url


@pytest.fixture
def open_one(storage: str | None, tmp_path: Path) -> Iterator[Open]:
    opened: list[Log] = []

    def make() -> Log:
        opened.append(open_log(storage, tmp_path, "study"))
        return opened[-1]

    yield make
    for log in opened:
        log.close()


def add(log: Log, *names: str) -> None:
    with log.exclusive() as append:
        append([{"op": name} for name in names])


def test_everybody_reads_what_anybody_wrote_in_one_order(open_one: Open) -> None:
    one, other = open_one(), open_one()
    add(one, "a", "b")
    add(other, "c")
    add(one, "d")
    for log in (one, other, open_one()):
        assert [event["op"] for event in log.read(0)] == ["a", "b", "c", "d"]
        assert [event["op"] for event in log.read(3)] == ["d"]
        assert log.read(4) == []


def test_a_transaction_that_fails_leaves_nothing(open_one: Open) -> None:
    one, other = open_one(), open_one()
    add(one, "a")
    with pytest.raises(ZeroDivisionError), one.exclusive():
        raise ZeroDivisionError
    add(other, "b")  # and the door is open
    assert [event["op"] for event in one.read(0)] == ["a", "b"]


def test_what_others_wrote_is_seen_within_a_transaction(open_one: Open) -> None:
    one, other = open_one(), open_one()
    assert one.read(0) == []
    add(other, "a")
    with one.exclusive() as append:
        assert len(one.read(0)) == 1
        append([{"op": "b"}])


def _count(storage: str | None, folder: Path, times: int) -> None:
    log = open_log(storage, folder, "study")
    for _ in range(times):
        with log.exclusive() as append:
            append([{"number": len(log.read(0))}])
    log.close()


def test_processes_wait_for_one_another(storage: str | None, tmp_path: Path, open_one: Open) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_count, args=(storage, tmp_path, 20)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert [event["number"] for event in open_one().read(0)] == list(range(60))


def test_counters_count_while_somebody_writes(open_one: Open, storage: str | None) -> None:
    one, other = open_one(), open_one()
    one.beat("a")
    if storage is not None and storage.startswith("sqlite"):
        one.beat("a")  # SQLite has one lock for everything
    else:
        with other.exclusive():
            one.beat("a")
    other.beat("b")
    assert other.beats(["a", "b", "c"]) == {"a": 2, "b": 1} and other.beats(["b"]) == {"b": 1}
    one.forget("a")
    assert other.beats(["a", "b"]) == {"b": 1}


def test_one_mirrors_at_a_time_and_nobody_waits(open_one: Open) -> None:
    one, other = open_one(), open_one()
    with one.mirroring() as mine, other.mirroring() as too:
        assert mine and not too
    with other.mirroring() as mine:
        assert mine


def test_studies_in_one_database_do_not_meet(storage: str | None, tmp_path: Path) -> None:
    if storage is None:
        pytest.skip("a file holds one study")
    one, other = open_log(storage, tmp_path, "one"), open_log(storage, tmp_path, "other")
    add(one, "a")
    one.beat("w")
    assert other.read(0) == [] and other.beats(["w"]) == {}
    one.close()
    other.close()


def test_who_waits_reads_meanwhile(storage: str | None, open_one: Open) -> None:
    """What was written before its turn is read before its turn, while others still write; PostgreSQL keeps a queue of
    its own, and reads once before it stands in it."""
    times = 1 if storage is not None and storage.startswith("postgresql") else 3
    one, other = open_one(), open_one()
    heard: list[int] = []
    entered, leave = threading.Event(), threading.Event()

    def write() -> None:
        with one.exclusive() as append:
            append([{"op": "a"}])
            entered.set()
            leave.wait(30)

    def meanwhile() -> None:
        heard.append(len(heard))
        if len(heard) == times:
            leave.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert entered.wait(30)
    with other.exclusive(meanwhile):
        assert len(heard) == 1 if times == 1 else len(heard) >= times
        assert [event["op"] for event in other.read(0)] == ["a"]
    writer.join()


def test_who_waits_long_gets_into_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who stand in the kernel's queue come before those who ask now and again."""
    monkeypatch.setattr(lines, "POLL_SECONDS", 0.2)
    asked: list[float] = []

    def wait() -> None:
        with file_lock(tmp_path / "lock", meanwhile=lambda: asked.append(time.monotonic())):
            pass

    with file_lock(tmp_path / "lock"):
        waiter = threading.Thread(target=wait)
        waiter.start()
        until(lambda: asked and time.monotonic() - asked[-1] > 1.0, "the end of the asking", seconds=20)
    waiter.join(30)
    assert not waiter.is_alive() and asked[-1] - asked[0] < 1.0


def test_a_full_server_is_waited_for(request: pytest.FixtureRequest) -> None:
    """One place for all: a worker's log opens when the place is free."""
    server = request.getfixturevalue("postgres")
    url = make_url(server.database("crowded"))
    owner = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with owner.connect() as connection:
        connection.exec_driver_sql("CREATE ROLE single LOGIN CONNECTION LIMIT 1")
        connection.exec_driver_sql("GRANT ALL ON SCHEMA public TO single")
    owner.dispose()
    narrow = url.set(username="single").render_as_string(hide_password=False)
    holder = sa.create_engine(narrow)
    first = holder.connect()
    leaving = threading.Timer(1.0, lambda: (first.close(), holder.dispose()))
    leaving.start()
    log = open_log(narrow, Path(), "study")
    add(log, "a")
    assert [event["op"] for event in log.read(0)] == ["a"]
    log.close()
    leaving.join()
