"""What a run, a space, a sweep and a result are. Frozen values and plain functions; stdlib only."""

from lora_lab.spec.data import DataSpec
from lora_lab.spec.design import DESIGNS, Design
from lora_lab.spec.domains import Choices, Domain, FloatRange, IntRange, Masks
from lora_lab.spec.expression import Expression
from lora_lab.spec.figures import FIGURES, Figures, violated
from lora_lab.spec.launcher import LauncherSpec
from lora_lab.spec.method import MethodSpec
from lora_lab.spec.model import FOUR_BIT, ModelSpec
from lora_lab.spec.objective import Objective
from lora_lab.spec.optimizer import OptimizerSpec, ScheduleSpec
from lora_lab.spec.ports import Controller, Order, Recorder, Verdict
from lora_lab.spec.result import FIRST_BRANCH, SETTLED, EvalMetrics, Outcome, RunResult, StepMetrics, run_id
from lora_lab.spec.roles import ROLES, Mask, all_masks, mask_name, mask_of
from lora_lab.spec.run import BudgetSpec, EvaluationSpec, RunSpec
from lora_lab.spec.sizes import read_size, show_size
from lora_lab.spec.space import Point, Space, show
from lora_lab.spec.stop import Stop
from lora_lab.spec.sweep import EXTENSIBLE, Execution, Strategy, Sweep, TrackingSpec
from lora_lab.spec.tree import Pairs, at_path, from_tree, pairs, thaw, to_tree, with_paths

__all__ = [
    "DESIGNS",
    "EXTENSIBLE",
    "FIGURES",
    "FIRST_BRANCH",
    "FOUR_BIT",
    "ROLES",
    "SETTLED",
    "BudgetSpec",
    "Choices",
    "Controller",
    "DataSpec",
    "Design",
    "Domain",
    "EvalMetrics",
    "EvaluationSpec",
    "Execution",
    "Expression",
    "Figures",
    "FloatRange",
    "IntRange",
    "LauncherSpec",
    "Mask",
    "Masks",
    "MethodSpec",
    "ModelSpec",
    "Objective",
    "OptimizerSpec",
    "Order",
    "Outcome",
    "Pairs",
    "Point",
    "Recorder",
    "RunResult",
    "RunSpec",
    "ScheduleSpec",
    "Space",
    "StepMetrics",
    "Stop",
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
    "violated",
    "with_paths",
]
