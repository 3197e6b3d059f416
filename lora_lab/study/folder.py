"""The sweep's folder: whose it is, and the result of each run.

::

    sweep.json                 the sweep as a tree, and its key
    execution.json             how it was last carried out: storage, launcher, device
    study.log                  what happened, in order (unless the sweep has a storage of its own)
    study.journal              its trials for Optuna's tools (likewise)
    workers/<id>               a counter that its worker raises while it lives (likewise)
    runs/t0003-s1/result.json  the settled result of one run; there whole, or not at all
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from sqlalchemy.engine import make_url

from lora_lab.errors import CheckpointError, SpecError, SweepFolderError
from lora_lab.files import folder_errors, read_json, write_json
from lora_lab.spec import EXTENSIBLE, Execution, RunResult, Sweep, to_tree

MINIMUM_FREE = 8 << 20
"""Bytes that must be free to begin: results and the journal of some thousand runs. Adapters come on top."""
SHOWN_DIFFERENCES = 8


class SweepFolder:
    """A sweep's folder. Any number of processes may work in it: who trains what is said in the study's log."""

    def __init__(self, path: Path) -> None:
        """Create ``path``.

        Raises:
            SweepFolderError: it cannot be written, or is full.
        """
        self.path = path
        with folder_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(path).free
        if free < MINIMUM_FREE:
            raise SweepFolderError(
                f"{path}: only {free / 2**20:.1f} MiB are free there. Free some space, or move the sweep with "
                "sweep.dir=FOLDER."
            )

    def stored_sweep(self) -> dict[str, Any] | None:
        """The tree in ``sweep.json``, ``key`` included; ``None`` in a new folder."""
        try:
            tree: dict[str, Any] = read_json(self.path / "sweep.json")
        except FileNotFoundError:
            return None
        return tree

    def store_sweep(self, sweep: Sweep) -> None:
        """Write ``sweep.json`` if it does not say the same already."""
        tree = {**sweep.to_tree(), "key": sweep.key}
        if self.stored_sweep() != tree:
            write_json(self.path / "sweep.json", tree)

    def store_execution(self, execution: Execution, name: str) -> None:
        """Write ``execution.json``: how to find the study again, for the verbs that are given only its folder.

        Nobody's password is written: it is left out of the URLs of the storage and of the MLflow server.
        """
        tree = to_tree(execution) | {"storage": _without_password(execution.storage), "study": name}
        tree["tracking"]["uri"] = _without_userinfo(execution.tracking.uri)
        path = self.path / "execution.json"
        if not path.exists() or read_json(path) != tree:
            write_json(path, tree)

    def result_path(self, run: str) -> Path:
        """Where the result of a run lies, or will."""
        return self.path / "runs" / run / "result.json"

    def store_result(self, result: RunResult) -> None:
        """Write a result; whole or not at all. That it lasts is the log's business."""
        write_json(self.result_path(result.run), result.to_tree(), durable=False)

    def load_results(self) -> tuple[dict[str, RunResult], dict[str, CheckpointError]]:
        """The results by run, and what is wrong with those that cannot be read."""
        results: dict[str, RunResult] = {}
        torn: dict[str, CheckpointError] = {}
        for path in sorted((self.path / "runs").glob("*/result.json")):
            try:
                result = RunResult.from_tree(read_json(path))
                if result.run != path.parent.name:
                    raise ValueError(f"it is of run {result.run}")
                results[result.run] = result
            except CheckpointError as error:
                torn[path.parent.name] = error
            except (SpecError, KeyError, TypeError, ValueError) as error:
                torn[path.parent.name] = CheckpointError(
                    f"{path}: not the result of its run ({error}). Move it away to let its run be trained again."
                )
        return results, torn


def same_sweep(sweep: Sweep, stored: Mapping[str, Any], where: str) -> None:
    """Refuse to go on with a sweep that is not the stored one.

    Raises:
        SweepFolderError: the keys differ; the paths that changed are shown with both values.
    """
    if stored.get("key") == sweep.key:
        return
    changes = differences({k: v for k, v in stored.items() if k != "key"}, sweep.to_tree())
    shown = [f"  {path}: {_short(before)} there, {_short(now)} now" for path, before, now in changes]
    if len(shown) > SHOWN_DIFFERENCES:
        shown = [*shown[:SHOWN_DIFFERENCES], f"  … and {len(shown) - SHOWN_DIFFERENCES} more"]
    if not shown:
        shown = ["  (the same settings, written by another version of lora-lab)"]
    raise SweepFolderError(
        "\n".join([f"{where} belongs to another sweep:", *shown])
        + "\nUse --fresh to begin a new sweep beside it, choose another name with sweep.name=NAME, "
        "or set these back to go on with it."
    )


MISSING = "(absent)"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The config paths at which two sweep trees differ, with both values.

    What may change between one start and the next (name, trials, repeats, …) is left out.
    """
    out = _differences("", before.get("base", {}), now.get("base", {}))
    for name in dict.fromkeys([*before, *now]):
        if name not in ("base", *EXTENSIBLE):
            out += _differences(f"sweep.{name}", before.get(name, MISSING), now.get(name, MISSING))
    return out


def _differences(path: str, before: Any, now: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = dict.fromkeys([*before, *now])
        inner = [(f"{path}.{name}".lstrip("."), name) for name in names]
        return [d for p, name in inner for d in _differences(p, before.get(name, MISSING), now.get(name, MISSING))]
    return [] if before == now else [(path, before, now)]


def _short(value: Any) -> str:
    text = value if value is MISSING else repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _without_password(url: str | None) -> str | None:
    if url is None:
        return None
    parsed = make_url(url)
    secret = [name for name in parsed.query if "password" in name]
    # URL.set takes None for "as it was"
    return parsed._replace(password=None).difference_update_query(secret).render_as_string(hide_password=False)


def _without_userinfo(uri: str | None) -> str | None:
    """A server's URI less user and password, which MLflow takes from MLFLOW_TRACKING_USERNAME and _PASSWORD as well."""
    parts = urlsplit(uri or "")
    if uri is None or parts.username is None or parts.scheme not in ("http", "https"):
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
