"""The quick suite: every axis once, on one screen. Run it with

    pytest bench/ --benchmark-save

Each test is one scenario in fresh processes. Rounds of all scenarios follow one another, so that
a drifting machine shows as spread between repeats, not as a difference between scenarios.
"""

import pytest

from stepmark import Plan, Scenario, matrix
from stepmark.pytest_plugin import Measure

REPEATS = 3
PLAN = Plan(steps=30, max_seconds=2.0)

FASHION = "mlp-fashion-mnist"
MNIST = "cnn-mnist"

SCENARIOS: list[Scenario] = [
    *matrix(workload=FASHION, device=["cpu", "cuda", "mps"], batch_size=[16, 64, 256]),
    *matrix(workload=FASHION, batch_size=[16, 64, 256], precision="bf16"),
    *matrix(workload=FASHION, num_workers=[1, 2]),
    *matrix(workload=FASHION, batch_size=32, ddp=[False, True]),
    *matrix(workload=FASHION, batch_size=32, world_size=2),
    *matrix(workload=MNIST, precision=["fp32", "tf32", "bf16", "fp16"]),
    *matrix(workload=MNIST, num_workers=2),
    *matrix(workload=MNIST, batch_size=16, accumulation=[1, 4]),
    *matrix(workload="mlp-toy", batch_size=2),
    *matrix(workload=["mlp-mse", "mlp-regression"]),
    *matrix(workload="gpt", batch_size=4, precision=["fp32", "bf16"]),
    *matrix(workload="torchvision:resnet18?size=64", batch_size=8),
    *matrix(workload="torchvision:resnet18?size=64&data=jpeg", batch_size=8, num_workers=[0, 2]),
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.id)
@pytest.mark.parametrize("repeat", range(REPEATS), ids=lambda repeat: f"repeat{repeat}")
def test_training_loop(measure: Measure, scenario: Scenario, repeat: int) -> None:
    """One scenario, measured once."""
    result = measure(scenario, PLAN, repeat=repeat)
    assert result.samples_per_s is not None
    assert result.samples_per_s > 0
