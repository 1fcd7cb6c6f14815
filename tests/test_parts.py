"""Models in parts: where they are cut, and what cannot be."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from stepmark import Scenario, Workload, workloads
from stepmark.devices import BACKENDS, Device, DevicePair
from stepmark.devices.scripted import ScriptedClock, ScriptedDevice
from stepmark.errors import ObstacleError
from stepmark.parts import OnTwoDevices, check_batch, parts, parts_of
from stepmark.place import open_place


def sizes(found: list[nn.Module]) -> list[int]:
    return [sum(p.numel() for p in part.parameters()) for part in found]


def linears(*widths: int) -> nn.Sequential:
    """Layers without bias, of these numbers of parameters, each followed by a ReLU."""
    layers = [(nn.Linear(1, width, bias=False), nn.ReLU()) for width in widths]
    return nn.Sequential(*(layer for pair in layers for layer in pair))


def workload(model: nn.Module, **fields: Any) -> Workload:
    return Workload(
        **{
            "model": model,
            "dataset": [],
            "loss_fn": nn.MSELoss(),
            "optimizer": lambda p: torch.optim.SGD(p, lr=0.1),
            **fields,
        }
    )


@pytest.mark.parametrize(
    ("widths", "number", "expected"),
    [
        ((4, 4), 2, [4, 4]),
        ((1, 1, 1, 9), 2, [3, 9]),
        ((9, 1, 1, 1), 2, [9, 3]),
        ((5, 5, 5, 5, 5, 5), 3, [10, 10, 10]),
        ((1, 8, 1, 8, 1), 3, [9, 9, 1]),
        ((7, 7, 7), 3, [7, 7, 7]),
    ],
)
def test_the_largest_part_is_as_small_as_can_be(
    widths: tuple[int, ...], number: int, expected: list[int]
) -> None:
    found = sizes(parts_of(linears(*widths), number))
    assert max(found) == max(expected)
    assert sum(found) == sum(widths)
    assert min(found) > 0


def test_an_activation_stays_with_the_layer_before_it() -> None:
    first, last = parts_of(linears(4, 4), 2)
    assert [type(layer) for layer in first.children()] == [nn.Linear, nn.ReLU]
    assert [type(layer) for layer in last.children()] == [nn.Linear, nn.ReLU]


@pytest.mark.parametrize(
    ("name", "number"),
    [("mlp-toy", 2), ("mlp-toy", 3), ("mlp-mse", 2), ("gpt?layers=3&width=32&context=16", 4)],
)
def test_parts_one_after_the_other_are_the_model(name: str, number: int) -> None:
    found = workloads.load(name)()
    batch = next(iter(torch.utils.data.DataLoader(found.dataset, batch_size=2)))
    expected = found.model(batch[0])
    hidden = batch[0]
    for part in parts(found, number):
        hidden = part(hidden)
    assert torch.equal(hidden, expected)


def test_what_cannot_be_parted_says_why() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

    tied = linears(3, 3)
    tied[2].weight = tied[0].weight
    cases = [
        (workload(Model()), "Model cannot be parted by itself.*Workload\\(stages="),
        (workload(linears(3)), "use at most 1"),
        (workload(tied), "share a parameter"),
        (workload(Model(), stages=lambda model, n: [model]), "returned 1 parts"),
        (workload(linears(3, 3), stages=lambda m, n: [m[:2], nn.ReLU()]), "part 1 .* no param"),
        (workload(linears(3, 3), compute_loss=lambda m, b: b), "computes its loss itself"),
    ]
    for found, reason in cases:
        with pytest.raises(ObstacleError, match=reason):
            parts(found, 2)


@pytest.mark.parametrize("batch", [torch.ones(2), {"a": 1}, ([1], torch.ones(1)), (1, 2, 3)])
def test_a_batch_that_is_no_pair_of_tensors_is_an_obstacle(batch: Any) -> None:
    with pytest.raises(ObstacleError, match="pairs of tensors"):
        check_batch(batch)


def test_layers_on_two_devices_get_what_they_need_moved() -> None:
    class Recording(ScriptedDevice):
        """Says what was sent to it."""

        def to_device(self, batch: Any) -> Any:
            sent.append(tuple(batch.shape))
            return batch

    sent: list[tuple[int, ...]] = []
    first, second = Recording(ScriptedClock()), ScriptedDevice(ScriptedClock())
    second.torch_device = torch.device("meta")  # a device whose tensors no other one takes
    pair = DevicePair(first, second)
    model = OnTwoDevices(workload(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))), pair)
    inputs, targets = pair.to_device((torch.ones(5, 3), torch.ones(5, 2)))
    assert sent == [(5, 3)]
    assert {p.device.type for p in model.first.parameters()} == {"cpu"}
    assert {p.device.type for p in model.second.parameters()} == {"meta"}
    outputs = model(inputs)
    assert outputs.device.type == targets.device.type == "meta"
    nn.functional.mse_loss(outputs, targets)  # both on one device


def test_points_of_two_devices_wait_for_both() -> None:
    devices = [ScriptedDevice(ScriptedClock()) for _ in range(2)]
    marks = DevicePair(*devices).marks(2)
    marks.mark()
    marks.mark()
    assert [device.num_synchronizations for device in devices] == [2, 2]
    assert len(marks.intervals_s()) == 1


def test_two_devices_are_named_both_and_have_no_single_uuid() -> None:
    first, second = (ScriptedDevice(ScriptedClock()) for _ in range(2))
    first.uuid = "GPU-1"
    pair: Device = DevicePair(first, second)
    assert (pair.name, pair.uuid) == ("scripted + scripted", "")


def test_a_machine_with_one_device_skips_split_layers_with_the_reason() -> None:
    assert BACKENDS["cpu"].open_pair() is None
    scenario = Scenario(workload="mlp-toy", device="cpu", split_layers=True)
    threads = torch.get_num_threads()
    with pytest.raises(ObstacleError, match="needs a second device"):
        open_place(scenario, threads=threads, requested_s=0.0)


def test_a_workloads_stages_must_be_callable() -> None:
    with pytest.raises(ValueError, match="stages=int: must be callable"):
        dataclasses.replace(workload(linears(1)), stages=3)
