"""Models in parts: where they are cut, and what cannot be."""

import dataclasses
from typing import Any
from unittest import mock

import pytest
import torch
from factories import make_window
from torch import nn

from stepmark import Scenario, Workload, workloads
from stepmark.devices import BACKENDS, Device, DevicePair
from stepmark.devices.base import DeviceMemory, moved
from stepmark.devices.scripted import ScriptedClock, ScriptedDevice
from stepmark.errors import ObstacleError
from stepmark.parts import OnTwoDevices, check_batch, parts, parts_of
from stepmark.place import open_place
from stepmark.record import WarmUp
from stepmark.session import remarks


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


@pytest.mark.parametrize(("target", "runs_beside"), [("cpu", False), ("meta", True)])
def test_what_comes_back_to_the_host_is_waited_for(target: str, runs_beside: bool) -> None:
    """Copies from a device run beside the host, too, which would read what has not arrived."""
    tensor = mock.Mock(spec=torch.Tensor)
    device = torch.device(target)
    moved([tensor], device)
    tensor.to.assert_called_once_with(device, non_blocking=runs_beside)


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


class Switched(ScriptedDevice):
    """With a precision switch, and a peak."""

    def __init__(self, switch: str, peak_bytes: int | None) -> None:
        super().__init__(ScriptedClock())
        self.switch = switch
        self.peak_bytes = peak_bytes
        self.is_tf32: bool | None = None

    def configure(self, *, tf32: bool) -> None:
        self.is_tf32 = tf32

    def settings(self) -> dict[str, str]:
        return {self.switch: str(self.is_tf32)}

    def memory(self) -> DeviceMemory:
        return DeviceMemory(peak_allocated_bytes=self.peak_bytes)


def test_precision_is_set_and_recorded_on_both_devices() -> None:
    pair = DevicePair(Switched("cuda.matmul", 1), Switched("mkldnn.matmul", None))
    pair.configure(tf32=False)
    assert pair.settings() == {"cuda.matmul": "False", "mkldnn.matmul": "False"}


def test_a_cpu_beside_a_gpu_of_tf32_keeps_to_ieee() -> None:
    cpu = BACKENDS["cpu"].open(0)
    pair = DevicePair(Switched("cuda.matmul", 1), cpu)
    pair.configure(tf32=True)
    assert pair.settings() == {"cuda.matmul": "True", **cpu.settings()}
    assert set(cpu.settings().values()) == {"ieee"}


@pytest.mark.parametrize(
    ("peaks", "is_said"), [((3, 7), True), ((3, None), True), ((None,) * 2, False)]
)
def test_of_two_devices_the_result_says_which_ones_memory_it_gives(
    peaks: tuple[int | None, int | None], is_said: bool
) -> None:
    pair = DevicePair(Switched("a", peaks[0]), Switched("b", peaks[1]))
    assert pair.memory().peak_allocated_bytes == max((p for p in peaks if p), default=None)
    warmup = WarmUp(num_steps=5, seconds=0.1, settled=True)
    notes = list(remarks(pair, warmup, 1.0, 1.0, 0, make_window()))
    assert any("take more; the other one's are not added" in note for note in notes) is is_said


def test_a_machine_with_one_device_skips_split_layers_with_the_reason() -> None:
    assert BACKENDS["cpu"].open_pair() is None
    scenario = Scenario(workload="mlp-toy", device="cpu", split_layers=True)
    threads = torch.get_num_threads()
    with pytest.raises(ObstacleError, match="needs a second device"):
        open_place(scenario, threads=threads, requested_s=0.0)


def test_a_workloads_stages_must_be_callable() -> None:
    with pytest.raises(ValueError, match="stages=int: must be callable"):
        dataclasses.replace(workload(linears(1)), stages=3)
