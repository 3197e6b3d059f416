"""The small language of conditions and constraints: arithmetic and comparisons over a run's values.

``optimizer.name == 'sgd'``, ``method.alpha_over_r * method.r <= 1024``, ``peak_memory <= 12 GB``,
``'query' in method.roles and method.r in [4, 8]``. Names are config paths and what the caller adds to them.
An expression is parsed by Python's own grammar and walked node by node: nothing of Python can be reached from it.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_lab.errors import SpaceError, SpecError

LONGEST = 500
UNITS: Mapping[str, int] = {f"{p}B": 1000**n for n, p in enumerate("KMGT", 1)} | {
    f"{p}iB": 1024**n for n, p in enumerate("KMGT", 1)
}
"""Byte units that may follow a number."""
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "log": math.log,
    "log2": math.log2,
    "sqrt": math.sqrt,
    "len": len,
}
CONSTANTS: Mapping[str, Any] = {"true": True, "false": False, "null": None}

_SIZE = re.compile(
    r"'[^']*'|\"[^\"]*\"|(?<![\w.])(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*(?P<unit>" + "|".join(UNITS) + r")\b"
)
_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: lambda a, b: float(a) ** float(b),  # in floats: 9 ** 9 ** 9 overflows instead of filling the memory
}
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: operator.contains(b, a),
    ast.NotIn: lambda a, b: not operator.contains(b, a),
}
_ORDERINGS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)

LookUp = Callable[[str], Any]
"""Gives the value of a name; only the names that are reached are asked for."""


@dataclass(frozen=True)
class Expression:
    """An expression, by its text. Equal texts are equal expressions.

    Raises:
        SpaceError: it is not of this language; what is wrong is named.
    """

    text: str

    def __post_init__(self) -> None:
        _check(_parsed(self.text), self.text)

    @property
    def names(self) -> tuple[str, ...]:
        """The dotted names in it, each once, in order."""
        found: list[str] = []
        _collect(_parsed(self.text), found)
        return tuple(dict.fromkeys(found))

    def value(self, look_up: LookUp, *, strict: bool = True) -> Any:
        """What it comes to; ``look_up`` gives the values of its names.

        Where it is not ``strict``, null is neither less nor more than anything, instead of an error.

        Raises:
            SpecError: it has no value there: a name is null, a division by zero, words where numbers belong.
        """
        try:
            return _value(_parsed(self.text), look_up, strict)
        except ZeroDivisionError as error:
            raise SpecError(f"{self.text!r}: a division by zero.") from error
        except (OverflowError, ValueError, TypeError) as error:
            raise SpecError(f"{self.text!r} has no value here: {error}.") from error

    def holds(self, look_up: LookUp, *, strict: bool = True) -> bool:
        """Whether it is true. Raises ``SpecError`` as :meth:`value` does."""
        return bool(self.value(look_up, strict=strict))

    def seen(self, look_up: LookUp) -> str:
        """Its names with their values, for messages: ``method.r = 64, parameters = 5,308,416``."""
        return ", ".join(f"{name} = {_shown(look_up(name))}" for name in self.names)


def one_of_values(path: str, values: Any) -> Expression:
    """The expression that the value at ``path`` is ``values``, or is in it where it is a list."""
    if isinstance(values, (list, tuple)):
        return Expression(f"{path} in {_literal(list(values))}")
    return Expression(f"{path} == {_literal(values)}")


def _literal(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_literal(v) for v in value)}]"
    if isinstance(value, (int, float, str)):
        return repr(value)
    raise SpaceError(f"a condition compares with words, numbers and lists of them, not {value!r}.")


@functools.lru_cache(maxsize=1024)
def _parsed(text: str) -> ast.expr:
    if not isinstance(text, str) or not text.strip() or len(text) > LONGEST:
        raise SpaceError(f"an expression is a text such as 'method.r <= 64', of at most {LONGEST} letters: {text!r}.")
    try:
        return ast.parse(_SIZE.sub(_in_bytes, text.strip()), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SpaceError(
            f"{text!r} is not an expression ({getattr(error, 'msg', error)}). "
            "E.g. 'method.r * method.alpha_over_r <= 1024', 'peak_memory <= 12 GB', \"optimizer.name == 'sgd'\"."
        ) from error


def _in_bytes(match: re.Match[str]) -> str:
    if match["unit"] is None:
        return match[0]
    size = float(match["number"]) * UNITS[match["unit"]]
    return str(int(size) if size.is_integer() else size)


def _check(node: ast.AST, text: str) -> None:
    """Refuse every kind of node that is not of the language."""
    match node:
        case ast.Constant(value) if value is None or isinstance(value, (bool, int, float, str)):
            return
        case ast.Name() | ast.Attribute():
            if _name(node) is None:
                raise SpaceError(f"{text!r}: a name is a config path such as method.r, or a figure such as parameters.")
            return
        case ast.BoolOp(_, values):
            parts: list[ast.AST] = list(values)
        case ast.UnaryOp(ast.Not() | ast.USub() | ast.UAdd(), operand):
            parts = [operand]
        case ast.BinOp(left, op, right) if type(op) in _ARITHMETIC:
            parts = [left, right]
        case ast.Compare(left, ops, comparators) if all(type(op) in _COMPARISONS for op in ops):
            parts = [left, *comparators]
        case ast.List(elements) | ast.Tuple(elements):
            parts = list(elements)
        case ast.Call(ast.Name(function), arguments, []) if function in FUNCTIONS:
            parts = list(arguments)
        case _:
            raise SpaceError(
                f"{text!r}: {ast.unparse(node)!r} is not of the language of conditions and constraints, which has "
                f"+ - * / // % **, comparisons, in, and, or, not, lists, {', '.join(FUNCTIONS)}."
            )
    for part in parts:
        _check(part, text)


def _name(node: ast.AST) -> str | None:
    """The dotted name that a node is, or ``None``."""
    match node:
        case ast.Name(name):
            return name
        case ast.Attribute(value, attribute) if not attribute.startswith("_"):
            above = _name(value)
            return None if above is None else f"{above}.{attribute}"
    return None


def _collect(node: ast.AST, found: list[str]) -> None:
    if isinstance(node, (ast.Name, ast.Attribute)):
        name = _name(node)
        if name is not None and name not in CONSTANTS:
            found.append(name)
        return
    for child in node.args if isinstance(node, ast.Call) else ast.iter_child_nodes(node):
        _collect(child, found)


def _value(node: ast.AST, look_up: LookUp, strict: bool) -> Any:
    match node:
        case ast.Constant(value):
            return value
        case ast.Name() | ast.Attribute():
            name = _name(node)
            assert name is not None
            return CONSTANTS[name] if name in CONSTANTS else look_up(name)
        case ast.BoolOp(op, values):
            so_far: Any = isinstance(op, ast.And)
            for part in values:
                so_far = bool(_value(part, look_up, strict))
                if so_far is not isinstance(op, ast.And):
                    break
            return so_far
        case ast.UnaryOp(op, operand):
            inner = _value(operand, look_up, strict)
            if isinstance(op, ast.Not):
                return not inner
            return -_number(inner, operand) if isinstance(op, ast.USub) else _number(inner, operand)
        case ast.BinOp(left, op, right):
            operands = [_number(_value(side, look_up, strict), side) for side in (left, right)]
            return _ARITHMETIC[type(op)](*operands)
        case ast.Compare(left, ops, comparators):
            sides = [left, *comparators]
            found = [_value(side, look_up, strict) for side in sides]
            for n, compared in enumerate(ops):
                if isinstance(compared, _ORDERINGS):
                    if not strict and None in found[n : n + 2]:
                        return False
                    _number(found[n], sides[n])
                    _number(found[n + 1], sides[n + 1])
                if not _COMPARISONS[type(compared)](found[n], found[n + 1]):
                    return False
            return True
        case ast.List(elements) | ast.Tuple(elements):
            return tuple(_value(element, look_up, strict) for element in elements)
        case ast.Call(ast.Name(function), arguments):
            return FUNCTIONS[function](*(_value(argument, look_up, strict) for argument in arguments))
    raise AssertionError(f"{ast.dump(node)} passed the check")


def _number(value: Any, node: ast.AST) -> Any:
    if isinstance(value, (int, float)):
        return value
    raise TypeError(f"{ast.unparse(node)} is {'null' if value is None else repr(value)}, not a number")


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return repr(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
