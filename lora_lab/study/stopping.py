"""Whether a sweep has had enough: the rules of ``sweep.stop`` over what is settled."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import optuna
from optuna.trial import TrialState

from lora_lab.spec import RunResult, Sweep
from lora_lab.study.improvement import expected_improvement
from lora_lab.study.verdict import since_best


def reason_to_stop(
    sweep: Sweep,
    study: optuna.Study,
    finished: Sequence[int],
    trained: Iterable[RunResult],
    opened: float,
    now: float | None = None,
) -> str | None:
    """The rule of ``sweep.stop`` that holds, in words; ``None`` while none does.

    ``finished`` are trials in the order in which they were settled, ``trained`` the results that were trained here,
    not copies. ``opened`` is when this process began to work
    (Unix seconds): its time counts though no run of it is settled yet.
    """
    stop = sweep.stop
    results = list(trained)
    trials = [t for t in study.get_trials(deepcopy=False) if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    if stop.trials is not None and len(trials) >= stop.trials:
        return f"{len(trials)} trials are settled (sweep.stop.trials={stop.trials})"
    if stop.tokens is not None and (tokens := sum(result.tokens for result in results)) >= stop.tokens:
        return f"{tokens:,} tokens were trained on (sweep.stop.tokens={stop.tokens})"
    if stop.seconds is not None:
        spent = busy_seconds(results, opened, time.time() if now is None else now)
        if spent >= stop.seconds:
            return f"{spent:.0f} s were trained (sweep.stop.seconds={stop.seconds:g})"
    if len(sweep.targets) > 1:
        return None
    place = {number: n for n, number in enumerate(finished)}
    done = [t for t in trials if t.values is not None and t.state is TrialState.COMPLETE]
    done.sort(key=lambda trial: place[trial.number])
    values = [t.values[0] for t in done]
    sign = sweep.objective.sign
    if stop.target is not None and any(sign * value <= sign * stop.target for value in values):
        best = min(values, key=lambda value: sign * value)
        return f"the best value is {best:.6g} (sweep.stop.target={stop.target:g})"
    if stop.no_improvement is not None and (idle := since_best(values, sweep.objective)) >= stop.no_improvement:
        return f"no better value in {idle} trials (sweep.stop.no_improvement={stop.no_improvement})"
    if stop.expected_improvement is not None:
        hope = expected_improvement(done, sign, seed=sweep.seed)
        if hope is not None and hope < stop.expected_improvement:
            limit = f"sweep.stop.expected_improvement={stop.expected_improvement:g}"
            return f"a further trial is expected to improve the best value by {hope:.2g} ({limit})"
    return None


def busy_seconds(results: Sequence[RunResult], opened: float, now: float) -> float:
    """Seconds in which any run was training, this process's time since ``opened`` included."""
    spans = sorted(
        [(r.started, r.ended) for r in results if r.started is not None and r.ended is not None] + [(opened, now)]
    )
    busy, reached = 0.0, 0.0
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy
