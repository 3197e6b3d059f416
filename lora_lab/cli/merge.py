"""``lora-lab merge``: an adapter into its base model's weights, as a model that needs no lora-lab."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.errors import ConfigError, RunFailed

if TYPE_CHECKING:
    from lora_lab.adapters.card import Merged
    from lora_lab.adapters.references import Reference

HELP = "merge an adapter into its base model: a Hugging Face folder, or GGUF"
EXAMPLE = "lora-lab merge best:rank_alpha --out merged --verify"
DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``merge``."""
    parser.add_argument("adapter", help="best:SWEEP, SWEEP/RUN, an adapter's folder; with --undo a merged folder")
    parser.add_argument(
        "overrides", nargs="*", metavar="model=…", help="the base of an adapter from elsewhere, model.path=FOLDER …"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the files (auto: as it was trained on)")
    parser.add_argument(
        "--onto",
        choices=("dequantised", "original"),
        default="dequantised",
        help="which weights of a quantised base; the original ones are others than it was trained on",
    )
    parser.add_argument("--verify", action="store_true", help="load both and compare their logits")
    parser.add_argument("--reversible", action="store_true", help="keep what --undo needs, bit for bit")
    parser.add_argument("--undo", action="store_true", help="write the base model back from a reversible merge")
    parser.add_argument("--gguf", metavar="FILE", type=Path, help="also as a GGUF file")
    parser.add_argument("--gguf-adapter", metavar="FILE", type=Path, help="the adapter alone as a GGUF LoRA")
    parser.add_argument("--push", metavar="REPO", help="upload the folder to this private hub repository")


def run(args: argparse.Namespace) -> int:
    """Merge, and say what it did to the weights.

    Raises:
        BadInput: what cannot be merged, or a folder that is taken.
        RunFailed: ``--verify`` found more than rounding explains.
    """
    from lora_lab.adapters import merge, resolve, unmerge
    from lora_lab.adapters.gguf_files import check_gguf

    if args.undo:
        restored = unmerge(Path(args.adapter), args.out, say=_say)
        print(f"{args.out}: the base model, {restored} tensors restored bit for bit")
        return 0
    (reference,) = resolve([args.adapter], args.overrides)
    if reference.folder is None:
        raise ConfigError(f"{args.adapter}: there is no adapter to merge, it is the base model. Name a run.")
    check_gguf(reference.model, args.gguf, args.gguf_adapter)
    merged = merge(reference, args.out, dtype=args.dtype, onto=args.onto, reversible=args.reversible, say=_say)
    for line in lines(reference, merged):
        print(line)
    if args.verify:
        _verify(reference, merged, args.onto)
    _exports(args, reference)
    if args.push:
        _push(args.out, args.push)
    return 0


def lines(reference: Reference, merged: Merged) -> list[str]:
    """What the merge did to the weights, for people."""
    said = [
        f"merged       {reference.name} ({reference.method}) into {reference.model.name}, {merged.dtype}",
        f"changed      {merged.tensors} tensors, by {100 * merged.update:.3g} % of their norm",
        f"rounding     took away {100 * merged.lost:.2g} % of the change",
    ]
    if merged.quantisation is not None:
        worst = max(merged.by_tensor.items(), key=lambda item: item[1])
        said.append(
            f"quantised    the de-quantised weights are {100 * merged.quantisation:.2g} % from the original ones "
            f"(most: {worst[0]}, {100 * worst[1]:.2g} %)"
        )
    if merged.untied:
        said.append("head         has a weight of its own now; it was tied to the embeddings")
    if merged.reversible:
        said.append(f"reversible   lora-lab merge --undo {merged.folder} --out BASE")
    said.append(f"model        {merged.folder} ({merged.bytes / 1e6:.1f} MB)")
    return said


def _verify(reference: Reference, merged: Merged, onto: str) -> None:
    from lora_lab.adapters import verify

    found = verify(reference, merged.folder, merged.dtype)
    print(
        f"verified     logits differ by {found.difference:.2g} (relative; rounding explains {found.tolerance:g}), "
        f"the same token is first at {100 * found.same:.1f} % of positions"
    )
    if not found.holds and onto == "dequantised":
        raise RunFailed(
            f"{merged.folder}: its logits are {found.difference:.2g} from those of base and adapter, and rounding to "
            f"{merged.dtype} explains {found.tolerance:g}. Use --dtype float32, or report this as a bug."
        )


def _exports(args: argparse.Namespace, reference: Reference) -> None:
    from lora_lab.adapters import export_adapter, export_model

    if args.gguf:
        print(f"gguf         {args.gguf} ({export_model(args.out, args.gguf) / 1e6:.1f} MB)")
    if args.gguf_adapter:
        print(f"gguf adapter {args.gguf_adapter} ({export_adapter(reference, args.gguf_adapter) / 1e6:.1f} MB)")


def _push(folder: Path, repository: str) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    hub = HfApi()
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        where = hub.upload_folder(repo_id=repository, folder_path=folder)
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        raise ConfigError(
            f"--push {repository}: {error}. Sign in with `hf auth login`; the folder is whole."
        ) from error
    print(f"pushed       {where}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
