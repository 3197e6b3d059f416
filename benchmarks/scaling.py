"""Sweep throughput against the number of workers, and the share of their time that is lost to orchestration.

    python benchmarks/scaling.py                       # a quarter of an hour on two cores, with PostgreSQL
    python benchmarks/scaling.py --quick               # two workers on the journal, some seconds

*Simulated*: processes that share a study by TPE over four parameters, as ``lora-lab worker`` does, but sleep instead of
training, so that two cores can carry 64 of them. A run is ten steps of sleep, at each of which orders are asked for and
a line is spooled. What a worker's clock shows beside its sleep is *lost*: asking, claiming, spooling, settling, and
waiting for others' turns. *Real*: ``lora-lab sweep`` on the tiny model with ``launcher.workers``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import facts, keep
from orchestration import result_of, storages, sweep_of

from lora_lab.spec import EvalMetrics, Execution, StepMetrics, Sweep
from lora_lab.study import Study
from lora_lab.study.opening import open_log
from lora_lab.tracking import Spool

SIMULATED = (1, 2, 4, 8, 64)
REAL = (1, 2, 4, 8)
STEPS = 10
RESULTS = Path(__file__).parent / "results" / "scaling.json"


def work(sweep: Sweep, execution: Execution, go: Any, runs: int, seconds: float, out: Any) -> None:
    """Settle ``runs`` runs of ``seconds`` of sleep each; tell what the clock shows beside the sleep."""
    with Study.open(sweep, execution) as study:
        spool = Spool(Path(execution.folder))
        out.put(None)
        go.wait()
        began, slept = time.perf_counter(), 0.0
        for _ in range(runs):
            run = study.next_run()
            assert run is not None
            spool.started(run.id, run.spec, STEPS, 0)
            for step in range(1, STEPS + 1):
                start = time.perf_counter()
                time.sleep(seconds / STEPS)
                slept += time.perf_counter() - start
                study.orders()
                spool.step(run.id, StepMetrics(step, 0.1, 2.0, 1e-4, 1.0, 1000, 500, 0.1))
            spool.evaluation(run.id, EvalMetrics(STEPS, 2.0, 1000, 0.5, 0.1))
            result = result_of(run, sweep)
            assert study.settle(run, result)
            spool.ended(result)
        out.put((time.perf_counter() - began, slept))
        spool.close()


def simulated(workers: int, runs: int, seconds: float, storage: str | None, folder: Path) -> dict[str, Any]:
    """``workers`` processes settle ``runs`` runs each."""
    sweep = sweep_of(workers * runs, "tpe")
    execution = Execution(str(folder), storage=storage)
    Study.open(sweep, execution).close()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lora_lab.study.study", "lora_lab.study.sql_log", "lora_lab.tracking.spool"])
    go, out = context.Event(), context.Queue()
    crowd = [context.Process(target=work, args=(sweep, execution, go, runs, seconds, out)) for _ in range(workers)]
    for process in crowd:
        process.start()
    for _ in crowd:
        out.get()
    began = time.perf_counter()
    go.set()
    clocks = [out.get() for _ in crowd]
    wall = time.perf_counter() - began
    for process in crowd:
        process.join()
    log = open_log(storage, folder, "orchestration")
    settled = [event["run"] for event in log.read(0) if event["op"] == "settle"]
    log.close()
    assert len(settled) == len(set(settled)) == workers * runs, "a run was lost, or settled twice"
    elapsed, slept = (sum(column) for column in zip(*clocks, strict=True))
    return {
        "kind": "simulated",
        "workers": workers,
        "runs": workers * runs,
        "run_seconds": seconds,
        "runs_per_s": round(workers * runs / wall, 3),
        "ideal_runs_per_s": round(workers / seconds, 3),
        "lost_percent": round(100 * (1 - slept / elapsed), 2),
    }


def real(workers: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Runs a second of a sweep on the tiny model, its start left out: from the first claim to the last result."""
    words = (
        "sweep rank_alpha model=tiny tracking=none evaluation.exact_match=false budget.steps=60 pack.max_lanes=1 "
        f"sweep.repeats={repeats} launcher.workers={workers} sweep.dir={folder}"
    ).split()
    subprocess.run([sys.executable, "-m", "lora_lab.cli.main", *words], check=True, stdout=subprocess.DEVNULL)
    log = open_log(None, folder, "")
    results = [event["result"] for event in log.read(0) if event["op"] == "settle"]
    log.close()
    wall = max(result["ended"] for result in results) - min(result["started"] for result in results)
    return {"kind": "real", "workers": workers, "runs": len(results), "runs_per_s": round(len(results) / wall, 3)}


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--storage", default="postgresql", choices=["journal", "sqlite", "postgresql"])
    parser.add_argument("--seconds", type=float, default=10.0, help="how long a simulated run sleeps")
    parser.add_argument("--runs", type=int, default=6, help="simulated runs of each worker")
    parser.add_argument("--simulated", type=int, nargs="*", default=SIMULATED, help="numbers of workers")
    parser.add_argument("--real", type=int, nargs="*", default=REAL, help="numbers of workers")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.quick:
        args.storage, args.seconds, args.runs, args.simulated, args.real = "journal", 0.5, 2, [2], []
    rows = []
    with storages([args.storage]) as kinds:
        for workers in args.simulated:
            with tempfile.TemporaryDirectory() as folder:
                row = simulated(workers, args.runs, args.seconds, kinds[args.storage](), Path(folder) / "sweep")
            rows.append(row | {"storage": args.storage})
            print(rows[-1], flush=True)
    for workers in args.real:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(real(workers, 2, Path(folder) / "sweep"))
        print(rows[-1], flush=True)
    keep(args.results, [{"machine": facts(), "rows": rows}])


if __name__ == "__main__":
    main()
