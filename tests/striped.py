"""A small data set for trainings of texture VAEs."""

import torch

from sfd.data.images import ImageBatch


class Stripes:
    """Edges that blocks of 4 pixels with 6 components cannot follow, uint8."""

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)
        place, colour = torch.randint(0, 12, (64,), generator=random), torch.rand(64, 3, 1, 1, generator=random)
        inside = (torch.arange(16) >= place[:, None]) & (torch.arange(16) < place[:, None] + 5)
        self.images = (inside[:, None, None] * colour * 255).expand(-1, -1, 16, -1).to(torch.uint8).contiguous()

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> ImageBatch:
        return ImageBatch(self.images[indices], torch.zeros(len(indices), dtype=torch.int64))
