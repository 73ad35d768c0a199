"""Hydra's entry to avrec's sweeper: Hydra accepts plugins from the namespace package hydra_plugins only."""

from avrec.sweep import hydra_sweeper


class StudySweeper(hydra_sweeper.StudySweeper):
    __doc__ = hydra_sweeper.StudySweeper.__doc__
