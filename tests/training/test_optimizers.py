import io
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from densepath.core.errors import UserError
from densepath.methods import BYOL
from densepath.nets.backbones import build_backbone
from densepath.runs.checkpoints import read_checkpoint
from densepath.training.lars import LARS
from densepath.training.optimizers import (
    Optimizer,
    build_optimizer,
    build_schedule,
    build_updates,
    parameter_groups,
)
from densepath.training.pretrain import pretrain
from densepath.training.start_lines import report_start


def lars_loop(weights, gradients, steps, lr, momentum, decay, trust, adapt):
    """LARS as its equation reads, one number at a time."""
    weights = [float(w) for w in weights]
    velocity = [0.0] * len(weights)
    for gradient in gradients[:steps]:
        norm_w = math.sqrt(sum(w * w for w in weights))
        norm_g = math.sqrt(sum(float(g) ** 2 for g in gradient))
        divisor = norm_g + decay * norm_w
        local = trust * norm_w / divisor if adapt and divisor > 0 else 1.0
        for i, g in enumerate(gradient):
            velocity[i] = momentum * velocity[i] + lr * local * (float(g) + decay * weights[i])
            weights[i] -= velocity[i]
    return weights


@pytest.mark.parametrize("adapt", [True, False])
def test_lars_equals_its_equation(adapt):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(7, generator=generator, dtype=torch.float64)
    gradients = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    weight = nn.Parameter(start.clone())
    optimizer = LARS([weight], lr=0.3, momentum=0.9, weight_decay=1e-2, trust=1e-2, adapt=adapt)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    expected = lars_loop(start, gradients, 5, 0.3, 0.9, 1e-2, 1e-2, adapt)
    torch.testing.assert_close(weight.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_lars_survives_zero_weights_with_zero_gradients():
    weight = nn.Parameter(torch.zeros(3))
    optimizer = LARS([weight], lr=1.0, weight_decay=1e-4)
    weight.grad = torch.zeros(3)
    optimizer.step()
    assert torch.equal(weight.detach(), torch.zeros(3))


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("settings", [{"name": "lars"}, {"name": "adamw", "exclude_norm_and_bias": True}])
def test_a_transformers_weights_decay_and_neither_its_class_token_nor_its_positions(settings):
    method = nn.Sequential(build_backbone("test_vit"), nn.Linear(64, 2))
    names = {parameter: key for key, parameter in method.named_parameters()}
    decayed, excluded = (
        [names[p] for p in group["params"]] for group in parameter_groups(method, Optimizer(**settings))
    )
    assert len(decayed) + len(excluded) == len(names)
    assert all(key.endswith(".weight") and "norm" not in key for key in decayed)
    apart = [key for key in excluded if method.get_parameter(key).ndim > 1]
    assert sorted(apart) == ["0.net.model.cls_token", "0.net.model.pos_embed"]


def test_as_in_dino_only_what_has_one_dimension_does_not_decay():
    module = build_backbone("test_vit")
    settings = Optimizer(name="adamw", exclude_norm_and_bias=True, decay_tokens=True)
    decayed, excluded = parameter_groups(module, settings)
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim == 1 for p in excluded["params"])
    assert any(p is module.net.model.pos_embed for p in decayed["params"])


def test_sgd_decays_everything_and_lars_neither_norms_nor_biases():
    (everything,) = parameter_groups(network(), Optimizer())
    assert len(everything["params"]) == 6
    decayed, excluded = parameter_groups(network(), Optimizer(name="lars"))
    assert [p.ndim for p in decayed["params"]] == [4, 2]
    assert [p.ndim for p in excluded["params"]] == [1, 1, 1, 1]
    assert excluded["weight_decay"] == 0 and excluded["adapt"] is False


def test_frozen_parameters_are_left_out():
    frozen = network()
    frozen[0].requires_grad_(False)
    (group,) = parameter_groups(frozen, Optimizer())
    assert len(group["params"]) == 4


@pytest.mark.parametrize("exclude", [False, True])
def test_decay_shrinks_what_is_not_excluded(exclude):
    module = network()
    settings = Optimizer(lr=0.1, weight_decay=0.5, exclude_norm_and_bias=exclude)
    optimizer = build_optimizer(module, settings)
    before = [p.detach().clone() for p in module.parameters()]
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for old, new in zip(before, module.parameters(), strict=True):
        factor = 1.0 if exclude and new.ndim == 1 else 1 - 0.1 * 0.5
        torch.testing.assert_close(new.detach(), factor * old)


def course(settings, total, steps_per_epoch):
    optimizer = build_optimizer(nn.Linear(1, 1), settings)
    schedule = build_schedule(optimizer, settings, total, steps_per_epoch)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_cosine_falls_from_the_base_rate_to_zero():
    rates = course(Optimizer(lr=0.03), 100, 10)
    expected = [0.015 * (1 + math.cos(math.pi * step / 100)) for step in range(100)]
    assert rates == pytest.approx(expected, abs=1e-15)


def test_a_run_shorter_than_its_warmup_reaches_its_rate():
    rates = course(Optimizer(lr=1.0, warmup_epochs=2), 40, 1000)  # 40 steps on many images
    assert max(rates) == rates[20] == 1.0 and rates[39] < 0.01
    assert rates[10] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(("epochs", "steps_per_epoch", "first"), [(0.07, 100, 7), (50, 11 / 5, 110)])
def test_rounding_moves_neither_a_milestone_nor_the_end_of_freezing(epochs, steps_per_epoch, first):
    settings = Optimizer(lr=1.0, schedule="step", milestones=(epochs,), freeze=("*",), freeze_epochs=epochs)
    updates = build_updates(nn.Linear(2, 2), settings, 200, steps_per_epoch)
    assert [updates.schedule.lr_lambdas[0](step) for step in (first - 1, first)] == [1.0, 0.1]
    frozen = []
    for step in (first - 1, first):
        updates.frozen[0].grad = torch.ones_like(updates.frozen[0])
        updates.freeze(step)
        frozen.append(updates.frozen[0].grad is None)
    assert frozen == [True, False]


def test_warmup_and_milestones_are_counted_in_epochs():
    rates = course(Optimizer(lr=1.0, schedule="step", milestones=(4, 6), warmup_epochs=1), 80, 10)
    assert rates[0] == pytest.approx(1e-4)
    assert rates[5] == pytest.approx(1e-4 + (1 - 1e-4) * 0.5)
    assert rates[10:40] == [1.0] * 30
    assert rates[40:60] == pytest.approx([0.1] * 20)
    assert rates[60:] == pytest.approx([0.01] * 20)


@pytest.mark.parametrize(
    "wrong", [{"name": "adam"}, {"schedule": "linear"}, {"lr": 0.0}, {"lr": math.nan}, {"lr": math.inf}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(UserError):
        Optimizer(**wrong)


def test_lamb_equals_its_equation():
    """The form of SparK: decay within the update, and no scaling to the size of what does not decay."""
    generator = torch.Generator().manual_seed(0)
    module = nn.Linear(3, 2).double()
    settings = Optimizer(name="lamb", lr=0.1, momentum=0.9, beta2=0.95, weight_decay=0.2)
    optimizer = build_optimizer(module, settings)
    expected = {name: p.detach().clone() for name, p in module.named_parameters()}
    first, second = ({name: torch.zeros_like(p) for name, p in expected.items()} for _ in range(2))
    for step in range(1, 5):
        for name, p in module.named_parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            first[name] = 0.9 * first[name] + 0.1 * p.grad
            second[name] = 0.95 * second[name] + 0.05 * p.grad**2
            update = first[name] / (1 - 0.9**step) / ((second[name] / (1 - 0.95**step)).sqrt() + 1e-6)
            scale = 1.0
            if name == "weight":
                update = update + 0.2 * expected[name]
                scale = expected[name].norm() / update.norm()
            expected[name] = expected[name] - 0.1 * scale * update
        optimizer.step()
        torch.testing.assert_close(dict(module.named_parameters()), expected, rtol=1e-9, atol=0)


def test_the_second_beta_is_that_of_adamw():
    assert build_optimizer(network(), Optimizer(name="adamw", beta2=0.95)).param_groups[0]["betas"] == (0.9, 0.95)


def test_modules_name_what_does_not_decay():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.mask_token, self.other = (nn.Parameter(torch.ones(1, 1, 3)) for _ in range(2))

        def no_weight_decay(self):
            return {"mask_token"}

    module = nn.Sequential(Masked())
    decayed, excluded = parameter_groups(module, Optimizer(name="lamb"))
    assert (decayed["params"], excluded["params"]) == ([module[0].other], [module[0].mask_token])


@pytest.mark.parametrize("clip", [0.0, 0.5, 100.0])
def test_gradients_are_clipped_by_their_common_norm(clip):
    module, settings = network(), Optimizer(clip_norm=clip)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    norm = math.sqrt(sum(p.numel() for p in module.parameters()))
    build_updates(module, settings, 10, 10).clip_gradients()
    expected = min(1.0, clip / norm) if clip else 1.0
    for parameter in module.parameters():
        torch.testing.assert_close(parameter.grad, torch.full_like(parameter, expected))


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ({"milestones": (5,), "final_lr": 0.1}, ["milestones: no effect with the schedule cosine"]),
        ({"schedule": "step", "final_lr": 0.1}, ["final_lr: no effect with the schedule step"]),
        ({"schedule": "constant", "decay_in_warmup": True, "warmup_epochs": 1}, ["decay_in_warmup: no effect with"]),
        ({"schedule": "step", "milestones": (5,)}, []),
        ({"warmup_start": 0.5, "decay_in_warmup": True}, ["warmup_start: no effect", "decay_in_warmup: no effect"]),
        ({"warmup_start": 0.5, "decay_in_warmup": True, "warmup_epochs": 1}, []),
        ({"beta2": 0.9, "decay_tokens": True}, ["beta2: no effect with sgd", "decay_tokens: no effect without"]),
        ({"beta2": 0.9, "decay_tokens": True, "name": "lamb"}, []),
        ({"freeze": ("*",), "freeze_epochs": 0}, ["freeze: no effect with freeze_epochs 0"]),
        ({"clip": "tensor", "freeze_epochs": 2}, ["clip: no effect without clip_norm", "freeze_epochs: no effect"]),
        ({"clip": "tensor", "freeze_epochs": 2, "clip_norm": 1, "freeze": ("*",)}, []),
        ({}, []),
    ],
)
def test_options_that_others_turn_off_are_reported(options, lines, capsys):
    report_start((), Optimizer(**options), 10, 1.0)
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == len(lines)
    for line, start in zip(printed, lines, strict=True):
        assert line.startswith(f"densepath: optimizer.{start}")


def test_gradients_are_clipped_one_by_one():
    module = network()
    generator = torch.Generator().manual_seed(0)
    for number, parameter in enumerate(module.parameters()):
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0 ** (number - 2)
    expected = [p.grad * min(1.0, 0.5 / math.sqrt(p.grad.square().sum().item())) for p in module.parameters()]
    assert any(torch.equal(p.grad, e) for p, e in zip(module.parameters(), expected, strict=True))
    build_updates(module, Optimizer(clip_norm=0.5, clip="tensor"), 10, 10).clip_gradients()
    for parameter, gradient in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-9)
    with pytest.raises(UserError, match="unknown clip 'layer'; use global or tensor"):
        Optimizer(clip="layer")


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_frozen_parameters_stay_for_the_first_epochs_and_then_begin_as_if_new(name):
    """No decay and no momentum of what was not applied, and no part in the common norm."""
    first, last = "0.*", "2.weight"
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    frozen, free = (dict(module.named_parameters())[key] for key in (last, "2.bias"))
    settings = Optimizer(name=name, lr=0.1, freeze=(first, last), freeze_epochs=1.5, clip_norm=1.0, warmup_epochs=0)
    updates = build_updates(module, settings, total_steps=10, steps_per_epoch=2)
    start = [p.detach().clone() for p in (module[0].weight, module[0].bias, frozen)]
    for step in range(4):
        before, bias = frozen.detach().clone(), free.detach().clone()
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, 5.0)
        updates.freeze(step)
        updates.clip_gradients()
        if step < 3:
            assert free.grad.norm().item() == pytest.approx(1.0)
        updates.optimizer.step()
        assert torch.equal(frozen, before) == (step < 3) and not torch.equal(free, bias)
    assert len(start) == 3 and all(
        not torch.equal(p, old) for p, old in zip((module[0].weight, module[0].bias, frozen), start, strict=True)
    )
    state = updates.optimizer.state[frozen]
    if name == "adamw":
        assert state["step"] == 1
    else:
        torch.testing.assert_close(state["momentum_buffer"], frozen.grad + 1e-4 * before)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_parameters_may_get_their_first_gradients_one_after_the_other(momentum):
    """As those of Semantic Genesis do; the equation of SGD, in which a momentum begins with the first gradient."""
    early, late = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    settings = Optimizer(lr=0.1, momentum=momentum, weight_decay=0.0, schedule="constant")
    optimizer = build_optimizer(nn.ParameterList([early, late]), settings)
    for has_both in (False, True, False, True):
        early.grad, late.grad = torch.full_like(early, 1.0), torch.full_like(late, 2.0) if has_both else None
        optimizer.step()
    moves = [sum(momentum**age for age in range(step)) for step in (1, 2, 3, 4)]
    torch.testing.assert_close(early.detach(), torch.full_like(early, 1 - 0.1 * sum(moves)))
    torch.testing.assert_close(late.detach(), torch.full_like(late, 1 - 0.2 * sum(moves[:2])))


def test_freezing_what_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"no parameter is called 'head\.\*', which freeze names; there are: "):
        build_updates(network(), Optimizer(freeze=("head.*",)), 10, 10)
    with pytest.raises(UserError, match="freeze epochs must be at least 0"):
        Optimizer(freeze_epochs=-1)


def test_cosine_and_warmup_have_ends_of_their_own():
    rates = course(Optimizer(lr=2.0, warmup_epochs=2, warmup_start=0.005, final_lr=0.001), 100, 10)
    assert rates[0] == pytest.approx(0.01) and rates[10] == pytest.approx(0.01 + 1.99 / 2)
    expected = [0.002 + 1.998 * (1 + math.cos(math.pi * step / 80)) / 2 for step in range(80)]
    assert rates[20:] == pytest.approx(expected)


@pytest.mark.parametrize("final", [None, 0.2])
def test_weight_decay_rises_along_a_cosine_where_there_is_any(final):
    settings = Optimizer(name="adamw", weight_decay=0.04, exclude_norm_and_bias=True, final_weight_decay=final)
    optimizer = build_optimizer(network(), settings)
    schedule = build_schedule(optimizer, settings, 10, 10)
    seen = []
    for _ in range(10):
        seen.append([group["weight_decay"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    end = 0.04 if final is None else final
    expected = [end + (0.04 - end) * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]
    assert [decay for decay, _ in seen] == pytest.approx(expected)
    assert [decay for _, decay in seen] == [0.0] * 10


def test_a_restored_schedule_continues_with_the_same_values():
    settings = Optimizer(name="lamb", weight_decay=0.04, final_weight_decay=0.2)

    def made(state=None):
        torch.manual_seed(0)
        module = network()
        optimizer = build_optimizer(module, settings)
        schedule = build_schedule(optimizer, settings, 8, 8)
        for part, kept in zip((module, optimizer, schedule), state or (), strict=False):
            part.load_state_dict(kept)
        return module, optimizer, schedule

    def train(module, optimizer, schedule, steps):
        for step in steps:
            for parameter in module.parameters():
                parameter.grad = torch.full_like(parameter, math.sin(step))
            optimizer.step()
            schedule.step()
        return [part.state_dict() for part in (module, optimizer, schedule)]

    whole = train(*made(), range(8))
    kept = io.BytesIO()
    torch.save(train(*made(), range(3)), kept)
    kept.seek(0)
    rest = train(*made(torch.load(kept, weights_only=True)), range(3, 8))
    torch.testing.assert_close(rest[0], whole[0], rtol=0, atol=0)
    assert [group["weight_decay"] for group in rest[1]["param_groups"]] == [0.2, 0.0]
    assert rest[2] == whole[2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"beta2": 1.0},
        {"clip_norm": -1.0},
        {"warmup_epochs": -1.0},
        {"warmup_epochs": math.inf},
        {"final_lr": 1.5},
        {"warmup_start": -0.1},
        {"final_weight_decay": math.nan},
        {"final_weight_decay": math.inf},
        {"milestones": (10, math.nan)},
        {"milestones": (-1,)},
        {"milestones": ("3",)},
        {"milestones": (True,)},
        {"milestones": 5},
        {"milestones": None},
        {"weight_decay": 0.0, "final_weight_decay": 0.1},
    ],
)
def test_invalid_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(reversed(wrong)).replace("_", "[_ ]")):
        Optimizer(**wrong)


def test_a_run_clips_what_all_batches_of_a_step_add_up_to(tmp_path, tiles):
    """Of two accumulated batches; a step of SGD is then as long as the limit, which each batch's gradient exceeds."""
    options = {"method": "byol", "method_options": {"hidden_dim": 16, "dim": 8}, "backbone": "test_resnet"}
    options |= {"batch_size": 8, "accumulate": 2, "view_size": 48, "max_steps": 1, "devices": "cpu", "precision": "32"}
    plain = Optimizer(lr=1.0, momentum=0.0, weight_decay=0.0, schedule="constant")
    moves = {}
    for name, clip in (("free", 0.0), ("clipped", 1e-2)):
        out = pretrain(data=tiles, out=tmp_path / name, **options, optimizer=replace(plain, clip_norm=clip))
        state = read_checkpoint(out / "checkpoints" / "last.ckpt")["state_dict"]
        torch.manual_seed(0)
        start = BYOL(build_backbone("test_resnet"), hidden_dim=16, dim=8)
        trained = [(f"method.{key}", p) for key, p in start.named_parameters() if p.requires_grad]
        moves[name] = torch.cat([(state[key] - p.detach()).flatten().double() for key, p in trained])
    assert moves["free"].norm() > 0.1
    torch.testing.assert_close(moves["clipped"], moves["free"] * (1e-2 / moves["free"].norm()), rtol=1e-2, atol=1e-6)
