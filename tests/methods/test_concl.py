"""ConCL against a plain loop over images and concepts in float64, and its edge cases."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from method_checks import check
from targets import prepare

from densepath.concepts.source import Concepts
from densepath.core.affine import between, from_box, identity
from densepath.core.distributed import Shuffle
from densepath.core.errors import UserError
from densepath.core.losses import info_nce
from densepath.core.random import shuffled
from densepath.methods import CPC, PCRL, ConCL, DenseCL, MoCoV2
from densepath.nets.backbones import build_backbone
from densepath.sources.image_files import ImageFiles
from densepath.views.augment import Augment
from densepath.views.maker import ViewMaker
from densepath.views.view import Batch, View


def restore(labels: np.ndarray, maps: np.ndarray, size: int, count: int, restoration: str) -> np.ndarray:
    """(labels, size, size) of one image: shares by intersections of rectangles, or 1 where a label has most."""
    height, width = labels.shape
    shares = np.zeros((count, size, size))
    for i, j in np.ndindex(size, size):
        x = sorted((maps[0, 0] * (2 * (j + e) / size - 1) + maps[0, 2] + 1) / 2 * width for e in (0, 1))
        y = sorted((maps[1, 1] * (2 * (i + e) / size - 1) + maps[1, 2] + 1) / 2 * height for e in (0, 1))
        for r, c in np.ndindex(height, width):
            across, down = min(x[1], c + 1) - max(x[0], c), min(y[1], r + 1) - max(y[0], r)
            shares[labels[r, c], i, j] += max(0.0, across) * max(0.0, down)
    shares = (shares / shares.sum(0)).round(6)
    if restoration == "shares":
        return shares
    return (shares.argmax(0) == np.arange(count)[:, None, None]).astype(float)  # equal shares: the smallest id


def by_the_book(method: ConCL, batch: Batch, concepts: Concepts) -> tuple[float, int]:
    """L_c of Equation 2 and the number of shared concepts; loops, float64, the method's own networks."""
    labels, count = concepts.labels, int(concepts.labels.max()) + 1
    deepest = method.backbone.deepest
    query = method.backbone(batch["query"].pixels)[deepest].double().numpy(force=True)
    key = method.key_backbone(batch["key"].pixels)[deepest].double().numpy(force=True)
    negatives = method.concept_queue.keys().double()
    losses = []
    for image in range(len(query)):
        maps = {name: between(concepts.map, batch[name].map)[image].double().numpy() for name in ("query", "key")}
        on_query = restore(labels[image].numpy(), maps["query"], query.shape[2], count, method.restoration)
        on_key = restore(labels[image].numpy(), maps["key"], key.shape[2], count, method.restoration)
        for concept in range(count):
            if not (on_query[concept].any() and on_key[concept].any()):
                continue
            pooled_query = (query[image] * on_query[concept]).sum((1, 2)) / on_query[concept].sum()
            pooled_key = (key[image] * on_key[concept]).sum((1, 2)) / on_key[concept].sum()
            q = F.normalize(method.head.double()(torch.tensor(pooled_query)), dim=0)
            k = F.normalize(method.key_head.double()(torch.tensor(pooled_key)), dim=0)
            own, others = (q @ k / method.temperature).exp(), (negatives @ q / method.temperature).exp().sum()
            losses.append(-torch.log(own / (own + others)).item())
    return float(np.mean(losses)), len(losses)


@pytest.mark.parametrize(
    "options",
    [
        {"concepts": "grid"},
        {"stage": 4},
        {"stage": 3, "num_concepts": 6},
        {"concepts": "grid", "restoration": "shares"},
        {"stage": 4, "restoration": "shares"},
        {"concepts": "grid", "backbone": "test_vit"},
        {"stage": 4, "backbone": "test_vit"},
    ],
)
def test_concept_loss_is_the_equation(make, batch, options, whole_step):
    method, twin = make(ConCL, **options), make(ConCL, **options)
    losses = whole_step(method, batch)
    concepts = make(ConCL, **options).source(batch, make(ConCL, **options).key_backbone.network)
    # The reference pass precedes in the method: only batch statistics matter in training, so the order does not.
    expected, shared = by_the_book(twin, batch, concepts)
    assert losses.total.item() == pytest.approx(expected, rel=2e-3)
    assert losses.statistics["shared_concepts"].item() == pytest.approx(shared / 4)
    assert int(method.concept_queue.pointer) == shared
    assert shared > 4


def test_concepts_of_shuffled_keys_meet_those_of_their_own_images(make, batch, monkeypatch):
    """The released code leaves the keys' maps shuffled and pools them with the masks of other images.

    In evaluation mode a key's features don't depend on the group that it is dealt into.
    """
    assert not torch.equal(shuffled(4, batch.seed, batch.step), torch.arange(4))
    options = {"concepts": "grid", "group": 2}
    method, twin, released = (make(ConCL, **options).eval() for _ in range(3))
    concepts = twin.source(batch, twin.key_backbone.network)
    loss = method(batch).total.item()
    assert loss == pytest.approx(by_the_book(twin, batch, concepts)[0], rel=1e-4)
    monkeypatch.setattr(Shuffle, "restore", lambda self, x: x)
    assert abs(released(batch).total.item() - loss) > 1e-3 * loss


@pytest.mark.parametrize("backbone", ["resnet18", "test_vit"])
def test_concepts_of_the_images_themselves_obey_the_equation(make, batch, backbone, whole_step):
    """Hundreds of labels, in blocks that do not align with the positions of the views, and an empty reference view."""
    blocks = torch.randperm(400, generator=torch.Generator().manual_seed(1)).view(4, 10, 10)
    labels = blocks.repeat_interleave(3, 1).repeat_interleave(2, 2).to(torch.int16)
    batch = replace(batch, extras={"regions": labels}, views={name: batch[name] for name in ("query", "key")})
    method, twin = (make(ConCL, backbone, concepts="superpixels") for _ in range(2))
    losses = whole_step(method, batch)
    expected, shared = by_the_book(twin, batch, Concepts(labels, identity(4)))
    assert losses.total.item() == pytest.approx(expected, rel=2e-3)
    assert losses.statistics["shared_concepts"].item() == pytest.approx(shared / 4)
    assert int(method.concept_queue.pointer) == shared
    assert shared > 4


def test_two_labels_give_the_same_whether_their_number_is_known(make, batch, whole_step):
    """Masks of a few labels and the sorting of many agree; only the order in which concepts queue up differs."""
    labels = (torch.arange(24).view(24, 1) + torch.arange(24) > 25).to(torch.int16).expand(4, -1, -1)
    batch = replace(batch, extras={"regions": labels})
    known, unknown = make(ConCL, concepts="superpixels"), make(ConCL, concepts="superpixels")
    known.source.num_concepts = 2
    one, other = whole_step(known, batch), whole_step(unknown, batch)
    torch.testing.assert_close(one.total, other.total)
    assert one.statistics["shared_concepts"] == other.statistics["shared_concepts"] > 1
    keys = [method.concept_queue.keys()[:7].sum(0) for method in (known, unknown)]
    assert known.concept_queue.pointer == unknown.concept_queue.pointer == 7
    torch.testing.assert_close(*keys)


def test_a_batch_without_the_label_maps_is_refused(make, batch):
    with pytest.raises(UserError, match="the batch has none; call the method's prepare"):
        make(ConCL, concepts="superpixels")(batch)


def test_one_concept_is_the_whole_image(make, batch, whole_step):
    """K = 1 contrasts global averages, as MoCo does (paper, Table 4b), against a queue of its own."""
    method = make(ConCL, concepts="grid", grid_size=1, concept_queue_size=64)
    method.concept_queue.rows.copy_(method.queue.rows)
    losses = whole_step(method, batch)
    torch.testing.assert_close(losses.terms["concept_loss"], losses.terms["instance_loss"])
    torch.testing.assert_close(method.concept_queue.keys(), method.queue.keys())


def test_equal_views_share_all_their_concepts(make, images):
    batch = ViewMaker(ConCL.views(), 96, seed=0)(images)
    same = replace(batch, views={name: batch["query"] for name in ("query", "key", "reference")})
    method = make(ConCL, stage=5, num_concepts=3)
    losses = method(same)
    expected = 3 - losses.statistics["empty_clusters"]
    assert losses.statistics["shared_concepts"] == expected


def flipped(view: View) -> View:
    mirror = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]])
    return View(view.pixels.flip(-1), torch.cat((view.map[..., :2] @ mirror[..., :2], view.map[..., 2:]), -1))


def test_flipping_a_view_flips_its_concepts(make, batch):
    method = make(ConCL, concepts="grid")
    features = torch.randn(4, 8, 3, 3)
    concepts = Concepts(torch.arange(9).view(1, 3, 3).expand(4, -1, -1), batch["reference"].map)
    mirrored = replace(batch, views={**batch.views, "query": flipped(batch["query"])})
    plain = method.restore(batch, concepts, features.shape[2:])[0].pool(features)
    turned = method.restore(mirrored, concepts, features.shape[2:])[0].pool(features.flip(-1))
    torch.testing.assert_close(plain, turned)


def test_no_shared_concept_gives_no_loss_and_leaves_the_queue(make, batch):
    apart = {
        "query": replace(batch["query"], map=from_box(-torch.ones(4, 2), torch.zeros(4, 2))),
        "key": replace(batch["key"], map=from_box(torch.zeros(4, 2), torch.ones(4, 2))),
        "reference": replace(batch["reference"], map=identity(4)),
    }
    method = make(ConCL, concepts="grid", grid_size=2)
    before = method.concept_queue.keys().clone()
    losses = method(replace(batch, views=apart))
    losses.total.backward()
    method.after_step()
    assert losses.total.item() == 0 and losses.statistics["shared_concepts"] == 0
    assert torch.equal(method.concept_queue.keys(), before)
    assert all(p.grad is None or (torch.isfinite(p.grad).all() and not p.grad.any()) for p in method.parameters())


def test_tiny_crops_and_flat_images(make, images):
    """Crops of a pixel or two, and images whose positions are all alike, give finite losses and gradients."""
    flat = replace(images, pixels=torch.full_like(images.pixels, 200))
    views = ConCL.views(Augment(scale=(1e-4, 2e-4)))
    for source in (images, flat):
        method = make(ConCL)
        losses = method(ViewMaker(views, 64, seed=1)(source))
        losses.total.backward()
        assert torch.isfinite(losses.total)
        assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_warm_up_is_moco(make, batch, whole_step):
    early = replace(batch, progress=0.0999)
    method, moco = make(ConCL), make(MoCoV2)
    moco.load_state_dict(method.state_dict(), strict=False)
    losses, expected = whole_step(method, early), whole_step(moco, early)
    torch.testing.assert_close(losses.total, expected.total)
    assert set(losses.terms) == {"instance_loss"} and int(method.concept_queue.pointer) == 0


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_lambda_weighs_concepts_against_instances(make, batch, weight):
    losses = make(ConCL, concept_weight=weight)(batch)
    instance, concept = losses.terms["instance_loss"], losses.terms.get("concept_loss", torch.zeros(()))
    torch.testing.assert_close(losses.total, weight * concept + (1 - weight) * instance)


def test_instance_queue_moves_even_when_instances_do_not_count(make, batch, whole_step):
    method = make(ConCL)
    whole_step(method, batch)
    assert int(method.queue.pointer) == 4


def test_chance_is_the_loss_of_embeddings_that_are_all_alike(make):
    method = make(ConCL)
    alike = F.normalize(torch.ones(1, method.dim), dim=1)
    for name, queue in (("instance_loss", method.queue), ("concept_loss", method.concept_queue)):
        loss = info_nce(alike, alike, alike.expand(queue.size, -1), method.temperature)
        assert method.chance()[name] == pytest.approx(loss.item(), rel=1e-5)
    assert method.queue.size != method.concept_queue.size and list(method.chance())[-1] == "concept_loss"
    assert make(MoCoV2).chance() == {"instance_loss": method.chance()["instance_loss"]}
    assert list(make(DenseCL).chance()) == ["instance_loss", "dense_loss"]


def test_a_run_that_ends_at_chance_or_shares_no_concepts_is_reported(make):
    method = make(ConCL)
    row = {"concept_loss": 4.0, "concept_loss_vs_chance": 1.0, "instance_loss_vs_chance": 0.5, "shared_concepts": 1.0}
    assert method.warnings(row, last=False) == []
    assert "ends with the concept loss at 4.000, 1.00 times that of chance" in method.warnings(row, last=True)[0]
    assert method.warnings({**row, "concept_loss_vs_chance": 0.99, "instance_loss_vs_chance": 2.0}, last=True) == []
    few = method.warnings({**row, "shared_concepts": 0.99}, last=False)
    assert len(few) == 1 and few[0].startswith("shared_concepts is below 1: ")
    assert method.warnings({}, last=True) == []  # only the probe was measured


@pytest.mark.parametrize(
    ("method", "options", "tried", "absent"),
    [
        (MoCoV2, {}, "--method.standardize, or a smaller queue", "nothing"),
        (MoCoV2, {"standardize": True}, "a larger --augment.scale), or a smaller queue", "--method.standardize"),
        (
            PCRL,
            {"windows": ((8, 8),)},
            "more alike (--augment.jitter 0), --method.standardize, or a smaller queue",
            "scale",
        ),
        (CPC, {}, "it has learned nothing; try another learning rate, or more steps", "queue"),
    ],
)
def test_a_run_at_chance_is_told_only_of_options_that_it_has(make, method, options, tried, absent):
    made = method(build_backbone("test_resnet"), side=8, dim=8) if method is CPC else make(method, **options)
    (name,) = made.chance()
    (line,) = made.warnings({name: 1.0, f"{name}_vs_chance": 1.0}, last=True)
    assert line.endswith(tried) and absent not in line


@pytest.mark.parametrize("concepts", ["grid", "superpixels"])
def test_keys_per_image_limits_the_keys_and_changes_no_loss(make, batch, concepts, whole_step):
    """At most two shared concepts of each image are stored, each with the key that it has without a limit."""
    labels = torch.randperm(36, generator=torch.Generator().manual_seed(1)).view(6, 6).repeat_interleave(4, 0)
    batch = replace(batch, extras={"regions": labels.repeat_interleave(4, 1).to(torch.int16).expand(4, -1, -1)})
    every, some, again = (make(ConCL, concepts=concepts, keys_per_image=n) for n in (None, 2, 2))
    losses, fewer = whole_step(every, batch), whole_step(some, batch)
    assert torch.equal(losses.total, fewer.total)
    stored = every.concept_queue.keys()[: int(every.concept_queue.pointer)]
    kept = some.concept_queue.keys()[: int(some.concept_queue.pointer)]
    per_image = losses.statistics["shared_concepts"].item()
    assert per_image > 2 and len(stored) == round(4 * per_image) and 4 < len(kept) <= 8
    assert (kept[:, None] == stored).all(2).any(1).all()
    assert len(kept.unique(dim=0)) == len(kept)
    whole_step(again, replace(batch, step=batch.step + 1))  # chosen by image and epoch, not by step
    assert torch.equal(again.concept_queue.keys(), some.concept_queue.keys())
    other = make(ConCL, concepts=concepts, keys_per_image=2)
    whole_step(other, replace(batch, epoch=batch.epoch + 1))
    assert not torch.equal(other.concept_queue.keys(), some.concept_queue.keys())


@pytest.mark.parametrize(("stage", "unused"), [(2, "layer2"), (3, "layer3"), (4, "layer4")])
def test_reference_pass_stops_at_the_stage_that_is_clustered(make, batch, stage, unused):
    method = make(ConCL, stage=stage)
    sizes = []
    method.key_backbone.network.net[unused].register_forward_hook(lambda *_: sizes.append(1))
    method(batch)
    assert len(sizes) == 1  # the key view, not the reference


def test_step_never_waits_for_the_device(make, images, monkeypatch):
    """On the meta device nothing has a value: whatever asks for one raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # unknown on this device
    there = replace(images, pixels=images.pixels.to("meta"))
    batch = ViewMaker(ConCL.views(), 96, seed=0)(there)
    batch = replace(batch, extras={"regions": torch.empty(4, 24, 24, dtype=torch.int16, device="meta")})
    grid, superpixels = {"concepts": "grid", "group": 2, "standardize": True}, {"concepts": "superpixels"}
    for options in ({}, grid, superpixels, {"keys_per_image": 2}):
        method = make(ConCL, **options).to("meta")
        method.before_step(batch)
        losses = method(batch)
        losses.total.backward()
        method.after_step()
        assert losses.total.device.type == "meta"


def test_concepts_of_an_image_do_not_depend_on_the_batch(make, batch, images):
    method = make(ConCL).eval()
    together = method.source(batch, method.key_backbone.network).labels
    single = ViewMaker(ConCL.views(), 96, seed=0)(
        replace(images, pixels=images.pixels[2:3], sizes=images.sizes[2:3], index=images.index[2:3])
    )
    assert torch.equal(method.source(single, method.key_backbone.network).labels[0], together[2])


def test_overfits_one_batch(make, batch, losses_on):
    method = make(ConCL, "test_resnet")
    history = losses_on(method, batch, steps=20, lr=0.1, queue=method.concept_queue)
    assert history[-1] < 0.75 * history[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": 6}, "no stage f6"),
        ({"stage": 5, "num_concepts": 10}, "10 concepts cannot be found at the 9 positions of stage f5"),
        ({"concept_queue_size": 8}, "a concept queue of 8 keys is smaller than the 16 concepts"),
        ({"concepts": "superpixels", "concept_queue_size": 35}, r"the 36 concepts \(9 on each of 4 images\)"),
        ({"concept_queue_size": 8, "keys_per_image": 3}, r"the 12 concepts \(3 on each of 4 images\)"),
        ({"queue_size": 3}, "a queue of 3 keys is smaller than a batch of 4 images"),
    ],
)
def test_what_does_not_fit_is_named(make, options, message):
    with pytest.raises(UserError, match=message):
        check(make(ConCL, **options), 96, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concepts": "stars"}, "unknown concepts 'stars'"),
        ({"concept_weight": 2}, "concept weight must be between 0 and 1"),
        ({"warmup": 20}, "the warm-up is a share of the run"),
        ({"keys_per_image": 0}, "keys_per_image is 0; give at least 1, or null"),
        ({"num_concepts": 0}, "at least one concept"),
        ({"concepts": "grid", "grid_size": 0}, "at least one square per side"),
        ({"concepts": "superpixels", "superpixel_scale": 0}, "superpixel_scale is 0; give a number of pixels"),
        ({"concepts": "nuclei", "nucleus_radius": 0.5}, "nucleus_radius is 0.5; give a number of pixels"),
        ({"concepts": "nuclei", "nucleus_radius": float("nan")}, "nucleus_radius is nan; give a finite number"),
        ({"restoration": "soft"}, "unknown restoration 'soft'; choose argmax or shares"),
        (
            {"concepts": "nuclei", "restoration": "shares"},
            "images have different numbers of concepts with nuclei; use restoration argmax",
        ),
    ],
)
def test_wrong_hyper_parameters_are_named(make, options, message):
    with pytest.raises(UserError, match=message):
        make(ConCL, **options)


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        ("files", "there is no folder nowhere of label maps"),
        ("saliency", "nowhere is not a saliency model, a folder of masks"),
    ],
)
def test_missing_files_are_named_before_the_first_step(make, concepts, message):
    with pytest.raises(UserError, match=message):
        prepare(make(ConCL, concepts=concepts), ImageFiles(["a.png"]), regions="nowhere")
