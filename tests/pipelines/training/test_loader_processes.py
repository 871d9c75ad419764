import pytest

from maskrcnn_core.errors import ConfigError
from pipelines.training.data_config import DataConfig
from pipelines.training.loader_processes import loader_processes


@pytest.mark.parametrize(
    ("cpus", "workers", "expected"),
    [(1, 1, 0), (2, 1, 0), (3, 1, 1), (4, 1, 2), (8, 1, 6), (16, 1, 12), (96, 8, 10), (192, 8, 12), (4, 8, 0)],
)
def test_a_gpu_worker_takes_its_share_of_the_cpus(cpus: int, workers: int, expected: int) -> None:
    assert loader_processes("auto", on_gpu=True, cpus=cpus, workers_here=workers) == expected


def test_on_a_cpu_the_network_has_the_cores() -> None:
    assert loader_processes("auto", on_gpu=False, cpus=64, workers_here=1) == 0


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("wanted", [0, 3, 40])
def test_a_number_is_taken_as_it_is(on_gpu: bool, wanted: int) -> None:
    assert loader_processes(wanted, on_gpu=on_gpu, cpus=2, workers_here=1) == wanted


def test_the_setting_is_a_number_or_auto() -> None:
    assert DataConfig().workers == "auto"
    assert DataConfig(workers=4).workers == 4
    with pytest.raises(ConfigError, match=r"data.workers: got 'many', expected a whole number .* or auto"):
        DataConfig(workers="many")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"data.workers: got -1, expected 0 to 10,000"):
        DataConfig(workers=-1)
    with pytest.raises(ConfigError, match=r"data.workers: got 'auto', expected the number of actors"):
        DataConfig(reader="ray")
