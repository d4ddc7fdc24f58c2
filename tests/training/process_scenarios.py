"""Runs in processes of their own, so that they can be killed; forked from one that has imported everything.

Usage: python process_scenarios.py SCENARIO FOLDER. Prints how each process ended, as JSON.
"""

import json
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

# densepath imports these when a run needs them: the forked processes get them from this one.
import lightning.fabric.strategies  # noqa: F401
import timm  # noqa: F401
import torch
import torchvision  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))
from toy import Toy, fit_toy

from densepath.core import files
from densepath.methods import PCLV2
from densepath.runs import checkpoints
from densepath.synthetic.slide import write_slide
from densepath.training.intervals import Intervals
from densepath.training.optimizers import Optimizer
from densepath.training.pretrain import pretrain
from densepath.training.pretrain_task import PretrainTask
from densepath.training.validation import Patience
from densepath.views.augment import Augment
from densepath.views.maker import ViewMaker
from densepath.views.view import View

multiprocessing.set_start_method("fork")  # so that workers know what is replaced here; not Python 3.14's default
OPTIONS = {
    "moco_v2": {"queue_size": 40},
    "concl": {"queue_size": 40, "concept_queue_size": 64, "num_concepts": 3, "stage": 3, "warmup": 0.25},
    "pcl_v2": {"queue_size": 40, "num_clusters": (9, 15), "num_negatives": 4, "warmup": 0.25},
}
STEPS = 12


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def run_method(folder, method, out, changes=None, **options):
    pretrain(
        data=options.pop("data", folder / "tiles"),
        out=folder / out,
        method=method,
        method_options=OPTIONS[method] | (changes or {}),
        backbone="test_resnet",
        max_steps=STEPS,
        batch_size=8,
        view_size=48,
        log_every=1,
        precision="32",
        resume=True,
        save_every_steps=2,
        **options,
    )


def in_step(number, act):
    """Let something happen in the midst of the process's step ``number``."""
    calls, forward = iter(range(10**6)), PretrainTask.forward

    def disturbed(self, inputs):
        outputs = forward(self, inputs)
        if next(calls) == number:
            act()
        return outputs

    PretrainTask.forward = disturbed


def in_feature_pass(number, act):
    """Let something happen before the process describes its part ``number`` of the images."""
    calls, extract_features = iter(range(10**6)), PCLV2.extract_features

    def disturbed(self, pixels):
        if next(calls) == number:
            act()
        return extract_features(self, pixels)

    PCLV2.extract_features = disturbed


def in_float64():
    """Compute in float64: what rounding does within a dozen steps then stays small."""
    init, make_views = PretrainTask.__init__, ViewMaker.__call__

    def double_init(self, method, *settings):
        init(self, method.double(), *settings)

    def make_double(self, images):
        batch = make_views(self, images)
        return replace(batch, views={name: View(view.pixels.double(), view.map) for name, view in batch.views.items()})

    PretrainTask.__init__, ViewMaker.__call__ = double_init, make_double


def in_saving(number, moment):
    """Die in the process's checkpoint ``number``, while it is written or between its two renames."""
    calls = iter(range(10**6))
    replace, seal = os.replace, checkpoints._seal

    def dying_seal(path):
        if moment == "write" and next(calls) == number:
            os.truncate(path, path.stat().st_size // 2)
            die()
        seal(path)

    def dying_replace(source, target):
        replace(source, target)
        if moment == "rename" and str(target).endswith("previous.ckpt") and next(calls) == number:
            die()

    checkpoints._seal, checkpoints.os.replace = dying_seal, dying_replace


def in_writing(name, moment):
    """Die when the file of that name is half written, or when it has been given its name."""
    sync, replace = files._sync, os.replace

    def dying_sync(path):
        if moment == "write" and name in path.name:
            os.truncate(path, path.stat().st_size // 2)
            die()
        sync(path)

    def dying_replace(source, target):
        replace(source, target)
        if moment == "rename" and Path(target).name == name:
            die()

    files._sync, files.os.replace = dying_sync, dying_replace


def fork(action, **environment):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        os.environ.update(environment)
        action()
        code = 0
    except SystemExit as stop:
        code = stop.code
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_after(seconds, action):
    """Run something in a process that is killed after a while, wherever it is."""
    child = fork(action)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return ended(child)


def killed(folder):
    """Of each method an undisturbed run and one that dies again and again; one run also dies by the clock."""
    codes, took = {}, {}
    for method in OPTIONS:
        started = time.monotonic()
        whole = ended(fork(lambda name=method: run_method(folder, name, f"{name}.whole")))
        took[method] = time.monotonic() - started
        codes[method] = [whole, *cut(folder, method)]
    return codes | {"shot": shot(folder, "concl", took["concl"])}


def cut(folder, method):
    """A run that dies at random steps and at awkward moments."""
    draw = random.Random(method)
    early, late, stop = draw.randrange(0, 3), draw.randrange(2, 4), draw.randrange(1, 3)
    disturbances = [
        lambda: in_writing("config.yaml", "write"),
        lambda: in_step(early, die),
        lambda: in_saving(0, "write"),
        lambda: in_step(late, die),
        lambda: in_saving(1, "rename"),
        lambda: in_step(stop, lambda: os.kill(os.getpid(), signal.SIGTERM)),
        lambda: in_writing("backbone.safetensors", "write"),
        lambda: None,
    ]

    def disturbed(disturb):
        disturb()
        run_method(folder, method, f"{method}.cut")

    return [ended(fork(lambda d=disturb: disturbed(d))) for disturb in disturbances]


def shot(folder, method, took):
    """A run with a process that decodes, killed by the clock, wherever it is."""
    chance = random.Random()

    def run():
        run_method(folder, method, f"{method}.shot", workers=1)

    return [kill_after(chance.uniform(0.2, 0.8) * took, run) for _ in range(2)] + [ended(fork(run))]


def slides(folder):
    """A run on slides, tiled on the fly, and one that dies while it tiles, in a step, and by Ctrl-C."""
    for seed in (0, 1):
        write_slide(folder / "slides" / f"s{seed}.tiff", size=(576, 640), levels=(1, 2), seed=seed)

    def run(out, disturb=lambda: None):
        disturb()
        options = {"mpp": 1.0, "tile_size": 48, "shuffle": "block", "fraction": 0.9, "workers": 1}
        run_method(folder, "moco_v2", out, data=folder / "slides", **options)

    disturbances = [
        lambda: in_writing("slides.csv", "write"),
        lambda: in_step(3, die),
        lambda: in_step(1, lambda: os.kill(os.getpid(), signal.SIGINT)),
        lambda: None,
    ]
    cut = [ended(fork(lambda d=disturb: run("cut", d))) for disturb in disturbances]
    return [*cut, ended(fork(lambda: run("whole")))]


def two(action):
    """Run something in two processes, with the environment that torchrun gives them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}
    children = [fork(action, RANK=rank, LOCAL_RANK=rank, **shared) for rank in "01"]
    return [ended(child) for child in children]


def processes(folder):
    """A run of one process, the same in two, and in two of which the second gets a stop signal, or which end early."""
    intervals, saving = Intervals(log_every=5), Intervals(log_every=5, save_every_steps=5)
    between = Intervals(log_every=5, save_every_steps=3)  # stopped and saved between two rows

    def only(rank, act):
        """What one of the processes does."""
        return lambda: act() if os.environ["RANK"] == rank else None

    def write_little():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))

    stop = only("1", lambda: os.kill(os.getpid(), signal.SIGTERM))

    def cut(module=None, images=24, **options):
        return fit_toy(folder / "cut", 20, module, intervals=between, facts={"images": images}, **options)

    def by_rank(*values):
        return values[int(os.environ["RANK"])]

    def method(out, stop=None, kind="concl", **options):
        in_float64()
        if stop and kind == "pcl_v2":
            in_feature_pass(1, stop)
        elif stop:
            in_step(4, stop)
        run_method(folder, kind, out, augment=Augment(blur=0), **options)

    def ended_early():
        Patience.ended = lambda self: float(self.lowest) < 1e9  # after the first evaluation
        method("method_early", kind="moco_v2", val_share=0.5, patience=1)

    def keep(name, toy):
        torch.save(toy.state_dict(), folder / f"{name}.{os.environ.get('RANK', 0)}.pt")

    return [
        ended(fork(lambda: keep("one", fit_toy(folder / "one", 20, Toy(noise=0.0), size=12)))),
        two(lambda: keep("even", fit_toy(folder / "even", 20, Toy(noise=0.0), intervals=intervals))),
        ended(fork(lambda: keep("parts", fit_toy(folder / "parts", 20, Toy(noise=0.0), size=12, accumulate=3)))),
        two(lambda: keep("parts2", fit_toy(folder / "parts2", 20, Toy(noise=0.0), accumulate=3))),
        two(lambda: keep("whole", fit_toy(folder / "whole", 20, intervals=between))),
        two(lambda: cut(Toy(at_step={6: stop}))),
        two(lambda: cut(images=by_rank(24, 16), resume=True)),
        two(lambda: cut(resume=by_rank(True, False))),
        two(lambda: keep("cut", cut(resume=True))),
        two(lambda: cut(resume=by_rank(True, False))),  # complete in one of them
        two(lambda: fit_toy(folder / "loggers", 20, loggers=by_rank(["none"], []))),
        two(lambda: fit_toy(folder / "maps", 20, checksums={"regions": by_rank("a", "b")})),
        two(lambda: fit_toy(folder / "precision", 20, config={"precision": by_rank("32", "bf16-mixed")})),
        two(lambda: fit_toy(folder / "weights", 20, config={"weights": by_rank("a", "b")})),
        two(lambda: fit_toy(folder / "data", 20, facts={"images": by_rank(24, 16)})),
        two(lambda: fit_toy(folder / "digest", 20, facts={"images": 24, "sizes": by_rank("a", "b")})),
        two(
            lambda: fit_toy(
                folder / "options", 20, config={"lr": by_rank(0.1, 0.2), "data": by_rank("a", "b")}, free=["data"]
            )
        ),
        two(lambda: fit_toy(folder / "nan", 20, Toy(at_step={7: lambda: float("nan")}), intervals=intervals)),
        two(lambda: fit_toy(folder / "gone", 20, Toy(at_step={13: only("1", die)}), intervals=saving)),
        two(lambda: fit_toy(folder / "early", 20, Toy(at_step={3: only("0", die)}), intervals=saving)),
        two(lambda: fit_toy(folder / "full", 20, Toy(at_step={0: only("0", write_little)}), intervals=saving)),
        two(lambda: method("method")),
        two(lambda: method("method_cut", stop=stop)),
        two(lambda: method("method_cut")),
        ended(fork(lambda: method("method_one", batch_norm_group=4))),
        two(lambda: method("feature_pass", kind="pcl_v2")),
        two(lambda: method("feature_pass_cut", stop=stop, kind="pcl_v2")),
        two(lambda: method("feature_pass_cut", kind="pcl_v2")),
        ended(fork(lambda: method("feature_pass_one", kind="pcl_v2", batch_norm_group=4))),
        two(ended_early),
    ]


VIT = "vit_tiny_patch16_224(class_token=False, global_pool='avg', fc_norm=False, depth=2, embed_dim=24, num_heads=3)"
DINO = {"prototypes": 33, "hidden_dim": 16, "dim": 8, "local_crops": 2, "local_size": 0.5, "momentum": 0.9}


def sharded(folder):
    """DINO in one process, and in two with DDP and with FSDP, which is also stopped and resumed."""
    adamw = Optimizer(name="adamw", lr=1e-3, clip_norm=0.3, clip="tensor", freeze=("heads.*.prototypes.*",))

    def run(out, disturb=lambda: None, **options):
        in_float64()
        disturb()
        given = {
            "data": folder / "tiles",
            "out": folder / out,
            "method": "dino",
            "method_options": DINO,
            "backbone": VIT,
        }
        given |= {"max_steps": 6, "batch_size": 8, "accumulate": 2, "view_size": 64, "log_every": 1, "precision": "32"}
        given |= {"save_every_steps": 2, "keep_every": 1, "picture_every": 0, "optimizer": adamw, "resume": True}
        pretrain(**{**given, "augment": Augment(blur=0), **options})

    def stop():
        if os.environ["RANK"] == "1":
            in_step(5, lambda: os.kill(os.getpid(), signal.SIGTERM))

    return [
        ended(fork(lambda: run("one"))),
        two(lambda: run("ddp")),
        two(lambda: run("fsdp", strategy="fsdp")),
        two(lambda: run("cut", stop, strategy="fsdp")),
        two(lambda: run("cut", strategy="fsdp")),
    ]


if __name__ == "__main__":
    where = Path(sys.argv[2])
    scenarios = {"killed": killed, "processes": processes, "slides": slides, "sharded": sharded}
    print(json.dumps(scenarios[sys.argv[1]](where)))
