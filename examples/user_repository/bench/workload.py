"""What is measured: the package's own model, data and optimizer."""

import torch

from ratings.data import Ratings
from ratings.model import Rater
from stepmark import Workload

NUM_USERS, NUM_FILMS = 2_000, 500


def build(width: int = 32) -> Workload:
    """Each argument is an option: ``bench/workload.py:build?width=64``."""
    return Workload(
        model=Rater(NUM_USERS, NUM_FILMS, width),
        dataset=Ratings(NUM_USERS, NUM_FILMS, num_ratings=50_000),
        loss_fn=torch.nn.MSELoss(),
        optimizer=lambda params: torch.optim.Adam(params, lr=1e-2),
        data="made-up ratings",
    )
