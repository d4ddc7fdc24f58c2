"""Pictures reach the loggers."""

import sys
from types import SimpleNamespace

from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from densepath.training.loggers import log_picture


class FakeWandb(WandbLogger):
    """That of Lightning, but for its account and its network."""

    def __init__(self):
        self.logged = []

    def log_metrics(self, metrics, step=None):
        self.logged.append((metrics, step))


def test_wandb_gets_a_picture_under_its_name_and_step(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Image=Image.open))
    path = tmp_path / "some_views_0000012.png"
    Image.new("RGB", (3, 2), "red").save(path)
    logger = FakeWandb()
    log_picture(logger, path, 12)
    (((metrics, step),),) = (logger.logged,)
    (image,) = metrics.pop("some_views")
    assert (metrics, step) == ({}, 12)
    assert image.size == (3, 2) and image.getpixel((0, 0)) == (255, 0, 0)
