"""Cellback and DiRL against their equations, with loops in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from region_loops import PATCH, vectors_of

from densepath.annotations.label_cache import label_images
from densepath.annotations.label_maps import SIDE, LabelMaps
from densepath.core.affine import identity, warp_points
from densepath.core.distillation import deviation
from densepath.core.errors import UserError
from densepath.methods import DINO, Cellback, DiRL
from densepath.methods.cell_prior import CellPrior
from densepath.nets.heads import PrototypeHead
from densepath.sources.batch import ImageBatch
from densepath.sources.open import open_images
from densepath.sources.pixel_source import PixelSpec
from densepath.views.augment import Augment
from densepath.views.maker import ViewMaker
from densepath.views.view import Batch, View

SIZE = 48
NAN = float("nan")
PLAIN = "test_vit(class_token=False, global_pool='avg', fc_norm=False)"


def batch_of(method, images, size=SIZE):
    batch = ViewMaker(method.views(), size, seed=0)(images)
    return replace(batch, views={name: View(v.pixels.double(), v.map) for name, v in batch.views.items()})


def over_existing(head, vectors, name):
    """A head on the vectors of one name that exist; None for the others."""
    results = iter(head(torch.stack([of[name] for of in vectors if of[name] is not None])))
    return [None if of[name] is None else next(results) for of in vectors]


@pytest.mark.parametrize(
    ("kind", "backbone", "options"),
    [
        (Cellback, PLAIN, {}),
        (Cellback, "test_resnet", {}),
        (Cellback, PLAIN, {"num_regions": 3, "region_weight": 0.3}),
        (DiRL, PLAIN, {}),
        (DiRL, PLAIN, {"shared_block": False, "interaction_weight": 0.2}),
        (DiRL, PLAIN, {"num_regions": 3, "head_batch_norm": True}),
    ],
)
def test_losses_and_centers_equal_the_equations(make, celled, kind, backbone, options):
    """With a ConvNet, batch norms are in evaluation mode: they have no batch in the loop."""
    method = make(kind, backbone, **options).double().train(backbone == PLAIN)
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.mul_(1.1)
    batch, count = batch_of(method, celled, SIZE if backbone == PLAIN else 192), len(celled)
    crops = method.crops(batch)
    numbers = [(view, n) for view in crops for n in range(len(view.pixels))]
    cells, blocks = celled.extras["cells"], [getattr(method, name, None) for name in ("block", "teacher_block")]
    learned = [vectors_of(method.prior, method.backbone, blocks[0], view, cells, n) for view, n in numbers]
    teacher = (method.teacher.network, blocks[1] and blocks[1].network)
    taught = [vectors_of(method.prior, *teacher, crops[0], cells, n) for n in range(2 * count)]
    losses, expected, empty = method(batch), 0.0, 0
    method.after_step()
    for name, weight in method.weights.items():
        head, teacher = method.heads[name], method.teacher_heads.network[name]
        scores, embedded = over_existing(teacher, taught, name), over_existing(head, learned, name)
        terms = []
        for row in range(len(learned)):
            for q in range(2):
                target = scores[q * count + row % count]
                if row // count == q:
                    continue
                if embedded[row] is None or target is None:
                    empty += 1
                    continue
                student = F.log_softmax(embedded[row] / 0.1, dim=0)
                terms.append(-((target / 0.04).softmax(0) * student).sum())
        term = sum(terms) / len(terms)
        torch.testing.assert_close(
            losses.terms[f"{name}_loss"], term.detach(), rtol=1e-5, atol=1e-7
        )  # resized positions
        expected = expected + weight * term
        defined = torch.stack([score for score in scores if score is not None])
        torch.testing.assert_close(method.losses[name].center, 0.1 * defined.mean(0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(losses.total, expected, rtol=1e-5, atol=1e-7)
    assert empty > 10
    assert (method.weights["back"], len(method.weights)) == (
        options.get("region_weight", 0.5),
        (1 if kind is Cellback else 3) * options.get("num_regions", 2),
    )
    trained = dict(method.named_parameters())
    found = torch.autograd.grad(losses.total, trained := {n: p for n, p in trained.items() if p.requires_grad}.values())
    theirs = torch.autograd.grad(expected, trained)
    for one, other in zip(found, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_a_region_that_no_view_has_gives_no_loss_and_no_gradient(make, images):
    method = make(DiRL, PLAIN)
    nowhere = replace(images, extras={"cells": torch.full((4, 2, 3), NAN)})
    losses = method(ViewMaker(method.views(), SIZE, seed=0)(nowhere))
    losses.total.backward()
    method.after_step()
    for name in method.weights:
        assert (losses.terms[f"{name}_loss"] == 0) == name.startswith("cell")
        assert method.losses[name].center.any() != name.startswith("cell")
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)
    assert not any(p.grad.any() for p in method.heads["cell_back"].parameters() if p.requires_grad)
    assert losses.statistics["cell_views"] == 0 and losses.statistics["back_views"] == 1
    assert "region 'cell'" in method.warnings({"cell_views": 0.0, "back_views": 1.0}, last=False)[0]


@pytest.mark.parametrize(("kind", "count"), [(DINO, 1), (Cellback, 2), (DiRL, 6)])
def test_each_head_is_made_once(make, monkeypatch, kind, count):
    """At 65,536 prototypes one has 134 MB with its teacher."""
    made = []
    initialize = PrototypeHead.__init__
    monkeypatch.setattr(PrototypeHead, "__init__", lambda *args: (made.append(0), initialize(*args))[1])
    method = make(kind, PLAIN)
    assert len(made) == len(method.weights) == count
    assert list(method.weights) == [*method.heads] == [*method.losses] == [*method.teacher_heads.network]
    assert not any(p.requires_grad for p in method.teacher_heads.parameters())


def test_a_region_that_one_crop_has_does_not_look_like_collapse(make, images, monkeypatch):
    """The deviation of one vector says nothing; that of the background's is the smallest that does."""

    def one_cell(prior, batch, view, grid):
        labels = torch.ones(len(view.map), *grid, dtype=torch.int64)
        labels[3, 0, 0] = 0
        return labels

    monkeypatch.setattr(CellPrior, "__call__", one_cell)
    method = make(Cellback, PLAIN)
    batch = ViewMaker(method.views(), SIZE, seed=0)(images)
    statistics = method(batch).statistics
    assert statistics["cell_views"] == 1 / 8
    assert statistics["feature_std"] == deviation(*method.represent(batch, method.crops(batch)[0], True)["back"]) > 0


def test_permuting_the_images_permutes_their_vectors(make, celled):
    method, order = make(DiRL, PLAIN), torch.tensor([2, 0, 3, 1])
    batch = ViewMaker(method.views(), SIZE, seed=0)(celled)
    rows = (torch.arange(2).view(-1, 1) * 4 + order).flatten()
    view = method.crops(batch)[0]
    other = replace(batch, index=batch.index[order], extras={"cells": batch.extras["cells"][order]})
    before = method.represent(batch, view)
    after = method.represent(other, View(view.pixels[rows], view.map[rows]))
    for name, (vectors, present) in before.items():
        torch.testing.assert_close(after[name][0], vectors[rows])
        assert torch.equal(after[name][1], present[rows])


def test_a_painted_cell_is_found_in_every_crop_flip_and_turn():
    """Where a view shows the bright spot, its position is a cell position; where none shows it, there is none."""
    count, size = 60, 96
    places = torch.randint(8, 88, (count, 2))  # x, y in pixels
    pixels = torch.zeros(count, size, size, 3, dtype=torch.uint8)
    for image, (x, y) in enumerate(places.tolist()):
        pixels[image, y - 2 : y + 3, x - 2 : x + 3] = 255
    cells = F.pad((places + 0.5) / size * 2 - 1, (0, 1)).unsqueeze(1)
    images = ImageBatch(pixels, torch.full((count, 2), size), torch.arange(count), extras={"cells": cells})
    plain = Augment(scale=(0.2, 1), vertical_flip=0.5, quarter_turns=True, rotation=30, jitter=0, grayscale=0, blur=0)
    batch = ViewMaker(
        {"view": plain.random_view(count=2)}, size, seed=0, spec=PixelSpec(mean=(0.0,) * 3, std=(1.0,) * 3)
    )(images)
    view, found = batch["view"], 0
    labels = CellPrior("cells", 2)(batch, view, (6, 6))
    moved, inside = warp_points(cells[..., :2].repeat(2, 1, 1), identity(2 * count), view.map)
    for row in range(2 * count):
        held = (labels[row] == 0).nonzero().tolist()
        assert len(held) == int(inside[row])
        brightness = view.pixels[row].mean(0)
        if not inside[row]:
            assert brightness[moved.shape[0] and 8 : -8, 8:-8].max() < 0.99 or (moved[row].abs() < 1.2).all()
            continue
        peak = (brightness > 0.9).nonzero().float().mean(0)  # the middle of the spot
        if (moved[row].abs() < 0.8).all():  # all of the spot is visible
            place = (moved[row, 0].flip(0) + 1) / 2 * size - 0.5
            torch.testing.assert_close(peak, place, rtol=0, atol=1.0)
            if all(1 < float(c + 0.5) % PATCH < PATCH - 1 for c in place):
                assert held == [[int(c) // PATCH for c in peak.tolist()]]
                found += 1
    assert found > 20


def test_label_maps_are_a_prior_too(make, images):
    """0 is the background; with two regions, all other labels are cells."""
    maps = torch.zeros(4, 24, 24, dtype=torch.int32)
    maps[:, :, 12:] = torch.tensor([1, 2, 3, 7]).view(4, 1, 1)
    whole = Augment(scale=(1, 1), ratio=(1, 1), flip=0.0, jitter=0, grayscale=0, blur=0)
    batch = ViewMaker({"view": whole.random_view()}, SIZE, seed=0)(replace(images, extras={"regions": maps}))
    assert CellPrior("files", 2)(batch, batch["view"], (2, 2)).tolist() == [[[1, 0], [1, 0]]] * 4
    expected = [[[3, region]] * 2 for region in (0, 1, 2, -1)]
    assert CellPrior("files", 4)(batch, batch["view"], (2, 2)).tolist() == expected
    volume = replace(batch, extras={"regions": maps.unsqueeze(1).repeat(1, 24, 1, 1)})
    view = View(batch["view"].pixels, identity(4, 3))
    assert CellPrior("files", 4)(volume, view, (1, 2, 2)).squeeze(1).tolist() == expected
    method = make(DiRL, PLAIN, prior="files")
    assert [need.kind for need in method.needs().values()] == ["regions"]
    assert method(ViewMaker(method.views(), SIZE, seed=0)(replace(images, extras={"regions": maps}))).total.isfinite()


def test_labels_of_files_mean_the_same_in_all_images(tmp_path):
    """Also in an image that lacks the background, or one of the labels."""
    pairs = {"a": (0, 3), "b": (1, 2), "c": (2, 2), "d": (0, 40000)}  # left and right half
    for name, (left, right) in pairs.items():
        Image.new("RGB", (40, 40)).save(tmp_path / f"{name}.png")
        (tmp_path / "maps").mkdir(exist_ok=True)
        np.save(tmp_path / "maps" / f"{name}.npy", np.repeat([[left] * 20 + [right] * 20], 40, axis=0))
    source = open_images(f"{tmp_path}/*.png")
    for regions, expected in ((2, [[1, 0], [0, 0], [0, 0], [1, 0]]), (4, [[3, 2], [0, 1], [1, 1], [3, -1]])):
        prior = CellPrior("files", regions)
        maps = label_images(source, prior.needs()["regions"].labeller.make(tmp_path / "maps"), tmp_path / "cache")
        index, view = torch.arange(4), View(torch.zeros(4, 3, 2, 2), identity(4))
        batch = Batch({}, index, 0, 0, 0.0, 0.0, extras={"regions": maps.gather(index)})
        assert prior(batch, view, (1, 2)).squeeze(1).tolist() == expected


def test_label_maps_have_no_numbers_beyond_the_regions(make):
    labels = np.zeros((3, SIDE, SIDE), np.int16)
    labels[1, 0], labels[2, 0] = 128, 255
    for kind in (Cellback, DiRL):
        make(kind, PLAIN, prior="files").prepare(None, {"regions": LabelMaps(labels)})  # one region of all but 0
        make(kind, PLAIN, prior="files", num_regions=3).prepare(None, {"regions": LabelMaps(labels // 127)})
        method = make(kind, PLAIN, prior="files", num_regions=3)
        with pytest.raises(UserError, match=r"numbers up to 255, and --method\.num_regions 3 takes 0 to 2, of which 0"):
            method.prepare(None, {"regions": LabelMaps(labels)})


@pytest.mark.parametrize(("prior", "what"), [("cells", "cells"), ("files", "label maps")])
def test_the_warning_of_a_rare_region_names_its_source(make, prior, what):
    (line,) = make(Cellback, PLAIN, prior=prior).warnings({"cell_views": 0.01}, last=False)
    assert f"check the {what}, or choose" in line


@pytest.mark.parametrize("kind", [Cellback, DiRL])
def test_shuffled_cells_are_those_of_another_image(make, kind):
    class Cells:
        def __init__(self, name):
            self.name, self.class_names = name, ()

        def shuffled(self):
            return Cells("of another image")

        def describe(self):
            return "3 cells"

    for shuffled, name, line in ((False, "own", "3 cells"), (True, "of another image", "with those of another")):
        method = make(kind, PLAIN, shuffled_cells=shuffled)
        assert line in method.prepare(None, {"cells": Cells("own")})
        assert method.extras["cells"].name == name


def test_a_disentangle_block_needs_tokens(make):
    with pytest.raises(UserError, match="dirl needs a vision transformer"):
        make(DiRL, "test_resnet")


@pytest.mark.parametrize("kind", [Cellback, DiRL])
def test_overfits_one_batch(make, celled, losses_on, kind):
    method = make(
        kind, PLAIN, center_momentum=0.99, region_weight=1.0, **({"interaction_weight": 0.5} if kind is DiRL else {})
    )
    batch = replace(ViewMaker(method.views(), SIZE, seed=0)(celled), progress=1.0)
    history = losses_on(method, batch, steps=25, lr=0.1)
    assert history[-1] < 0.7 * history[0]


def test_what_does_not_fit_is_named(make):
    with pytest.raises(UserError, match="at least two regions, cells and background, not 1"):
        make(Cellback, PLAIN, num_regions=1)
    with pytest.raises(UserError, match="only cells can be shuffled, not label maps"):
        make(Cellback, PLAIN, prior="files", shuffled_cells=True)
    with pytest.raises(UserError, match="unknown prior 'nuclei'; there are: cells, files"):
        make(Cellback, PLAIN, prior="nuclei")
