"""Tiles, and processes that may be killed."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def tiles(tmp_path):
    """A folder of 40 images of 64 px, smooth enough that views of one image are alike."""
    return draw_tiles(tmp_path / "tiles")


def draw_tiles(folder):
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(40):
        coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture
def run_scenario(tmp_path, forked_python):
    """Play a scenario of a program here in ``tmp_path``; gives its result and what it wrote to stderr."""

    def play(scenario, program="process_scenarios.py", python=(forked_python,)):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [*python, Path(__file__).parent / program, scenario, tmp_path]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), done.stderr

    return play
