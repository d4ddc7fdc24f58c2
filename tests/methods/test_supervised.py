"""Supervised pre-training: its loss, its labels, its classifier's width."""

from dataclasses import replace

import pytest
import torch
from targets import prepare

from densepath.methods import Supervised
from densepath.nets.backbones import build_backbone
from densepath.sources.image_files import ImageFiles
from densepath.views.augment import Augment
from densepath.views.maker import ViewMaker

FILES = ImageFiles(["TUM/1.png", "ADI/1.png", "STR/1.png", "ADI/2.png", "TUM/2.png"])  # classes 2, 0, 1, 0, 2


@pytest.fixture
def batch(images):
    batch = ViewMaker(Supervised.views(), 64, seed=0)(images)
    return replace(batch, index=torch.tensor([4, 0, 2, 3]), extras={"class": torch.tensor([2, 2, 1, 0])})


@pytest.fixture
def prepared(make):
    def build(**options):
        method = make(Supervised, **options)
        prepare(method, FILES)
        return method

    return build


def test_loss_and_accuracy_are_those_of_the_images_classes(prepared, batch):
    method, reference = prepared(), prepared()
    losses = method(batch)
    features = reference.backbone(batch["image"].pixels)[5].mean((2, 3))
    logits = (features @ reference.classifier.weight.T + reference.classifier.bias).double()
    expected, right = [], 0
    for row, target in zip(logits, [2, 2, 1, 0], strict=True):
        expected.append(-(row[target] - row.exp().sum().log()))
        right += int(row.argmax()) == target
    assert losses.total.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)
    assert losses.statistics["accuracy"].item() == right / 4
    assert losses.terms["classification_loss"] == losses.total


def test_prepare_says_what_there_is_and_makes_the_classifier(make):
    method = make(Supervised)
    assert prepare(method, FILES) == "3 classes: ADI (2), STR (1), TUM (2)"
    assert method.classifier.weight.shape == (3, 512) and not method.classifier.bias.any()
    assert method.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert all(p.requires_grad for p in method.parameters())


def test_labels_may_come_from_a_table(make, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("TUM/1.png,x\nADI/1.png,x\nSTR/1.png,y\nADI/2.png,x\nTUM/2.png,y\n")
    method = make(Supervised)
    assert prepare(method, FILES, labels=table) == "2 classes: x (3), y (2)"
    assert method.extras["class"].gather(torch.tensor([4, 0, 2])).tolist() == [1, 0, 1]


def test_the_view_is_a_crop_of_untouched_colors():
    plain = Augment(scale=(0.08, 1), flip=0.5, jitter=0, grayscale=0, blur=0)
    assert Supervised.views() == {"image": plain.random_view()}
    still = Augment(blur=0)
    assert Supervised.views(still) == {"image": still.random_view()}


def test_a_state_gives_an_unprepared_method_its_classifier(prepared, make):
    """As exporting does, which sees no images."""
    state = prepared().state_dict()
    method = make(Supervised)
    method.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in method.state_dict().items())


def test_a_state_of_other_labels_or_classes_is_refused(prepared, make):
    method, state = prepared(), prepared().state_dict()
    method.load_state_dict(state)
    other = state | {"labels_checksum": state["labels_checksum"].flip(0)}
    with pytest.raises(RuntimeError, match="labels differ from those"):
        method.load_state_dict(other)
    fewer = make(Supervised)
    prepare(fewer, ImageFiles(["TUM/1.png", "ADI/1.png", "TUM/1.png", "ADI/2.png", "TUM/2.png"]))
    with pytest.raises(RuntimeError, match=r"size mismatch for classifier\.weight"):
        fewer.load_state_dict(state)


def test_a_state_of_version_0_1_which_holds_the_labels_is_accepted(prepared, make):
    method, state = prepared(), prepared().state_dict()
    del state["labels_checksum"]
    labels = torch.tensor([2, 0, 1, 0, 2], dtype=torch.int32)
    method.load_state_dict(state | {"targets": labels})
    make(Supervised).load_state_dict(state | {"targets": labels})
    with pytest.raises(RuntimeError, match="labels differ from those"):
        method.load_state_dict(state | {"targets": labels.flip(0).roll(1)})


def test_overfits_one_batch(prepared, batch, losses_on):
    history = losses_on(prepared(backbone="test_resnet"), batch, steps=12, lr=0.02)
    assert history[-1] < 0.1 * history[0]


def test_step_never_waits_for_the_device(prepared, images):
    """On the meta device nothing has a value: whatever asks for one raises."""
    batch = ViewMaker(Supervised.views(), 64, seed=0)(replace(images, pixels=images.pixels.to("meta")))
    batch = replace(batch, extras={"class": torch.zeros(4, dtype=torch.int32, device="meta")})
    losses = prepared(group=2).to("meta")(batch)
    losses.total.backward()
    assert losses.total.device.type == "meta"


@pytest.mark.parametrize("name", ["convnext_atto", "regnetx_002"])
def test_any_convnet_will_do(batch, name):
    method = Supervised(build_backbone(name))
    prepare(method, FILES)
    method(batch).total.backward()
    assert method.exported_backbone().name == name
    assert all(p.grad is not None for p in method.parameters())
