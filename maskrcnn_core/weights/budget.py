"""What reading another program's file may cost, so that a small file takes little time and memory, whatever it says."""

from dataclasses import dataclass

_SHARE_OF_FILE = 8
_SPARE_BYTES = 1 << 20
_MAX_STEPS = 1_000_000


class FileFault(Exception):
    """The file is damaged, or asks for more than it can rightly hold."""


@dataclass
class Budget:
    """What reading a file may cost.

    Attributes:
        num_bytes: copies of its bytes that may still be made: several times the file's own size.
        num_steps: instructions that may still be followed. A detector with its optimizer takes some 50,000.
    """

    num_bytes: int
    num_steps: int = _MAX_STEPS

    @classmethod
    def of_file(cls, size: int) -> "Budget":
        """For a file of so many bytes."""
        return cls(_SHARE_OF_FILE * size + _SPARE_BYTES)

    def spend_bytes(self, number: int) -> None:
        """Pay for a copy of so many bytes."""
        self.num_bytes -= number
        if self.num_bytes < 0:
            raise FileFault("it asks for many times as many bytes as it has")

    def spend_step(self) -> None:
        """Pay for one instruction, or one entry that is looked at."""
        self.num_steps -= 1
        if self.num_steps < 0:
            raise FileFault(f"it has more than {_MAX_STEPS:,} entries, as no checkpoint of a detector has")
