"""Losses and accuracies over an epoch, against arithmetic by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stepmark import Scenario, Workload
from stepmark.trainer.watching import Accuracy, MeanLoss, SmoothedLoss, WatchedLoss, judge_of

CPU = torch.device("cpu")


def identity(loss_fn: Any = None, **fields: Any) -> Workload:
    """Outputs are the inputs."""
    return Workload(
        model=nn.Identity(),
        dataset=TensorDataset(torch.zeros(1)),
        loss_fn=loss_fn or nn.functional.cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        **fields,
    )


def of_batches(size: int) -> Scenario:
    return Scenario(workload="made.up:build", device="cpu", batch_size=size)


def losses_of(*values: float) -> WatchedLoss:
    """A loss that has these values, one after another, on batches of three and a last of one.

    As some losses do, it has a dimension of one element.
    """
    following = iter(values)
    workload = identity(
        compute_loss=lambda model, batch: torch.tensor([next(following)], requires_grad=True)
    )
    watched = WatchedLoss(workload, of_batches(3))
    watched.begin(3 * (len(values) - 1) + 1)
    return watched


def test_the_mean_loss_counts_a_batch_by_its_samples() -> None:
    watched = losses_of(1.0, 2.0, 10.0)
    mean = MeanLoss(watched, CPU)
    assert mean.value() is None
    for _ in range(3):
        watched(nn.Identity(), None)
        mean.on_forward()
    assert mean.value() == pytest.approx((3 * 1.0 + 3 * 2.0 + 1 * 10.0) / 7)
    assert mean.num_samples == 7


def test_the_smoothed_loss_is_corrected_for_its_beginning() -> None:
    values = [4.0, 2.0, 1.0]
    watched = losses_of(*values)
    smoothed = SmoothedLoss(watched, CPU, beta=0.9)
    assert smoothed.value() is None
    average = 0.0
    for number, value in enumerate(values, 1):
        watched(nn.Identity(), None)
        smoothed.on_forward()
        average = 0.9 * average + 0.1 * value
        assert smoothed.value() == pytest.approx(average / (1 - 0.9**number))
    constant = losses_of(5.0, 5.0)
    smoothed = SmoothedLoss(constant, CPU)
    for _ in range(2):
        constant(nn.Identity(), None)
        smoothed.on_forward()
    assert smoothed.value() == pytest.approx(5.0)


SCORES = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 3.0, 1.0], [9.0, 0.0, 0.0]])
LABELS = torch.tensor([0, 2, 0, 1])  # right, right, wrong, wrong


@pytest.mark.parametrize(
    "targets", [LABELS, nn.functional.one_hot(LABELS, 3).float()], ids=["index", "one-hot"]
)
def test_accuracy_counts_the_samples_that_are_right(targets: Tensor) -> None:
    scores = SCORES.clone().requires_grad_()
    watched = WatchedLoss(identity(), of_batches(3))
    watched.begin(4)
    accuracy = Accuracy(watched, CPU)
    for part in (slice(0, 3), slice(3, 4)):
        loss = watched(nn.Identity(), (scores[part], targets[part]))
        assert torch.equal(loss, nn.functional.cross_entropy(SCORES[part], targets[part]))
        accuracy.on_forward()
    assert accuracy.value() == 2


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (torch.randn(4, 1), torch.randn(4, 1)),
        (torch.randn(4, 3), torch.randn(4, 3)),
        (torch.randn(4, 3), torch.eye(3)[LABELS] * 0.5),
        (torch.randn(4, 5, 7), torch.zeros(4, 5, dtype=torch.int64)),
        (torch.randn(4), torch.zeros(4, dtype=torch.int64)),
        ({"logits": SCORES}, LABELS),
    ],
)
def test_outputs_that_are_no_scores_of_classes_have_no_accuracy(
    outputs: Any, targets: Tensor
) -> None:
    assert judge_of(outputs, (None, targets)) is None


def test_what_looks_one_hot_at_first_and_is_not_has_no_accuracy() -> None:
    watched = WatchedLoss(identity(), of_batches(2))
    watched.begin(4)
    accuracy = Accuracy(watched, CPU)
    several = torch.eye(3)[LABELS]
    several[3] = 1.0
    for part, expected in ((slice(0, 2), True), (slice(2, 4), False)):
        watched(nn.Identity(), (SCORES[part].clone().requires_grad_(), several[part]))
        accuracy.on_forward()
        assert (accuracy.value() is not None) == expected
    again = Accuracy(watched, CPU)
    watched(nn.Identity(), (SCORES[:2].clone().requires_grad_(), several[:2]))
    again.on_forward()
    assert again.value() is None, "nor in another epoch, or on the validation data"


@pytest.mark.parametrize("kind", [torch.int32, torch.int16, torch.uint8])
def test_class_indices_of_any_whole_type_have_an_accuracy(kind: torch.dtype) -> None:
    judge = judge_of(SCORES, (None, LABELS.to(kind)))
    assert judge is not None
    assert torch.equal(judge(SCORES, LABELS.to(kind)), judge(SCORES, LABELS))


def test_a_batch_without_targets_has_no_accuracy() -> None:
    assert judge_of(SCORES, {"inputs": SCORES}) is None
    assert judge_of(SCORES, SCORES) is None


def test_without_classes_there_is_no_accuracy() -> None:
    watched = losses_of(1.0, 2.0)
    accuracy = Accuracy(watched, CPU)
    watched(nn.Identity(), None)
    accuracy.on_forward()
    assert accuracy.value() is None


def test_watching_keeps_no_graph_alive() -> None:
    watched = WatchedLoss(identity(), of_batches(4))
    watched.begin(4)
    loss = watched(nn.Identity(), (SCORES.clone().requires_grad_(), LABELS))
    assert loss.requires_grad
    assert not watched.loss.requires_grad
    assert not watched.outputs.requires_grad
