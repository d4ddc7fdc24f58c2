"""The command line: what it accepts, what it prints, and how it fails."""

from __future__ import annotations

import inspect
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

import densepath
from densepath import cli
from densepath.cli import main
from densepath.core.errors import UserError
from densepath.core.stopwatch import Stopwatch
from densepath.methods import METHODS
from densepath.runs.signals import Interrupted
from densepath.synthetic.tissue import write_tissue
from densepath.training.config import PretrainConfig
from densepath.training.recipes import load_recipe, recipe_names
from densepath.training.resolve import resolve
from densepath.transfer.detection.object_metrics import OBJECT_METRICS
from densepath.verbs import SHARED, VERBS
from densepath.views.augment import Augment

SIZE = 64
CommandLine = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set: train/, test/, annotations/, tiles/."""
    return write_tissue(tmp_path_factory.mktemp("cli") / "tissue", train=2, test=1, tiles=8, size=SIZE, seed=1)


@pytest.fixture
def folder(tmp_path: Path, tissue: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the data set under the name ``tissue``."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tissue, "tissue")
    return tmp_path


SMALL = "--batch_size 4 --view_size 64 --method.queue_size 16 --method.concept_queue_size 64 --devices cpu"
PRETRAIN = f"pretrain --config concl_small --data tissue/tiles --max_steps 2 --method.num_concepts 4 {SMALL} --out run"
DETECT = (
    "detect --data tissue --detector mask_rcnn_fpn_small --max_steps 1 --batch_size 1 --train_size 64 64 "
    "--test_size 64 --workers 0 --devices cpu --out run"
)


# What takes long to import, and what help needs none of.
HEAVY = ["timm", "torchvision", "lightning", "sklearn", "skimage", "scipy.ndimage", "scipy.stats", "matplotlib.pyplot"]

METHOD_HELPS = ("spark", "vq_kd", "supervised")


@pytest.mark.parametrize(
    ("words", "unwanted"),
    [
        ("--help", ["torch", "numpy"]),
        ("--version", ["torch", "numpy"]),
        ("data", ["torch", "numpy"]),
        ("detect --help", ["torch", *HEAVY]),
        (", ".join(["pretrain --help", *(f"pretrain --method {name} --help" for name in METHOD_HELPS)]), HEAVY),
    ],
)
def test_help_imports_only_what_it_shows(words: str, unwanted: list[str]) -> None:
    """Commands with a comma between them run one after another: each may import torch, which takes long."""
    lines = [line.split() for line in words.split(", ")]
    code = (
        f"import sys; from densepath.cli import main; assert [main(line) for line in {lines}] == [0] * {len(lines)};"
        f"found = [name for name in {unwanted!r} if name in sys.modules];"
        "methods = [name for name in sys.modules if name.startswith('densepath.methods.')];"
        "assert 'densepath.methods.mae' not in methods, methods; sys.exit(f'it imports {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if words == "--version":
        assert done.stdout == f"densepath {densepath.__version__}\n"
    if words == "--help":
        assert all(name in done.stdout for name in VERBS)


def test_python_dash_m_is_the_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "densepath", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"densepath {densepath.__version__}\n")


@pytest.mark.parametrize("name", VERBS)
def test_help_of_a_verb_explains_every_parameter(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = VERBS[name].function.partition(":")[0]
    assert find_spec(f"densepath.{module}")
    assert main([*name.split(), "--help", "all"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    command = VERBS[name].command(name)
    for parameter in inspect.signature(command.schema).parameters:
        if parameter != "method_options":
            option = parameter if parameter in command.positional else f"--{parameter}"
            assert option in text
    assert not re.search(r"--\w+\+|default: \)", text)  # a form of lists that is refused, a default that is empty
    # An option without a description would be followed by its type at once.
    assert not re.search(r"--[\w.]+(?: [A-Z_]+)? \((?:required, )?type:", text)


def test_help_shows_about_ten_options_and_the_values_of_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(line: str) -> str:
        assert main(line.split()) == 0
        return " ".join(capsys.readouterr().out.split())

    for verb in ("pretrain", "detect"):
        short, everything = shown(f"{verb} --help"), shown(f"{verb} --help all")
        options = re.findall(r" (--[\w.]+)(?=[ ,])", short.partition("everyday options:")[2].rpartition(" more")[0])
        named = {"--data", "--out", "--config", "--weights", "--lr", "--batch_size", "--resume"}
        assert named <= set(options) and len(set(options)) <= 14
        assert f"densepath {verb} --help all" in short and "--log_every" not in short and "--log_every" in everything
    recipe = load_recipe("concl_small")
    for line in ("pretrain --help --config concl_small", "pretrain --config concl_small --help all"):
        text = shown(line)
        assert re.search(rf"--max_steps MAX_STEPS [^-]*default: {recipe['max_steps']}\)", text)
        assert re.search(rf"--(?:optimizer\.)?lr LR .*?default: {recipe['optimizer']['lr']}\)", text)
    assert re.search(rf"--method.queue_size QUEUE_SIZE [^-]*default: {recipe['method_options']['queue_size']}\)", text)
    assert main(["pretrain", "--config", "conlc_small", "--help"]) == 2


def test_a_shell_completes_verbs_options_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["--print_completion", "bash"]) == 0
    script = (
        capsys.readouterr().out
        + """
    try() {
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
        _shtab_densepath densepath "${COMP_WORDS[COMP_CWORD]}"; echo "${COMPREPLY[@]}"
    }
    try densepath data g; try densepath pretrain --method.mask_r; try densepath pretrain --config byol_
    try densepath detect --l
    """
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["glas", "--method.mask_ratio", "byol_small", "--lr --log_every"], done.stderr
    assert main(["--print_completion", "zsh"]) == 0  # with the texts of options, which may have a %
    assert "only where that is at most 3" in capsys.readouterr().out
    assert main(["--print_completion", "fish"]) == 2
    assert "bash, zsh, tcsh" in capsys.readouterr().err


@pytest.mark.parametrize("method", METHODS)
def test_options_of_a_method_are_its_constructor(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--method", method, "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    parameters = list(inspect.signature(METHODS[method]).parameters.values())[1:]
    assert printed["method"] == method
    defaults = {p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in parameters}
    assert printed["method_options"] == defaults


def augment_of(recipe: dict[str, object]) -> Augment:
    """How views vary by what a recipe holds, without what its method declares."""
    augment = resolve(PretrainConfig, None, {"data": "tiles", "out": "run", "augment": recipe["augment"]}).augment
    assert augment is not None
    return augment


BLURRED = {"byol", "dino", "dino_imix", "cellback", "dirl", "dino_sup", "dirl_byol"}  # always, in the first view
BLURRED |= {"esvit", "selfpatch", "ibot"}


@pytest.mark.parametrize("method", [method for method in METHODS if method != "hipt_region"])  # no options
def test_one_option_of_the_views_leaves_the_methods_others(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    """MAE with another scale of crops keeps its colors, and does not get MoCo-v2's. BYOL's views become alike."""
    for words in ("--augment.scale 0.3 0.9", "--augment.scale=[0.3,0.9]", "--no_augment.quarter_turns"):
        assert main(["pretrain", "--method", method, *words.split(), "--print_config"]) == 0
        printed = augment_of(yaml.safe_load(capsys.readouterr().out))
        own = Augment.of_view(next(iter(METHODS[method].views().values())))
        assert own is not None
        own = replace(own, blur=0.5) if method in BLURRED else own
        assert printed == replace(own, scale=(0.3, 0.9) if "scale" in words else own.scale)


def test_one_option_of_the_views_leaves_the_others_of_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--config", "simclr_small", "--augment.rotation", "9", "--print_config"]) == 0
    printed = augment_of(yaml.safe_load(capsys.readouterr().out))
    assert printed == replace(augment_of(load_recipe("simclr_small")), rotation=9.0)


@pytest.mark.parametrize("name", recipe_names())
def test_printed_config_of_a_recipe_is_a_recipe(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--config", name, "--print_config"]) == 0
    first = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(first)
    assert main(["pretrain", "--config", str(tmp_path / "printed.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--method.num_concepts 5", {"method_options.num_concepts": 5, "method_options.queue_size": 512}),
        ("--method moco_v2 --method.dim 64", {"method": "moco_v2", "method_options.dim": 64}),
        ("--epochs 3", {"epochs": 3.0, "max_steps": None}),
        ("--max_steps 7", {"epochs": None, "max_steps": 7}),
        ("--optimizer.name adamw", {"optimizer.name": "adamw", "optimizer.lr": 0.06}),
        ("--augment.scale 0.1 0.5", {"augment.scale": [0.1, 0.5], "augment.flip": 0.5}),
        ("--augment.scale [0.1,0.5]", {"augment.scale": [0.1, 0.5]}),
        ("--augment.quarter_turns", {"augment.quarter_turns": True}),
        ("--no_channels_last --resume", {"channels_last": False, "resume": True, "augment.stain": 0.5}),
        ("--loggers tensorboard wandb", {"loggers": ["tensorboard", "wandb"]}),
        ("--precision 32 --devices 2", {"precision": "32", "devices": 2}),
        ("--lr 1e-3", {"optimizer.lr": 0.001, "optimizer.name": "sgd"}),
        ("--optimizer.lr 1e-3 --probe_data 7", {"optimizer.lr": 0.001, "probe_data": "7"}),
    ],
)
def test_options_override_the_recipes(
    words: str, expected: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    for line in (f"--config concl_small {words}", f"{words} --config=concl_small"):
        assert main(["pretrain", *line.split(), "--print_config"]) == 0
        config = yaml.safe_load(capsys.readouterr().out)
        for key, value in expected.items():
            found = config
            for name in key.split("."):
                found = found[name]
            assert found == value, key


@pytest.mark.parametrize(
    "words", [["--exclude", "*a", "b"], ["--exclude", "*a", "--exclude", "b"], ["--exclude=*a", "--exclude=b"]]
)
def test_a_repeated_option_of_several_texts_adds_to_them(words: list[str]) -> None:
    assert VERBS["pretrain"].command("pretrain").parse(["--data", "d", "--out", "o", *words])["exclude"] == ("*a", "b")


@pytest.mark.parametrize(
    ("words", "name", "values"),
    [
        ("detect --data d --out o --train_size 64 80 --train_size 96 112", "train_size", (96, 112)),
        ("classify --data d --out o --view_size 64 --view_size 96", "view_size", 96),
    ],
)
def test_a_repeated_option_of_a_pair_or_a_number_has_its_last_value(words: str, name: str, values: object) -> None:
    verb, *rest = words.split()
    assert VERBS[verb].command(verb).parse(rest)[name] == values


@pytest.mark.parametrize(
    "words", ["segment --data d --out o --ignore 255 --ignore 254", "probe --stages [3,4] --stages=5"]
)
def test_a_repeated_list_of_numbers_is_refused(words: str) -> None:
    verb, *rest = words.split()
    with pytest.raises(UserError, match="is given twice; give all its values after one"):
        VERBS[verb].command(verb).parse(rest)


@pytest.mark.parametrize(
    ("word", "texts"),
    [("[ab]*.png", ("[ab]*.png",)), ('["[ab]*", c]', ("[ab]*", "c")), ("[a", ("[a",)), ("[]", ())],
)
def test_a_text_after_an_equals_sign_may_be_a_list(word: str, texts: tuple[str, ...]) -> None:
    words = ["--data", "d", "--out", "o", f"--exclude={word}"]
    assert VERBS["pretrain"].command("pretrain").parse(words)["exclude"] == texts


@pytest.mark.parametrize(
    "names", [["0", "1"], ["runs, old", "random"], ["run #2"], ["a: b", "[c]", "null", "1e3"], ["\U0001f600", "ü"]]
)
def test_several_names_may_be_any_text(names: list[str]) -> None:
    words = ["--data", "tiles", "--out", "c.png", "--weights", *names]
    command = VERBS["show concepts"].command("show concepts")
    assert command.parse(words)["weights"] == command.parse_recipe({"weights": names})["weights"] == names


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["report", "r\udcff"], "runs"),
        (["pretrain", "--data", "d", "--out", "o", "--exclude", "*", "r\udcff"], "--exclude"),
    ],
)
def test_texts_that_are_not_utf8_are_refused(words: list[str], name: str) -> None:
    """Those of names of files that are not, as Python hands them over."""
    with pytest.raises(UserError, match=f"^{name} takes texts in UTF-8, not r\\\\udcff; rename the file or folder"):
        VERBS[words[0]].command(words[0]).parse(words[1:])


@pytest.mark.parametrize("name", recipe_names("detect"))
def test_a_recipe_of_detect_sets_its_options(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = load_recipe(name, "detect")
    assert main(["detect", "--config", name, "--seed", "7", "--batch_size", "4", "--print_config"]) == 0
    first = capsys.readouterr().out
    assert yaml.safe_load(first).items() >= (said | {"seed": 7, "batch_size": 4}).items()
    (tmp_path / "printed.yaml").write_text(first)
    assert main(["detect", "--config", str(tmp_path / "printed.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == first


def test_the_recipe_of_glas_is_what_detect_does_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for line in ("detect --config glas --print_config", "detect --print_config"):
        assert main(line.split()) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert main(["detect", "--help"]) == 0
    assert "crag, glas, glas_small, monuseg" in " ".join(capsys.readouterr().out.split())


def test_the_whole_way_through_the_verbs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(line: str) -> str:
        assert main(line.split()) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert run("data pack tissue/tiles tiles.safetensors").endswith("tiles.safetensors\n")
    assert run(PRETRAIN.replace("tissue/tiles", "tiles.safetensors")) == "run\n"
    assert yaml.safe_load(Path("run/config.yaml").read_text())["method_options"]["num_concepts"] == 4
    assert Path("run/exported/backbone.safetensors").is_file()
    assert {"train.log", "sessions.yaml", "curves.png", "views.png"} <= {path.name for path in Path("run").iterdir()}
    log = Path("run/train.log").read_text()
    assert "densepath: weights: run/exported/backbone.safetensors" in log and "(chance is " in log
    run("export run --layout torchvision --out weights.safetensors")
    scores = dict(line.split(maxsplit=1) for line in run("probe --data tissue --weights run --size 64").splitlines())
    assert 5 < float(scores["mean_iou"]) <= 100 and scores["scale"] == "percent"
    assert (
        Path(run("show views --data tissue/tiles --out views.png --count 2 --view_size 64").strip()).stat().st_size > 0
    )
    run("data tissue large --train 2 --test 1 --size 128")
    assert Path(
        run("show concepts --data large/train --weights run random --out concepts.png --count 2").strip()
    ).is_file()
    scores = dict(line.split() for line in run(DETECT.replace("--out run", "--weights run --out found")).splitlines())
    ap = {f"{kind}_{name}" for kind in ("box", "mask") for name in ("ap", "ap50", "ap75")}
    assert set(scores) == ap | set(OBJECT_METRICS)


# What a user may do wrong. Each: what happens to the data first, the command, and what its one line must say.
def _nothing(folder: Path) -> None:
    pass


def _empty(folder: Path) -> None:
    (folder / "none").mkdir()


def _unreadable(folder: Path) -> None:
    for path in (folder / "tissue" / "tiles").iterdir():
        path.write_bytes(b"no image")


def _text_file(folder: Path) -> None:
    (folder / "file").write_text("text")


def _small(folder: Path) -> None:
    for path in (folder / "tissue" / "tiles").iterdir():
        Image.open(path).resize((20, 20)).save(path)


def _other_run(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text("method: concl\n")


def _other_files(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "thesis.txt").write_text("precious")


def _stopped_run(folder: Path) -> Path:
    assert main(PRETRAIN.split()) == 0
    return folder / "run" / "checkpoints" / "last.ckpt"


def _truncated_checkpoint(folder: Path) -> None:
    checkpoint = _stopped_run(folder)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])


def _foreign_checkpoint(folder: Path) -> None:
    _stopped_run(folder).write_bytes(b"PK\3\4 something else")


def _foreign_weights(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"encoder.first": torch.zeros(3), "encoder.second": torch.zeros(3)}, folder / "foreign.safetensors")


def _pickled_code(folder: Path) -> None:
    import pickle

    (folder / "evil.pth").write_bytes(pickle.dumps(print))


def _missing_images(folder: Path) -> None:
    for path in (folder / "tissue" / "train").iterdir():
        path.unlink()


def _other_instances(folder: Path) -> None:
    (folder / "tissue" / "annotations" / "train.json").write_text("{}")


def _glas(folder: Path, mask: tuple[int, int], names: tuple[str, str] = ("train_1", "train_1")) -> None:
    (folder / "glas").mkdir()
    for name in (names[0], "testA_1"):
        Image.new("RGB", (40, 30)).save(folder / "glas" / f"{name}.bmp")
    Image.new("L", mask).save(folder / "glas" / f"{names[1]}_anno.bmp")
    Image.new("L", (40, 30)).save(folder / "glas" / "testA_1_anno.bmp")


def _masks_of_another_size(folder: Path) -> None:
    _glas(folder, (30, 40))


def _masks_of_another_name(folder: Path) -> None:
    _glas(folder, (40, 30), ("train_1", "train_2"))


def _recipe(text: str) -> object:
    def write(folder: Path) -> None:
        (folder / "mine.yaml").write_text(text)

    return write


MISTAKES = {
    "unknown verb": (_nothing, "pretrian --data x", "did you mean pretrain"),
    "empty verb": (_nothing, [""], "unknown verb ''; there are: demo, data, "),
    "option instead of a verb": (_nothing, "-v", "unknown option -v; see densepath --help"),
    "unknown verb of a group": (_nothing, "data glass a b", "did you mean data glas"),
    "no verb of that group": (_nothing, "show gland", "show views"),
    "unknown option": (_nothing, f"{PRETRAIN} --epoch 3", "did you mean --epochs"),
    "unknown option of a method": (
        _nothing,
        f"{PRETRAIN} --method.num_concept 3",
        "did you mean --method.num_concepts",
    ),
    "option of a part without its name": (
        _nothing,
        f"{PRETRAIN} --num_concept 3",
        "did you mean --method.num_concepts",
    ),
    "unknown option like that of recipes": (_nothing, f"{PRETRAIN} --confg moco_v2", "did you mean --config?"),
    "unknown option like that of methods": (_nothing, f"{PRETRAIN} --metod moco_v2", "did you mean --method?"),
    "option of two parts": (_nothing, f"{PRETRAIN} --momentum 3", "--optimizer.momentum or --method.momentum"),
    "option of another verb's part": (_nothing, f"{DETECT} --optimizer.lr 3", "did you mean --lr?"),
    "option of another method": (_nothing, f"{PRETRAIN} --method moco_v2", "unknown option --method."),
    "option without a value": (_nothing, "export run --out", "--out needs a value"),
    "switch with a value": (_nothing, f"{PRETRAIN} --resume=false", "--resume takes no value; give --resume"),
    "switch with a value after a space": (
        _nothing,
        f"{PRETRAIN} --resume true",
        "--resume takes no value; give --resume",
    ),
    "switch that is off with a value": (_nothing, f"{PRETRAIN} --no_resume=1", "takes no value; give --resume or"),
    "recipe without a name": (_nothing, "pretrain --config", "--config needs a value"),
    "recipe of no character": (_nothing, "pretrain --config=", "--config needs a value"),
    "old name of an option": (_nothing, "export run --to w.pth", "--to is now --out"),
    "old name of a regular expression": (
        _nothing,
        "data instances a b --patient x",
        "--patient is now --patient_regex",
    ),
    "old name of the label maps": (_nothing, "show concepts --concept_files x", "--concept_files is now --regions"),
    "old name of a method's option": (_nothing, f"{PRETRAIN} --method.concept_cache x", "is now --cache_dir"),
    "one word too many": (_nothing, "export run another", "another"),
    "required options": (_nothing, "pretrain --config concl_small", "--data and --out must be given"),
    "required words": (_nothing, "data pack tissue/tiles", "dest must be given"),
    "text for a number": (_nothing, f"{PRETRAIN} --seed one", "--seed takes a whole number, not 'one'"),
    "seed beyond 64 bits": (_nothing, f"{PRETRAIN} --seed {10**20}", "2^63 - 1"),
    "negative seed": (_nothing, "probe --data tissue --weights random --seed -1", "seed is -1"),
    "seed of a detector beyond 64 bits": (_nothing, f"{DETECT} --seed {10**20}", "2^63 - 1"),
    "seed of a picture beyond 64 bits": (
        _nothing,
        f"show views --data tissue/tiles --view_size 64 --count 1 --out views.png --seed {10**20}",
        "2^63 - 1",
    ),
    "views without a pixel": (_nothing, PRETRAIN.replace("--view_size 64", "--view_size 0"), "view_size is 0"),
    "too few values": (_nothing, f"{DETECT} --train_size 64", "--train_size takes 2 values, each a whole number"),
    "unknown choice": (_nothing, "export run --layout tim", "did you mean timm"),
    "unknown recipe": (_nothing, f"{PRETRAIN} --config conlc", "did you mean concl"),
    "recipe of another verb": (_nothing, f"{DETECT} --config concl", "there are: crag, glas, glas_small, monuseg"),
    "anchors of no level": (_nothing, f"{DETECT} --anchor_sizes 8 16", "give 5 sizes"),
    "unknown method": (_nothing, f"{PRETRAIN} --method moco_v3", "moco_v2"),
    "unknown backbone": (_nothing, f"{PRETRAIN} --backbone resnet1", "resnet1"),
    "recipe that is not YAML": (_recipe("{"), f"{PRETRAIN} --config mine.yaml", "mine.yaml"),
    "recipe that is not a mapping": (_recipe("- 1"), f"{PRETRAIN} --config mine.yaml", "mine.yaml"),
    "recipe with an unknown option": (_recipe("epoch: 1"), f"{PRETRAIN} --config mine.yaml", "did you mean epochs"),
    "recipe with text for a number": (_recipe("seed: one"), f"{PRETRAIN} --config mine.yaml", "'one'"),
    "recipe with null for a path": (
        _recipe("labels: null"),
        f"{PRETRAIN} --config mine.yaml",
        "the recipe mine.yaml: labels takes text or path, not null",
    ),
    "recipe with a class": (
        _recipe("augment: {class_path: os.system, init_args: {command: touch owned}}"),
        f"{PRETRAIN} --config mine.yaml",
        "augment.class_path",
    ),
    "recipe with a tag": (
        _recipe("seed: !!python/object/apply:os.system [touch owned]"),
        "pretrain --config mine.yaml",
        "mine",
    ),
    "steps of a verb that counts epochs": (
        _nothing,
        "classify --data tissue --labels folders --out run --max_steps 5",
        "unknown option --max_steps; densepath classify counts epochs, so give --epochs",
    ),
    "missing folder": (_nothing, PRETRAIN.replace("tissue/tiles", "nowhere"), "nowhere"),
    "empty folder": (_empty, PRETRAIN.replace("tissue/tiles", "none"), "none"),
    "no readable image": (_unreadable, PRETRAIN, "tissue/tiles"),
    "images too small": (_small, PRETRAIN, "20 px"),
    "unknown stage": (_nothing, f"{PRETRAIN} --method.stage 6", "6"),
    "more concepts than positions": (_nothing, f"{PRETRAIN} --method.num_concepts 17", "16 positions of stage f4"),
    "queue smaller than a batch": (_nothing, f"{PRETRAIN} --method.queue_size 3", "smaller than a batch of 4"),
    "batch larger than the data": (_nothing, f"{PRETRAIN} --batch_size 16", "16"),
    "epochs and steps": (_nothing, f"{PRETRAIN} --epochs 1 --max_steps 1", "epochs and max_steps"),
    "no such weights": (_nothing, "probe --data tissue --weights nowhere.safetensors", "nowhere.safetensors"),
    "foreign weights": (
        _foreign_weights,
        "probe --data tissue --weights foreign.safetensors",
        "foreign.safetensors do not show which",
    ),
    "weights with code": (_pickled_code, "probe --data tissue --weights evil.pth", "evil.pth"),
    "no run to export": (_nothing, "export nowhere", "nowhere"),
    "folder of another run": (_other_run, PRETRAIN, "run already holds a run"),
    "folder with other files": (_other_files, PRETRAIN, "run already exists"),
    "file in the place of a folder": (_text_file, PRETRAIN.replace("--out run", "--out file/run"), "file"),
    "truncated checkpoint": (_truncated_checkpoint, f"{PRETRAIN} --resume", "last.ckpt"),
    "foreign checkpoint": (_foreign_checkpoint, f"{PRETRAIN} --resume", "last.ckpt"),
    "resume with another seed": (_stopped_run, f"{PRETRAIN} --resume --seed 5", "seed"),
    "COCO JSON with missing images": (_missing_images, DETECT, "train"),
    "COCO JSON without images": (_other_instances, DETECT, "train.json"),
    "no instances": (_nothing, DETECT.replace("tissue", "nowhere"), "nowhere"),
    "unknown detector": (_nothing, f"{DETECT} --detector yolo", "yolo"),
    "unknown schedule": (_nothing, DETECT.replace("--max_steps 1", "--schedule 4x"), "4x"),
    "nothing to evaluate": (_nothing, f"{DETECT} --evaluate", "run"),
    "masks of another size": (_masks_of_another_size, "data glas glas run", "train_1"),
    "masks of another name": (_masks_of_another_name, "data glas glas run", "train_1"),
    "no GlaS": (_empty, "data glas none run", "none"),
    "data where something stands": (_other_files, "data tissue run", "run already exists"),
    "picture that is none": (_nothing, "show views --data tissue/tiles --out views.doc", "views.doc"),
    "reconstruction of no run": (
        _nothing,
        "show reconstruction --data tissue/tiles --run tissue --out r.png",
        "tissue is not the folder of a pre-training run",
    ),
}


def _contents(folder: Path) -> dict[Path, bytes]:
    """What lies in a folder, except for logs, to which an error of a resumed run is appended."""
    paths = [path for path in folder.rglob("*") if path.name != "train.log"]
    return {path: path.read_bytes() if path.is_file() else b"" for path in paths}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gives_one_line_and_leaves_nothing(
    mistake: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare, line, expected = MISTAKES[mistake]
    prepare(folder)
    before = _contents(folder)
    capsys.readouterr()
    code = main(line.split() if isinstance(line, str) else line)
    error = [text for text in capsys.readouterr().err.splitlines() if not text.startswith("densepath: resnet18 with")]
    assert code == 2
    assert len(error) == 1, error
    assert error[0].startswith("densepath: error: ")
    assert expected in error[0]
    assert _contents(folder) == before


MEMORY = "this machine has not enough memory; end other programs, or raise the limit (see ulimit -a)"
LARGE = "a number is too large for any machine ({}); look at the options"
THREADS = "no more threads can be started; raise the limit on processes or on memory (see ulimit -a)"


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "run/last.ckpt"), 2, "run/last.ckpt: No space left on device"),
        (PermissionError(13, "Permission denied", "run"), 2, "run: Permission denied"),
        (RuntimeError("can't start new thread"), 2, THREADS),
        (OverflowError("int too big to convert"), 2, LARGE.format("int too big to convert")),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 2, MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), 2, MEMORY),
    ],
)
def test_what_the_system_refuses_is_one_line(
    error: BaseException, code: int, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> None:
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    assert main(["report"]) == code
    assert capsys.readouterr().err == f"densepath: error: {expected}\n"


@pytest.mark.parametrize(
    ("verb", "advice"),
    [
        ("pretrain", "lower --batch_size or --view_size or --workers"),
        ("detect", "lower --batch_size or --train_size or --workers"),
        ("embed", "lower --batch_size or --size"),
    ],
)
def test_the_advice_against_short_memory_names_options_of_the_verb(
    verb: str, advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> None:
        raise MemoryError

    monkeypatch.setattr(cli, "_run", fail)
    assert main(verb.split()) == 2
    assert f"this machine has not enough memory; {advice}\n" in capsys.readouterr().err


def test_a_run_that_was_stopped_ends_the_command_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python 3.14 an exit that is a KeyboardInterrupt as well shows one."""

    def stopped(argv: list[str]) -> None:
        raise Interrupted(15)

    monkeypatch.setattr("densepath.cli._run", stopped)
    with pytest.raises(SystemExit) as stop:
        main(["pretrain"])
    assert type(stop.value) is SystemExit and stop.value.code == 143


def test_a_bug_shows_where_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(argv: list[str]) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(cli, "_run", fail)
    assert main(["probe", "--data", "my data"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "ZeroDivisionError: a bug" in error
    assert error.splitlines()[-1].endswith("densepath probe --data 'my data'")


@pytest.mark.parametrize(
    ("call", "place"), [("F.nll_loss(None, None)", "/home/me/mine.py, line 6"), ("warp(0, 0, 0, 0)", "")]
)
def test_an_error_in_a_users_method_is_theirs(
    call: str, place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imports = (
        "import torch.nn.functional as F\nfrom densepath.core.affine import warp\nfrom densepath.methods import Method"
    )
    module: dict[str, Any] = {}
    exec(compile(f"{imports}\n\ndef forward():\n    {call}\n", "/home/me/mine.py", "exec"), module)
    monkeypatch.setattr(cli, "_run", lambda argv: module["forward"]())
    assert main(["pretrain"]) == (2 if place else 1)
    *lines, last = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and place in last and ("bug in densepath" in last) == (not place)


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["data", "pack", "", "x.safetensors"], "source"),
        (["report", "run", ""], "runs"),
        (["show", "curves", "--runs", "", "--out", "x.png"], "--runs"),
        (["show", "views", "--data", "", "--out", "x.png"], "--data"),
        (["show", "attention", "--data", "x", "--out", "y", "--weights", "random", ""], "--weights"),
        (["slides", "--data", "x", "--mpp_table="], "--mpp_table"),
        (["pretrain", "--data", "x", "--out="], "--out"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(
    words: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unset variable of the shell gives one."""
    assert main(words) == 2
    assert capsys.readouterr().err == f"densepath: error: an empty path does not exist; give {option} a path\n"


@pytest.mark.parametrize("verb", ["data check {}/list.csv --count 0", "slides --data {}/a.tif --default_mpp 1"])
@pytest.mark.parametrize("full", [True, False])
def test_a_full_disk_under_a_table_is_an_error_and_a_closed_pipe_is_not(
    verb: str, full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64, 3), np.uint8), tile=(32, 32), photometric="rgb")
    (tmp_path / "list.csv").write_text("file\na.tif\n")
    reading, writing = os.pipe()
    os.close(reading)
    with open("/dev/full" if full else writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(verb.format(tmp_path).split()) == (2 if full else 0)
    if full:
        os.close(writing)
    says = (
        "densepath: error: stdout cannot be written (No space left on device); free disk space or redirect it elsewhere"
    )
    assert (says in capsys.readouterr().err) == full


def test_a_closed_pipe_is_not_an_error() -> None:
    command = [sys.executable, "-m", "densepath", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_public_functions_are_those_of_the_verbs() -> None:
    names = {name: verb.function.replace(":", ".") for name, verb in VERBS.items()}
    code = (
        "import densepath, sys; assert 'torch' not in sys.modules;"
        f"names = {sorted(names.values())!r};"
        "short = [name.rpartition('.')[2] for name in names]; assert set(short) <= set(dir(densepath));"
        "found = [getattr(densepath, name) for name in short];"
        "assert all(callable(function) for function in found), found;"
        "assert found == [getattr(densepath, name) for name in short]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        _ = densepath.pretrian


MEAN = """
from densepath.methods.base import Losses, Method
from densepath.views.declarations import RandomView

class Mean(Method):
    \"\"\"A method of a user's own: features of unit mean.

    Args:
        backbone: what is trained.
        target: the mean that features should have.
    \"\"\"

    def __init__(self, backbone, target: float = 1.0):
        super().__init__()
        self.backbone, self.target = backbone, target

    @staticmethod
    def views(augment=None):
        return {"image": augment or RandomView()}

    def forward(self, batch):
        loss = (self.backbone(batch["image"].pixels)[self.backbone.deepest].mean() - self.target).square()
        return Losses(loss, {"mean_loss": loss.detach()})

    def exported_backbone(self):
        return self.backbone
"""


def test_a_method_in_a_file_of_its_own_trains_resumes_and_exports(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command_line: CommandLine,
) -> None:
    (folder / "mymodule.py").write_text(MEAN)

    def run(line: str) -> tuple[int, str, str]:
        """The exit code, stdout and stderr of a command that has not imported the file."""
        capsys.readouterr()
        monkeypatch.delitem(sys.modules, "mymodule", raising=False)
        return main(line.split()), *capsys.readouterr()

    small = "--backbone test_resnet --batch_size 4 --view_size 64 --devices cpu --max_steps 4 --workers 0"
    pretrain = f"pretrain --method mymodule:Mean --method.target 2 --data tissue/tiles {small}"
    code, out, err = run(f"{pretrain} --out whole --save_every_steps 2")
    assert (code, out) == (0, "whole\n"), err
    config = yaml.safe_load(Path("whole/config.yaml").read_text())
    assert (config["method"], config["method_options"]) == ("mymodule:Mean", {"target": 2.0})
    shutil.copytree("whole", "cut")
    shutil.move("cut/checkpoints/previous.ckpt", "cut/checkpoints/last.ckpt")
    shutil.rmtree("cut/exported")
    resumed = command_line(f"{pretrain} --out cut --save_every_steps 2 --resume", Path.cwd())
    _, err = resumed.communicate(timeout=300)
    assert resumed.returncode == 0 and "step 2 of 4" in err, err
    whole, cut = (Path(name, "exported", "backbone.safetensors") for name in ("whole", "cut"))
    assert whole.read_bytes().split(b"}", 1)[1][-4096:] == cut.read_bytes().split(b"}", 1)[1][-4096:]
    assert run("export whole --layout timm --out weights.safetensors")[0] == 0
    _, help_of_it, _ = run("pretrain --method mymodule:Mean --help all")
    assert "the mean that features should have" in " ".join(help_of_it.split())
    for wrong, expected in (
        ("mymodule:Meen", "did you mean Mean?"),
        ("mymodul:Mean", "there is no mymodul.py in"),
        ("mymodule:RandomView", "mymodule has no method 'RandomView'"),
    ):
        code, _, err = run(f"pretrain --method {wrong} --data tissue/tiles --out other")
        assert code == 2 and err.count("\n") == 1 and expected in err, err


def log(run: object) -> str:
    return Path(str(run), "train.log").read_text()


def test_python_takes_a_recipe_as_the_command_line_does(folder: Path) -> None:
    assert main([*PRETRAIN.split(), "--optimizer.lr", "0.1"]) == 0
    small = {"batch_size": 4, "view_size": 64, "devices": "cpu"}
    queues = {"num_concepts": 4, "queue_size": 16, "concept_queue_size": 64}
    options = {"optimizer": {"lr": 0.1}, "method_options": queues, "max_steps": 2, **small}
    before = random.getstate()
    out = densepath.pretrain(config="concl_small", data="tissue/tiles", out="other", **options)
    assert random.getstate() == before  # the generators are the caller's
    assert Path(out) == Path("other") and out["loss"] > 0 and "densepath: next: " + out.next[0] in log(out)
    assert out.plot("views").width > out.plot().height > 0
    first, second = (yaml.safe_load(Path(run, "config.yaml").read_text()) for run in ("run", "other"))
    assert first.pop("out") == "run" and second.pop("out") == "other"
    assert first == second and first["optimizer"]["lr"] == 0.1 and first["augment"]["stain"] == 0.5
    for wrong, expected in (
        ({"lr": 0.2, "optimizer": {"lr": 0.1}}, "lr and optimizer.lr are the same option; give it once"),
        ({"bach_size": 4}, r"unknown option bach_size; did you mean batch_size\?"),
        ({"optimizer": {"rl": 1}}, r"unknown option optimizer\.rl; did you mean optimizer\.lr\?"),
        ({"method_options": {"num_concept": 1}}, r"did you mean method\.num_concepts\?"),
        ({"seed": "one"}, "seed takes a whole number, not 'one'"),
        ({"config": "conlc_small"}, "did you mean concl_small"),
        ({"method": "mocov2"}, "did you mean moco_v2"),
    ):
        with pytest.raises(densepath.UserError, match=expected):
            densepath.pretrain(**{"config": "concl_small", "data": "tissue/tiles", "out": "third", **wrong})
    with pytest.raises(densepath.UserError, match="unknown option bach_size; did you mean batch_size"):
        densepath.detect("glas", data="tissue", out="third", bach_size=2)
    assert not Path("third").exists()


@pytest.mark.parametrize(
    ("verb", "variables", "printed"),
    [
        ("score", {"SLURM_PROCID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}, True),
        ("embed", {"SLURM_PROCID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}, False),
        ("embed", {"SLURM_PROCID": "1"}, True),  # not of a step of several tasks
        ("embed", {"RANK": "1", "LOCAL_RANK": "0"}, False),
        ("tile", {"LOCAL_RANK": "1"}, False),
        ("tile", {"RANK": "0", "LOCAL_RANK": "0"}, True),
    ],
)
def test_of_processes_that_share_their_work_the_first_prints_the_result(
    verb: str,
    variables: dict[str, str],
    printed: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    cli._report(verb, Path("result") if verb != "score" else {"f1": 0.5}, Stopwatch())
    assert bool(capsys.readouterr().out) == printed


def test_the_work_of_verbs_with_shards_is_shared() -> None:
    assert {name for name, verb in VERBS.items() if "shard" in verb.command(name).options()} <= set(SHARED)
