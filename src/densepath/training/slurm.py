"""SLURM as the launcher of a run."""

from __future__ import annotations

import os

from lightning.fabric.plugins.environments import SLURMEnvironment

from densepath.core.system import slurm_tasks


class Slurm(SLURMEnvironment):
    """Lightning's environment, for all steps that srun can start: it asks for ``--ntasks-per-node``, and all nodes."""

    def __init__(self) -> None:
        # Without Lightning's own re-queueing: the run saves itself on SIGTERM and continues with --resume.
        super().__init__(auto_requeue=False)

    @staticmethod
    def detect() -> bool:
        """Whether this process belongs to a job of SLURM that is not interactive.

        Lightning's function also warns on every machine that has ``srun``.
        """
        return "SLURM_NTASKS" in os.environ and SLURMEnvironment.job_name() not in ("bash", "interactive")

    @staticmethod
    def _validate_srun_variables() -> None:
        return

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Nothing to compare: both numbers come from the step's variables."""

    def world_size(self) -> int:
        """Number of tasks of the step."""
        return slurm_tasks()
