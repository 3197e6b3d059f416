"""What a merge did, as a value, as JSON and as the model card that lies beside the merged weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lora_lab.adapters.references import Reference
from lora_lab.spec import mask_name, to_tree

PROVENANCE = "lora_lab_merge.json"


@dataclass
class Merged:
    """What a merge did.

    ``update`` is ``|change| / |weights|`` of the altered tensors (Frobenius norms over all of them), ``lost`` the share
    of the change that rounding to ``dtype`` took away, ``quantisation`` how far the de-quantised weights are from the
    original ones (the same ratio, and by tensor in ``by_tensor``), where the base is quantised.
    """

    folder: Path
    dtype: str
    tensors: int = 0
    untied: bool = False
    streamed: bool = True
    bytes: int = 0
    update: float = 0.0
    lost: float = 0.0
    quantisation: float | None = None
    by_tensor: dict[str, float] = field(default_factory=dict)
    reversible: bool = False


def write_card(folder: Path, reference: Reference, merged: Merged, onto: str) -> None:
    """``README.md`` and ``lora_lab_merge.json`` in ``folder``, which is going to be ``merged.folder``."""
    import lora_lab

    tree: dict[str, Any] = {
        "format": 1,
        "adapter": reference.name,
        "model": to_tree(reference.model),
        "dtype": merged.dtype,
        "onto": onto if reference.model.quantization != "none" else None,
        "merge": {key: value for key, value in asdict(merged).items() if key not in ("folder", "by_tensor")},
        "sweep": reference.sweep,
        "run": None if reference.result is None else reference.result.to_tree(),
        "spec": None if reference.spec is None else reference.spec.canonical,
        "versions": {"lora_lab": lora_lab.__version__},
    }
    (folder / PROVENANCE).write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(reference, merged, onto), encoding="utf-8")


def card(reference: Reference, merged: Merged, onto: str) -> str:
    """The model card: front matter of the hub, configuration, scores, provenance, how to load it."""
    base = reference.model.path or reference.model.name
    head = ["---", "library_name: transformers", f"base_model: {json.dumps(base)}", "tags: [lora-lab, merged]", "---"]
    parts = ["\n".join(head), f"# {reference.model.name} with {reference.name}", _said(reference, merged, onto)]
    if reference.spec is not None:
        parts += ["## Configuration", _table(("setting", "value"), _settings(reference))]
    if reference.result is not None:
        rows = _scores(reference)
        if rows:
            parts += ["## Scores on the run's held-out data", _table(("score", "base model", "this model"), rows)]
    parts += ["## Use", _use(reference)]
    return "\n\n".join(parts) + "\n"


def _said(reference: Reference, merged: Merged, onto: str) -> str:
    base = reference.model.path or reference.model.name
    lines = [
        f"The {reference.method} adapter `{reference.name}` merged by lora-lab into `{base}`, in {merged.dtype}: "
        f"{merged.tensors} tensors were changed, by {100 * merged.update:.3g} % of their norm; rounding took away "
        f"{100 * merged.lost:.2g} % of the change."
    ]
    if merged.quantisation is not None:
        lines.append(
            f"The adapter was trained on weights in {reference.model.quantization}, which are these after "
            f"de-quantisation; they are {100 * merged.quantisation:.2g} % away from the original ones."
        )
    elif reference.model.quantization != "none" and onto == "original":
        lines.append(
            f"The adapter was trained on weights in {reference.model.quantization}; it was merged into the original "
            "ones, so this model computes something else than what was trained and scored."
        )
    if merged.untied:
        lines.append("The head has a weight of its own now; in the base model it is tied to the embeddings.")
    return " ".join(lines)


def _settings(reference: Reference) -> list[tuple[str, ...]]:
    assert reference.spec is not None
    spec = reference.spec
    rows: list[tuple[str, ...]] = [
        ("method", spec.method.name),
        ("roles", mask_name(spec.method.mask)),
        ("seed", str(spec.seed)),
    ]
    if spec.method.reads("r"):
        rows.append(("r", str(spec.method.r)))
    if spec.method.reads("alpha"):
        rows.append(("alpha", f"{spec.method.effective_alpha:g}"))
    rows += [("optimizer", spec.optimizer.name), ("learning rate", f"{spec.optimizer.lr:g}")]
    rows += [("data", spec.data.name), ("run key", f"`{spec.key[:16]}`")]
    if reference.sweep is not None and reference.result is not None:
        rows.append(("sweep / run", f"{reference.sweep} / {reference.result.run}"))
    return rows


def _scores(reference: Reference) -> list[tuple[str, ...]]:
    assert reference.result is not None
    result = reference.result
    pairs = [
        ("loss (nats a token)", result.base_eval_loss, result.eval_loss),
        ("exact match", result.base_exact_match, result.exact_match),
    ]
    rows: list[tuple[str, ...]] = [(name, _number(base), _number(own)) for name, base, own in pairs if own is not None]
    return rows + [(name, "", _number(value)) for name, value in result.scores if isinstance(value, float)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _use(reference: Reference) -> str:
    trust = ", trust_remote_code=True" if reference.model.trust_remote_code else ""
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER", dtype="auto"{trust})\n'
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")\n```'
    )
