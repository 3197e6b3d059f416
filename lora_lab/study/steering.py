"""What a sweep does next when no run waits: refuse, promote, ask, breed, repeat or stop.

Everything here happens within a transaction of the study (:meth:`lora_lab.study.session.Session.transact`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from lora_lab.errors import BadInput
from lora_lab.spec import Figures, Point, RunResult, RunSpec, Stop, Sweep, violated
from lora_lab.study.judge import COSTS
from lora_lab.study.parameters import decode, encode
from lora_lab.study.population import goes_on
from lora_lab.study.racing import further_seeds
from lora_lab.study.session import Session
from lora_lab.study.state import State
from lora_lab.study.stopping import reason_to_stop

log = logging.getLogger(__name__)


Hopeless = Callable[[RunSpec], str | None]
"""Why a run cannot be trained here, however one tries; ``None`` where it can."""


class Steering:
    """Steers the search of one study."""

    def __init__(
        self, sweep: Sweep, session: Session, figures: Figures | None = None, hopeless: Hopeless | None = None
    ) -> None:
        """``figures`` predicts what constraints, and pruners with several objectives, want to know of a run."""
        self._sweep, self._session, self._figures, self._hopeless = sweep, session, figures, hopeless
        self._opened = time.time()

    def steer(self, settled: list[RunResult]) -> bool:
        """Make something to do: promote a trial, ask a new one, or at the end repeat contenders; ``False``: nothing.

        The results that settle runs which stay paused for good are added to ``settled``.
        """
        session, state = self._session, self._session.state
        if state.stopped is None and (why := self._reason_to_stop()) is not None:
            session.do("stop", message=why)
        judge = session.shadow.judge
        if displaced := judge.displaced():
            for result in displaced:
                session.do("settle", run=result.run, result=result.to_tree())
            settled += displaced
            return True
        if state.stopped is None and (promoted := judge.promotable()):
            session.do("promote", trial=promoted[0])
            return True
        if self.unasked() > 0:
            self._ask()
            return True
        if state.stopped is None and (bred := judge.breed(self._point_of, self._may_go_on_at)) is not None:
            tree = [
                {"trial": copy.trial, "params": encode(self._sweep.space, copy.point), "of": copy.of, "lost": copy.lost}
                for copy in bred[1]
            ]
            session.do("breed", members=bred[0], copies=tree)
            return True
        if state.held() > 0:
            return False
        if state.stopped is None:
            if (chance := judge.last_chance()) is not None:
                session.do("promote", trial=chance)
                return True
            further = self.round()
            for number, seed in further.items():
                session.do("seed", trial=number, seed=seed)
            if further:
                return True
        left = [result for steps in state.steps.values() for result in steps.kept.values()]
        for result in left:
            session.do("settle", run=result.run, result=result.to_tree())
        settled += left
        return bool(left)

    def _ask(self) -> None:
        """Draw a trial; refuse it where no run accepts its point, or a constraint does not hold."""
        event = self._session.shadow.draw()
        try:
            spec = self._sweep.spec_of(decode(self._sweep.space, event["params"]), self._session.state.seeds[0])
            event["refused"] = violated(self._sweep.constraints, spec, self._figures)
            if event["refused"] is None and self._hopeless is not None:
                event["refused"] = self._hopeless(spec)
            if event["refused"] is None and self._session.shadow.judge.needs_costs and self._figures is not None:
                figures = self._figures
                wanted = {o.metric: COSTS[o.metric] for o in self._sweep.targets if o.metric in COSTS}
                event["costs"] = {metric: figures(spec, figure) for metric, figure in wanted.items()}
        except BadInput as error:
            event["refused"] = str(error)
        if event["refused"] is not None:
            log.warning("trial %d is refused: %s", event["trial"], event["refused"])
        self._session.do("ask", **event)

    def _may_go_on_at(self, of: int, point: Point) -> bool:
        """Whether a copy of trial ``of`` can have that point: it is one, and goes on from what is saved of ``of``."""
        seed = self._session.state.seeds[0]
        try:
            spec = self._sweep.spec_of(point, seed)
            if violated(self._sweep.constraints, spec, self._figures) is not None:
                return False
            if self._hopeless is not None and self._hopeless(spec) is not None:
                return False
        except BadInput:
            return False
        return goes_on(self._sweep.spec_of(self._point_of(of), seed), spec)

    def left(self) -> int:
        """How many runs are not settled, of the trials that were asked."""
        return len(self._session.state.runs) - len(self._session.state.results)

    def round(self) -> dict[int, int]:
        """The next seeds of the contenders, by trial, once all else is settled."""
        state = self._session.state
        if self._sweep.max_repeats is None or state.stopped is not None or self.left() or self.unasked():
            return {}
        found = {n: results for n, t in state.trials.items() if t.seed is None and (results := state.so_far(n))}
        return further_seeds(self._sweep, found)

    def unasked(self) -> int:
        """How many trials are still to be asked."""
        state = self._session.state
        if state.stopped is not None:
            return 0
        return max(0, self._sweep.planned_trials + len(state.imported) + state.copies - state.asked)

    def _reason_to_stop(self) -> str | None:
        if self._sweep.stop == Stop():
            return None
        state = self._session.state
        trained = [r for r in state.results.values() if r.key not in state.taken and _original(state, r)]
        return reason_to_stop(self._sweep, self._session.shadow.study, state.finished, trained, self._opened)

    def _point_of(self, number: int) -> dict[str, Any]:
        return decode(self._sweep.space, self._session.state.trials[number].params)


def _original(state: State, result: RunResult) -> bool:
    """Whether a result was trained under its own name, and is no copy of an equal run's."""
    return state.by_key.get(result.key, result).run == result.run
