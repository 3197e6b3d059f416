"""The ways in which low-rank adapters are combined; :mod:`lora_lab.methods.combining` does it and says what each is."""

from __future__ import annotations

EXACT = ("sum", "cat")
ON_FACTORS = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
ON_PRODUCTS = ("svd", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd")
WAYS = (*EXACT, *ON_FACTORS, *ON_PRODUCTS)
SPARSE = tuple(way for way in WAYS if way not in (*EXACT, "linear", "svd"))
"""Those that keep a share of the entries."""
