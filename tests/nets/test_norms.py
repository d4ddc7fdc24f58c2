"""Batch norms over groups of images, against plain ones over each group."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from timm.layers import SplitBatchNorm2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from densepath.core.errors import UserError
from densepath.nets import norms
from densepath.nets.backbones import build_backbone
from densepath.nets.norms import (
    group_batch_norm,
    normalize_rows,
    normalized_together,
    plain_batch_norm,
    set_batch_norm,
    synchronize_batch_norm,
)
from densepath.nets.running_statistics import gather_statistics, name_statistics, set_statistics


def layer(**options):
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(5, **options).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def grouped(norm, group):
    group_batch_norm(norm, group)
    return norm


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_groups_have_statistics_of_their_own(memory_format):
    x = torch.randn(6, 5, 4, 4).double() * 3 + torch.arange(6.0).view(6, 1, 1, 1)
    x = x.to(memory_format=memory_format).requires_grad_()
    norm, plain = grouped(layer(), 2), layer()
    out = norm(x)
    assert out.is_contiguous(memory_format=memory_format)

    expected = torch.empty_like(x)
    for i in (0, 2, 4):
        part = x[i : i + 2]
        variance, mean = torch.var_mean(part, (0, 2, 3), correction=0, keepdim=True)
        expected[i : i + 2] = (part - mean) / (variance + 1e-5).sqrt()
    expected = expected * plain.weight.view(1, -1, 1, 1) + plain.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(out, expected)
    weights = torch.randn_like(x)
    ours = torch.autograd.grad((out * weights).sum(), (x, norm.weight, norm.bias))
    theirs = torch.autograd.grad((expected * weights).sum(), (x, plain.weight, plain.bias))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_group_has_all_views_of_its_images(memory_format):
    x = torch.randn(12, 5, 4, 4).double().to(memory_format=memory_format)  # three views of each of four images
    norm, consecutive = layer(), grouped(layer(), 6)
    group_batch_norm(norm, 2, images=4)
    order = torch.tensor([0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11])
    out = norm(x)
    assert out.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(out[order], consecutive(x[order]))
    torch.testing.assert_close(norm.running_var, consecutive.running_var)
    rows, ours, theirs = torch.randn(12, 5), nn.BatchNorm1d(5), grouped(nn.BatchNorm1d(5), 6)
    group_batch_norm(ours, 2, images=4)
    valid = torch.arange(12) % 5 > 0
    torch.testing.assert_close(
        normalize_rows(ours, rows, valid)[order], normalize_rows(theirs, rows[order], valid[order])
    )
    with pytest.raises(UserError, match="a batch of 6 images cannot be divided into batch-norm groups of 2"):
        norm(x[:6])


@pytest.mark.parametrize(("kind", "images"), [(nn.BatchNorm1d, 0), (nn.BatchNorm2d, 4), (nn.BatchNorm3d, 0)])
def test_a_compiled_norm_is_the_same_in_one_expression(kind, images):
    spatial = [3, 2, 4][: {nn.BatchNorm1d: 0, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}[kind]]
    x = torch.randn(8, 5, *spatial).double() * 3 + torch.arange(8.0).view(-1, 1, *[1] * len(spatial))
    made, weights = [], torch.randn_like(x)
    for compiled in (False, True):
        torch.manual_seed(1)
        norm = kind(5).double()
        nn.init.normal_(norm.weight)
        group_batch_norm(norm, 2, images)
        run = torch.compile(norm, backend="eager", fullgraph=True) if compiled else norm
        inputs = x.clone().requires_grad_()
        out = run(inputs)
        gradients = torch.autograd.grad((out * weights).sum(), (inputs, norm.weight, norm.bias))
        made.append((out.detach(), *gradients, norm.running_mean, norm.running_var, norm.num_batches_tracked))
    torch.testing.assert_close(made[1], made[0])


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_follow_the_mean_of_the_groups(momentum):
    norm, plain = grouped(layer(momentum=momentum), 2), [layer(momentum=momentum) for _ in range(3)]
    for _ in range(2):
        x = torch.randn(6, 5, 4, 4).double() * 3 + torch.arange(6.0).view(6, 1, 1, 1)
        norm(x)
        for part, one in zip(x.split(2), plain, strict=True):
            one(part)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(norm, name), torch.stack([getattr(one, name) for one in plain]).mean(0))
    assert norm.num_batches_tracked == 2


def test_a_batch_that_groups_do_not_divide_is_refused_only_in_training():
    norm, x = grouped(layer(), 4), torch.randn(6, 5, 4, 4).double()
    with pytest.raises(UserError, match="6 images cannot be divided into batch-norm groups of 4"):
        norm(x)
    assert torch.equal(norm.eval()(x), layer().eval()(x))
    assert torch.equal(norm.train()(x[:4]), layer()(x[:4]))


@pytest.mark.parametrize(
    "name", ["test_resnet", "mobilenetv3_small_050"]
)  # the second has timm's norms with activation
@pytest.mark.parametrize("convert", [lambda net: group_batch_norm(net, 2), synchronize_batch_norm])
def test_a_converted_network_is_the_same_network(name, convert):
    network, plain = build_backbone(name), build_backbone(name)
    plain.load_state_dict(network.state_dict())
    convert(network)
    assert list(network.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    for mode in (True, False):
        torch.testing.assert_close(network.train(mode)(x), plain.train(mode)(x))
    torch.testing.assert_close(network.state_dict(), plain.state_dict())
    back = plain_batch_norm(network)
    kinds = [type(norm) for norm in plain.modules() if isinstance(norm, _BatchNorm)]
    assert [type(norm) for norm in back.modules() if isinstance(norm, _BatchNorm)] == kinds
    torch.testing.assert_close(back.train()(x), plain.train()(x))


def test_groups_of_a_network_do_not_touch_each_other():
    network, plain = build_backbone("mobilenetv3_small_050"), build_backbone("mobilenetv3_small_050")
    plain.load_state_dict(network.state_dict())
    group_batch_norm(network, 2)
    x = torch.randn(4, 3, 64, 64)
    torch.testing.assert_close(network(x)[5], torch.cat((plain(x[:2])[5], plain(x[2:])[5])))


def test_statistics_go_out_and_come_back_by_their_names():
    network, other = build_backbone("test_resnet"), build_backbone("test_resnet")
    network(torch.randn(2, 3, 64, 64))
    numbers = gather_statistics(network)
    assert len(numbers) == 1
    state = network.state_dict()
    named = name_statistics(network, numbers[0])
    assert len(named) == 2 * sum(isinstance(norm, _BatchNorm) for norm in network.modules())
    assert all(torch.equal(state[name], value) for name, value in named.items())
    set_statistics(other, numbers[0])
    torch.testing.assert_close({name: other.state_dict()[name] for name in named}, named)
    assert gather_statistics(nn.Linear(2, 2)).shape == (1, 0)


@pytest.mark.parametrize("group", [0, 2, 3])
def test_norms_of_volumes_are_those_of_their_planes(group):
    """A volume of one row of voxels after another is an image of as many rows, in numbers and gradients."""
    torch.manual_seed(0)
    flat, deep = nn.BatchNorm2d(5).double(), nn.BatchNorm3d(5).double()
    for norm in (flat, deep):
        set_batch_norm(norm, "per_process", group)
    x = (torch.randn(6, 5, 6, 4).double() * 3 + torch.arange(6.0).view(6, 1, 1, 1)).requires_grad_()
    out, volumes = flat(x), deep(x.view(6, 5, 2, 3, 4))
    torch.testing.assert_close(volumes.view_as(out), out)
    weights = torch.randn_like(out)
    grads = [torch.autograd.grad((y * weights.view_as(y)).sum(), x)[0] for y in (out, volumes)]
    torch.testing.assert_close(*grads)
    torch.testing.assert_close(deep.state_dict(), flat.state_dict())
    assert type(plain_batch_norm(deep)) is nn.BatchNorm3d


def test_rows_are_normalized_together_as_the_network_was_set():
    def together(over, group=0, name="test_resnet"):
        network = build_backbone(name)
        set_batch_norm(network, over, group)
        return normalized_together(network, 12)

    assert together("per_process") == together("synchronized") == 12  # of one process
    assert together("per_process", 4) == 4
    assert together("per_process", 4, "test_vit") == 12  # has no batch norms


def test_statistics_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="unknown batch_norm 'shuffled'; there are: auto, per_process, synchronized"):
        set_batch_norm(nn.BatchNorm2d(2), "shuffled")
    with pytest.raises(UserError, match="synchronized batch norms have no groups; give --batch_norm_group 0"):
        set_batch_norm(nn.BatchNorm2d(2), "synchronized", 2)
    with pytest.raises(UserError, match="at least two images, not -1"):
        set_batch_norm(nn.BatchNorm2d(2), "per_process", -1)


def test_what_cannot_be_converted_is_named():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), SplitBatchNorm2d(4))
    for convert in (lambda: group_batch_norm(network, 2), lambda: synchronize_batch_norm(network)):
        with pytest.raises(UserError, match="batch norm 1 is a SplitBatchNorm2d"):
            convert()


@pytest.mark.parametrize("group", [0, 4])
def test_rows_that_do_not_exist_do_not_enter_the_statistics(group):
    """Each group is that of a plain norm on its existing rows; one row or none leaves the running statistics."""
    torch.manual_seed(2)
    x = torch.randn(12, 5).double().requires_grad_()
    valid = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 0]).bool()
    norm, plain = nn.BatchNorm1d(5).double(), [nn.BatchNorm1d(5).double() for _ in range(3 if group else 1)]
    for one in (norm, *plain):
        nn.init.constant_(one.weight, 1.7)
        nn.init.constant_(one.bias, 0.3)
    if group:
        group_batch_norm(norm, group)
    found, expected, known = normalize_rows(norm, x, valid), [], []
    for rows, kept, one in zip(x.split(group or 12), valid.split(group or 12), plain, strict=True):
        if kept.sum() > 1:
            expected.append(one(rows[kept]))
            known.append(one)
        else:
            expected.append(one.bias.expand(1, -1))
    torch.testing.assert_close(found[valid], torch.cat(expected))
    assert found.isfinite().all() and norm.num_batches_tracked == 1
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(norm, name), torch.stack([getattr(one, name) for one in known]).mean(0))
    weights = torch.randn(int(valid.sum()), 5).double()
    ours, theirs = ((each * weights).sum() for each in (found[valid], torch.cat(expected)))
    torch.testing.assert_close(torch.autograd.grad(ours, x), torch.autograd.grad(theirs, x))
    before = norm.running_mean.clone(), norm.running_var.clone()
    assert normalize_rows(norm, x, torch.zeros(12).bool()).isfinite().all()
    assert torch.equal(norm.running_mean, before[0]) and torch.equal(norm.running_var, before[1])
    assert torch.equal(normalize_rows(norm.eval(), x, valid), norm(x))


def test_statistics_of_rows_have_full_precision_under_autocast():
    x = 1000 + torch.randn(8, 5)
    with torch.autocast("cpu", torch.bfloat16):
        found = normalize_rows(nn.BatchNorm1d(5), x, torch.arange(8) < 6)
    torch.testing.assert_close(found[:6], nn.BatchNorm1d(5)(x[:6]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("group", [0, 2])
def test_a_process_without_a_row_follows_the_statistics_of_the_others(monkeypatch, group):
    """Two processes, here threads, have the running statistics of one with as many groups."""
    torch.manual_seed(3)
    x, valid = torch.randn(8, 5).double(), torch.tensor([1, 1, 1, 0, 0, 0, 1, 0]).bool()
    one, two = nn.BatchNorm1d(5).double(), [nn.BatchNorm1d(5).double() for _ in range(2)]
    group_batch_norm(one, group or 4)
    whole = normalize_rows(one, x, valid)
    barrier, given, numbers = threading.Barrier(2, timeout=30), {}, {}

    def total(mine):
        given[numbers[threading.get_ident()]] = mine
        barrier.wait()
        summed = given[0] + given[1]
        barrier.wait()
        return summed

    def process(number):
        numbers[threading.get_ident()] = number
        if group:
            group_batch_norm(two[number], group)
        part = slice(4 * number, 4 * number + 4)
        return normalize_rows(two[number], x[part], valid[part])

    monkeypatch.setattr(norms, "total", total)
    with ThreadPoolExecutor(2) as threads:
        made = torch.cat(list(threads.map(process, range(2))))
    torch.testing.assert_close(made, whole)
    for norm in two:
        torch.testing.assert_close(norm.state_dict(), one.state_dict())
