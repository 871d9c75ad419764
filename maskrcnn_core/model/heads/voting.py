"""Voting head: the scores of a region are the averages of its bins' (Dai et al., R-FCN, NIPS 2016, section 2)."""

from torch import Tensor, nn


class VotingHead(nn.Module):
    """Class logits and box deltas out of position-sensitive scores; it has no weights.

    Args:
        num_classes: K.
        class_agnostic: one box per region instead of one per class.
    """

    def __init__(self, num_classes: int, *, class_agnostic: bool) -> None:
        super().__init__()
        self.num_scores = num_classes + 1
        self.num_deltas = 4 if class_agnostic else 4 * num_classes

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[R, num_scores + num_deltas, k, k] -> class logits [R, K + 1], deltas [R, 1 or K, 4]."""
        # Every bin has one vote: [R, num_scores + num_deltas].
        votes = features.mean(dim=(2, 3))
        logits, deltas = votes.split((self.num_scores, self.num_deltas), dim=1)
        return logits, deltas.unflatten(1, (-1, 4))
