"""How fast the package trains: ``pytest bench/ --benchmark-save``."""

import pytest

from stepmark import Plan, matrix

PLAN = Plan(steps=100, max_seconds=1.0)
SCENARIOS = matrix(workload="bench/workload.py:build", device="cpu", batch_size=[64, 256])


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.id)
def test_training(measure, scenario):
    result = measure(scenario, PLAN)
    assert result.samples_per_s > 0
