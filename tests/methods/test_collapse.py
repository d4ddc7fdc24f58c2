"""Runs whose keys or predicted pixels no longer depend on the images are reported; healthy ones are not."""

import pytest
import torch
from torch import nn

from densepath.methods import C2L, PCRL, ModelGenesis
from densepath.methods.collapse import CollapseAlarm, output_spread
from densepath.views.maker import ViewMaker

OPTIONS = {PCRL: {"attention": "factored"}}
STEPS, EVERY = 50, 10


def lines_of(method, images, spoil=None):
    """What is reported in a run of 60 steps, and the step of the first line."""
    seen = {name: view for name, view in method.views().items() if name not in method.unused_views}
    batch = ViewMaker(seen, 32, seed=0)(images)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    lines, first, rows = [], None, []
    for step in range(1, STEPS + 1):
        if spoil:
            spoil(method)
        method.before_step(batch)
        losses = method(batch)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        method.after_step()
        rows.append({name: float(value) for name, value in losses.statistics.items()})
        if step % EVERY == 0:
            row = {name: sum(each[name] for each in rows) / EVERY for name in rows[0]}
            rows.clear()
            lines += method.warnings(row, last=False)
            first = first or (step if lines else None)
    return lines, first


@torch.no_grad()
def flatten_output(method):
    """The known failure: one value for all pixels."""
    nn.init.zeros_(method.head[0].weight)


@torch.no_grad()
def equal_keys(method):
    head = method.projector if isinstance(method, PCRL) else method.head
    last = head.fc2 if hasattr(head, "fc2") else head
    nn.init.zeros_(last.weight), nn.init.ones_(last.bias)
    follower = (method.key_projector if isinstance(method, PCRL) else method.key_head).network
    follower.load_state_dict(head.state_dict())


@pytest.mark.parametrize("kind", [ModelGenesis, PCRL])
def test_constant_output_is_reported_within_200_steps(make, images, kind):
    lines, step = lines_of(make(kind, "test_resnet", **OPTIONS.get(kind, {})), images, flatten_output)
    assert "the predicted pixels are nearly constant" in lines[0] and step < 200


@pytest.mark.parametrize("kind", [C2L, PCRL])
def test_equal_keys_are_reported_within_200_steps(make, images, kind):
    lines, step = lines_of(make(kind, "test_resnet", **OPTIONS.get(kind, {})), images, equal_keys)
    assert "the keys of all images are nearly the same" in lines[0] and step < 200


@pytest.mark.parametrize("kind", [C2L, PCRL, ModelGenesis])
def test_healthy_runs_are_not_reported(make, images, kind):
    assert lines_of(make(kind, "test_resnet", **OPTIONS.get(kind, {})), images) == ([], None)


def test_only_five_low_rows_in_a_row_count():
    alarm = CollapseAlarm()
    for value in (0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0):
        assert alarm({"key_spread": value}) == []
    assert len(alarm({"key_spread": 0.0})) == 1
    constant = torch.tensor([4.0, 5.0]).view(1, 2, 1, 1).expand(3, 2, 4, 4)
    assert output_spread(constant, torch.randn(3, 2, 4, 4)) == 0
