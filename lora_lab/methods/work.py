"""What a lane multiplies beside its base model, in multiply-adds: so that training is counted by what it computes."""

from __future__ import annotations

from dataclasses import dataclass

from lora_lab.methods.attachment import Attachment
from lora_lab.methods.targets import layer_of


@dataclass(frozen=True)
class Work:
    """Multiply-adds of a method's own products in a forward.

    ``token`` are those of each token, of which ``trained`` are with weights that train and so have a gradient to
    compute; ``target`` and ``target_trained`` the same at the head, for each supervised token; ``forward`` those of
    each forward, however many tokens it has (encoders of prompts; all trained).
    ``virtual_tokens`` stand before every sequence, ``keys`` are what every token attends to besides, summed over the
    layers. ``lowest`` is the lowest decoder layer in which something trains: below it nothing goes backward; at the
    number of layers it is the head alone. ``whole`` says that the base's own products have trained weights, ``solo``
    that the head is computed for every token, as the lane's own model does.
    """

    token: int = 0
    trained: int = 0
    target: int = 0
    target_trained: int = 0
    forward: int = 0
    virtual_tokens: int = 0
    keys: int = 0
    lowest: int = 0
    whole: bool = False
    solo: bool = False


def work_of(attachment: Attachment, layers: int) -> Work:
    """The work of an attachment to a model of so many decoder ``layers``."""
    spec, own = attachment.spec, attachment.own
    if spec.name == "full":
        return Work(whole=True, solo=attachment.solo is not None)
    products = [
        (name, factor.rank * (factor.A.shape[1] + len(factor.B)), factor.A.numel() + factor.B.numel())
        for name, factor in attachment.factors.items()
    ]
    for name, path in attachment.paths.items():
        products.append((name, path.multiplied(), path.multiplied() if path.multiplies_trained else 0))
    inside = [one for one in products if layer_of(one[0]) is not None]
    head = [one for one in products if layer_of(one[0]) is None]
    encoder = sum(p.numel() for name, p in own.items() if p.dim() == 2 and not name.endswith("embedding.weight"))
    reached = {name: layer_of(name) for name in (*attachment.factors, *attachment.paths, *own)}
    prompted = [name for name in own if name.endswith("adaption_prompt")]
    keys = spec.virtual_tokens * (layers if spec.name in ("prefix_tuning", "p_tuning_v2") else len(prompted))
    return Work(
        token=sum(made for _, made, _ in inside),
        trained=sum(trained for _, _, trained in inside),
        target=sum(made for _, made, _ in head),
        target_trained=sum(trained for _, _, trained in head),
        forward=0 if prompted else spec.virtual_tokens * encoder,
        virtual_tokens=spec.virtual_tokens if attachment.prompt is not None else 0,
        keys=keys,
        lowest=0 if own and not prompted else min((layers if at is None else at for at in reached.values()), default=0),
        solo=attachment.solo is not None,
    )
