"""Workers that open a new study at the same moment: one creates it, all have it."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from lora_lab.spec import Execution
from lora_lab.study import Study


def _open(sweep, execution, barrier, out):
    barrier.wait()
    with Study.open(sweep, execution) as study:
        out.put(study.next_run().id)
        barrier.wait()


@pytest.mark.parametrize("storage", ["file", "sqlite", "postgresql"])
def test_many_open_a_new_study_at_once(make_sweep, tmp_path: Path, request, storage):
    url = None
    if storage == "sqlite":
        url = f"sqlite:///{tmp_path}/study.db"
    if storage == "postgresql":
        url = request.getfixturevalue("postgres").database(f"together{abs(hash(tmp_path)) % 10**9}")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lora_lab.study.study", "lora_lab.study.sql_log", "psycopg"])
    barrier, out = context.Barrier(4), context.Queue()
    execution = Execution(str(tmp_path / "sweep"), storage=url)
    workers = [context.Process(target=_open, args=(make_sweep(), execution, barrier, out)) for _ in range(4)]
    for worker in workers:
        worker.start()
    runs = {out.get(timeout=300) for _ in workers}
    for worker in workers:
        worker.join(300)
        assert worker.exitcode == 0
    assert runs == {"t0000-s0", "t0001-s0", "t0002-s0", "t0003-s0"}
