"""A run's attachment: made by its method, and begun as the run asks."""

from __future__ import annotations

from lora_lab.methods.attachment import Attachment
from lora_lab.methods.beginning import begin
from lora_lab.methods.inits import Calibration
from lora_lab.methods.table import TABLE, made
from lora_lab.models import BaseModel
from lora_lab.spec import MethodSpec


def attach(base: BaseModel, spec: MethodSpec, seed: int, calibration: Calibration | None = None) -> Attachment:
    """Make the trainable parameters of ``spec`` for ``base``, as stock PEFT draws them after ``manual_seed(seed)``.

    The base is left exactly as it was (modules, hooks, weights, RNG state), so any number of attachments can
    belong to one resident base, also while hooks of other attachments are installed on it. ``calibration`` gives
    training sequences to an initialisation that looks at data (``method.init=eva``).

    Raises:
        MethodError: a role or layer that matches no module, a method that this base cannot carry, or adapters to begin
            with that are not there or do not fit.
        ModelError: a mask that splits a fused matrix.
    """
    attachment = made(base, spec, seed, calibration)
    if attachment.factors and spec.reads("init") and spec.init == "adapters":
        begin(attachment.factors, base, spec, seed)
    return attachment


def count(base: BaseModel, spec: MethodSpec) -> int:
    """Trainable parameters that :func:`attach` would make, from shapes alone: ``base.model`` may be on the meta device.

    Raises:
        MethodError, ModelError: as :func:`attach`.
    """
    return 0 if spec.attaches_nothing else TABLE[spec.name].count(base, spec)
