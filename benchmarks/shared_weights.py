"""Memory that N processes of one machine take for one base model on a CPU, shared and each with weights of its own.

    python benchmarks/shared_weights.py                       # SmolLM2-135M in bfloat16, 1, 2 and 4 processes
    python benchmarks/shared_weights.py --dtype float32

Each process loads the model and computes one sequence by the packed step, so that merged matrices exist and all
weights have been read. Counted is what its proportional set size (PSS) has grown by since it had imported everything
and read a tokenizer: a page that n processes have counts as 1/n in each, so that sums over processes are memory that
the machine really holds. ``own`` is loading without the file that processes share. Results are added to
benchmarks/results/shared_weights.json with the machine they were measured on.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch

from lora_lab.config import compose_run
from lora_lab.methods import Attachment
from lora_lab.models import base as bases
from lora_lab.packing.forward import Part, token_losses
from lora_lab.packing.paths import Mount
from lora_lab.spec import MethodSpec, ModelSpec

RESULTS = Path(__file__).parent / "results" / "shared_weights.json"


def pss() -> int:
    """Bytes of this process, each page divided by how many have it."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def hold(spec: ModelSpec, shared: bool, together: Any, out: Any) -> None:
    """Load and compute; tell what that took while all the others hold theirs, too."""
    if not shared:
        bases.shared_file = lambda spec: None
    together.wait()
    before = pss()
    together.wait()
    mount = Mount(bases.load(spec))
    part = Part(Attachment(MethodSpec(roles=()), packable=True), [(np.arange(16), np.ones(16, bool))], noise=0)
    with torch.no_grad():
        token_losses(mount, [part])
    together.wait()
    out.put(pss() - before)
    together.wait()


def measured(spec: ModelSpec, processes: int, shared: bool) -> dict[str, Any]:
    """A row: megabytes of all processes together.

    Raises:
        RuntimeError: a process ended before it had said anything.
    """
    context = multiprocessing.get_context("fork")
    together, out = context.Barrier(processes), context.Queue()
    workers = [context.Process(target=hold, args=(spec, shared, together, out)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    said: list[int] = []
    while len(said) < processes:
        try:
            said.append(out.get(timeout=5))
        except queue.Empty:
            if any(worker.exitcode for worker in workers):
                for worker in workers:
                    worker.kill()
                raise RuntimeError("a process ended early; what went wrong stands above") from None
    for worker in workers:
        worker.join()
    total = sum(said)
    return {"processes": processes, "weights": "shared" if shared else "own", "mb": round(total / 1e6)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--model", nargs="+", default=["model=smollm2_135m"], metavar="key=value", help="overrides")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    spec = compose_run([*args.model, f"model.dtype={args.dtype}"]).model
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pool.apply(bases.shared_file, (spec,))  # what is made once is not counted
    bases.load_meta(spec)  # imports the architecture
    bases.load_tokenizer(spec)
    rows = []
    for processes in args.processes:
        for shared in (False, True):
            rows.append(measured(spec, processes, shared))
            print("{processes} processes, weights {weights}: {mb:,} MB".format(**rows[-1]), flush=True)
    facts = machine.facts() | {"threads": args.threads}
    machine.keep(args.results, [{"model": spec.name, "dtype": spec.dtype, "rows": rows, "machine": facts}])
    print(f"kept in {args.results}")


if __name__ == "__main__":
    main()
