"""A training step is that of plain PyTorch, a batch is overfitted, and a frozen run is a linear classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from densepath.sources.batch import ImageBatch
from densepath.sources.pixel_source import PixelSpec
from densepath.training.optimizers import Optimizer
from densepath.transfer.best_epoch import BestEpochTask
from densepath.transfer.classify.classifier import Classifier, ClassifierNotes, save_classifier
from densepath.transfer.classify.results import Scores
from densepath.transfer.classify.targets import Targets
from densepath.transfer.classify.task import TARGET, VIEW, ClassifyTask, Objective
from densepath.transfer.classify.trained import load_classifier
from densepath.transfer.probe.metrics import Score
from densepath.views.declarations import Center
from densepath.views.maker import ViewMaker

NOTES = ClassifierNotes("test_resnet", "mean", ("a", "b", "c"), True, (32, 32), PixelSpec().record())


def make_task(model: Classifier, targets: Targets, **options: Any) -> ClassifyTask:
    views = ViewMaker({VIEW: Center(share=1.0)}, 32, 0, PixelSpec())
    optimizer = options.pop("optimizer", Optimizer(name="adamw", lr=1e-3, schedule="constant"))
    given: dict[str, Any] = {"freeze": False, "validation": targets, "validate": lambda: None, **options}
    task = ClassifyTask(model, views, Objective(targets), optimizer, 100, 10, **given)
    return task.train()


def batch(count: int, targets: Targets) -> ImageBatch:
    pixels = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8)
    sizes = torch.full((count, 2), 32)
    return ImageBatch(pixels, sizes, torch.arange(count), extras={TARGET: torch.from_numpy(targets.values).float()})


def step(task: ClassifyTask, images: ImageBatch, updates: Any) -> float:
    loss = task(task.inputs(images))["loss"]
    loss.backward()
    updates.optimizer.step()
    updates.schedule.step()
    updates.optimizer.zero_grad()
    return float(loss.detach())


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_step_is_that_of_plain_pytorch(exclusive: bool) -> None:
    values = np.array([[0.0], [2.0], [1.0], [2.0]])
    if not exclusive:
        values = np.array([[0, 1, np.nan], [1, 1, 0], [0, np.nan, 1], [1, 0, 1.0]])
    targets = Targets(("a", "b", "c"), values, exclusive)
    model, other = NOTES.build(), NOTES.build()
    other.load_state_dict(model.state_dict())
    sgd = Optimizer(name="sgd", lr=0.1, weight_decay=1e-2, schedule="constant")  # Adam magnifies rounding errors
    task, images = make_task(model, targets, optimizer=sgd), batch(4, targets)
    step(task, images, task.updates())
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    mean, std = torch.tensor(PixelSpec().mean), torch.tensor(PixelSpec().std)
    x = ((images.pixels / 255 - mean) / std).movedim(-1, 1)
    features = other.encoder.backbone(x)[5].mean((2, 3))
    logits, truth = features @ other.head.weight.T + other.head.bias, torch.from_numpy(values).float()
    if exclusive:
        loss = F.cross_entropy(logits, truth[:, 0].long())
    else:
        loss = F.binary_cross_entropy_with_logits(logits[~truth.isnan()], truth[~truth.isnan()])
    loss.backward()
    optimizer.step()
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6, msg=name)


def test_it_overfits_a_batch() -> None:
    targets = Targets(("a", "b", "c"), np.arange(9.0)[:, None] % 3, True)
    task, images = make_task(NOTES.build(), targets), batch(9, targets)
    updates = task.updates()
    for _ in range(40):
        step(task, images, updates)
    assert float(task(task.inputs(images))["loss"].detach()) < 0.02


def test_balanced_weights_make_classes_equal() -> None:
    targets = Targets(("a", "b"), np.array([[0.0]] * 6 + [[1.0]] * 2), True)
    logits = torch.randn(8, 2)
    losses = F.cross_entropy(logits, torch.from_numpy(targets.classes), reduction="none")
    expected = (losses[:6].mean() + losses[6:].mean()) / 2
    torch.testing.assert_close(Objective(targets, balanced=True)(logits, torch.from_numpy(targets.values)), expected)


def test_a_frozen_backbone_stays_and_the_optimum_of_its_linear_layer_is_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    decay = 0.02
    targets = Targets(("a", "b", "c"), np.arange(30.0)[:, None] % 3, True)
    model, images = NOTES.build(), batch(30, targets)
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    task = make_task(model, targets, freeze=True, optimizer=Optimizer(lr=1e-3, schedule="constant"))
    updates, head = task.updates(), model.head

    def gradient(weight: torch.Tensor, bias: torch.Tensor) -> float:
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)
        updates.optimizer.zero_grad()
        task(task.inputs(images))["loss"].backward()
        assert head.weight.grad is not None and head.bias.grad is not None
        parts = head.weight.grad + decay * head.weight, head.bias.grad + decay * head.bias
        return max(float(part.detach().abs().max()) for part in parts)

    with torch.no_grad():
        features = model.eval().encoder(images.pixels).double().numpy()
    task.train()
    # scikit-learn: sum of losses + |w|^2 / (2 C); here their mean + 0.02 |w|^2 / 2, and the same of the bias
    ones = np.hstack([features, np.ones((30, 1))])
    reference = LogisticRegression(C=1 / (30 * decay), fit_intercept=False, tol=1e-10, max_iter=20_000)
    found = torch.from_numpy(reference.fit(ones, targets.classes).coef_).float()
    at_start = gradient(torch.zeros_like(head.weight), torch.zeros_like(head.bias))
    assert gradient(found[:, :-1], found[:, -1]) < 1e-3 * at_start
    step(task, images, updates)
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.state_dict().items())


def test_the_best_epoch_is_kept_and_patience_ends_the_run() -> None:
    targets = Targets(("a", "b", "c"), np.arange(6.0)[:, None] % 3, True)
    perfect, wrong = 4 * torch.eye(3).repeat(2, 1), torch.zeros(6, 3)
    answers = iter([wrong, perfect, 2 * perfect, perfect, perfect])
    task = make_task(NOTES.build(), targets, validate=lambda: (np.arange(6), next(answers)), patience=2, choose="auc")
    marks = []
    for epoch in range(5):
        with torch.no_grad():
            task.model.head.bias.fill_(epoch)
        task.evaluate()
        marks.append(task.finished())
    assert marks == [False, False, False, False, True]  # the third has the same AUC and a lower loss
    assert task.restore_chosen()["epoch"] == 3 and task.model.head.bias[0].item() == 2.0


@pytest.mark.parametrize("choose", ["loss", "score"])
def test_an_epoch_without_a_finite_loss_is_not_the_best(choose: Any) -> None:
    task = BestEpochTask(NOTES.build(), Optimizer(), 3, 1, frozen=None, by_loss=choose == "loss", patience=2)
    for loss in (float("nan"), 0.4, float("nan")):
        task.keep_if_better(50.0, loss)
    assert not task.finished()
    assert task.restore_chosen() == {"epoch": 2, "score": 50.0, "loss": 0.4}


def test_of_equal_scores_the_lower_loss_is_better() -> None:
    """Also of those that float32 does not hold; an equal epoch is not a better one."""
    task = BestEpochTask(NOTES.build(), Optimizer(), 3, 1, frozen=None)
    for loss in (0.3, 0.3, 0.2, 0.2):
        task.keep_if_better(200 / 3, loss)
    assert task.restore_chosen() == {"epoch": 3, "score": 200 / 3, "loss": 0.2}


def test_balanced_labels_weigh_by_absent_over_present() -> None:
    values = np.array([[1.0, 1], [0, 0], [0, np.nan], [0, 1]])
    weights = Objective(Targets(("a", "b"), values, False), balanced=True).weights
    assert weights.tolist() == [3.0, 0.5]


def test_unreadable_validation_images_are_left_out() -> None:
    targets = Targets(("a", "b", "c"), np.arange(6.0)[:, None] % 3, True)
    logits, read = torch.randn(6, 3), np.array([0, 1, 2, 4])
    found = make_task(NOTES.build(), targets, validate=lambda: (read, logits[read])).evaluate()
    assert (
        found == make_task(NOTES.build(), targets.take(read), validate=lambda: (np.arange(4), logits[read])).evaluate()
    )


def test_a_score_that_a_fold_lacks_is_named_and_left_out_of_the_mean() -> None:
    runs = [{"auc_a": 80.0}, {"auc_a": float("nan")}, {"auc_a": 90.0}]
    scores = Scores({"auc_a": Score(85.0, 80.0, 90.0)}, runs)
    assert (scores.mean("auc_a"), scores.spread("auc_a")) == (85.0, pytest.approx(50**0.5))
    assert scores.undefined(["fold_0", "fold_1", "fold_2"]) == {"auc_a": ["fold_1"]}


def test_probabilities_of_a_confident_classifier_keep_the_order_of_its_logits(tmp_path: Path) -> None:
    """In float32 all of these are 1."""
    model = NOTES.build().eval()
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([25.0, 0.0, -5.0]))
    save_classifier(tmp_path / "c.safetensors", model, NOTES)
    classifier = load_classifier(tmp_path / "c.safetensors")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 40 * k + 20, (32, 32, 3), dtype=np.uint8) for k in range(4)]
    found = [classifier.predict(image) for image in images]
    views = make_task(model, Targets(NOTES.labels, np.zeros((4, 1)), True))._views
    pixels = torch.from_numpy(np.stack(images))
    sizes = torch.full((4, 2), 32)
    with torch.no_grad():
        logits = model.eval()(views(ImageBatch(pixels, sizes, torch.arange(4)))[VIEW].pixels).double()
    for k, label in enumerate(NOTES.labels):
        own = [each[label] for each in found]
        assert len(set(own)) == 4 and own == pytest.approx(logits.softmax(1)[:, k].tolist(), rel=1e-4)
