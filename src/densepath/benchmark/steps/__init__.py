"""The steps of tables, by the verb of the command line. A step for another verb is an entry here."""

from __future__ import annotations

from densepath.benchmark.steps.attention import ATTENTION
from densepath.benchmark.steps.images import CLASSIFY, PROBE_CLASSES, PROBE_TASK
from densepath.benchmark.steps.masks import SEGMENT
from densepath.benchmark.steps.outlines import DETECT, PROBE, SAM
from densepath.benchmark.steps.pretraining import PRETRAIN
from densepath.benchmark.steps.slides import EMBED, MIL, TOKENS
from densepath.benchmark.steps.step import Step

_ALL = (PRETRAIN, PROBE, PROBE_TASK, PROBE_CLASSES, DETECT, SAM, CLASSIFY, SEGMENT, EMBED, MIL, TOKENS, ATTENTION)
STEPS: dict[str, Step] = {step.verb: step for step in _ALL}
TASKS = tuple(verb for verb in STEPS if verb not in (PRETRAIN.verb, EMBED.verb, SAM.verb))  # the verbs of tasks
