"""Several recorders as one."""

from __future__ import annotations

from collections.abc import Sequence

from lora_lab.spec import EvalMetrics, Recorder, RunResult, RunSpec, StepMetrics


class Tee:
    """A recorder that passes everything on to each of ``recorders``, in order."""

    def __init__(self, recorders: Sequence[Recorder]) -> None:
        self.recorders = list(recorders)

    def started(self, run: str, spec: RunSpec, total_steps: int, first_step: int) -> None:
        """A run enters a pack."""
        for recorder in self.recorders:
            recorder.started(run, spec, total_steps, first_step)

    def step(self, run: str, metrics: StepMetrics) -> None:
        """One optimizer step is done."""
        for recorder in self.recorders:
            recorder.step(run, metrics)

    def evaluation(self, run: str, metrics: EvalMetrics) -> None:
        """A run was evaluated."""
        for recorder in self.recorders:
            recorder.evaluation(run, metrics)

    def ended(self, result: RunResult) -> None:
        """A run is settled or put aside."""
        for recorder in self.recorders:
            recorder.ended(result)
