"""A rating from what is known of a user and of a film."""

import torch
from torch import Tensor, nn


class Rater(nn.Module):
    """An embedding of users, one of films, and a small network on top."""

    def __init__(self, num_users: int, num_films: int, width: int = 32) -> None:
        super().__init__()
        self.users = nn.Embedding(num_users, width)
        self.films = nn.Embedding(num_films, width)
        self.top = nn.Sequential(nn.Linear(3 * width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, user: Tensor, film: Tensor) -> Tensor:
        """Ratings ``[batch]`` of films by users, both ``[batch]``."""
        u, f = self.users(user), self.films(film)
        return self.top(torch.cat([u, f, u * f], dim=1)).squeeze(1)
