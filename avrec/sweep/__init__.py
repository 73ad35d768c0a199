"""Sweeps: an Optuna study over training runs, which Hydra composes and launches."""

TRIAL = "AVREC_TRIAL"
"""Environment variable of a run inside a sweep: NUMBER@FOLDER."""
