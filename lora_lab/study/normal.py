"""The normal distribution for whole arrays, in the place of Optuna's.

Optuna's TPE computes the logarithm of the normal distribution function one number after another in Python: thousands of
them for one draw where a domain has steps, which was two thirds of what a run costs besides its training. SciPy has the
same function for arrays; ``tests/study/test_study_normal.py`` holds the two together.
"""

from __future__ import annotations

import functools
import importlib
import logging

import scipy.special

MODULE = "optuna.samplers._tpe._truncnorm"
FUNCTION = "_log_ndtr"

log = logging.getLogger(__name__)


@functools.cache
def quicken() -> None:
    """Let TPE use SciPy's function. Where this version of Optuna has no such place it stays as it is, which is said."""
    try:
        module = importlib.import_module(MODULE)
        getattr(module, FUNCTION)
    except (ImportError, AttributeError) as error:
        log.info("TPE draws slowly: this version of Optuna has no %s.%s (%s).", MODULE, FUNCTION, error)
    else:
        setattr(module, FUNCTION, scipy.special.log_ndtr)
