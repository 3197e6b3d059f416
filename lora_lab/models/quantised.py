"""Quantised base models: 4-bit (NF4, FP4; arXiv:2305.14314) and 8-bit (arXiv:2208.07339) weights by bitsandbytes.

Which weights: those of every linear map but the head, as transformers does; embeddings, norms, biases and the head
keep ``model.dtype``. They are bitsandbytes' modules (``Linear4bit``, ``Linear8bitLt``), so PEFT knows them.

:func:`frozen_weight` gives any linear map's weight in the model's dtype. An 8-bit weight is used through it, too: only
weights are rounded here, while bitsandbytes' own 8-bit forward rounds activations as well.
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from lora_lab.errors import ModelError
from lora_lab.spec import FOUR_BIT, ModelSpec

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel


_DTYPES: WeakKeyDictionary[nn.Module, torch.dtype] = WeakKeyDictionary()
"""The model's dtype by 8-bit module: nothing in one says it."""


def bitsandbytes() -> Any:
    """The library.

    Raises:
        ModelError: it is not installed, or not for this machine.
    """
    try:
        import bitsandbytes as library
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelError(
            f"model.quantization: bitsandbytes cannot be used here ({error}). "
            "Install it with `pip install bitsandbytes`, or set model.quantization=none."
        ) from error
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # a line a product, of bfloat16
    return library


def quantisation_config(spec: ModelSpec) -> BitsAndBytesConfig:
    """What transformers is told so that it quantises as :func:`quantise` does."""
    from transformers import BitsAndBytesConfig

    bitsandbytes()
    if spec.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=spec.quantization,
        bnb_4bit_use_double_quant=spec.double_quant,
        bnb_4bit_compute_dtype=getattr(torch, spec.dtype),
    )


def quantise(model: PreTrainedModel, spec: ModelSpec) -> None:
    """Replace the linear maps of ``model`` but its head by quantised ones, in place, each on the device it is on.

    Works on tensors without data (``FakeTensorMode``), too. A ``Conv1D`` (GPT-2) becomes a linear module with its
    weight as ``(out, in)``. Weights keep no trace of their values before.
    """
    from transformers.pytorch_utils import Conv1D

    library = bitsandbytes()
    head = model.get_output_embeddings()
    make = _eight_bit if spec.quantization == "int8" else _four_bit
    for name, module in list(model.named_modules()):
        if module is head or not (type(module) is nn.Linear or isinstance(module, Conv1D)):
            continue
        new = make(library, module, frozen_weight(module).contiguous(), spec)
        new.source_cls = type(module)
        new.bias = module.bias
        new.requires_grad_(False)
        new.train(module.training)
        model.set_submodule(name, new)
    config: Any = model.config
    config.quantization_config = quantisation_config(spec)
    setattr(model, "is_loaded_in_8bit" if spec.quantization == "int8" else "is_loaded_in_4bit", True)


def _four_bit(library: Any, module: nn.Module, weight: Tensor, spec: ModelSpec) -> Any:
    packed, state = library.functional.quantize_4bit(
        weight, compress_statistics=spec.double_quant, quant_type=spec.quantization
    )
    settings = {"compress_statistics": spec.double_quant, "quant_type": spec.quantization}
    outputs, inputs = weight.shape
    with unset_fake_temporarily(), torch.device("meta"):
        new = library.nn.Linear4bit(
            inputs, outputs, bias=module.bias is not None, compute_dtype=weight.dtype, **settings
        )
    new.weight = _parameter(
        library.nn.Params4bit, packed, quant_state=state, module=new, bnb_quantized=True, **settings
    )
    new.quant_state = state
    return new


def _eight_bit(library: Any, module: nn.Module, weight: Tensor, spec: ModelSpec) -> Any:
    if isinstance(weight, FakeTensor):  # how many columns are outliers depends on data
        rounded, scales = torch.empty_like(weight, dtype=torch.int8), weight.new_empty(len(weight), dtype=torch.float32)
    else:
        rounded, scales, _ = library.functional.int8_vectorwise_quant(weight.to(torch.float16))
    outputs, inputs = weight.shape
    with unset_fake_temporarily(), torch.device("meta"):
        new = library.nn.Linear8bitLt(
            inputs, outputs, bias=module.bias is not None, has_fp16_weights=False, threshold=6.0
        )
    new.weight = _parameter(library.nn.Int8Params, rounded, has_fp16_weights=False, CB=rounded, SCB=scales)
    return new


def _parameter(kind: Any, data: Tensor, **attributes: Any) -> Any:
    """bitsandbytes' parameter; where ``data`` has no data it can only be a plain one with the same attributes."""
    if not isinstance(data, FakeTensor):
        return kind(data, requires_grad=False, **attributes)
    parameter = nn.Parameter(data, requires_grad=False)
    for name, value in attributes.items():
        setattr(parameter, name, value)
    return parameter


def prime(spec: ModelSpec) -> None:
    """Make the code table that bitsandbytes keeps for the whole process, before tensors without data could be it."""
    if spec.quantization in FOUR_BIT and spec.double_quant:
        bitsandbytes().functional.quantize_blockwise(torch.zeros(256))


def steady(model: PreTrainedModel, spec: ModelSpec) -> None:
    """Make the quantised modules of a loaded model compute the same in training and in evaluation.

    bitsandbytes repacks 4-bit weights in place for another CPU kernel (with block scales in bfloat16) at the first
    forward without gradient; then they could no longer be de-quantised.
    """
    library = bitsandbytes()
    for module in model.modules():
        if isinstance(module, library.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
        if isinstance(module, library.nn.Linear8bitLt):
            _DTYPES[module] = getattr(torch, spec.dtype)


def frozen_weight(module: nn.Module) -> Tensor:
    """The ``(out, in)`` weight of a linear map, in the model's dtype.

    A view of the weight itself where it is not quantised (transposed for ``Conv1D``), else a new tensor,
    de-quantised by bitsandbytes' kernel of the device. Nothing of it needs a gradient.
    """
    weight: Any = module.weight
    whole: Tensor
    if getattr(weight, "quant_state", None) is not None:
        whole = _four_bit_numbers(weight.data, weight.quant_state)
    elif hasattr(weight, "SCB"):
        whole = bitsandbytes().functional.int8_vectorwise_dequant(weight.data, *constants(module))
        whole = whole.to(frozen_dtype(module))
    else:
        whole = weight.detach() if isinstance(module, nn.Linear) else weight.detach().t()
    return whole


def _four_bit_numbers(packed: Tensor, state: Any) -> Tensor:
    """The weight as one long row: of several that are no multiple of a block, bitsandbytes' kernel for CPUs (0.50.2)
    takes some numbers' scales from the wrong block."""
    flat = copy.copy(state)
    flat.shape = torch.Size([int(torch.Size(state.shape).numel())])
    whole: Tensor = bitsandbytes().functional.dequantize_4bit(packed, flat)
    return whole.view(state.shape)


def frozen_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of :func:`frozen_weight`."""
    weight: Any = module.weight
    state = getattr(weight, "quant_state", None)
    if state is not None:
        four: torch.dtype = state.dtype
        return four
    eight: torch.dtype = _DTYPES[module] if hasattr(weight, "SCB") else weight.dtype
    return eight


def rounded(weight: Tensor, spec: ModelSpec) -> Tensor:
    """``weight`` as :func:`frozen_weight` gives it once it has been quantised as ``spec`` says, in its own dtype.

    Of a linear map as it is quantised, ``(out, in)``.
    """
    library = bitsandbytes().functional
    if spec.quantization == "int8":
        numbers, scales, _ = library.int8_vectorwise_quant(weight.to(torch.float16))
        whole: Tensor = library.int8_vectorwise_dequant(numbers, scales)
        return whole.to(weight.dtype)
    packed, state = library.quantize_4bit(
        weight.contiguous(), compress_statistics=spec.double_quant, quant_type=spec.quantization
    )
    return _four_bit_numbers(packed, state)


def original_size(parameter: nn.Parameter) -> int:
    """Numbers in ``parameter`` before it was quantised (two of them share a byte in 4 bits)."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(torch.Size(state.shape).numel())


def constants(module: nn.Module) -> list[Tensor]:
    """The tensors by which a quantised module's weight is read: block scales, their scales, code tables."""
    weight: Any = getattr(module, "weight", None)
    state = getattr(weight, "quant_state", None)
    if state is not None:
        found = [state.absmax, state.code]
        if state.nested:
            found += [state.offset, state.state2.absmax, state.state2.code]
        return found
    if hasattr(weight, "SCB"):
        kept: Any = module.state  # the first forward of bitsandbytes' own moves them there
        return [weight.SCB if weight.SCB is not None else kept.SCB]
    return []


def check_quantised(config: Any, spec: ModelSpec) -> None:
    """Refuse files that are quantised otherwise than ``spec`` says.

    Raises:
        ModelError: another quantiser's, or other settings of bitsandbytes.
    """
    saved = getattr(config, "quantization_config", None)
    if saved is None or spec.source == "wheel":
        return
    said = saved if isinstance(saved, dict) else saved.to_dict()
    method = said.get("quant_method")
    if method != "bitsandbytes":
        raise ModelError(
            f"model.path={spec.path}: its weights are quantised by {method}, which cannot carry adapters here. "
            "Give the full-precision model, and model.quantization=nf4 to make it small."
        )
    is_four = bool(said.get("load_in_4bit"))
    kind = said.get("bnb_4bit_quant_type", "fp4") if is_four else "int8"
    double = bool(is_four and said.get("bnb_4bit_use_double_quant"))
    if kind != spec.quantization or (kind in FOUR_BIT and double != spec.double_quant):
        also = f" model.double_quant={str(double).lower()}" if is_four else ""
        raise ModelError(
            f"model.path={spec.path}: its weights are saved as {kind}{' with double quantisation' if double else ''}, "
            f"and model.quantization={spec.quantization}. Set model.quantization={kind}{also}."
        )
