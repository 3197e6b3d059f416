"""The power of the tests: the chance to show a difference that is there, and how many seeds or pairs that takes."""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy import optimize, stats

from lora_lab.analysis.intervals import LEVEL, Noise

POWER = 0.8
"""The chance to see a difference that is there, for which seeds and pairs needed are stated (Cohen 1988)."""
MOST_SEEDS, MOST_PAIRS = 1000, 10_000
"""More are not counted."""


def paired_power(effect: float, std: float, n: int, level: float = LEVEL) -> float:
    """The chance that a two-sided paired t test of ``n`` pairs shows ``effect``, differences having ``std``."""
    from statsmodels.stats.power import TTestPower

    if effect <= 0:
        return math.nan
    power = float(TTestPower().power(effect / std, n, level)) if std > 0 else 1.0
    return 1.0 if math.isnan(power) else power  # far from zero, scipy's noncentral t has no value


def inferiority_power(margin: float, std: float, n: int) -> float:
    """The chance that a one-sided non-inferiority test of ``n`` pairs shows two equals to be within ``margin``."""
    if std <= 0:
        return 1.0
    return float(stats.t.cdf(margin / std * math.sqrt(n) - stats.t.ppf(1 - LEVEL / 2, n - 1), n - 1))


def sameness_power(margin: float, std: float, n: int) -> float:
    """The chance that two one-sided tests (TOST) of ``n`` pairs show two equals to be within ``±margin``."""
    if std <= 0:
        return 1.0
    one_side = float(stats.t.cdf(margin / std * math.sqrt(n) - stats.t.ppf(1 - LEVEL, n - 1), n - 1))
    return max(0.0, 2 * one_side - 1)


def normal_power(effect: float, half: float, level: float) -> float:
    """The chance that an interval of half-width ``half`` leaves out zero when the truth is ``effect``."""
    if effect <= 0:
        return math.nan
    z = float(stats.norm.ppf(1 - level / 2))
    return float(stats.norm.sf(z - effect / half * z)) if half > 0 else 1.0


def pairs_needed(power_of_pairs: Callable[[int], float]) -> int | None:
    """The pairs that give a paired test a power of :data:`POWER`; ``None`` above :data:`MOST_PAIRS`."""
    return fewest(power_of_pairs, POWER, MOST_PAIRS)


def power_of(difference: float, seeds: float, noise: Noise, configurations: int = 2, level: float = LEVEL) -> float:
    """The chance that ``seeds`` seeds each show a true ``difference`` of two means, by a two-sided t test.

    The spread is pooled over ``configurations``, which gives the test its degrees of freedom; with two it is the usual
    t test of independent groups (Cohen 1988; ``statsmodels.stats.power``).
    """
    from statsmodels.stats.power import TTestPower

    if noise.std == 0:
        return 1.0 if difference else level
    effect = abs(difference) / (math.sqrt(2) * noise.std)
    df = configurations * (seeds - 1)
    power = float(TTestPower().power(effect, seeds, level, df=df, alternative="two-sided"))
    return 1.0 if math.isnan(power) else power  # far from zero, scipy's noncentral t has no value


def seeds_needed(
    difference: float, noise: Noise, configurations: int = 2, power: float = POWER, level: float = LEVEL
) -> int | None:
    """Seeds a configuration with which a true ``difference`` is seen with chance ``power``.

    ``None`` above :data:`MOST_SEEDS`.
    """
    if difference == 0:
        return None
    return fewest(lambda seeds: power_of(difference, seeds, noise, configurations, level), power, MOST_SEEDS)


def smallest_difference(
    seeds: int, noise: Noise, configurations: int = 2, power: float = POWER, level: float = LEVEL
) -> float | None:
    """The difference of two means that ``seeds`` seeds each show with chance ``power``; ``None`` below two seeds."""
    if seeds < 2:
        return None
    if noise.std == 0:
        return 0.0
    scale = noise.std * math.sqrt(2 / seeds)
    top = scale
    while power_of(top, seeds, noise, configurations, level) < power:
        top *= 2
    return float(optimize.brentq(lambda d: power_of(d, seeds, noise, configurations, level) - power, 0.0, top))


def fewest(power_of_so_many: Callable[[int], float], power: float, most: int) -> int | None:
    """The fewest of anything, from two on, whose power reaches ``power``; ``None`` where ``most`` of it do not.

    The power grows with their number; NaN, where it has no meaning, is not reached.
    """
    low, high = 2, most
    if not power_of_so_many(high) >= power:
        return None
    while low < high:
        middle = (low + high) // 2
        if power_of_so_many(middle) >= power:
            high = middle
        else:
            low = middle + 1
    return low
