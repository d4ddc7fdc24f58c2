"""Backbones by name, by a model of the hub, and networks that the user made."""

import json
from functools import partial
from unittest.mock import Mock

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from densepath.core.errors import UserError
from densepath.nets.backbones import Backbone, build_backbone, rebuilt
from densepath.nets.backbones.choose import choose_backbone
from densepath.nets.backbones.rebuilt import is_rebuilt
from densepath.nets.weights import load_weights, published, save_backbone
from densepath.nets.weights.pretrained import backbone_of_weights


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_network_of_timm_is_the_backbone_of_its_name(name):
    named = build_backbone(name)
    made = choose_backbone(timm.create_model(name, **({"features_only": True} if name == "test_resnet" else {})))
    assert (made.name, made.stages, made.channels, made.training) == (name, named.stages, named.channels, True)
    made.load_state_dict(named.state_dict(), strict=False)
    pixels = torch.rand(2, 3, 64, 64)
    for one, other in zip(named.eval()(pixels).values(), made.eval()(pixels).values(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_backbone_stays_itself_and_must_take_the_images():
    backbone = build_backbone("test_resnet")
    assert choose_backbone(backbone) is backbone
    with pytest.raises(UserError, match="test_resnet takes images of 3 channels, but these have 1"):
        choose_backbone(backbone, 1)


class Own(Backbone):
    """A network of a user's own, with one stage."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 16, stride=16), "own", {4: 8}, {4: (16, 16)}, patch_size=16)

    def forward(self, x, last=5):
        return {4: self.net(x)}


def test_a_network_of_ones_own_is_derived_from_backbone():
    assert choose_backbone(Own())(torch.rand(1, 3, 32, 32))[4].shape == (1, 8, 2, 2)
    for other in (nn.Conv2d(3, 8, 3), timm.create_model("test_resnet")):
        with pytest.raises(
            UserError,
            match=r"does not return the maps of its stages \(ValueError: .*\); build it with timm\.create_model",
        ):
            choose_backbone(other)


class Maps(nn.Module):
    """Returns one map."""

    def __init__(self, stride=2):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride, 1)

    def forward(self, x):
        return [self.conv(x)]


class Fails(Maps):
    def forward(self, x):
        raise LookupError("no such layer")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Fails(), r"\(LookupError: no such layer\)"),
        (Maps(3), r"\(ValueError: a map of 22 x 22 for 64 px has no whole stride\)"),
        (nn.Linear(3, 3), r"\(ValueError: it has no convolution"),
        (Own().double(), r"an? Own, has weights of torch\.float64; convert it with \.float\(\)"),
        (Own, "not its class"),
        (
            timm.create_model("test_resnet", features_only=True, output_stride=16),
            r"two of its maps have the same stride\); build it without output_stride, [^;]*another network$",
        ),
        (
            timm.create_model("swin_tiny_patch4_window7_224", features_only=True, depths=(1, 1, 1, 1), embed_dim=24),
            r"match model \(224\)\.\); let a module around it return the list of its maps \(B, C, H, W\) for images of",
        ),
        (timm.create_model("vit_tiny_patch16_224", depth=1), r"dynamic_img_size=True"),
        (timm.create_model("vit_tiny_patch16_224", depth=3, features_only=True), r"dynamic_img_size=True"),
    ],
)
def test_the_cause_is_named_if_a_network_is_no_backbone(network, message):
    with pytest.raises(UserError, match=message):
        choose_backbone(network)


def test_a_network_is_trained_whatever_its_mode():
    for network in (Own(), Maps(), timm.create_model("test_resnet", features_only=True)):
        assert all(part.training for part in choose_backbone(network.eval()).modules())


@pytest.mark.parametrize(
    ("name", "options", "same"),
    [
        ("test_vit", {"dynamic_img_size": True}, True),
        ("test_vit", {"dynamic_img_size": True, "drop_path_rate": 0.2}, True),
        ("test_vit", {"img_size": 64}, False),  # other tensors
        ("test_vit", {"dynamic_img_size": True, "num_heads": 4}, False),
        ("test_vit", {"dynamic_img_size": True, "norm_layer": partial(nn.LayerNorm, eps=1e-3)}, False),
        ("test_resnet", {"features_only": True, "out_indices": (1, 2, 3, 4)}, True),
        ("test_resnet", {"features_only": True, "act_layer": "gelu"}, False),
        ("test_resnet", {"features_only": True, "out_indices": (0, 1, 2)}, False),
    ],
)
def test_a_network_that_its_name_does_not_build_has_a_mark(name, options, same, tmp_path):
    made = choose_backbone(timm.create_model(name, **options))
    assert made.name == (name if same else f"{name}*") and made.architecture == name
    assert is_rebuilt(made) == same
    save_backbone(tmp_path / "w.safetensors", made)
    load_weights(made, tmp_path / "w.safetensors")
    if same:
        assert backbone_of_weights(tmp_path / "w.safetensors") == name
        return
    with pytest.raises(UserError, match=r"the weights of '.*\*', a network that cannot be built from its name; in"):
        backbone_of_weights(tmp_path / "w.safetensors")


def test_a_network_of_ones_own_keeps_its_name():
    assert choose_backbone(Own()).name == "own" and not is_rebuilt(Own())


class Doubles(nn.Identity):
    def forward(self, x):
        return 2 * x


def wrapped(network):
    network.conv1.forward = lambda x, plain=network.conv1.forward: 2 * plain(x)


def hooked(network):
    network.conv1.register_forward_hook(lambda module, given, output: 2 * output)


def replaced(network):
    network.act1 = Doubles()


@pytest.mark.parametrize("change", [wrapped, hooked, replaced])
def test_a_change_that_settings_do_not_show_is_found_by_the_maps(change):
    network = timm.create_model("test_resnet", features_only=True)
    change(network)
    assert choose_backbone(network).name == "test_resnet*"


@pytest.mark.parametrize(("name", "given"), [("test_resnet", "features_only"), ("test_vit", "dynamic_img_size")])
def test_a_network_of_its_name_needs_no_second_one(name, given, monkeypatch):
    made = choose_backbone(timm.create_model(name, **{given: True}))
    monkeypatch.setattr(rebuilt, "build_backbone", Mock(side_effect=AssertionError))
    assert is_rebuilt(made)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_short_memory_does_not_make_another_network(error, monkeypatch):
    made = timm.create_model("test_resnet", features_only=True, act_layer="gelu")
    monkeypatch.setattr(rebuilt, "build_backbone", Mock(side_effect=error))
    with pytest.raises(type(error)):
        choose_backbone(made)


def test_random_numbers_stay_as_they_are(monkeypatch):
    made = timm.create_model("test_resnet", features_only=True, act_layer="gelu")
    before, of_device = torch.get_rng_state(), Mock(side_effect=torch.randn_like)  # draws from the generator of a GPU
    monkeypatch.setattr(torch, "randn_like", of_device)
    choose_backbone(made)
    assert torch.equal(torch.get_rng_state(), before) and not of_device.called


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Models of the hub without a network: OWNER/NAME is a folder."""

    def fetch(name, files=()):
        folder = tmp_path / name.removeprefix("hf-hub:")
        if not folder.is_dir():
            raise UserError(f"{name} could not be fetched (ConnectionError); check the name and the network")
        return folder

    monkeypatch.setattr(published, "fetch", fetch)

    def write(name, config, state=None):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        if state:
            save_file(state, folder / "model.safetensors")

    return write


def test_a_model_of_the_hub_names_an_architecture_and_weights(hub):
    state = timm.create_model("test_resnet", num_classes=7).state_dict()
    hub("me/model", {"architecture": "test_resnet", "num_classes": 7, "model_args": {"num_classes": 7}}, state)
    backbone = choose_backbone("hf-hub:me/model")
    assert backbone.name == "test_resnet"
    assert "from hf-hub:me/model" in load_weights(backbone, "hf-hub:me/model")
    loaded = backbone.net.state_dict()
    shared = loaded.keys() & state.keys()
    assert len(shared) > 10 and all(torch.equal(loaded[name], state[name]) for name in shared)
    scaled = timm.create_model("test_vit", num_classes=0, init_values=1e-5).state_dict()
    hub("me/other", {"architecture": "test_vit", "model_args": {"init_values": 1e-5}}, scaled)
    backbone = choose_backbone("hf-hub:me/other")
    assert backbone.name == "test_vit(init_values=1e-05)"
    assert f"{len(scaled)} of {len(scaled)} tensors from hf-hub:me/other" in load_weights(backbone, "hf-hub:me/other")
    for call in (choose_backbone, lambda name: load_weights(backbone, name)):
        with pytest.raises(UserError, match=r"^hf-hub:no/body could not be fetched \(ConnectionError\)") as caught:
            call("hf-hub:no/body")
        assert "\n" not in str(caught.value)
