"""The steps of tables, by the verb of the command line. A step for another verb is an entry here."""

from __future__ import annotations

from densepath.benchmark.steps.images import CLASSIFY
from densepath.benchmark.steps.outlines import DETECT, PROBE, SAM
from densepath.benchmark.steps.pretraining import PRETRAIN
from densepath.benchmark.steps.slides import EMBED, MIL, TOKENS
from densepath.benchmark.steps.step import Step

STEPS: dict[str, Step] = {step.verb: step for step in (PRETRAIN, PROBE, DETECT, SAM, CLASSIFY, EMBED, MIL, TOKENS)}
TASKS = ("probe", "detect", "classify", "mil", "show tokens")  # the verbs of tasks
