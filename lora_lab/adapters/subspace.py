"""Which directions adapters use: the LoRA paper's subspace analysis (arXiv:2106.09685, section 7).

Of two adapters' factors of one module, with the right singular vectors ``U`` of ``A`` (left ones of ``B``),

    phi(i, j) = |U_i^T U'_j|_F^2 / min(i, j)        (eq. 4)

is 1 where one's top ``i`` and the other's top ``j`` directions span the same space, and ``max(i, j) / d`` on average
for random ones, ``d`` being the number of inputs (outputs). All is had from ``r x r`` matrices of QR and SVD.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lora_lab.adapters.hollow import files_of, hollow
from lora_lab.adapters.references import Reference
from lora_lab.adapters.weights import Held, Stored, Weights
from lora_lab.errors import MethodError
from lora_lab.methods import LowRank
from lora_lab.methods import load as load_adapter
from lora_lab.methods.combining import low_rank
from lora_lab.methods.targets import layer_of
from lora_lab.models import BaseModel
from lora_lab.models import load as load_base
from lora_lab.spec import ROLES

SIDES = ("A", "B")
ENERGY = 0.9
"""The share of ``|delta W|_F^2`` that the suggested rank keeps."""


@dataclass(frozen=True, eq=False)
class Update:
    """The singular value decomposition of one module's ``delta W = scaling B A = U diag(S) V^T``.

    ``right (in, k)`` and ``left (out, k)`` are its singular vectors, ``values (k,)`` its singular values, largest
    first; ``A_basis (in, r)`` are the right singular vectors of ``A`` alone, ``B_basis (out, r)`` the left ones of
    ``B``, which is what the paper compares. All float64.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    A_basis: Tensor
    B_basis: Tensor

    @staticmethod
    @torch.no_grad()
    def of(factor: LowRank) -> Update:
        """The decomposition of a low-rank update, without its product."""
        A, B = (part.detach().double() for part in factor.product())
        Qa, Ra = torch.linalg.qr(A.T)
        Qb, Rb = torch.linalg.qr(B)
        U, S, Vh = torch.linalg.svd(factor.scaling * Rb @ Ra.T, full_matrices=False)  # k: the least of in, out and r
        Ua, _, _ = torch.linalg.svd(Ra)
        Ub, _, _ = torch.linalg.svd(Rb)
        return Update(Qb @ U, S, Qa @ Vh.T, Qa @ Ua, Qb @ Ub)

    def basis(self, side: str) -> Tensor:
        """``A_basis`` or ``B_basis``."""
        return self.A_basis if side == "A" else self.B_basis

    @property
    def norm(self) -> float:
        """``|delta W|_F``."""
        return float(self.values.norm())

    @property
    def effective_rank(self) -> float:
        """``exp`` of the entropy of the singular values' shares (Roy and Vetterli 2007); 0 for no update."""
        total = float(self.values.sum())
        if total == 0:
            return 0.0
        shares = self.values / total
        return math.exp(-float(torch.special.xlogy(shares, shares).sum()))

    @property
    def stable_rank(self) -> float:
        """``|delta W|_F^2 / |delta W|_2^2``."""
        top = float(self.values[0]) if len(self.values) else 0.0
        return (self.norm / top) ** 2 if top else 0.0

    def rank_at(self, energy: float = ENERGY) -> int:
        """The smallest rank that keeps this share of ``|delta W|_F^2``; 0 for no update."""
        squares = self.values.square()
        total = float(squares.sum())
        if total == 0:
            return 0
        kept = torch.cumsum(squares, 0) / total
        return int((kept < energy - 1e-12).sum()) + 1


def phi(one: Tensor, other: Tensor) -> np.ndarray:
    """``(r, r')`` of eq. 4 for bases ``(d, r)`` and ``(d, r')`` with orthonormal columns: entry ``[i-1, j-1]``."""
    overlaps = (one.T @ other).square().cumsum(0).cumsum(1)
    i = torch.arange(1, one.shape[1] + 1).unsqueeze(1)
    j = torch.arange(1, other.shape[1] + 1).unsqueeze(0)
    found: np.ndarray = (overlaps / torch.minimum(i, j)).numpy()
    return found


def apart(one: Update, other: Update) -> dict[str, float]:
    """The cosine of two updates as vectors, and ``|one - other|_F``."""
    inner = float(
        (one.values.unsqueeze(1) * (one.right.T @ other.right) * other.values * (one.left.T @ other.left)).sum()
    )
    sizes = one.norm * other.norm
    squared = one.norm**2 + other.norm**2 - 2 * inner
    return {"cosine": inner / sizes if sizes else 0.0, "distance": math.sqrt(max(0.0, squared))}


def random_phi(d: int, r: int, s: int, seed: int = 0, draws: int = 4) -> np.ndarray:
    """Mean of :func:`phi` for random Gaussian matrices ``(d, r)`` and ``(d, s)``; ``max(i, j) / d`` in expectation."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(draws):
        one, other = (torch.linalg.qr(torch.randn(d, k, generator=generator, dtype=torch.float64))[0] for k in (r, s))
        found.append(phi(one, other))
    mean: np.ndarray = np.mean(found, axis=0)
    return mean


def amplification(update: Update, W: Tensor) -> tuple[float, float]:
    """How much the update amplifies what the weight does in its own directions (section 7.3, table 7).

    Returns ``|U^T W V|_F`` of the update's ``k`` directions (those that :meth:`Update.rank_at` counts), and the
    amplification factor ``|delta W|_F / |U^T W V|_F``. ``W (out, in)``.
    """
    keep = max(1, update.rank_at())
    inside = update.left[:, :keep].T @ W.double() @ update.right[:, :keep]
    size = float(inside.norm())
    return size, update.norm / size if size else math.inf


@dataclass(frozen=True, eq=False)
class Comparison:
    """Plain tables of what :func:`compare_adapters` has found.

    ``modules``: a row an adapter and module: ``adapter, module, role, layer, rank, norm, effective_rank, stable_rank,
    rank_90, weight_norm, projected, amplification, random_amplification``. ``pairs``: a row a pair of adapters and
    module: ``first, second, module, role, layer, side, phi_1, phi_r, random_phi_1, random_phi_r, cosine, distance``.
    ``heat``: by ``(first, second, side)`` the mean :func:`phi` over modules ``(r, r')`` and that of random matrices.
    ``spectra``: by ``(adapter, module)`` the singular values.
    """

    names: tuple[str, ...]
    modules: pd.DataFrame
    pairs: pd.DataFrame
    heat: Mapping[tuple[str, str, str], tuple[np.ndarray, np.ndarray]]
    spectra: Mapping[tuple[str, str], np.ndarray]


def compare_adapters(references: Sequence[Reference], *, weights: bool = True) -> Comparison:
    """The subspaces of adapters of one base model, each alone and every two of them.

    ``weights`` also reads the base's, for the amplification factor.

    Raises:
        MethodError: an adapter that is no low-rank update.
    """
    shell = hollow(references[0].model)
    updates: dict[str, dict[str, Update]] = {}
    for reference in references:
        if reference.folder is None:
            raise MethodError(f"{reference.name}: there is no adapter to look into, it is the base model.")
        factors = low_rank(load_adapter(reference.folder, shell), reference.name)
        updates[reference.name] = {module: Update.of(factor) for module, factor in factors.items()}
    source = _weights(shell, {module for one in updates.values() for module in one}) if weights else None
    roles = _roles(shell)
    pairs, heat = _pairs(updates, roles)
    return Comparison(
        tuple(updates),
        pd.DataFrame(_modules(updates, roles, shell, source)),
        pd.DataFrame(pairs),
        heat,
        {(name, module): one.values.numpy() for name, found in updates.items() for module, one in found.items()},
    )


def _weights(shell: BaseModel, modules: Iterable[str]) -> Weights:
    folder = files_of(shell)
    if folder is not None and getattr(shell.model.config, "quantization_config", None) is None:
        stored = Stored(folder, shell.model, shell.spec)
        if stored.covers(f"{module}.weight" for module in modules):
            return stored
    return Held(load_base(shell.spec))


def _roles(shell: BaseModel) -> dict[str, str]:
    """The role of each module; a fused one has the names of all of its."""
    found: dict[str, str] = {}
    for role in ROLES:
        for module in shell.roles.get(role, ()):
            found[module] = f"{found[module]}+{role}" if module in found else role
    return found


def _modules(
    updates: Mapping[str, Mapping[str, Update]], roles: Mapping[str, str], shell: BaseModel, source: Weights | None
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    by_module: dict[str, list[tuple[str, Update]]] = {}
    for name, found in updates.items():
        for module, update in found.items():
            by_module.setdefault(module, []).append((name, update))
    names = dict(shell.model.named_modules())
    words = next(path for path, one in names.items() if one is shell.model.get_input_embeddings())
    for module, mine in by_module.items():
        W = None if source is None else _weight(source, module, names[module], words)
        for name, update in mine:
            row: dict[str, object] = {
                "adapter": name,
                "module": module,
                "role": roles.get(module, ""),
                "layer": layer_of(module),
                "rank": len(update.values),
                "norm": update.norm,
                "effective_rank": update.effective_rank,
                "stable_rank": update.stable_rank,
                "rank_90": update.rank_at(),
            }
            if W is not None:
                size, factor = amplification(update, W)
                chance = float(W.double().norm()) * max(1, update.rank_at()) / math.sqrt(W.shape[0] * W.shape[1])
                row |= {
                    "weight_norm": float(W.double().norm()),
                    "projected": size,
                    "amplification": factor,
                    "random_amplification": update.norm / chance if chance else math.inf,
                }
            rows.append(row)
    return rows


def _weight(source: Weights, module: str, shell_module: torch.nn.Module, words: str) -> Tensor:
    name = f"{module}.weight"
    stored = any(name in names for names in source.shards().values())
    W = source.read(name if stored else f"{words}.weight")
    return W.t() if type(shell_module).__name__ == "Conv1D" else W


def _pairs(
    updates: Mapping[str, Mapping[str, Update]], roles: Mapping[str, str]
) -> tuple[list[dict[str, object]], dict[tuple[str, str, str], tuple[np.ndarray, np.ndarray]]]:
    rows: list[dict[str, object]] = []
    heat: dict[tuple[str, str, str], tuple[np.ndarray, np.ndarray]] = {}
    chances: dict[tuple[int, int, int], np.ndarray] = {}
    for first, second in itertools.combinations(updates, 2):
        shared = [module for module in updates[first] if module in updates[second]]
        for side in SIDES:
            tables, randoms = [], []
            for module in shared:
                one, other = updates[first][module], updates[second][module]
                mine, theirs = one.basis(side), other.basis(side)
                found = phi(mine, theirs)
                key = (len(mine), *found.shape)
                if key not in chances:
                    chances[key] = random_phi(*key)
                tables.append(found)
                randoms.append(chances[key])
                rows.append(
                    {
                        "first": first,
                        "second": second,
                        "module": module,
                        "role": roles.get(module, ""),
                        "layer": layer_of(module),
                        "side": side,
                        "phi_1": float(found[0, 0]),
                        "phi_r": float(found[-1, -1]),
                        "random_phi_1": float(chances[key][0, 0]),
                        "random_phi_r": float(chances[key][-1, -1]),
                        **apart(one, other),
                    }
                )
            if tables:
                r, s = min(len(t) for t in tables), min(t.shape[1] for t in tables)
                heat[first, second, side] = (
                    np.mean([t[:r, :s] for t in tables], axis=0),
                    np.mean([t[:r, :s] for t in randoms], axis=0),
                )
    return rows, heat
