import dataclasses
import itertools
import math
from typing import Any

import pytest

from stepmark.choices import (
    CompileMode,
    LossName,
    OptimizerImpl,
    OptimizerName,
    Precision,
    Task,
)
from stepmark.errors import UsageError
from stepmark.fingerprint import DeviceInfo, Machine
from stepmark.scenario import Plan, Scenario, matrix

# A second value for every field that has a default.
OTHER_VALUES: dict[str, Any] = {
    "device": "cpu",
    "batch_size": 65,
    "num_workers": 3,
    "precision": Precision.BF16,
    "accumulation": 4,
    "world_size": 2,
    "pin_memory": True,
    "prefetch_factor": 5,
    "persistent_workers": True,
    "threads": 1,
    "ddp": True,
    "task": Task.INFER,
    "no_grad": False,
    "inference_mode": True,
    "compile": CompileMode.DEFAULT,
    "channels_last": True,
    "optimizer": OptimizerName.SGD_MOMENTUM,
    "lr": 0.5,
    "optimizer_impl": OptimizerImpl.FUSED,
    "loss": LossName.BCE,
    "clip_norm": 1.0,
    "set_to_none": False,
    "pipeline_stages": 2,
    "split_layers": True,
}


def machine(*devices: DeviceInfo) -> Machine:
    return Machine(host="h", hardware={"cpus": "8"}, software={}, devices=devices)


CUDA = DeviceInfo(kind="cuda", names=("A", "A"), max_ranks=2, precisions={"fp32": "", "tf32": ""})
CPU = DeviceInfo(kind="cpu", names=("C",), precisions={"fp32": "", "fp16": "fp16 needs a GPU"})


def test_id_of_a_scenario_at_its_defaults_is_workload_device_and_batch_size() -> None:
    assert Scenario(workload="mlp-toy").id == "mlp-toy-auto-bs64"


def test_id_names_every_field_off_its_default_in_a_fixed_order() -> None:
    assert Scenario(workload="w", **OTHER_VALUES).id == (
        "w-cpu-bs65-workers3-bf16-acc4-ws2-pinned-prefetch5-persistent-threads1-ddp"
        "-infer-grad-inference_mode-compile-channels_last-sgd-momentum-lr0.5-fused-bce-clip1.0"
        "-set_to_zero-stages2-split"
    )


def test_every_field_has_a_part_in_the_id() -> None:
    """A field that had none would let two scenarios overwrite each other's results."""
    fields = {field.name for field in dataclasses.fields(Scenario)} - {"workload"}
    assert fields == set(OTHER_VALUES)
    chosen = [
        {name: OTHER_VALUES[name] for name in names}
        for number in range(4)
        for names in itertools.combinations(OTHER_VALUES, number)
    ]
    ids = {Scenario(workload="w", **values).id for values in chosen}
    assert len(ids) == len(chosen)


def test_a_field_given_its_default_leaves_the_id_as_it_is() -> None:
    given = Scenario(workload="w", threads=None, precision=Precision.FP32, pin_memory=False)
    assert given == Scenario(workload="w")
    assert given.id == Scenario(workload="w").id


def test_precision_may_be_given_by_name() -> None:
    scenario = Scenario(workload="w", precision="bf16")  # type: ignore[arg-type]
    assert scenario.precision is Precision.BF16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"batch_size": 6.0}, "batch_size=6.0: must be a whole number"),
        ({"batch_size": True}, "batch_size=True: must be a whole number"),
        ({"batch_size": "64"}, "batch_size='64': must be a whole number"),
        ({"num_workers": -1}, "num_workers=-1: must be at least 0"),
        ({"accumulation": 0}, "accumulation=0: must be at least 1"),
        ({"world_size": 0}, "world_size=0: must be at least 1"),
        ({"prefetch_factor": 0}, "prefetch_factor=0: must be at least 1"),
        ({"threads": 0}, "threads=0: must be at least 1"),
        ({"device": "gpu"}, "device='gpu': choose from cpu, cuda, mps, auto"),
        ({"device": ["cpu"]}, r"device=\['cpu'\]: choose from"),
        ({"precision": "fp8"}, "precision='fp8': choose from fp32, tf32, bf16, fp16"),
        ({"precision": True}, "precision=True: choose from"),
        (
            {"optimizer": "adamm"},
            r"sgd, .*, adamw \(did you mean 'adam'\?\); or None, on the command line own, for the",
        ),
        ({"pin_memory": 1}, "pin_memory=1: must be True or False"),
        ({"workload": " "}, "workload=' ': give a built-in name"),
        ({"workload": None}, "workload=None: give a built-in name"),
    ],
)
def test_a_field_out_of_range_is_refused_with_what_is_allowed(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Scenario(**{"workload": "w", **fields})


def test_samples_per_step_count_micro_batches_and_ranks() -> None:
    assert Scenario(workload="w", batch_size=4, accumulation=3, world_size=2).samples_per_step == 24


def test_a_scenario_is_distributed_with_ranks_or_when_asked_for() -> None:
    assert not Scenario(workload="w").distributed
    assert Scenario(workload="w", world_size=2).distributed
    assert Scenario(workload="w", ddp=True).distributed


def test_batches_that_may_lie_ready_are_those_of_all_workers() -> None:
    assert Scenario(workload="w", num_workers=2, prefetch_factor=4).lead_in_batches == 10
    assert Scenario(workload="w", num_workers=0, prefetch_factor=4).lead_in_batches == 0


@pytest.mark.parametrize(
    ("threads", "world_size", "num_cpus", "each"),
    [(None, 1, 8, 8), (None, 3, 8, 2), (None, 4, 2, 1), (5, 2, 2, 5)],
)
def test_ranks_share_the_cpus_unless_threads_are_given(
    threads: int | None, world_size: int, num_cpus: int, each: int
) -> None:
    scenario = Scenario(workload="w", threads=threads, world_size=world_size)
    assert scenario.threads_per_rank(num_cpus) == each


def test_auto_becomes_the_machines_first_device_and_a_named_device_stays() -> None:
    assert Scenario(workload="w").on(machine(CUDA, CPU)).device == "cuda"
    assert Scenario(workload="w").on(machine(CPU)).device == "cpu"
    assert Scenario(workload="w", device="cpu").on(machine(CUDA, CPU)).device == "cpu"


@pytest.mark.parametrize(
    ("fields", "devices", "reason"),
    [
        ({"device": "cpu", "world_size": 64}, (CPU,), None),
        ({"device": "cuda", "world_size": 2}, (CUDA, CPU), None),
        ({"device": "cuda"}, (CPU,), "no cuda device on this machine"),
        ({"device": "mps"}, (CUDA, CPU), "no mps device on this machine"),
        ({"world_size": 4}, (CUDA, CPU), "4 ranks need 4 cuda devices, found 2"),
        ({"device": "cpu", "precision": "fp16"}, (CPU,), "fp16 needs a GPU"),
        ({"precision": "fp16"}, (CPU,), "fp16 needs a GPU"),
        ({"precision": "tf32"}, (CUDA, CPU), None),
    ],
)
def test_what_a_machine_cannot_do_is_said_as_a_reason(
    fields: dict[str, Any], devices: tuple[DeviceInfo, ...], reason: str | None
) -> None:
    assert Scenario(workload="w", **fields).obstacle(machine(*devices)) == reason


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps=0: must be at least 1"),
        ({"warmup": -1}, "warmup=-1: must be at least 0"),
        ({"repeats": 0}, "repeats=0: must be at least 1"),
        ({"steps": 5.0}, "steps=5.0: must be a whole number"),
        ({"max_seconds": 0}, "max_seconds=0: must be above 0 seconds, and finite"),
        ({"max_seconds": math.nan}, "max_seconds=nan: must be above 0 seconds, and finite"),
        ({"timeout": math.inf}, "timeout=inf: must be above 0 seconds, and finite"),
        ({"timeout": "60"}, "timeout='60': must be a number of seconds"),
        ({"timeout": True}, "timeout=True: must be a number of seconds"),
    ],
)
def test_a_plan_out_of_range_is_refused_with_what_is_allowed(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Plan(**fields)


def test_whole_seconds_of_a_plan_become_floats() -> None:
    assert type(Plan(max_seconds=3).max_seconds) is float
    assert Plan(max_seconds=3) == Plan(max_seconds=3.0)


def test_matrix_is_the_full_product_with_the_last_axis_turning_fastest() -> None:
    scenarios = matrix(workload=["a", "b"], device="cpu", batch_size=(1, 2), precision=Precision)
    assert len(scenarios) == 2 * 2 * 4
    assert [s.id for s in scenarios[:5]] == [
        "a-cpu-bs1",
        "a-cpu-bs1-tf32",
        "a-cpu-bs1-bf16",
        "a-cpu-bs1-fp16",
        "a-cpu-bs2",
    ]
    assert len({s.id for s in scenarios}) == len(scenarios)


def test_matrix_takes_axes_that_can_be_read_only_once() -> None:
    sizes = (size for size in (1, 2))
    assert len(matrix(workload=["a", "b"], batch_size=sizes)) == 4


def test_matrix_names_no_scenario_twice() -> None:
    scenarios = matrix(workload="a", batch_size=[2, 2, 1], precision=["fp32", Precision.FP32])
    assert [s.id for s in scenarios] == ["a-auto-bs2", "a-auto-bs1"]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"batch_size": 1}, "no workload: give one"),
        ({"workload": "a", "batchsize": 1}, "axis 'batchsize': choose from workload, device"),
        ({"workload": "a", "batch_size": []}, "axis 'batch_size' has no values"),
        ({"workload": "a", "batch_size": [1, 0]}, "batch_size=0: must be at least 1"),
        ({"workload": []}, "axis 'workload' has no values"),
    ],
)
def test_a_matrix_that_cannot_be_is_refused(axes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        matrix(**axes)
