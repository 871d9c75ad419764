"""Every metric of deploy/grafana.json is one that this project or Ray publishes."""

import ast
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BOARD: dict[str, Any] = json.loads((REPOSITORY / "deploy/grafana.json").read_text())
RAYS_PANELS = ("default_dashboard_panels", "train_dashboard_panels", "data_dashboard_panels")
FUNCTIONS = {"sum", "rate", "min", "max", "avg"}


def expressions() -> list[str]:
    return [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", [])]


def metrics(expression: str) -> set[str]:
    """Names of a PromQL expression outside of its labels, functions and intervals."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\bby \([^)]*\)", "", expression)
    return set(re.findall(r"[A-Za-z_]\w*", bare)) - FUNCTIONS


def test_metrics_are_found_in_an_expression() -> None:
    assert metrics('sum by (a) (rate(ray_x_total{b="c"}[$__rate_interval])) / avg(ray_y) > 0') == {
        "ray_x_total",
        "ray_y",
    }


def of_this_project() -> set[str]:
    """As Prometheus knows them: Ray puts `ray_` before the names, and `_total` behind those of counters."""
    names = set()
    for file in (REPOSITORY / "pipelines").rglob("*.py"):
        text = file.read_text()
        if "ray.util.metrics" in text:
            calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
            named = [call.args[0] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Counter"]
            names |= {str(name.value) for name in named if isinstance(name, ast.Constant)}
    return {f"ray_{name}_total" for name in names}


def of_ray() -> set[str]:
    """Those of the boards that Ray itself ships for Grafana."""
    texts = []
    for name in RAYS_PANELS:
        module = importlib.import_module(f"ray.dashboard.modules.metrics.dashboards.{name}")
        texts.append(Path(str(module.__file__)).read_text())
    return set(re.findall(r"\b(?:ray|autoscaler)_\w+", "\n".join(texts)))


def test_every_metric_is_published() -> None:
    used = {name for expression in expressions() for name in metrics(expression)}
    assert used <= of_this_project() | of_ray()
    assert of_this_project() <= used, "a metric of labelling has no panel"


def test_ours_are_those_that_the_page_names() -> None:
    page = (REPOSITORY / "docs/cluster.md").read_text()
    assert {name for name in of_this_project() if name not in page} == set()


@pytest.mark.parametrize("panel", BOARD["panels"], ids=lambda panel: panel["title"])
def test_a_panel_is_whole(panel: dict[str, Any]) -> None:
    place = panel["gridPos"]
    assert 0 <= place["x"] < place["x"] + place["w"] <= 24
    if panel["type"] != "row":
        assert panel["description"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["expr"].count("(") == target["expr"].count(")") for target in panel["targets"])
        assert all("$session" in target["expr"] for target in panel["targets"])


def test_no_two_panels_lie_over_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
