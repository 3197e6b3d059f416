"""What a run costs besides its training: ask, lease, settle and record, for many trials, workers and storages.

    python benchmarks/orchestration.py                 # all of it; ten minutes on two cores
    python benchmarks/orchestration.py --quick         # the default storage only, up to 1,000 trials
    python benchmarks/orchestration.py --parts status  # one part; --storages, --trials and --workers take less, too

*Overhead* is what one worker spends on a run from ``next_run`` to the end of ``settle`` and of the spool (started, ten
steps, one evaluation, ended), at a given number of finished trials, with TPE over four parameters. *Throughput* is
what 1, 8 and 64 worker processes settle together in a given time, training nothing; afterwards the log is checked:
no run may be lost or settled twice. *Status* is the wall time of ``lora-lab status --json``.

Finished trials are written as events, as another worker's would be, so that 10,000 of them take seconds to make.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_lab.spec import (
    EvalMetrics,
    Execution,
    ModelSpec,
    Outcome,
    RunResult,
    RunSpec,
    Space,
    StepMetrics,
    Strategy,
    Sweep,
    pairs,
    run_id,
)
from lora_lab.study import Study
from lora_lab.study.opening import open_log
from lora_lab.tracking import Spool

PARTS = ("overhead", "throughput", "status")
TRIALS = (10, 100, 1_000, 10_000)
WORKERS = (1, 8, 64)
SPACE = {
    "method.r": {"int": {"low": 1, "high": 256, "log": True}},
    "method.alpha_over_r": {"float": {"low": 0.25, "high": 4.0, "log": True}},
    "optimizer.lr": {"float": {"low": 1e-5, "high": 1e-2, "log": True}},
    "method.dropout": {"float": {"low": 0.0, "high": 0.3}},
}
RESULTS = Path(__file__).parent / "results" / "orchestration.json"


def sweep_of(trials: int, sampler: str) -> Sweep:
    """A sweep whose runs nobody trains."""
    base = RunSpec(model=ModelSpec("tiny", source="random", config=pairs({"model_type": "llama"})))
    return Sweep("orchestration", base, Space.from_tree(SPACE), sampler=Strategy(sampler), trials=trials)


def result_of(run: Any, sweep: Sweep) -> RunResult:
    """What a training might have given."""
    loss = 2.0 + abs(run.point["method.dropout"] - 0.1) + random.Random(run.id).random() / 10
    return RunResult(
        run=run.id, trial=run.trial, seed=run.seed, key=run.key, outcome=Outcome.COMPLETED, point=pairs(run.point),
        eval_loss=loss, best_eval_loss=loss, base_eval_loss=3.0, train_loss=loss, steps=10, tokens=10_000, seconds=1.0,
        adapter=f"runs/{run.id}/adapter", started=time.time(), ended=time.time(),
    )  # fmt: skip


def fill(sweep: Sweep, execution: Execution, trials: int) -> None:
    """Let ``trials`` trials be finished already."""
    rng = random.Random(0)
    events: list[dict[str, Any]] = []
    with Study.open(sweep, execution) as study:
        for number in range(trials):
            point = {
                "method.r": rng.randint(1, 256),
                "method.alpha_over_r": rng.uniform(0.25, 4.0),
                "optimizer.lr": 10 ** rng.uniform(-5, -2),
                "method.dropout": rng.uniform(0.0, 0.3),
            }
            name, loss = run_id(number, 0), 2.0 + rng.random()
            result = RunResult(
                run=name, trial=number, seed=0, key=f"{number:064x}", outcome=Outcome.COMPLETED, point=pairs(point),
                eval_loss=loss, best_eval_loss=loss, base_eval_loss=3.0, steps=10, tokens=10_000, seconds=1.0,
                started=time.time(), ended=time.time(),
            )  # fmt: skip
            events.append({"op": "ask", "trial": number, "params": point, "system": {}, "study": {}})
            events.append({"op": "settle", "run": name, "result": result.to_tree()})
        with study._session.log.exclusive() as append:
            append(events)
        copied(study, trials)


def copied(study: Study, trials: int) -> None:
    """Let the filled trials count as copied to Optuna's storage, which takes minutes for 10,000 of them.

    New ones are copied as always, in the background.
    """
    study._keeper._mirror._settled.update(range(trials))


def one_run(study: Study, spool: Spool, sweep: Sweep) -> bool:
    """A run's life, but for its training."""
    run = study.next_run()
    if run is None:
        return False
    spool.started(run.id, run.spec, 10, 0)
    for step in range(1, 11):
        spool.step(run.id, StepMetrics(step, 0.1, 2.0, 1e-4, 1.0, 1000, 500, 0.1))
    spool.evaluation(run.id, EvalMetrics(10, 2.0, 1000, 0.5, 0.1))
    result = result_of(run, sweep)
    assert study.settle(run, result)
    spool.ended(result)
    return True


def overhead(trials: int, storage: str | None, folder: Path, sampler: str = "tpe", runs: int = 30) -> dict[str, float]:
    """Milliseconds a run, at ``trials`` finished trials: median of wall and processor time, and 90th percentile."""
    sweep = sweep_of(trials + runs + 5, sampler)
    execution = Execution(str(folder), storage=storage)
    fill(sweep, execution, trials)
    began = time.perf_counter()
    with Study.open(sweep, execution) as study:
        opened = time.perf_counter() - began
        copied(study, trials)
        spool, times, cpu = Spool(folder), [], []
        for _ in range(runs + 5):
            start, busy = time.perf_counter(), time.thread_time()
            assert one_run(study, spool, sweep)
            times.append(1000 * (time.perf_counter() - start))
            cpu.append(1000 * (time.thread_time() - busy))
        spool.close()
    times = sorted(times[5:])
    return {
        "median_ms": round(statistics.median(times), 2),
        "median_cpu_ms": round(statistics.median(cpu[5:]), 2),
        "p90_ms": round(times[int(0.9 * len(times))], 2),
        "open_s": round(opened, 2),
    }


def _work(sweep: Sweep, execution: Execution, go: Any, until: float, out: Any) -> None:
    done = 0
    with Study.open(sweep, execution) as study:
        spool = Spool(Path(execution.folder))
        out.put(None)
        go.wait()
        end = time.monotonic() + until
        while time.monotonic() < end:
            done += one_run(study, spool, sweep)
        spool.close()
    out.put(done)


def throughput(
    workers: int, storage: str | None, folder: Path, seconds: float, sampler: str = "random"
) -> dict[str, Any]:
    """Runs a second that ``workers`` processes settle together, and what the log says of them."""
    sweep = sweep_of(1_000_000, sampler)
    execution = Execution(str(folder), storage=storage)
    Study.open(sweep, execution).close()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lora_lab.study.study", "lora_lab.study.sql_log", "lora_lab.tracking.spool"])
    go, out = context.Event(), context.Queue()
    crowd = [context.Process(target=_work, args=(sweep, execution, go, seconds, out)) for _ in range(workers)]
    for process in crowd:
        process.start()
    for _ in crowd:
        out.get()
    go.set()
    done = sum(out.get() for _ in crowd)
    for process in crowd:
        process.join()
    log = open_log(storage, folder, "orchestration")
    settled = [event["run"] for event in log.read(0) if event["op"] == "settle"]
    log.close()
    return {
        "runs_per_s": round(done / seconds, 1),
        "runs": done,
        "lost": done - len(set(settled)),
        "doubled": len(settled) - len(set(settled)),
        "crashed": sum(process.exitcode != 0 for process in crowd),
    }


def status_seconds(trials: int, folder: Path) -> float:
    """Wall seconds of ``lora-lab status --json``."""
    sweep = sweep_of(trials, "tpe")
    execution = Execution(str(folder))
    fill(sweep, execution, trials)
    with Study.open(sweep, execution) as study:  # writes the result files
        copied(study, trials)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "lora_lab.cli.main", "status", str(folder), "--json"], capture_output=True, check=True
    )
    seconds = time.perf_counter() - began
    assert json.loads(done.stdout)["settled_runs"] == trials
    return round(seconds, 2)


@contextmanager
def storages(names: list[str]) -> Iterator[dict[str, Any]]:
    """A function for each storage that gives a new one's URL."""
    with tempfile.TemporaryDirectory() as folder:
        count = iter(range(1_000))
        found: dict[str, Any] = {
            "journal": lambda: None,
            "sqlite": lambda: f"sqlite:///{folder}/study{next(count)}.db",
        }
        server = None
        if "postgresql" in names:
            sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
            from postgres import server as running

            server = running()
            postgres = next(server)
            found["postgresql"] = lambda: postgres.database(f"study{next(count)}")
        yield {name: found[name] for name in names}
        if server is not None:
            next(server, None)


def disk_ms(folder: Path) -> float:
    """Median milliseconds of writing and syncing a kilobyte: what an event in a file costs at least."""
    times = []
    with (folder / "probe").open("wb", buffering=0) as file:
        for _ in range(30):
            began = time.perf_counter()
            file.write(bytes(1024))
            os.fsync(file.fileno())
            times.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(times), 2)


def table(entries: list[dict[str, Any]]) -> str:
    """The entries as docs/performance.md shows them: a row for each storage."""
    rows: dict[str, dict[str, str]] = {}
    for entry in entries:
        for count, found in entry.get("overhead", {}).items():
            rows.setdefault(entry["storage"], {})[f"at {int(count):,}"] = f"{found['median_ms']:.0f} ms"
        for count, found in entry.get("throughput", {}).items():
            head = f"{count} worker{'s' * (int(count) > 1)}"
            rows.setdefault(entry["storage"], {})[head] = f"{found['runs_per_s']:.0f}/s"
    heads = list(dict.fromkeys(head for cells in rows.values() for head in cells))
    lines = [f"| storage | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cells.get(head, '') for head in heads)} |" for name, cells in rows.items()]
    return "\n".join(lines)


def main() -> None:
    """Measure and print, and keep each part as soon as it is there."""
    import machine  # not above: the workers import this file, and need no torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the default storage only, up to 1,000 trials")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--storages", default="journal,sqlite,postgresql")
    parser.add_argument("--trials", type=int, nargs="+", default=TRIALS, help="finished trials")
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS, help="worker processes")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long workers settle")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    names = ["journal"] if args.quick else args.storages.split(",")
    trials = args.trials[:3] if args.quick else args.trials
    workers = args.workers[:2] if args.quick else args.workers
    entries: list[dict[str, Any]] = []

    def keep(**found: Any) -> None:
        entries.append({"machine": facts, **found})
        machine.keep(args.results, entries[-1:])

    with storages(names) as kinds, tempfile.TemporaryDirectory() as place:
        temp = Path(place)
        facts = machine.facts() | {"load": os.getloadavg()[0], "disk_ms": disk_ms(temp)}
        print(f"load {facts['load']:.1f}, a kilobyte on disk {facts['disk_ms']} ms", flush=True)
        folders = (temp / f"sweep{n}" for n in itertools.count())
        for name, make in kinds.items():
            if "overhead" in args.parts:
                costs = {}
                for count in trials:
                    costs[str(count)] = overhead(count, make(), next(folders))
                    print(f"{name:10} {count:6} finished trials: {costs[str(count)]}", flush=True)
                keep(storage=name, overhead=costs)
            if "throughput" in args.parts:
                rates = {}
                for count in workers:
                    rates[str(count)] = throughput(count, make(), next(folders), args.seconds)
                    print(f"{name:10} {count:6} workers: {rates[str(count)]}", flush=True)
                keep(storage=name, throughput=rates)
        if "status" in args.parts:
            seconds = {str(max(trials)): status_seconds(max(trials), next(folders))}
            print(f"seconds of status, by finished trials: {seconds}", flush=True)
            keep(status_s=seconds)
    print(f"\n{table(entries)}", flush=True)


if __name__ == "__main__":
    main()
