"""There is one training loop, and nothing else in the package computes gradients or updates weights."""

import ast
from pathlib import Path

import densepath

SOURCE = Path(densepath.__file__).parent
LOOP = "training/loop.py"
FIT = "transfer/probe/logistic.py"  # convex: L-BFGS to the optimum, with a gradient by its formula


def calls(path):
    """The names of the methods and functions that a file calls, with their receiver where that is a name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            receiver = node.func.value
            name = receiver.attr if isinstance(receiver, ast.Attribute) else getattr(receiver, "id", "")
            yield name, node.func.attr


def places(wanted):
    files = {str(path.relative_to(SOURCE)): set(calls(path)) for path in SOURCE.rglob("*.py")}
    assert len(files) > 100
    return {name for name, found in files.items() if any(wanted(receiver, call) for receiver, call in found)}


def test_gradients_are_computed_only_in_the_loop():
    assert places(lambda receiver, call: call in ("backward", "grad") and receiver != "dist") == {LOOP}


def test_optimizers_step_only_in_the_loop():
    assert places(lambda receiver, call: call == "step" and receiver in ("optimizer", "solver")) == {LOOP, FIT}


def test_each_part_of_a_step_stands_in_the_loop_in_order():
    loop = ast.parse((SOURCE / LOOP).read_text())
    (train,) = (node for node in loop.body if isinstance(node, ast.FunctionDef) and node.name == "train")
    found = sorted(
        (node.lineno, node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id)
        for node in ast.walk(train)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)
    )
    names = [name for _, name in found]
    order = ["before_step", "model", "backward", "freeze", "clip_gradients", "step", "zero_grad", "after_step"]
    order += ["require_finite", "evaluate", "collect", "write", "save"]
    places = [names.index(name) for name in order]
    assert places == sorted(places)
    assert len((SOURCE / LOOP).read_text().splitlines()) <= 195


def test_lightnings_trainer_is_not_used():
    names = ("LightningModule", "Trainer", "Callback", "lightning.pytorch", "lightning as")
    texts = {path.name: path.read_text() for path in SOURCE.rglob("*.py")}
    assert [path for path, text in texts.items() if any(name in text for name in names)] == []
    assert "lightning.fabric" in texts["processes.py"]
