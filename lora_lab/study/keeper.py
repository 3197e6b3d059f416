"""What a worker does for the study beside its training: hear news, watch the others, copy trials for Optuna."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

from lora_lab.errors import LoraLabError
from lora_lab.spec import Sweep
from lora_lab.study.entries import WorkerState
from lora_lab.study.lease import BEATS_A_LEASE, Watch, clock
from lora_lab.study.log import Unreachable
from lora_lab.study.mirror import Mirror
from lora_lab.study.session import Session

LOOK_SECONDS = 1.0
"""How often the log is looked at, at least: an order is heard within this."""
CLOSING_SECONDS = 20.0
"""How long the last worker copies trials at most before it ends; the next start goes on."""

WATCHED = 4
"""How many of the oldest workers everybody looks after. Were they lost all at once, others would be a lease later."""

log = logging.getLogger(__name__)


class Keeper:
    """A thread that begins with :meth:`start`. What fails is tried again; training does not notice."""

    def __init__(
        self, session: Session, mirror: Mirror, name: str, lease_seconds: float, heard: Callable[[], None]
    ) -> None:
        """``heard`` is called after each look at the log."""
        self._session, self._mirror, self._name, self._heard = session, mirror, name, heard
        self._lease = lease_seconds
        self._watch = Watch()
        self._worker = ""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lora-lab study", daemon=True)

    def start(self, worker: str) -> None:
        """Begin, or go on, as ``worker``."""
        self._worker = worker
        if self._thread.ident is None:
            self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()

    def close(self) -> None:
        """Copy what is left to Optuna's storage if nobody else will, and give its connections back."""
        try:
            if not self._session.state.workers:
                until = clock() + CLOSING_SECONDS
                self._copy(lambda: clock() < until)
        except (Unreachable, LoraLabError) as error:
            log.warning("Optuna's storage has not got all trials, the next start copies them: %s", error)
        finally:
            self._mirror.close()

    @property
    def _pause(self) -> float:
        """Seconds until the next look: as often as the shortest lease is renewed, or :class:`Watch` learns nothing."""
        leases = [worker.lease for worker in list(self._session.state.workers.values())]
        return min([LOOK_SECONDS, *(lease / BEATS_A_LEASE for lease in [self._lease, *leases])])

    def _keep(self) -> None:
        while not self._stopped.wait(self._pause):
            try:
                self._session.sync()
                self._bury()
                self._heard()
                if self._is_oldest():
                    self._copy(lambda: not self._stopped.is_set())
            except (Unreachable, LoraLabError) as error:
                log.info("the study's storage is away, it is tried again: %s", error)

    def _bury(self) -> None:
        """Give what dead workers held to the living."""
        session = self._session
        others = self._watched()
        if not others:
            return
        for name, why in self._watch.lapsed(others, session.log.beats(others)).items():
            if session.transact(partial(self._lapse, name, why)):
                log.warning("worker %s is lost (%s); its runs go back into the queue.", name, why)
                session.log.forget(name)

    def _watched(self) -> dict[str, WorkerState]:
        """The others that this worker looks after: all if it is the oldest, else the oldest ones, who look after all.

        (Everybody after everybody would be thousands of files a second with 64 workers.)
        """
        workers = self._session.state.workers
        watched = list(workers.items())[: None if self._is_oldest() else WATCHED]
        return {name: worker for name, worker in watched if name != self._worker}

    def _lapse(self, name: str, why: str) -> bool:
        if name not in self._session.state.workers:
            return False
        self._session.do("lapse", worker=name, why=why)
        return True

    def _is_oldest(self) -> bool:
        return next(iter(self._session.state.workers), None) == self._worker

    def _copy(self, go_on: Callable[[], bool]) -> None:
        session = self._session
        with session.lock:
            tree = session.state.sweep
            trials = session.shadow.study.get_trials(deepcopy=False) if tree is not None else []
        if tree is None:
            return
        sweep = Sweep.from_tree({name: value for name, value in tree.items() if name != "key"})
        with session.log.mirroring() as mine:
            if mine:
                self._mirror.copy(sweep, self._name, trials, go_on)
