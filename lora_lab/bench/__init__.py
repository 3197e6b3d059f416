"""Scores of a trained adapter beyond its loss: exact match by greedy generation."""
