"""What a run, a space, a sweep and a result are. Frozen values and plain functions; stdlib only."""

from lora_lab.spec.data import DataSpec
from lora_lab.spec.method import MethodSpec
from lora_lab.spec.model import FOUR_BIT, ModelSpec
from lora_lab.spec.optimizer import OptimizerSpec, ScheduleSpec
from lora_lab.spec.ports import Controller, Recorder, Verdict
from lora_lab.spec.result import SETTLED, EvalMetrics, Outcome, RunResult, StepMetrics, run_id
from lora_lab.spec.roles import ROLES, Mask, all_masks, mask_name, mask_of
from lora_lab.spec.run import BudgetSpec, EvaluationSpec, RunSpec
from lora_lab.spec.sizes import read_size, show_size
from lora_lab.spec.space import Choices, Domain, FloatRange, IntRange, Masks, Point, Space, show
from lora_lab.spec.sweep import Execution, Objective, Strategy, Sweep, TrackingSpec
from lora_lab.spec.tree import Pairs, at_path, from_tree, pairs, thaw, to_tree, with_paths

__all__ = [
    "FOUR_BIT",
    "ROLES",
    "SETTLED",
    "BudgetSpec",
    "Choices",
    "Controller",
    "DataSpec",
    "Domain",
    "EvalMetrics",
    "EvaluationSpec",
    "Execution",
    "FloatRange",
    "IntRange",
    "Mask",
    "Masks",
    "MethodSpec",
    "ModelSpec",
    "Objective",
    "OptimizerSpec",
    "Outcome",
    "Pairs",
    "Point",
    "Recorder",
    "RunResult",
    "RunSpec",
    "ScheduleSpec",
    "Space",
    "StepMetrics",
    "Strategy",
    "Sweep",
    "TrackingSpec",
    "Verdict",
    "all_masks",
    "at_path",
    "from_tree",
    "mask_name",
    "mask_of",
    "pairs",
    "read_size",
    "run_id",
    "show",
    "show_size",
    "thaw",
    "to_tree",
    "with_paths",
]
