"""The three sections that look at adapters after training: Q9 adds them up, S0 compares them, S3 times them."""

from __future__ import annotations

from lora_lab.analysis.claims import Better, Claim, NotBetter, Same, Side
from lora_lab.article.measurements import (
    BASE,
    CHANCE,
    MEAN,
    OWN,
    SIDES,
    SUM,
    TOGETHER,
    TRAINED,
    Latency,
    Subspaces,
    Sums,
)
from lora_lab.article.results import WORTH, at
from lora_lab.article.section import Part, Section, TableOf
from lora_lab.spec.tree import pairs

SHARED = 0.5
"""What arXiv:2106.09685 (section 7.2) finds of the top direction of two ranks, where other directions share little."""
SLOWER = 0.05
"""The smallest share of the base's time that is worth claiming."""
_SINGLE, _TOGETHER = "q9_combine", "q9_together"
_SUMS = "q9_sums"


def _of(combination: str) -> Side:
    return at(_SUMS, "combination", combination)


def _overlap(side: str) -> Claim:
    trained, chance = (Side("s0_shared", pairs({"side": SIDES[side], "of": of})) for of in (TRAINED, CHANCE))
    return Claim(
        f"Two ranks share their top direction of {SIDES[side]}, by {SHARED} more than random matrices",
        Better(trained, chance, metric="phi", smallest=SHARED),
    )


def _slower(variant: str, said: str) -> Claim:
    base, beside = (at("s3_latency", "variant", one) for one in (BASE, variant))
    return Claim(f"{said} takes longer than the base", Better(base, beside, metric="slowdown", smallest=SLOWER))


COMBINE = Section(
    "Q9-combine",
    "Several LoRA sets can be added into one weight.",
    "One adapter for each of three tasks, and one of as many steps as all three on all of them. The three are added up "
    f"exactly, and averaged. Better or worse: by {WORTH} nats on the held-out examples of a task.",
    parts=(
        Part(_SINGLE, own_data=True, adapters=True, full=("data=taskmix", "data.max_length=128")),
        Part(
            _TOGETHER,
            own_data=True,
            adapters=True,
            smoke=("budget.steps=12",),
            full=("data=taskmix", "data.max_length=128", "budget.epochs=3"),
        ),
    ),
    measured=Sums(_SINGLE, _TOGETHER),
    claims=(
        Claim("The sum is better than the base on their tasks", Better(_of(SUM), _of(BASE), smallest=WORTH)),
        Claim("A task's own adapter is not better than the sum", NotBetter(_of(OWN), _of(SUM), WORTH)),
        Claim("Training on all tasks is not better than the sum", NotBetter(_of(TOGETHER), _of(SUM), WORTH)),
        Claim("The mean is better than the base on their tasks", Better(_of(MEAN), _of(BASE), smallest=WORTH)),
    ),
    tables=(
        TableOf(_SUMS, ("combination",), "task", extras=()),
        TableOf(_SUMS, ("combination",), "task", "exact_match", extras=()),
        TableOf(_SINGLE, ("data.tasks",)),
    ),
)

SUBSPACE = Section(
    "S0-subspace",
    "Adapters of different rank share their top singular directions; rank 1 on query and value can be enough.",
    f"Ranks 1, 8 and 64, compared in pairs. Enough: rank 1 is less than {WORTH} nats worse than rank 64. Shared: phi "
    "of the top direction of either, the mean over modules; 1 is the same direction.",
    parts=(Part("s0_subspace", adapters=True, full=("sweep.repeats=2",)),),
    measured=Subspaces("s0_subspace"),
    claims=(
        Claim(
            "Rank 64 is not better than rank 1",
            NotBetter(at("s0_subspace", "method.r", 64), at("s0_subspace", "method.r", 1), WORTH),
        ),
        _overlap("A"),
        _overlap("B"),
    ),
    tables=(
        TableOf("s0_subspace", ("method.r",)),
        TableOf("s0_shared", ("ranks", "side"), "of", "phi", extras=(), ranked=False),
        TableOf("s0_shared", ("ranks", "side"), "of", "phi_r", extras=(), ranked=False),
        TableOf("s0_used", ("r",), "role", "rank_90", extras=(), ranked=False),
        TableOf(
            "s0_used",
            ("r", "role"),
            metric="amplification",
            extras=("random_amplification", "effective_rank"),
            ranked=False,
        ),
    ),
)

LATENCY = Section(
    "S3-latency",
    "A merged LoRA adds no inference latency; unmerged adapters do.",
    "An adapter of each kind beside the base and merged into it: prefill of 64 tokens and decoding after it, in one "
    "process, every variant once a round in a new order. Slowdown: the logarithm of the time over the base's; "
    f"{SLOWER} is 5 %.",
    parts=(Part("s3_latency", adapters=True),),
    measured=Latency("s3_latency"),
    claims=(
        Claim(
            "A merged LoRA takes the base's time, to 5 %",
            Same(
                at("s3_latency", "variant", "lora merged"), at("s3_latency", "variant", BASE), SLOWER, metric="slowdown"
            ),
        ),
        _slower("lora", "LoRA beside the base"),
        _slower("bottleneck", "A bottleneck adapter"),
        _slower("prompt_tuning", "A soft prompt"),
        _slower("ia3", "(IA)³ beside the base"),
    ),
    tables=(
        TableOf("s3_latency", ("variant", "phase"), "batch", "milliseconds", extras=(), over="rounds", ranked=False),
        TableOf("s3_latency", ("variant", "phase"), "batch", "slowdown", extras=(), over="rounds", ranked=False),
    ),
)
