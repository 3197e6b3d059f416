"""Open a study: create it, or bring its log, its folder and Optuna's storage together again."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from optuna.trial import FrozenTrial

from lora_lab.errors import CheckpointError, LoraLabError, SweepFolderError
from lora_lab.spec import Execution, RunResult, Sweep, run_id, thaw, to_tree
from lora_lab.study.file_log import FileLog
from lora_lab.study.folder import SweepFolder, same_sweep
from lora_lab.study.imports import taken_over
from lora_lab.study.log import Log, Unreachable
from lora_lab.study.mirror import Mirror
from lora_lab.study.parameters import decode, encode, whole
from lora_lab.study.population import POPULATION
from lora_lab.study.pruners import pruner_of
from lora_lab.study.samplers import sampler_of
from lora_lab.study.session import Session
from lora_lab.study.shadow import REFUSED_ATTR
from lora_lab.study.sql_log import SqlLog
from lora_lab.study.storage import engine_of, gone

RESULT_ATTR = "lora_lab.result.s"
"""Where earlier versions kept results: user attributes of Optuna's trials."""

log = logging.getLogger(__name__)

Opened = tuple[Sweep, SweepFolder, Session, Mirror, str]


def open_study(sweep: Sweep, execution: Execution) -> Opened:
    """See :meth:`lora_lab.study.Study.open`."""
    sampler_of(sweep, allow_code=execution.allow_code), pruner_of(sweep, allow_code=execution.allow_code)
    folder = SweepFolder(Path(execution.folder))
    stored = folder.stored_sweep()
    if stored is not None:
        same_sweep(sweep, stored, str(folder.path))
    mirror = Mirror(execution.storage, folder.path)
    try:
        names = mirror.names() if execution.storage is None else []
        # A journal is the sweep's own and keeps its first name when the sweep is renamed.
        name = names[0] if names else sweep.name
        log_there = open_log(execution.storage, folder.path, name)
        session = Session(log_there, samples=True, allow_code=execution.allow_code)
    except BaseException:
        mirror.close()
        raise
    try:
        session.sync()
        first = session.state.sweep or stored
        if session.state.sweep is not None:
            same_sweep(sweep, session.state.sweep, f"study '{name}' in the storage")
        if first is not None:
            # Equal keys may differ in the order of the space, which numbers the grid: the first order stays.
            sweep = replace(sweep, space=Sweep.from_tree({k: v for k, v in first.items() if k != "key"}).space)
        results, torn = folder.load_results()
        if session.state.sweep is None:
            trials = mirror.find(name) or []
            _earlier_results(trials, results, torn)
            if torn:
                raise next(iter(torn.values()))
            session.transact(lambda: _begin(session, sweep, folder, trials, results), patience=0.0)
        else:
            session.transact(lambda: _go_on(session, sweep, folder, results), patience=0.0)
        _restore(session, folder, results)
        folder.store_sweep(sweep)
        folder.store_execution(execution, name)
    except Unreachable as error:
        mirror.close()
        session.log.close()
        raise gone(error.url, error.cause) from error
    except BaseException:
        mirror.close()
        session.log.close()
        raise
    return sweep, folder, session, mirror, name


def join_study(path: Path, storage: str | None, name: str | None, allow_code: bool = False) -> Opened:
    """See :meth:`lora_lab.study.Study.join`."""
    folder = SweepFolder(path)
    mirror = Mirror(storage, folder.path)
    try:
        chosen = name or (_chosen(mirror.names(), None) if storage is not None else None)
        session = Session(open_log(storage, folder.path, chosen or ""), samples=True, allow_code=allow_code)
        try:
            session.sync()
            if session.state.sweep is None:
                raise SweepFolderError(
                    f"{path}: no study there to work on. Begin it with `lora-lab sweep`, or name another folder or URL."
                )
        except BaseException:
            session.log.close()
            raise
    except Unreachable as error:
        mirror.close()
        raise gone(error.url, error.cause) from error
    except BaseException:
        mirror.close()
        raise
    tree = {key: value for key, value in session.state.sweep.items() if key != "key"}
    sweep = Sweep.from_tree(tree)
    folder.store_sweep(sweep)
    return sweep, folder, session, mirror, chosen or sweep.name


def folder_in(storage: str, name: str | None) -> Path:
    """The folder of the study in ``storage``, as it is called on the machine where the sweep was begun.

    Raises:
        StorageError: the storage cannot be reached.
        SweepFolderError: it holds no such study, or several and ``name`` is not given.
    """
    mirror = Mirror(storage, Path())
    try:
        chosen = _chosen(mirror.names(), name)
    finally:
        mirror.close()
    session = Session(open_log(storage, Path(), chosen), samples=False)
    try:
        session.sync()
        if session.state.folder is None:
            raise SweepFolderError(f"study '{chosen}' in the storage was not begun by lora-lab.")
        return Path(session.state.folder)
    except Unreachable as error:
        raise gone(error.url, error.cause) from error
    finally:
        session.log.close()


def _chosen(names: list[str], name: str | None) -> str:
    if name is None and len(names) != 1:
        raise SweepFolderError(
            f"the storage holds {len(names)} studies ({', '.join(names[:8]) or 'none'}); say which: --name NAME."
        )
    return name or names[0]


def open_log(storage: str | None, folder: Path, name: str) -> Log:
    """The study's log: in the folder, or beside Optuna's tables.

    Raises:
        StorageError: the database cannot be reached.
        SweepFolderError: the file cannot be written.
    """
    if storage is None:
        return FileLog(folder)
    try:
        return SqlLog(engine_of(storage), storage, name)
    except Unreachable as error:
        raise gone(error.url, error.cause) from error


def _begin(
    session: Session,
    sweep: Sweep,
    folder: SweepFolder,
    trials: list[FrozenTrial],
    results: Mapping[str, RunResult],
) -> None:
    """Start the log: empty, or from what the folder and Optuna's storage still know of a log that is lost."""
    if session.state.sweep is not None:  # another worker was faster
        _go_on(session, sweep, folder, {})
        return
    if sweep.pruner.name == POPULATION and (trials or results):
        raise SweepFolderError(
            f"{folder.path}: the study's log is gone, and with it who of the population goes on from whom. The results "
            "are in runs/*/result.json; begin again under another sweep.name."
        )
    _say_sweep(session, sweep, folder)
    if sweep.imports:
        imported = taken_over(sweep, folder.path)
        taken = [result.to_tree() for result in imported.results]
        session.do("import", points=to_tree(imported.points), results=taken)
    points = {result.trial: thaw(result.point) for result in results.values() if result.parent is None}
    for number in range(max([*points, len(trials) - 1], default=-1) + 1):
        frozen = trials[number] if number < len(trials) else None
        if frozen is not None and whole(sweep.space, sweep.base, frozen.params):
            refused = frozen.user_attrs.get(REFUSED_ATTR)
            session.do("ask", trial=number, params=frozen.params, system=frozen.system_attrs, refused=refused)
        elif number in points:
            log.warning("trial %d was missing in the storage; made again from its results.", number)
            session.do("ask", trial=number, params=encode(sweep.space, points[number]))
        else:
            session.do("ask", **session.shadow.draw())
    for result in sorted(results.values(), key=lambda result: (result.trial, result.seed)):
        _adopt(session, sweep, folder, result)


def _go_on(session: Session, sweep: Sweep, folder: SweepFolder, results: Mapping[str, RunResult]) -> None:
    state = session.state
    assert state.sweep is not None
    before = state.sweep["planned_trials"]
    if sweep.pruner.name == POPULATION and (before != sweep.planned_trials or len(state.seeds) != sweep.repeats):
        raise SweepFolderError(
            f"{folder.path}: a population stays as large as it was begun ({before} trials, {len(state.seeds)} seeds). "
            "Give the same sweep.trials and sweep.repeats, or begin another with sweep.name."
        )
    if state.sweep != {**sweep.to_tree(), "key": sweep.key} or state.seeds != sweep.seeds:
        _say_sweep(session, sweep, folder)
    if state.halted is not None:
        session.do("go")
    for name, result in results.items():
        run = state.runs.get(name)
        if run is not None and run.result is None and run.attempts == 0 and run.holder is None:
            _adopt(session, sweep, folder, result)


def _say_sweep(session: Session, sweep: Sweep, folder: SweepFolder) -> None:
    tree = {**sweep.to_tree(), "key": sweep.key}
    session.do("sweep", tree=tree, seeds=list(sweep.seeds), folder=str(folder.path.resolve()))


def _adopt(session: Session, sweep: Sweep, folder: SweepFolder, result: RunResult) -> None:
    """Take a result in that the folder has and the log has not."""
    if result.run not in session.state.runs:
        return  # of a seed that is not repeated any more, or of a branch whose parent is forgotten
    trial = session.state.trials[result.trial]
    if result.key != sweep.spec_of(decode(sweep.space, trial.params), result.seed).key:
        raise CheckpointError(
            f"{folder.result_path(result.run)}: the result of another experiment (key {result.key[:12]}). "
            "Move it away to let its run be trained again."
        )
    session.do("settle", run=result.run, result=result.to_tree())


def _earlier_results(
    trials: list[FrozenTrial], results: dict[str, RunResult], torn: dict[str, CheckpointError]
) -> None:
    """Add the results that an earlier version kept in Optuna's storage and the folder lost."""
    for frozen in trials:
        for name, tree in frozen.user_attrs.items():
            run = run_id(frozen.number, int(name.removeprefix(RESULT_ATTR))) if name.startswith(RESULT_ATTR) else None
            if run is not None and run not in results:
                results[run] = RunResult.from_tree(tree)
                torn.pop(run, None)


def _same(one: RunResult | None, other: RunResult) -> bool:
    """Whether two results say the same. A loss that is not a number is itself, unlike in ``==``."""
    return one == other or (one is not None and json.dumps(one.to_tree()) == json.dumps(other.to_tree()))


def _restore(session: Session, folder: SweepFolder, results: Mapping[str, RunResult]) -> None:
    """Write back the results that the log has and the folder lost, and take away those that were taken back."""
    for name, result in session.state.results.items():
        if not _same(results.get(name), result):
            if folder.result_path(name).exists():
                log.warning("%s: torn or old, restored from the storage.", folder.result_path(name))
            folder.store_result(result)
    for name in results:
        if name in session.state.runs and name not in session.state.results:
            try:
                folder.result_path(name).unlink(missing_ok=True)
            except OSError as error:
                raise LoraLabError(f"{folder.result_path(name)}: cannot be removed ({error.strerror}).") from error
