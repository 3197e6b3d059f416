"""Optimizers and learning-rate schedules, one table each."""
