"""Ratings by made-up people of made-up films."""

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Ratings(Dataset[tuple[dict[str, Tensor], Tensor]]):
    """Samples ``({"user": ..., "film": ...}, rating)``; a rating is a number about 0."""

    def __init__(self, num_users: int, num_films: int, num_ratings: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.users = torch.randint(num_users, (num_ratings,), generator=generator)
        self.films = torch.randint(num_films, (num_ratings,), generator=generator)
        tastes = torch.randn(num_users, 4, generator=generator)
        traits = torch.randn(num_films, 4, generator=generator)
        self.ratings = (tastes[self.users] * traits[self.films]).sum(dim=1)

    def __len__(self) -> int:
        return len(self.ratings)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        return {"user": self.users[index], "film": self.films[index]}, self.ratings[index]
