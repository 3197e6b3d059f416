"""The normal distribution for whole arrays, in the place of Optuna's.

Optuna's TPE computes the logarithm of the normal distribution function one number after another in Python: thousands of
them for one draw where a domain has steps, which was two thirds of what a run costs besides its training. SciPy has the
same function for arrays; ``tests/study/test_study_normal.py`` holds the two together.
"""

from __future__ import annotations

import functools
import importlib

import scipy.special

MODULE = "optuna.samplers._tpe._truncnorm"
FUNCTION = "_log_ndtr"


@functools.cache
def quicken() -> bool:
    """Let TPE use SciPy's function; ``False`` where this version of Optuna has no such place, and stays as it is."""
    try:
        module = importlib.import_module(MODULE)
    except ImportError:
        return False
    there = hasattr(module, FUNCTION)
    if there:
        setattr(module, FUNCTION, scipy.special.log_ndtr)
    return there
