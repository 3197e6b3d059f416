"""What a test needs of the machine: it skips where that is missing, but fails where it was promised (``.ci/run``)."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def absent(service: str, why: str) -> NoReturn:
    """End the test: ``service`` is not here. ``LORA_LAB_SERVICES`` names those that must be."""
    if service in os.environ.get("LORA_LAB_SERVICES", "").split():
        pytest.fail(f"{why}; LORA_LAB_SERVICES promises it")
    pytest.skip(why)
