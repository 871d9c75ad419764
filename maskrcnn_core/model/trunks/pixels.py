"""The pixels as a trunk's only map: where all that is computed is computed for each region (R-CNN)."""

from torch import Tensor, nn


class PixelTrunk(nn.Module):
    """A trunk without a layer.

    Attributes:
        channels, strides, levels: of the one map, which belongs to no level.
        rounds_input: nothing rounds it here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rounds_input = False
        self.channels: tuple[int, ...] = (3,)
        self.strides: tuple[int, ...] = (1,)
        self.levels: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> list[Tensor]:
        """[N, 3, H, W] -> the same."""
        return [x]

    def stage_paths(self) -> list[list[str]]:
        """It has no stages."""
        return []

    def take_last_stage(self) -> list[nn.Module]:
        """There is none: no layers."""
        return []
