"""What a training run tells while it runs: events from its first worker to the process that started it."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TrainingStarted:
    """The workers are ready.

    Attributes:
        step: steps already done: above 0 where the run resumes.
        steps: steps in all.
        images, validation_images: in the data sets.
        workers, threads: processes, and CPU threads of each.
        dropped_annotations: faulty ones that are left out of the training data.
        loaders: processes of each worker that prepare its images; 0 = a thread.
    """

    step: int
    steps: int
    images: int
    validation_images: int
    workers: int
    threads: int
    dropped_annotations: int
    loaders: int = 0


@dataclass(frozen=True)
class SchedulePlanned:
    """How long the run is, told before its workers start.

    Attributes:
        steps: in all.
        batch_size: images a step.
        epoch_images: images that an epoch shows, those with rare categories as often as they are repeated.
        remarks: what is odd about the schedule.
    """

    steps: int
    batch_size: int
    epoch_images: float
    remarks: tuple[str, ...] = ()

    @property
    def epochs(self) -> float:
        """Passes over the training images."""
        return self.epochs_of(self.steps)

    def epochs_of(self, steps: int) -> float:
        """Passes over the training images that some steps are."""
        return steps * self.batch_size / self.epoch_images


@dataclass(frozen=True)
class DataNote:
    """Something a person should know of the annotations before the run starts.

    Attributes:
        text: what was left out or mended, or how categories meet; names the file.
    """

    text: str


@dataclass(frozen=True)
class ImageReplaced:
    """An image cannot be used; another one takes its place. Told of the first ones only.

    Attributes:
        reason: which image, and what is wrong with it.
        is_last: further ones are only listed.
    """

    reason: str
    is_last: bool


@dataclass(frozen=True)
class InitialWeightsLoaded:
    """A new run starts from other checkpoints.

    Attributes:
        sources: their folders.
        taken: number of weights taken over.
        fresh: modules that start afresh, such as `regions.box.head.classes`.
        common, new: names of the categories whose rows of the predictors were taken over and of the others, where the
            checkpoint has other categories.
    """

    sources: tuple[str, ...]
    taken: int
    fresh: tuple[str, ...]
    common: tuple[str, ...] = ()
    new: tuple[str, ...] = ()


@dataclass(frozen=True)
class StepReport:
    """Means over the steps since the last report.

    Attributes:
        step, steps: done, and in all.
        epoch: passes over the data so far, as a fraction.
        losses: by name, averaged over steps and workers.
        learning_rate: of the last step.
        grad_norm: L2 norm of the last step's gradients.
        images_per_second: over all workers, waiting for data included, validation and checkpoints excluded.
        seconds_left: at this rate, to the last step.
        waiting: share of the time that the first worker waited for input.
        memory_gib: most memory that the first worker has held, of its GPU or else of the machine, GiB.
        skipped_steps: so far, because a loss or gradient was not finite.
    """

    step: int
    steps: int
    epoch: float
    losses: dict[str, float]
    learning_rate: float
    grad_norm: float
    images_per_second: float
    seconds_left: float
    waiting: float = 0.0
    memory_gib: float = 0.0
    skipped_steps: int = 0


@dataclass(frozen=True)
class ValidationReport:
    """COCO metrics on the validation data.

    Attributes:
        step: steps done.
        images, failed_images: predicted, and of these without a prediction because they could not be read.
        metrics: COCO numbers by name.
        score: the number that chooses the best checkpoint; None where it is undefined (no annotated object).
        is_best: whether this checkpoint is now the best.
        seconds: wall time of the validation.
        categories: AP of each category that has objects.
        losses: mean losses over the images.
    """

    step: int
    images: int
    failed_images: int
    metrics: dict[str, float]
    score: float | None
    is_best: bool
    seconds: float
    categories: dict[str, float] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint folder is complete.

    Attributes:
        step: steps done.
        path: folder or s3:// uri.
    """

    step: int
    path: str


@dataclass(frozen=True)
class CheckpointPassedOver:
    """A checkpoint was not resumed from, because it is torn or damaged; the one before it is taken.

    Attributes:
        reason: which file, and what is wrong with it.
    """

    reason: str


@dataclass(frozen=True)
class StoppedEarly:
    """The run ends before its last step, because validation no longer improves.

    Attributes:
        step: steps done.
        validations: in a row without a better score.
        best_step: steps done when the best score was measured.
    """

    step: int
    validations: int
    best_step: int


@dataclass(frozen=True)
class MachineLeaves:
    """The provider takes a machine away soon; a checkpoint is made at once.

    Attributes:
        step: steps done.
    """

    step: int


@dataclass(frozen=True)
class ClusterNote:
    """What the run uses of the cluster, or leaves idle.

    Attributes:
        text: names the setting.
    """

    text: str


@dataclass(frozen=True)
class WaitingForMachines:
    """The cluster does not have the machines yet, or no longer.

    Attributes:
        text: what is waited for, what of it is there, how long.
    """

    text: str


@dataclass(frozen=True)
class WorkersLost:
    """Workers failed; others start from the last checkpoint in their place, if `train.max_failures` allows.

    Attributes:
        reason: of the first of them.
    """

    reason: str


@dataclass(frozen=True)
class TrackerFailed:
    """A tracker of train.trackers does not take what it is told; the run goes on without it.

    Attributes:
        tracker: its name.
        reason: the first line of its error.
    """

    tracker: str
    reason: str


@dataclass(frozen=True)
class Interrupted:
    """The run was asked to end, and saves a checkpoint first.

    Attributes:
        seconds: that it may take.
    """

    seconds: float


TrainingEvent = (
    TrainingStarted
    | SchedulePlanned
    | DataNote
    | ImageReplaced
    | InitialWeightsLoaded
    | StepReport
    | ValidationReport
    | CheckpointSaved
    | CheckpointPassedOver
    | StoppedEarly
    | MachineLeaves
    | ClusterNote
    | WaitingForMachines
    | WorkersLost
    | TrackerFailed
    | Interrupted
)
