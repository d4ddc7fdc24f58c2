"""Runs whose keys or predicted pixels no longer depend on the images are reported; healthy ones are not."""

import inspect

import pytest
import torch
from torch import nn

from densepath.methods import C2L, METHODS, PCLV2, PCRL, ModelGenesis, PCRLReleased
from densepath.methods.collapse import CollapseAlarm, output_spread
from densepath.views.maker import ViewMaker

OPTIONS = {PCRL: {"attention": "factored"}, PCLV2: {"warmup": 1.0}}
CONTRASTS = [kind for kind in METHODS.values() if "standardize" in inspect.signature(kind).parameters]
ROWS = 5  # after which the alarm is raised: 50 steps with a row of measurements every ten


def build(make, kind, **options):
    return make(kind, "test_resnet", **OPTIONS.get(kind, {}), **options)


def lines_of(method, images, spoil=None, every=1):
    """What is reported in a run of five rows of measurements, and the row of the first line."""
    seen = {name: view for name, view in method.views().items() if name not in method.unused_views}
    batch = ViewMaker(seen, 32, seed=0)(images)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    lines, first, rows = [], None, []
    for step in range(1, ROWS * every + 1):
        if spoil:
            spoil(method)
        method.before_step(batch)
        losses = method(batch)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        method.after_step()
        rows.append({name: float(value) for name, value in losses.statistics.items()})
        if step % every == 0:
            row = {name: sum(each[name] for each in rows) / every for name in rows[0]}
            rows.clear()
            lines += [line for line in method.warnings(row, last=False) if line.startswith("collapse")]
            first = first or (step // every if lines else None)
    return lines, first


@torch.no_grad()
def flatten_output(method):
    """The known failure: one value for all pixels."""
    nn.init.zeros_((method.pixels if hasattr(method, "pixels") else method.head)[0].weight)


@torch.no_grad()
def equal_keys(method):
    head = method.projector if isinstance(method, PCRL) else method.head
    last = head.fc2 if hasattr(head, "fc2") else head
    nn.init.zeros_(last.weight), nn.init.ones_(last.bias)
    follower = (method.key_projector if isinstance(method, PCRL) else method.key_head).network
    follower.load_state_dict(head.state_dict())


@pytest.mark.parametrize("kind", [ModelGenesis, PCRL, PCRLReleased])
def test_constant_output_is_reported_after_five_rows(make, images, kind):
    lines, row = lines_of(build(make, kind), images, flatten_output)
    assert "the predicted pixels are nearly constant" in lines[0] and row == ROWS


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("kind", CONTRASTS)
def test_equal_keys_are_reported_after_five_rows(make, images, kind, standardize):
    lines, row = lines_of(build(make, kind, standardize=standardize), images, equal_keys)
    assert "the keys of all images are nearly the same" in lines[0] and row == ROWS


@pytest.mark.parametrize("kind", CONTRASTS)
def test_the_spread_of_keys_is_that_before_they_are_standardized(make, images, kind):
    spreads = []
    for standardize in (False, True):
        method = build(make, kind, standardize=standardize)
        seen = {name: view for name, view in method.views().items() if name not in method.unused_views}
        spreads.append(method(ViewMaker(seen, 32, seed=0)(images)).statistics["key_spread"])
    torch.testing.assert_close(*spreads)
    assert spreads[0] < 0.9  # of standardized keys it is nearly 1


@pytest.mark.parametrize("kind", [*CONTRASTS, ModelGenesis])
def test_healthy_runs_are_not_reported(make, images, kind):
    options = {"standardize": True} if kind in CONTRASTS else {}
    assert lines_of(build(make, kind, **options), images, every=4) == ([], None)


def test_a_healthy_run_whose_keys_are_not_standardized_is_not_reported(make, images):
    assert lines_of(build(make, C2L), images, every=4) == ([], None)


def test_only_five_low_rows_in_a_row_count():
    alarm = CollapseAlarm()
    for value in (0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0):
        assert alarm({"key_spread": value}) == []
    assert len(alarm({"key_spread": 0.0})) == 1
    constant = torch.tensor([4.0, 5.0]).view(1, 2, 1, 1).expand(3, 2, 4, 4)
    assert output_spread(constant, torch.randn(3, 2, 4, 4)) == 0
