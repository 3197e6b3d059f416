"""``lora-lab ui``: open the MLflow UI on the store that a sweep writes to."""

from __future__ import annotations

import argparse
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.errors import SpecError, StorageError

if TYPE_CHECKING:
    from lora_lab.spec import TrackingSpec

HELP = "open the MLflow UI on the store that a sweep writes to"
EXAMPLE = "lora-lab ui rank_alpha --port 5001"

PORT = 5000
"""Of MLflow's UI where none is asked for."""
PATIENCE_SECONDS = 5.0
"""For MLflow to end after Ctrl-C."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``ui``."""
    parser.add_argument(
        "sweep", nargs="?", help="a sweep's name in runs/, or its folder (default: the newest in runs/)"
    )
    parser.add_argument("--port", type=int, default=PORT, metavar="N", help=f"port of the UI (default: {PORT})")
    parser.add_argument("--print", action="store_true", dest="only_print", help="print the command, start nothing")


def run(args: argparse.Namespace) -> int:
    """Start ``mlflow ui`` and stay until Ctrl-C; a tracking server has a UI of its own, whose address is printed.

    The links to the sweep's runs, in the table and compared, are printed with it.

    Raises:
        SweepFolderError: no such sweep.
        SpecError: no such port.
        StorageError: the sweep keeps no MLflow record, or its store is not there yet; the port is taken.
    """
    if not 1 <= args.port <= 65535:
        raise SpecError(f"--port: must be 1 to 65535, got {args.port}.")
    from lora_lab.analysis import find_sweep
    from lora_lab.tracking import redact, ui_command

    folder = find_sweep(args.sweep)
    uri = store_of(folder)
    if uri.startswith(("http://", "https://")):
        print(f"A tracking server shows its own UI: {redact(uri)}")
        _say_links(folder, uri, redact(uri))
        return 0
    command = ui_command(uri)
    if args.port != PORT:
        command = [*command, "--port", str(args.port)]
    address = f"http://127.0.0.1:{args.port}"
    if args.only_print:
        print(shlex.join(redact(part) for part in command))
        _say_links(folder, uri, address)
        return 0
    check_store(uri)
    _check_port(args.port)
    print(shlex.join(redact(part) for part in command))
    _say_links(folder, uri, address)
    print(f"Open {address} in a browser; Ctrl-C ends it.", flush=True)
    process = subprocess.Popen([sys.executable, "-m", *command])
    try:
        return process.wait()
    except KeyboardInterrupt:
        return _stopped(process)


def _say_links(folder: Path, uri: str, address: str) -> None:
    """Print where the sweep's runs are compared in the UI at ``address``, once it has been sent there."""
    from lora_lab.tracking import links

    found = links(folder, uri)
    if found is None:
        print(f"Nothing of {folder} is there yet; lora-lab sync {shlex.quote(str(folder))} sends it.")
    else:
        print(f"All its runs:   {address.rstrip('/')}{found.table}")
        print(f"Compared:       {address.rstrip('/')}{found.compare}")


def _check_port(port: int) -> None:
    """Refuse a port that another program listens on: a browser would show that one.

    Raises:
        StorageError: it is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as MLflow's server does: a closed one is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise StorageError(
                f"port {port} cannot be listened on ({error.strerror}). Perhaps a UI runs there already; "
                f"choose another: --port {port % 65535 + 1}."
            ) from error


def _stopped(process: subprocess.Popen[bytes]) -> int:
    """Ctrl-C reached MLflow as well: wait for it to end, and end it where it does not."""
    try:
        process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
    return 0


def store_of(folder: Path) -> str:
    """The tracking URI of the sweep in ``folder``: the store it was sent to, else the one its configuration names.

    Raises:
        StorageError: the sweep was told to keep no MLflow record.
    """
    from lora_lab.tracking import redact, resolve_uri

    spec = tracking_of(folder)
    if spec.name == "none":
        raise StorageError(
            f"{folder}: this sweep keeps no MLflow record (tracking=none). "
            "Its metrics are in runs/*/metrics.jsonl there; lora-lab report shows its results."
        )
    uri = resolve_uri(spec)
    sent = _sent_to(folder)
    if not sent or redact(uri) in sent or "***" in sent[-1]:
        return uri
    return sent[-1]


def check_store(uri: str) -> None:
    """Refuse an SQLite store that is not there: MLflow would show an empty one.

    Raises:
        StorageError: no such file.
    """
    file = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not file.is_file():
        raise StorageError(
            f"no MLflow store at {file} yet. Start the sweep first, or go to the folder it was started in; "
            "MLFLOW_TRACKING_URI names another store."
        )


def _sent_to(folder: Path) -> list[str]:
    """The stores that the sweep has been sent to, oldest first, without their secrets."""
    from lora_lab.files import read_json

    try:
        stores = read_json(folder / "tracking.json")["stores"]
    except FileNotFoundError:
        return []
    return [str(store["uri"]) for store in stores.values()]


def tracking_of(folder: Path) -> TrackingSpec:
    from lora_lab.config import compose_sweep
    from lora_lab.spec import TrackingSpec

    config = folder / "config.yaml"
    return compose_sweep(str(config), []).execution.tracking if config.is_file() else TrackingSpec()
