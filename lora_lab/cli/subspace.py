"""``lora-lab subspace``: which directions adapters use, how many, and whether two of them use the same."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from lora_lab.adapters.subspace import Comparison
    from lora_lab.analysis.figure import Figure
    from lora_lab.analysis.page import Findings
    from lora_lab.analysis.rendering import Grid

HELP = "how much rank adapters have used, and whether two of them use the same directions"
EXAMPLE = "lora-lab subspace demo/t0000-s0 demo/t0000-s1 --html subspace.html"
MOST = 12
"""Adapters of a sweep that are compared, the first ones, unless --most says otherwise."""
HEATS = 12
"""Pairs that are drawn."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``subspace``."""
    parser.add_argument("adapters", nargs="*", help="best:SWEEP, SWEEP/RUN or a folder; model=… for their base")
    parser.add_argument("--sweep", metavar="SWEEP", help="the completed runs of this sweep")
    parser.add_argument("--most", type=int, default=MOST, metavar="N", help=f"runs of it (default: {MOST})")
    parser.add_argument("--no-weights", action="store_true", help="leave the base's weights unread: no amplification")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page with heat maps that opens offline")
    parser.add_argument("--json", action="store_true", help="every row, for a script")
    parser.add_argument("--suggest-ranks", metavar="FILE", type=Path, help="write a method section for a next sweep")


def run(args: argparse.Namespace) -> int:
    """Print, or write, what was found.

    Raises:
        BadInput: no adapters, or ones that are no low-rank updates.
    """
    from lora_lab.adapters import compare_adapters, resolve, suggest_ranks
    from lora_lab.adapters.ranks import as_yaml
    from lora_lab.files import folder_errors, write_text

    words = [word for word in args.adapters if not word.startswith(("model=", "model."))]
    overrides = [word for word in args.adapters if word not in words]
    names = [*words, *(_runs(args.sweep, args.most) if args.sweep else [])]
    if not names:
        raise ConfigError(f"subspace: which adapters? E.g. {EXAMPLE}, or --sweep SWEEP.")
    references = resolve(names, overrides)
    found = compare_adapters([r for r in references if r.folder is not None], weights=not args.no_weights)
    if args.json:
        print(json.dumps(tree(found), indent=1, allow_nan=False))
    else:
        _screen(found)
    if args.html is not None:
        with folder_errors(args.html):
            write_text(args.html, _page(found))
        print(f"page         {args.html}")
    if args.suggest_ranks is not None:
        ranks = suggest_ranks(found)
        with folder_errors(args.suggest_ranks):
            write_text(args.suggest_ranks, as_yaml(ranks))
        print(
            f"ranks        {args.suggest_ranks}: {min(ranks.values())} to {max(ranks.values())}, {sum(ranks.values())}"
        )
    return 0


def _runs(sweep: str, most: int) -> list[str]:
    """References to the runs of a sweep that have an adapter."""
    from lora_lab.analysis import find_sweep, read_results

    folder = find_sweep(sweep)
    found = [str(folder / "runs" / tree["run"]) for tree in read_results(folder) if tree.get("adapter")]
    if not found:
        raise ConfigError(f"--sweep {sweep}: none of its runs has an adapter yet. See: lora-lab status {sweep}.")
    return found[:most]


def tree(found: Comparison) -> dict[str, object]:
    """Everything as plain JSON; numbers that are none are ``null``."""
    return {
        "adapters": list(found.names),
        "modules": _records(found.modules),
        "pairs": _records(found.pairs),
        "spectra": [
            {"adapter": name, "module": module, "values": values.tolist()}
            for (name, module), values in found.spectra.items()
        ],
    }


def _records(frame: pd.DataFrame) -> list[dict[str, object]]:
    rows = frame.to_dict("records")
    return [
        {str(k): None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()} for row in rows
    ]


def grids(found: Comparison) -> list[Grid]:
    """The tables: rank used by role and by layer, and pairs against random ones."""
    from lora_lab.adapters.ranks import used_by
    from lora_lab.analysis.rendering import Grid

    out = []
    for by in ("role", "layer"):
        frame = used_by(found, by)
        amplified = "amplification" in frame
        head = (
            "adapter",
            by,
            "r",
            "used (90 %)",
            "effective",
            "|dW|",
            *(("amplified", "by chance") if amplified else ()),
        )
        rows = tuple(
            (
                str(row["adapter"]),
                _layer(row[by]),
                f"{row['rank']:.3g}",
                f"{row['rank_90']:.3g}",
                f"{row['effective_rank']:.3g}",
                f"{row['norm']:.3g}",
                *((f"{row['amplification']:.3g}", f"{row['random_amplification']:.3g}") if amplified else ()),
            )
            for row in frame.to_dict("records")
        )
        out.append(Grid((f"Rank used, by {by} (means over modules)",), head, rows, labels=2))
    if len(found.pairs):
        pairs = found.pairs.groupby(["first", "second", "side"], sort=False)
        means = pairs[["phi_1", "random_phi_1", "phi_r", "random_phi_r", "cosine", "distance"]].mean().reset_index()
        rows = tuple(
            (
                str(row["first"]),
                str(row["second"]),
                str(row["side"]),
                *(f"{row[name]:.3f}" for name in ("phi_1", "random_phi_1", "phi_r", "random_phi_r", "cosine")),
                f"{row['distance']:.3g}",
            )
            for row in means.to_dict("records")
        )
        head = ("first", "second", "of", "phi(1,1)", "random", "phi(r,r)", "random", "cosine", "|dW - dW'|")
        out.append(Grid(("Subspaces in common (means over modules)",), head, rows, labels=3))
    return out


def _layer(value: object) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else str(int(value))
    return str(value)


def sentences(found: Comparison) -> list[str]:
    """How much rank was used, and whether the top directions are shared, in words."""
    from lora_lab.adapters import suggest_ranks

    ranks = suggest_ranks(found)
    given = found.modules["rank"].max()
    verdict = "less rank would do" if max(ranks.values()) < given else "some module uses all of it"
    said = [
        f"Of rank {given}, 90 % of the update lies in {found.modules['rank_90'].mean():.1f} directions on average "
        f"(at most {max(ranks.values())}): {verdict}."
    ]
    if len(found.pairs):
        of_a = found.pairs[found.pairs["side"] == "A"]
        ratio = of_a["phi_1"].mean() / of_a["random_phi_1"].mean()
        said.append(
            f"The first directions of A overlap by phi(1,1) = {of_a['phi_1'].mean():.3f} between adapters, "
            f"{ratio:.1f} times what random ones do."
        )
    return said


def _screen(found: Comparison) -> None:
    from rich.console import Console

    from lora_lab.cli.summary import print_grid, say

    console = Console()
    for sentence in sentences(found):
        say(console, sentence)
    for grid in grids(found):
        say(console, "")
        print_grid(console, grid)


def _page(found: Comparison) -> str:
    from lora_lab.analysis.page import html_page

    return html_page(findings(found), "Subspaces", ", ".join(found.names))


def findings(found: Comparison) -> Findings:
    """The page's sections: tables, spectra, heat maps."""
    from lora_lab.analysis.page import Findings
    from lora_lab.analysis.report import Section

    said, tables = sentences(found), grids(found)
    parts = [Section("rank", "How much rank was used", (said[0],), tuple(tables[:2]), (_spectra(found),))]
    if len(found.pairs):
        heats = tuple(_heat(found, key) for key in list(found.heat)[: 2 * HEATS])
        parts.append(Section("common", "Directions in common", tuple(said[1:]), tuple(tables[2:]), heats))
    return Findings(tuple(parts))


def _spectra(found: Comparison) -> Figure:
    from lora_lab.analysis.figure import Axis, Figure, Series
    from lora_lab.analysis.rendering import Grid

    series, rows = [], []
    for i, name in enumerate(found.names):
        mine = [values / values[0] for (one, _), values in found.spectra.items() if one == name and values[0] > 0]
        longest = max((len(values) for values in mine), default=0)
        means = [float(sum(v[k] for v in mine if k < len(v)) / sum(k < len(v) for v in mine)) for k in range(longest)]
        series.append(Series(name, tuple(range(1, longest + 1)), tuple(means), "line", i))
        rows += [(name, str(k + 1), f"{value:.4f}") for k, value in enumerate(means)]
    table = Grid(
        ("Singular values of the update, relative to the first",), ("adapter", "direction", "share"), tuple(rows)
    )
    says = "Mean over modules of each singular value of the update, relative to the module's largest."
    return Figure("spectra", "Spectra", says, Axis("direction"), Axis("relative singular value"), tuple(series), table)


def _heat(found: Comparison, key: tuple[str, str, str]) -> Figure:
    from lora_lab.analysis.figure import Axis, Figure, Series
    from lora_lab.analysis.rendering import Grid

    first, second, side = key
    values, chance = found.heat[key]
    cells = [(i, j) for i in range(values.shape[0]) for j in range(values.shape[1])]
    texts = tuple(f"phi({i + 1},{j + 1}) = {values[i, j]:.3f}, random {chance[i, j]:.3f}" for i, j in cells)
    series = Series(
        "",
        tuple(j + 1 for _, j in cells),
        tuple(i + 1 for i, _ in cells),
        "heat",
        texts=texts,
        values=tuple(float(values[i, j]) for i, j in cells),
    )
    rows = tuple((str(i + 1), *(f"{value:.3f}" for value in values[i])) for i in range(len(values)))
    table = Grid((f"phi(i, j) of {side}",), ("i", *(str(j + 1) for j in range(values.shape[1]))), rows)
    name = f"heat-{list(found.heat).index(key)}"
    says = f"How much of the top i directions of {first} lies in the top j of {second}; 1 is all, mean over modules."
    return Figure(
        name, f"{first} and {second}: {side}", says, Axis(f"j of {second}"), Axis(f"i of {first}"), (series,), table
    )
