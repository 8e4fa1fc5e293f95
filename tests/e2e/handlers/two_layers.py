"""An eager model: the archive's one class."""

import torch


class TwoLayers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 8)
        self.second = torch.nn.Linear(8, 3)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = torch.relu(self.first(rows))
        scores: torch.Tensor = self.second(hidden)
        return scores
