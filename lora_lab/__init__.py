"""lora-lab: find the right LoRA configuration for a language model, fast, and know how sure one may be.

The public names are imported when they are first used, so that ``import lora_lab`` loads no torch.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from lora_lab.lazy import names

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lora_lab.errors import LoraLabError
    from lora_lab.results import load_results
    from lora_lab.spec import RunResult, RunSpec, Space, Sweep

__all__ = ["LoraLabError", "RunResult", "RunSpec", "Space", "Sweep", "__version__", "load_results"]

__getattr__ = names(
    __name__,
    {
        "LoraLabError": "errors",
        "RunResult": "spec",
        "RunSpec": "spec",
        "Space": "spec",
        "Sweep": "spec",
        "load_results": "results",
    },
)

# bitsandbytes, which PEFT imports too, says with every start that a kernel it can do without is not to be had
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "kernels-community" not in str(record.msg))
