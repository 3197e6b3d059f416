"""``lora-lab combine``: adapters that were trained apart, as one adapter."""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_lab.errors import ConfigError, SweepFolderError

HELP = "add adapters of one base model up to one adapter, exactly or by TIES, DARE, SVD …"
EXAMPLE = "lora-lab combine demo/t0000-s0 demo/t0001-s0 --weights 1 0.5 --out both"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``combine``."""
    parser.add_argument("adapters", nargs="+", help="best:SWEEP, SWEEP/RUN or a folder; model=… for their base")
    parser.add_argument("--weights", nargs="+", type=float, metavar="W", help="one for each adapter (default: 1)")
    parser.add_argument("--method", default="sum", help="sum (exact), cat, svd, linear, ties, dare_ties, ties_svd, …")
    parser.add_argument("--rank", type=int, help="of an SVD (default: the largest of the adapters')")
    parser.add_argument("--density", type=float, default=0.5, help="share of entries that TIES, DARE … keep")
    parser.add_argument("--sign", default="total", help="how TIES counts the majority: total or frequency")
    parser.add_argument("--seed", type=int, default=0, help="draws what DARE drops")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of the new adapter")


def run(args: argparse.Namespace) -> int:
    """Combine, save in PEFT's format, and say how far it is from the exact sum.

    Raises:
        BadInput: adapters that cannot be combined so.
    """
    from lora_lab.adapters import combine, resolve

    names = [word for word in args.adapters if not _says_model(word)]
    if len(names) < 2:
        raise ConfigError(f"combine: needs two adapters or more, got {len(names)}. E.g. {EXAMPLE}")
    if args.out.exists() and any(args.out.iterdir()):
        raise SweepFolderError(f"--out {args.out}: something is there already. Choose another folder, or remove it.")
    references = resolve(names, [word for word in args.adapters if _says_model(word)])
    weights = args.weights or [1.0] * len(references)
    found = combine(
        references, weights, args.method, rank=args.rank, density=args.density, sign=args.sign, seed=args.seed
    )
    model = references[0].model
    found.attachment.save(args.out, base_name=model.path or model.name)
    low, high = found.ranks
    print(f"combined     {' + '.join(f'{w:g} {r.name}' for w, r in zip(weights, references, strict=True))}")
    print(f"rank         {low if low == high else f'{low} to {high}'} in {found.modules} modules ({args.method})")
    print(f"error        {found.error:.2g} of the exact sum")
    print(f"adapter      {args.out}")
    return 0


def _says_model(word: str) -> bool:
    return word.startswith(("model=", "model."))
