"""A PostgreSQL server of the test's own, from Debian's packages."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from services import absent


def binaries() -> Path | None:
    """The folder of ``initdb`` and ``pg_ctl``."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")) or [
        Path(path) for path in [shutil.which("pg_ctl")] if path
    ]
    return found[-1].parent if found else None


class Postgres:
    """A server on a free port of 127.0.0.1, with its data in ``folder``."""

    def __init__(self, folder: Path) -> None:
        bin = binaries()
        if bin is None:
            absent("postgresql", "PostgreSQL is not installed (apt-get install postgresql)")
        self._bin, self._folder = bin, folder
        self._user: list[str] = []
        if os.geteuid() == 0:  # the server refuses to run as root
            self._user = [
                shutil.which("runuser", path="/usr/sbin:/sbin:/usr/bin:/bin") or "runuser",
                "-u",
                "postgres",
                "--",
            ]
            account = pwd.getpwnam("postgres")
            folder.mkdir()
            os.chown(folder, account.pw_uid, account.pw_gid)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._call("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", "postgres", "--no-sync")
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories={self._folder}"
        options += " -c max_connections=300"  # of 64 workers, each of which keeps up to a few
        log = str(self._folder / "log")
        self._call("pg_ctl", "-D", str(self._folder / "data"), "-l", log, "-w", "-o", options, "start")

    def stop(self) -> None:
        """Stop the server as a crash would."""
        self._call("pg_ctl", "-D", str(self._folder / "data"), "-w", "-m", "immediate", "stop")

    def database(self, name: str) -> str:
        """The URL of a new database."""
        self._call("createdb", *self._here, name)
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{name}"

    def ask_for_password(self, role: str, password: str) -> None:
        """Make ``role``, which has to give ``password``; others are trusted as before."""
        self._call("psql", *self._here, "-c", f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD '{password}'")
        rules = self._folder / "data" / "pg_hba.conf"
        rules.write_text(f"host all {role} 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
        self._call("pg_ctl", "-D", str(self._folder / "data"), "reload")

    @property
    def _here(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres"]

    def _call(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [*self._user, str(self._bin / program), *words],
            cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()


def server() -> Iterator[Postgres]:
    """A running server, stopped at the end; the body of a fixture. Its folder is not pytest's: another user's it is."""
    with tempfile.TemporaryDirectory(prefix="lora-lab-pg-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        running = Postgres(Path(name) / "server")
        yield running
        running.stop()
