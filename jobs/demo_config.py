"""The typed configuration of the demo."""

from dataclasses import dataclass

from maskrcnn_core.config.checks import require_not_negative, require_positive, require_typed


@dataclass(frozen=True)
class DemoRun:
    """Generate data, train, label, score and draw: the whole system in some minutes on a laptop."""

    output: str = "demo"
    """Folder for everything that is made; what is already there is used again."""
    train_images: int = 900
    """Generated pictures to learn from."""
    val_images: int = 60
    """Generated pictures, held out, to score on."""
    seed: int = 0
    """Seed of the pictures."""

    def __post_init__(self) -> None:
        require_typed("", self)
        for name in ("train_images", "val_images"):
            require_positive(name, getattr(self, name))
        require_not_negative("seed", self.seed)
