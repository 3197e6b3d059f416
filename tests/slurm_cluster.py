"""A Slurm cluster of the test's own on this machine, from Debian's packages; tests skip where it is not installed.

Two virtual nodes with a core each; no accounting daemon. Jobs of partition ``high`` preempt those of ``main``, which
are told so with their own signal.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from services import absent

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5,socket={folder}/munge.socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,bf_continue,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
ReturnToService=2
KillWait=5
JobRequeue=1
SlurmctldPort={controller}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={one} CPUs=1 RealMemory=2000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={two} CPUs=1 RealMemory=2000
PartitionName=main Nodes=ALL Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL MaxTime=60 PriorityTier=10 PreemptMode=OFF
"""


def sbin(program: str) -> str:
    """The path of a daemon, or skip."""
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        absent("slurm", f"{program} is not installed (apt-get install slurm-wlm munge)")
    return found


class Slurm:
    """A running cluster; its daemons are children of this process."""

    def __init__(self, folder: Path) -> None:
        if os.geteuid() != 0:
            absent("slurm", "Slurm's daemons are started by root only")
        programs = {name: sbin(name) for name in ("munged", "slurmctld", "slurmd", "sbatch")}
        self.folder = folder
        self._children: list[subprocess.Popen[bytes]] = []
        self._munge(programs["munged"])
        ports = dict(zip(("controller", "one", "two"), free_ports(3), strict=True))
        host = socket.gethostname().split(".")[0]
        (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=host, **ports))
        for name in ("state", "spool", "spool/n1", "spool/n2"):
            (folder / name).mkdir()
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._start(programs["slurmctld"], "-i", "-D")
        for node in ("n1", "n2"):
            self._start(programs["slurmd"], "-D", "-N", node)
        self._until(lambda: self.call("sinfo", "-h", "-o", "%T %D").split() == ["idle", "2"], "both nodes to be idle")

    def call(self, *words: str) -> str:
        """What a command of Slurm's says; empty where it fails."""
        done = subprocess.run(words, env=os.environ | self.environment, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else ""

    def stop(self) -> None:
        """End the jobs, then the daemons."""
        self.call("scancel", f"--user={pwd.getpwuid(os.geteuid()).pw_name}")
        with contextlib.suppress(AssertionError):
            self._until(lambda: not self.call("squeue", "-h").strip(), "the jobs to end", 20)
        for process in psutil.process_iter(["environ"]):  # of jobs that did not end: they would outlive the daemons
            if (process.info["environ"] or {}).get("SLURM_CONF") == self.environment["SLURM_CONF"] and (
                "SLURM_JOB_ID" in process.info["environ"]
            ):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        for child in reversed(self._children):
            child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(10)
            child.kill()
            child.wait()

    def _munge(self, program: str) -> None:
        account = pwd.getpwnam("munge")
        place = self.folder / "munge"
        place.mkdir(mode=0o755)
        (place / "key").write_bytes(os.urandom(1024))
        for path, mode in ((place, 0o755), (place / "key", 0o400)):
            os.chown(path, account.pw_uid, account.pw_gid)
            path.chmod(mode)
        # the socket's folder must be one that anybody may enter, and nobody else may write
        os.chown(self.folder, account.pw_uid, account.pw_gid)
        files = [f"--{name}-file={place}/{name}" for name in ("key", "log", "pid", "seed")]
        words = ["setpriv", "--reuid=munge", "--regid=munge", "--init-groups", program, "--foreground"]
        self._start(*words, f"--socket={self.folder}/munge.socket", *files)
        self._until((self.folder / "munge.socket").exists, "munge")

    def _start(self, *words: str) -> None:
        environment = os.environ | getattr(self, "environment", {})
        with (self.folder / f"output-{len(self._children)}.txt").open("wb") as output:
            child = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self._children.append(child)

    def _until(self, condition, what: str, seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            said = "\n".join(path.read_text(errors="replace")[-800:] for path in sorted(self.folder.glob("*.txt")))
            assert time.monotonic() < end, f"waited in vain for {what}\n{said}"
            time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def cluster() -> Iterator[Slurm]:
    """A running cluster, stopped at the end; the body of a fixture."""
    with tempfile.TemporaryDirectory(prefix="lora-lab-slurm-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        running = Slurm(Path(name))
        try:
            yield running
        finally:
            running.stop()
