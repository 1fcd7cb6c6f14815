"""The quick suite: every axis once, on one screen. Run it with

    pytest bench/ --benchmark-save

Each test is one scenario in fresh processes. Rounds of all scenarios follow one another, so that
a drifting machine shows as spread between repeats, not as a difference between scenarios.
"""

from typing import Any

import pytest

from stepmark import Plan, Scenario, matrix
from stepmark.pytest_plugin import Measure

REPEATS = 3
PLAN = Plan(steps=30, max_seconds=2.0)

FASHION = "mlp-fashion-mnist"
MNIST = "cnn-mnist"


def quick(**axes: Any) -> list[Scenario]:
    """A product of axes with one compute thread per rank.

    One process and two ranks then differ in nothing but their number, loader workers find a free
    core, and a neighbour on the machine disturbs least (see docs/decisions/threads.md).
    """
    return matrix(threads=1, **axes)


SCENARIOS: list[Scenario] = [
    *quick(workload=FASHION, device=["cpu", "cuda", "mps"], batch_size=[16, 64, 256]),
    *quick(workload=FASHION, batch_size=[16, 64, 256], precision="bf16"),
    *quick(workload=FASHION, num_workers=[1, 2]),
    *quick(workload=FASHION, batch_size=32, ddp=[False, True]),
    *quick(workload=FASHION, batch_size=32, world_size=2),
    *quick(workload=MNIST, precision=["fp32", "tf32", "bf16", "fp16"]),
    *quick(workload=MNIST, num_workers=2),
    *quick(workload=MNIST, batch_size=16, accumulation=[1, 4]),
    *quick(workload=MNIST, batch_size=16, accumulation=4, pipeline_stages=2),
    *quick(workload=MNIST, channels_last=True),
    *quick(workload=MNIST, optimizer_impl=["for-loop", "foreach", "fused"]),
    *quick(workload=FASHION, task="evaluate", no_grad=[True, False]),
    *quick(workload=FASHION, task="evaluate", inference_mode=True),
    *quick(workload=FASHION, task="infer"),
    *quick(workload=FASHION, optimizer=["adagrad", "rmsprop", "adam"]),
    *quick(workload=FASHION, set_to_none=False),
    *quick(workload=FASHION, compile="default"),
    *quick(workload="mlp-toy", batch_size=2),
    *quick(workload=["mlp-mse", "mlp-regression"]),
    *quick(workload="gpt", batch_size=4, precision=["fp32", "bf16"]),
    *quick(workload="torchvision:resnet18?size=64", batch_size=8),
    *quick(workload="torchvision:resnet18?size=64&data=jpeg", batch_size=8, num_workers=[0, 2]),
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.id)
@pytest.mark.parametrize("repeat", range(REPEATS), ids=lambda repeat: f"repeat{repeat}")
def test_training_loop(measure: Measure, scenario: Scenario, repeat: int) -> None:
    """One scenario, measured once."""
    result = measure(scenario, PLAN, repeat=repeat)
    assert result.samples_per_s is not None
    assert result.samples_per_s > 0
