"""Which run another one can begin from, and which it should wait for (:mod:`lora_lab.spec.prefix`)."""

from __future__ import annotations

from collections.abc import Callable

from lora_lab.spec import Outcome, RunSpec
from lora_lab.spec.prefix import length_of, trunk_of
from lora_lab.study.entries import RunState
from lora_lab.study.state import State


class Stages:
    """The runs of a sweep by what they have in common; follows the state by itself."""

    def __init__(self, state: Callable[[], State], spec_of: Callable[[RunState], RunSpec]) -> None:
        """``state`` gives the state as it is now, ``spec_of`` the spec of a run that is no branch."""
        self._state, self._spec_of = state, spec_of
        self._places: dict[str, tuple[str, float] | None] = {}
        self._trunks: dict[str, dict[str, float]] = {}

    def before(self, run: RunState) -> tuple[bool, str | None]:
        """``(wait, stage)``: whether a run that begins as ``run`` does is still to be settled, or else from whose
        stem it can begin, the longest."""
        self._follow()
        place = self._places.get(run.id)
        if place is None or run.halvings:
            return False, None
        state = self._state()
        shorter = {name: length for name, length in self._trunks[place[0]].items() if length < place[1]}
        for name in sorted(shorter, key=lambda name: -shorter[name]):
            other = state.runs[name]
            if other.result is None:
                return True, None
            original = state.by_key.get(other.result.key)
            whole = original is not None and original.outcome is Outcome.COMPLETED
            if original is not None and whole and state.runs[original.run].halvings == 0:
                return False, original.run
        return False, None

    def _follow(self) -> None:
        state = self._state()
        for name, run in state.runs.items():
            if name in self._places or state.trials[run.trial].parent is not None:
                continue
            spec = self._spec_of(run)
            trunk, length = trunk_of(spec), length_of(spec)
            self._places[name] = (trunk, length[1]) if trunk is not None and length is not None else None
            if trunk is not None and length is not None:
                self._trunks.setdefault(trunk, {})[name] = length[1]
