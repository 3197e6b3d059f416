"""What the article asks, or leaves open: Q1 to Q10, and S0 to S3 of the write-ups it builds on."""

from __future__ import annotations

from lora_lab.analysis.claims import (
    Apart,
    Better,
    Claim,
    Gains,
    Grows,
    Near,
    NotBetter,
    OptimumRises,
    Pays,
    Rises,
    Side,
)
from lora_lab.article.after_training import COMBINE, LATENCY, SUBSPACE
from lora_lab.article.results import ALL, ALL_256, LORA, NF4, QLORA, QV, ROLES, SIX, WORTH, at
from lora_lab.article.section import Part, ScoresOf, Section, Sized, TableOf
from lora_lab.spec.tree import pairs

RATE, METHOD = "optimizer.lr", "method.name"
ALL_256_LONG = Sized(
    "QLoRA nf4, all r=256, AdamW, sequences up to 2048",
    (ALL, NF4, "method.r=256", "data.max_length=2048"),
    26.96,
)
FULL = Sized("full fine-tuning bf16, AdamW", ("method=full",), 73.32)
_LENGTHS = tuple(Sized(f"nf4, q+v r=8, {n} tokens", (QV, NF4, f"data.max_length={n}")) for n in (512, 1024, 2048, 4096))
_BATCHES = tuple(
    Sized(f"nf4, q+v r=8, {n} sequences at once", (QV, NF4, f"budget.micro_batch_size={n}")) for n in (1, 2, 4)
)
_RANKS = tuple(Sized(f"nf4, all r={r}", (ALL, NF4, f"method.r={r}")) for r in (8, 64, 256))
_DOUBLE = Sized("nf4 with double quantisation, q+v r=8", (QV, NF4, "model.double_quant=true"), 13.84)
_INT8 = Sized("int8, q+v r=8", (QV, "model.quantization=int8"))
_FP32 = Sized("LoRA float32, q+v r=8", (QV, "model.dtype=float32", "method.dtype=float32"))
_SMALL = Sized("a quarter of the model (8 layers), nf4, q+v r=8", (QV, NF4, "model.config.num_hidden_layers=8"))
_RATES = Part("s1_learning_rate", full=("sweep.space.optimizer.lr=[3e-5,1e-4,3e-4,1e-3,3e-3]",))
_FULL_RATES = Part("q8_full", full=("sweep.space.optimizer.lr=[1e-6,3e-6,1e-5,3e-5,1e-4]",))
POINTS = 0.02
"""Share of a benchmark's documents, the smallest difference that is called noticeable here."""
_OTHERS = ("prompt_tuning", "prefix_tuning", "bottleneck", "llama_adapter")


def _labels(sizes: tuple[Sized, ...]) -> tuple[str, ...]:
    return tuple(size.label for size in sizes)


def _forgotten(said: str, task: str) -> Claim:
    score = f"{task}.acc"
    gains = Gains(Side("q2_domain"), f"scores.{score}", f"base_scores.{score}", sign=-1, smallest=POINTS)
    return Claim(said, gains)


def _uneven(ranks: list[int], said: str) -> Claim:
    groups = "method.rank_groups"
    better = Better(at("q10_layerwise", groups, ranks), at("q10_layerwise", groups, [8, 8, 8]), smallest=WORTH)
    return Claim(f"More rank in the {said} layers beats equal ranks at as many parameters", better)


QUESTIONS = (
    Section(
        "Q1-data",
        "1,000 curated examples (LIMA) match 50,000 synthetic ones (Alpaca).",
        "A stand-in of built-in tasks: few clean examples, and fifty times as many of which a quarter is answered "
        f"wrongly, for as many steps; both scored on clean ones. To match: less than {WORTH} nats worse.",
        parts=(
            Part(
                "q1_data",
                own_data=True,
                full=(
                    "data=hf",
                    "data.path=GAIR/lima",
                    "data.eval_path=null",
                    "sweep.space.data.path=[GAIR/lima,tatsu-lab/alpaca]",
                    "budget.steps=390",
                    "budget.epochs=null",
                ),
            ),
        ),
        claims=(
            Claim(
                "Many synthetic examples are not better than few curated ones",
                NotBetter(at("q1_data", "data.path", "synthetic"), at("q1_data", "data.path", "curated"), WORTH),
            ),
        ),
        tables=(TableOf("q1_data", ("data.path",), extras=("train_loss", "steps", "seconds")),),
    ),
    Section(
        "Q2-domain",
        "Arithmetic gets worse than the base model when the data has no arithmetic.",
        "Trained on instructions without a digit; scored, before and after, by the loss of the right answers to sums, "
        f"and by greedy answers to sums of two and four digits. Worse: {WORTH} nats, or {POINTS:.0%} of the sums.",
        parts=(
            Part(
                "q2_domain",
                own_data=True,
                smoke=("evaluation.limit=20",),
                full=("budget.steps=390", "budget.epochs=null", "evaluation.limit=null"),
            ),
        ),
        claims=(
            Claim(
                "The right answers to sums lose likelihood",
                Gains(Side("q2_domain"), sign=-1, smallest=WORTH),
            ),
            _forgotten("Fewer two-digit additions are answered right", "offline_arithmetic_2da"),
            _forgotten("Fewer two-digit subtractions are answered right", "offline_arithmetic_2ds"),
        ),
        tables=(
            TableOf("q2_domain", ("seed",), extras=("base_eval_loss", "eval_accuracy", "train_loss")),
            ScoresOf("q2_domain"),
        ),
    ),
    Section(
        "Q3-rank",
        "The more diverse the tasks, the larger the best rank (a hypothesis).",
        "Ranks 2 to 128 on one, four and sixteen kinds of task. The best rank of a seed is the vertex of a parabola.",
        parts=(
            Part(
                "q3_rank",
                own_data=True,
                smoke=("sweep.space.data.diversity=[1,4]", "sweep.space.method.r=[2,8,32]", "sweep.repeats=3"),
                full=("data=taskmix", "data.max_length=128"),
            ),
        ),
        claims=(
            Claim(
                "The best rank grows with the number of tasks",
                OptimumRises("q3_rank", "method.r", "data.diversity", smallest=0.25),
            ),
        ),
        tables=(TableOf("q3_rank", ("data.diversity",), "method.r", extras=()),),
    ),
    Section(
        "Q4-masks",
        "Which of the 2^6 = 64 layer combinations pay is open; the projection layer is doubted.",
        "64 masks. A role pays where its Shapley value, its mean gain over all orders of adding roles, is above zero.",
        parts=(Part("q4_masks", smoke=("sampler=fractional", "sweep.repeats=1"), full=("sampler=fractional",)),),
        claims=tuple(Claim(f"Adapting {role} pays", Pays("q4_masks", role)) for role in SIX),
        tables=(TableOf("q4_masks", (ROLES,)),),
    ),
    Section(
        "Q5-overfit",
        "Smaller r, more data, weight decay and dropout reduce overfitting.",
        "Each low and high in every combination, at equal steps. Overfitting: held-out loss less training loss.",
        parts=(
            Part(
                "q5_overfit",
                smoke=("sweep.space.data.train_size=[8,32]", "sweep.repeats=1"),
                full=(
                    "sweep.space.data.train_size=[1000,50000]",
                    "sweep.space.method.dropout=[0.0,0.1]",
                    "sweep.repeats=1",
                    "budget.steps=390",
                    "budget.epochs=null",
                ),
            ),
        ),
        claims=(
            Claim("The gap grows with r", Rises("q5_overfit", "method.r", "gap")),
            Claim("The gap shrinks with more data", Rises("q5_overfit", "data.train_size", "gap", sign=-1)),
            Claim("The gap shrinks with weight decay", Rises("q5_overfit", "optimizer.weight_decay", "gap", sign=-1)),
            Claim("The gap shrinks with dropout", Rises("q5_overfit", "method.dropout", "gap", sign=-1)),
        ),
        tables=(
            TableOf("q5_overfit", ("method.r", "data.train_size"), "method.dropout", "gap", extras=()),
            TableOf("q5_overfit", ("method.r", "data.train_size"), "optimizer.weight_decay", "gap", extras=()),
        ),
    ),
    Section(
        "Q6-sophia",
        "Sophia might beat AdamW.",
        "Both at three rates, each judged at its own best one.",
        parts=(Part("q6_sophia", full=("sweep.space.optimizer.lr=[1e-4,3e-4,1e-3]",)),),
        claims=(
            Claim(
                "Sophia-G is better than AdamW",
                Better(
                    at("q6_sophia", "optimizer.name", "sophiag", RATE),
                    at("q6_sophia", "optimizer.name", "adamw", RATE),
                    smallest=WORTH,
                ),
            ),
        ),
        tables=(TableOf("q6_sophia", ("optimizer.name",), RATE),),
    ),
    Section(
        "Q7-memory",
        "Precision, quantisation, model size, batch, trainable parameters and sequence length set memory.",
        "Llama-2-7B as planned, one setting at a time.",
        parts=(Part("q7_memory", planned=True),),
        sizes=(_FP32, LORA, _INT8, QLORA, _DOUBLE, _SMALL, *_BATCHES, *_RANKS, *_LENGTHS, ALL_256, ALL_256_LONG),
        claims=(
            Claim("Precision: 16-bit weights take less than 32-bit ones", Grows((LORA.label, _FP32.label), 0.1)),
            Claim(
                "Quantisation: nf4 takes less than int8, and that less than 16 bits",
                Grows((QLORA.label, _INT8.label, LORA.label), 0.1),
            ),
            Claim("Model size: a quarter of the layers takes less", Grows((_SMALL.label, QLORA.label), 0.1)),
            Claim("Batch: more sequences at once take more", Grows(_labels(_BATCHES), 0.1)),
            Claim("Trainable parameters: higher ranks take more", Grows(_labels(_RANKS), 0.1)),
            Claim("Sequence length: longer sequences take more", Grows(_labels(_LENGTHS), 0.1)),
            Claim(
                "At r=256 sequences of 2,048 tokens take the article's 9.1 GB more than those of 1,304, to 25 %",
                Near(ALL_256_LONG.label, 9.10e9, 0.25, minus=ALL_256.label),
            ),
        ),
    ),
    Section(
        "Q8-full",
        "Full fine-tuning takes two GPUs (36.66 GB each) and was not better.",
        f"Full fine-tuning and LoRA at five rates, each judged at its best. Not better: by less than {WORTH} nats.",
        parts=(_FULL_RATES, _RATES),
        sizes=(LORA, FULL),
        claims=(
            Claim(
                "Full fine-tuning of Llama-2-7B takes 2.4 times the memory of LoRA or more",
                Grows((LORA.label, FULL.label), 1.4),
            ),
            Claim(
                "Full fine-tuning is not better than LoRA",
                NotBetter(Side("q8_full", tuned=(RATE,)), Side("s1_learning_rate", tuned=(RATE,)), WORTH),
            ),
        ),
        tables=(TableOf("q8_full", (RATE,)), TableOf("s1_learning_rate", (RATE,))),
    ),
    COMBINE,
    Section(
        "Q10-layerwise",
        "Ranks can differ by layer; untested.",
        "Three thirds of the layers with ranks 8, 8, 8; with 14, 8, 2; and with 2, 8, 14. "
        f"Better: {WORTH} nats a token and more.",
        parts=(
            Part(
                "q10_layerwise",
                smoke=("model.config.num_hidden_layers=3",),
            ),
        ),
        claims=(_uneven([14, 8, 2], "lower"), _uneven([2, 8, 14], "upper")),
        tables=(TableOf("q10_layerwise", ("method.rank_groups",), baseline=pairs({"method.rank_groups": [8, 8, 8]})),),
    ),
    SUBSPACE,
    Section(
        "S1-learning-rate",
        "LoRA wants a higher learning rate than full fine-tuning (about 10 times).",
        "Both at five rates. The best rate of a seed is the vertex of a parabola; 3 times is the least to be claimed.",
        parts=(_RATES, _FULL_RATES),
        claims=(
            Claim(
                "LoRA's best rate is higher than full fine-tuning's",
                Apart("s1_learning_rate", "q8_full", RATE, factor=3),
            ),
        ),
        tables=(TableOf("s1_learning_rate", (RATE,)), TableOf("q8_full", (RATE,))),
    ),
    Section(
        "S2-methods",
        "LoRA against soft prompts, prefix tuning, bottleneck adapters and LLaMA-Adapter: parameters, quality, time.",
        "Each method at its own best of three rates.",
        parts=(
            Part(
                "s2_methods",
                smoke=("sweep.space.optimizer.lr=[2e-3,8e-3]", "method.virtual_tokens=4"),
                full=("sweep.space.optimizer.lr=[3e-4,1e-3,3e-3]",),
            ),
        ),
        claims=tuple(
            Claim(
                f"LoRA is better than {name.replace('_', ' ')}",
                Better(at("s2_methods", METHOD, "lora", RATE), at("s2_methods", METHOD, name, RATE), smallest=WORTH),
            )
            for name in _OTHERS
        ),
        tables=(TableOf("s2_methods", (METHOD,), RATE),),
    ),
    LATENCY,
)
