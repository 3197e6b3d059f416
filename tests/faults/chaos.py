"""Workers that are killed, stopped and preempted at random until a sweep is done; then its table is compared.

    python tests/faults/chaos.py --trials 100 --repeats 2 --workers 3 --every 3

runs a sweep undisturbed and the same under chaos, and says whether the tables are equal and every run was settled once.
``--seed`` repeats a run of chaos as far as the machine allows; ``--storage`` is a URL, the default a file.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from processes import Started, start
from tiny import results

from lora_lab.study.opening import open_log

HOW = {signal.SIGKILL: 6, signal.SIGTERM: 2, signal.SIGSTOP: 2}
"""What is done to a worker, and how often of ten."""


def sweep_of(trials: int, repeats: int, storage: str | None, lanes: int = 6) -> tuple[str, ...]:
    """The command of a tiny sweep of ``trials * repeats`` runs."""
    return (
        "sweep", "rank_alpha", "model=tiny", "data.train_size=32", "data.eval_size=4", "budget.steps=5",
        "budget.batch_size=2", "evaluation.every_steps=null", "evaluation.exact_match=false", "tracking=none",
        f"pack.max_lanes={lanes}", f"sweep.repeats={repeats}", f"sweep.trials={trials}", "sampler=random",
        "sweep.space={method.r: {choices: [2, 4, 8]}, optimizer.lr: {float: {low: 1e-4, high: 1e-2, log: true}}}",
        "launcher.lease_seconds=2", "launcher.checkpoint_seconds=0.5", f"sweep.storage={storage or 'null'}",
    )  # fmt: skip


def chaos(folder: Path, words: tuple[str, ...], workers: int, every: float, seed: int, limit: float) -> Counter[str]:
    """Run a sweep with ``workers`` processes, one of which is disturbed about ``every`` seconds; what was done."""
    rng = random.Random(seed)
    done: Counter[str] = Counter()
    crowd: list[Started] = []
    asleep: dict[int, float] = {}
    end, next_time = time.monotonic() + limit, time.monotonic() + every
    while time.monotonic() < end:
        for worker in list(crowd):
            code = worker.process.exitcode
            if code is None:
                continue
            crowd.remove(worker)
            assert code in (0, 130, -signal.SIGKILL), f"a worker ended with {code}:\n{worker.said()}"
            if code == 0:
                for other in crowd:
                    other.send(signal.SIGCONT)
                assert all(other.wait() in (0, 130) for other in crowd)
                return done
        crowd += [start(folder, *words) for _ in range(workers - len(crowd))]
        now = time.monotonic()
        for index, since in list(asleep.items()):
            if now - since > 4:  # twice the lease
                del asleep[index]
                for worker in crowd:
                    if worker.process.pid == index:
                        worker.send(signal.SIGCONT)
        if now > next_time:
            next_time = now + rng.uniform(0.5, 1.5) * every
            worker, how = rng.choice(crowd), rng.choices(list(HOW), list(HOW.values()))[0]
            worker.send(how)
            done[how.name] += 1
            if how is signal.SIGSTOP and worker.process.pid is not None:
                asleep[worker.process.pid] = now
        time.sleep(0.05)
    raise AssertionError(f"not done after {limit:.0f} s: {dict(done)}")


def compare(disturbed: Path, whole: Path, storage: str | None) -> int:
    """See that both folders hold the same table and the first settled each run once; returns the number of runs."""
    found, wanted = results(disturbed), results(whole)
    assert list(found.index) == list(wanted.index)
    for name in ("key", "outcome", "steps", "tokens"):
        assert list(found[name]) == list(wanted[name]), name
    for name in ("eval_loss", "train_loss"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, err_msg=name)
    log = open_log(storage, disturbed, "rank_alpha")
    settled = [event["run"] for event in log.read(0) if event["op"] == "settle"]
    log.close()
    assert sorted(settled) == list(wanted.index), "settled other than once"
    return len(wanted)


def main() -> None:
    """Run it by hand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--every", type=float, default=3.0, help="seconds between two disturbances")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds")
    parser.add_argument("--storage", help="the disturbed sweep's storage URL")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / "whole", Path(name) / "disturbed"]
        for folder in folders:
            folder.mkdir()
        whole = start(folders[0], *sweep_of(args.trials, args.repeats, None))
        assert whole.wait(args.limit) == 0, whole.said()
        words = sweep_of(args.trials, args.repeats, args.storage)
        began = time.monotonic()
        done = chaos(folders[1], words, args.workers, args.every, args.seed, args.limit)
        runs = compare(*(folder / "runs" / "rank_alpha" for folder in reversed(folders)), args.storage)
        print(f"{runs} runs settled once, the table is the same; {dict(done)} in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
