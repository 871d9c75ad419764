"""A device that is lost costs its own work; only too many of them end a run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from maskrcnn_core.errors import UserError
from pipelines.cluster.config import ClusterConfig
from pipelines.labelling.config import LabelConfig, LabelRun
from pipelines.labelling.device_faults import DeviceFaults, this_device
from pipelines.labelling.open_chunks import OpenChunks
from pipelines.labelling.progress import ProgressBoard, Work
from pipelines.labelling.run import label
from pipelines.verification.config import VerifyRun
from pipelines.verification.run import verify
from tests.pipelines.fake_detector import FAKE, write_images

# Ray warns about settings of its own that it sets itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def faults(devices: int) -> DeviceFaults:
    found = DeviceFaults()
    for index in range(devices):
        assert not found.join(f"gpu{index}").is_given_up
    return found


def give_up(found: DeviceFaults, device: str) -> bool:
    """Three faults in a row; returns whether the last one ends the run."""
    assert not found.fault(device, 1, "no").is_given_up
    assert not found.fault(device, 2, "no").is_given_up
    last = found.fault(device, 3, f"{device} fell off the bus")
    assert last.is_given_up
    assert found.join(device) == last
    return last.ends_run


@pytest.mark.parametrize(("devices", "most"), [(1, 0), (2, 1), (3, 2), (20, 2), (100, 2), (150, 3), (200, 4)])
def test_a_run_goes_on_without_two_devices_or_two_per_cent(devices: int, most: int) -> None:
    found = faults(devices)
    assert [give_up(found, f"gpu{index}") for index in range(most + 1)] == [False] * most + [True]


def test_what_works_again_is_not_given_up() -> None:
    found = faults(2)
    for round in range(10):
        found.fault("gpu0", 2 * round, "no")
        assert not found.fault("gpu0", 2 * round + 1, "no").is_given_up
        found.success("gpu0")
    give_up(found, "gpu0")
    found.success("gpu0")  # of a process that has not noticed
    assert found.join("gpu0").is_given_up


def test_the_same_image_again_is_rather_at_fault_itself() -> None:
    found = faults(1)
    for _ in range(5):
        assert not found.fault("gpu0", 7, "hangs").is_given_up


def test_the_reasons_are_told_and_many_are_cut() -> None:
    found = faults(100)
    for index in range(12):
        give_up(found, f"gpu{index}")
    text = found.join("gpu99").given_up
    assert text.startswith("gpu0: gpu0 fell off the bus; gpu1: gpu1 fell off the bus; ")
    assert text.endswith("; and 2 more")


def test_work_that_succeeds_clears_the_faults_of_its_device_alone() -> None:
    board = ProgressBoard()
    for device in ("a", "b"):
        board.fault(device, 1, "no")
        board.fault(device, 2, "no")
    board.done(5, Work(images=4, failed=3, device="a"))
    board.done(6, Work(images=4, failed=4, device="b"))  # nothing succeeded
    assert not board.fault("a", 3, "no").is_given_up
    assert board.fault("b", 3, "no").is_given_up


def test_a_device_has_the_name_of_its_machine_and_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine = this_device()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert this_device() == f"{machine} GPU 3"


def test_what_is_left_is_released_when_nobody_else_works() -> None:
    now = [0.0]
    chunks = OpenChunks(lambda: now[0])

    def is_quiet() -> bool:
        return chunks.is_quiet(lambda device: device == "broken")

    now[0] = 1000.0
    assert not is_quiet()  # nobody has begun: the others are still loading
    chunks.begin("good", "a")
    chunks.begin("broken", "b")
    now[0] += 1000.0
    assert not is_quiet()
    chunks.end("a")
    assert not is_quiet()  # its worker may be about to begin another
    now[0] += 20.0
    assert is_quiet()


@pytest.fixture
def three_nodes() -> Iterator[Cluster]:
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, connect=False, head_node_args=head)
    try:
        for _ in range(3):
            cluster.add_node(num_cpus=3, object_store_memory=100 * 2**20)
        yield cluster
    finally:
        cluster.shutdown()


def labelled_with_broken(tmp_path: Path, cluster: Cluster, broken: int) -> LabelRun:
    write_images(tmp_path / "images", 120)
    nodes = [node.node_id for node in cluster.list_all_nodes() if node is not cluster.head_node]
    (tmp_path / "broken_devices").write_text(" ".join(node[:12] for node in nodes[:broken]))
    return LabelRun(
        str(tmp_path / "broken_device"),
        str(tmp_path / "images"),
        str(tmp_path / "out"),
        label=LabelConfig(num_workers=3, threads_per_worker=2, rows_per_file=4),
        cluster=ClusterConfig(address=cluster.address),
    )


@pytest.mark.ray
@pytest.mark.slow  # three processes on the broken machine, one after the other, and a second pass
def test_a_run_goes_on_without_a_broken_machine(tmp_path: Path, three_nodes: Cluster) -> None:
    run = labelled_with_broken(tmp_path, three_nodes, 1)
    summary = label(run, detector=FAKE)
    assert (summary.images, summary.statuses) == (120, {"ok": 120})
    assert verify(VerifyRun(run.output)).passed


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_ends_where_all_machines_are_broken_and_names_them(tmp_path: Path, three_nodes: Cluster) -> None:
    run = labelled_with_broken(tmp_path, three_nodes, 3)
    with pytest.raises(UserError, match=r"too few devices; given up after 3 processes .*\(Ray node .*nothing work"):
        label(run, detector=FAKE)
    assert not list((tmp_path / "out" / "labels").glob("*.parquet"))


def test_a_broken_process_of_this_machine_is_tried_three_times(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 40)
    run = LabelRun("broken", str(tmp_path / "images"), str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"given up after 3 processes each: \S+: it failed on \d+ images in a row"):
        label(run, detector=FAKE)
