"""A sweep's results as a frame, from its folder or from the MLflow store it was sent to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def load_results(sweep: Path | str, store: str | None = None, experiment: str | None = None) -> pd.DataFrame:
    """The results of a sweep, one row a run; the columns are those of :func:`lora_lab.analysis.load_results`.

    ``sweep`` is its folder, or its name in ``runs/``. With ``store``, an MLflow tracking URI, it is the sweep's name
    there, and nothing of its folder is needed: ``load_results("rank_alpha", store="sqlite:///mlflow.db")``;
    ``experiment`` limits the search. From a store, adapters are not named, and numbers that were sampled have six
    digits.

    Raises:
        SweepFolderError: no such sweep here, or no result yet.
        CheckpointError: a result file is torn; it is named.
        StorageError: the store cannot be read, or holds no such sweep.
    """
    from lora_lab.analysis import find_sweep, load_results, record_of, results_frame
    from lora_lab.errors import SweepFolderError

    if store is None:
        given = Path(sweep)
        return load_results(given if (given / "sweep.json").is_file() else find_sweep(str(sweep)))
    from lora_lab.tracking import read_store

    tree, results = read_store(str(sweep), store, experiment)
    if not results:
        raise SweepFolderError(f"sweep {str(sweep)!r} has no settled run in that store yet. Wait for the first one.")
    return results_frame(record_of(tree, Path(str(sweep))), results)
