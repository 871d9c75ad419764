"""The rooms of the code in numbers and as a picture: `make architecture`.

A *room* is a folder of a package, or a file that lies beside folders; an *arrow* is that something in one room imports
something of another. Everything is read from the syntax trees, nothing is imported.
"""

import argparse
import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("maskrcnn_core", "pipelines", "jobs")

# Lowest first. A room imports rooms of lower levels, and of its own level as long as that makes no circle.
CORE_LEVELS: tuple[tuple[str, ...], ...] = (
    ("errors", "printable", "structures", "thread_waiting", "kernels"),
    ("boxes", "masks", "run_lengths", "compressed_runs", "keypoints", "config", "layers"),
    ("data", "records", "weights"),
    ("model", "region_proposals", "drawing", "export", "evaluation"),
    ("inference", "training", "report", "importers"),
)
PIPELINE_LEVELS: tuple[tuple[str, ...], ...] = (
    ("storage", "cluster"),
    ("annotations",),
    ("images", "labels", "verification", "conversion", "priors"),
    ("labelling", "exporting", "serving"),
    ("evaluation", "proposing"),
    ("benchmarks", "report", "training"),
)
LEVELS: Mapping[str, tuple[tuple[str, ...], ...]] = {"maskrcnn_core": CORE_LEVELS, "pipelines": PIPELINE_LEVELS}

_LONG_FILE, _LONG_FUNCTION = 300, 60

Graph = dict[str, set[str]]


def source_files(root: Path = REPOSITORY) -> list[str]:
    """Every product file, relative to the repository."""
    return sorted(str(file.relative_to(root)) for package in PACKAGES for file in (root / package).rglob("*.py"))


def module_name(path: str) -> str:
    """`maskrcnn_core/model/build.py` -> `maskrcnn_core.model.build`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported_names(path: str, tree: ast.Module) -> list[tuple[int, str]]:
    """Line and absolute dotted name of everything imported, also inside functions and for type checkers."""
    package = path.removesuffix(".py").removesuffix("/__init__").split("/")
    is_package = path.endswith("__init__.py")
    names: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + is_package] if node.level else []
            origin = ".".join([*parent, *([node.module] if node.module else [])])
            # `from maskrcnn_core import model` imports maskrcnn_core.model; a function's name does no harm here.
            names += [(node.lineno, f"{origin}.{alias.name}") for alias in node.names]
    return names


def import_graph(root: Path = REPOSITORY) -> Graph:
    """Module -> modules of ours that it imports."""
    files = {module_name(path): path for path in source_files(root)}
    graph: Graph = {module: set() for module in files}
    for module, path in files.items():
        for _, name in imported_names(path, ast.parse((root / path).read_text())):
            target = name if name in files else name.rpartition(".")[0]
            if target in files and target != module:
                graph[module].add(target)
    return graph


def room_of(module: str, package: str) -> str | None:
    """`maskrcnn_core.model.build` is in room `model` of `maskrcnn_core` and in `build` of `maskrcnn_core.model`."""
    inside = module.removeprefix(f"{package}.")
    return None if inside == module else inside.partition(".")[0]


def room_graph(graph: Graph, package: str) -> Graph:
    """Room -> rooms of the same package that something in it imports."""
    rooms: Graph = {}
    for module, targets in graph.items():
        if (here := room_of(module, package)) is None:
            continue
        others = {room for target in targets if (room := room_of(target, package)) is not None}
        rooms.setdefault(here, set()).update(others - {here})
    return rooms


def circles(graph: Graph) -> list[list[str]]:
    """The strongly connected parts of more than one node (Tarjan, 1972), each sorted."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    parts: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            cut = stack.index(node)
            part = sorted(stack[cut:])
            del stack[cut:]
            if len(part) > 1:
                parts.append(part)

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return parts


def floors(graph: Graph) -> int:
    """Rooms on the longest way down; those of a circle count as one floor."""
    height: dict[str, int] = {}

    def of(node: str, above: frozenset[str]) -> int:
        if node not in height:
            below = [of(target, above | {node}) for target in graph.get(node, ()) if target not in above]
            height[node] = 1 + max(below, default=0)
        return height[node]

    return max((of(node, frozenset()) for node in sorted(graph)), default=0)


def without_shortcuts(graph: Graph) -> Graph:
    """The same without arrows that a longer way implies (the transitive reduction of a graph without circles)."""

    def reached(node: str) -> set[str]:
        below = graph.get(node, set())
        return below.union(*(reached(target) for target in below)) if below else below

    return {
        node: {target for target in targets if not any(target in reached(other) for other in targets - {target})}
        for node, targets in graph.items()
    }


def functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Name and number of lines of every function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


@dataclass(frozen=True)
class Measures:
    """What `python -m tests.architecture` prints.

    Attributes:
        rooms: package -> (rooms, arrows between them, floors, circles).
        files: their number.
        file_circles: files that import each other in a circle.
        long_files: path and lines of those above 300.
        long_functions: path, name and lines of those above 60.
    """

    rooms: Mapping[str, tuple[int, int, int, int]]
    files: int
    file_circles: list[list[str]]
    long_files: list[tuple[str, int]]
    long_functions: list[tuple[str, str, int]]


def measure(root: Path = REPOSITORY) -> Measures:
    """The measures of a checkout, of this or of another state."""
    graph = import_graph(root)
    rooms = {}
    for package in ("maskrcnn_core", "maskrcnn_core.model", "pipelines"):
        inner = room_graph(graph, package)
        arrows = sum(map(len, inner.values()))
        rooms[package] = (len(inner), arrows, floors(inner), len(circles(inner)))
    texts = {path: (root / path).read_text() for path in source_files(root)}
    lines = {path: len(text.splitlines()) for path, text in texts.items()}
    long = [
        (path, name, number)
        for path, text in texts.items()
        for name, number in functions(ast.parse(text))
        if number > _LONG_FUNCTION
    ]
    return Measures(
        rooms,
        len(texts),
        circles(graph),
        sorted(((path, number) for path, number in lines.items() if number > _LONG_FILE), key=lambda pair: -pair[1]),
        sorted(long, key=lambda entry: -entry[2]),
    )


def print_measures(found: Measures) -> None:
    """As a table."""
    print(f"{'':24}{'rooms':>8}{'arrows':>8}{'floors':>8}{'circles':>9}")
    for package, numbers in found.rooms.items():
        print(f"{package:24}{numbers[0]:8}{numbers[1]:8}{numbers[2]:8}{numbers[3]:9}")
    print(f"\n{found.files} files; circles between files: {len(found.file_circles)}")
    for part in found.file_circles:
        print(f"  {' <-> '.join(part)}")
    print(f"files above {_LONG_FILE} lines: {len(found.long_files)}")
    for path, number in found.long_files:
        print(f"  {number:4} {path}")
    print(f"functions above {_LONG_FUNCTION} lines: {len(found.long_functions)}")
    for path, name, number in found.long_functions:
        print(f"  {number:4} {path} {name}")


def draw(graphs: Mapping[str, Graph], output: Path) -> None:
    """The rooms of the packages, a row a level, as an SVG picture; arrows that a longer way implies are left out."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, areas = plt.subplots(len(graphs), 1, figsize=(12, 6.2 * len(graphs)))
    for area, (package, graph) in zip(areas, graphs.items(), strict=True):
        _draw_rooms(area, package, without_shortcuts(graph), LEVELS[package])
    figure.tight_layout()
    figure.savefig(output, metadata={"Date": None})
    plt.close(figure)


def _draw_rooms(area: object, package: str, graph: Graph, levels: Iterable[tuple[str, ...]]) -> None:
    places = {}
    for row, level in enumerate(levels):
        shown = [room for room in level if room in graph]
        for column, room in enumerate(shown):
            places[room] = ((column + 0.5) / len(shown), float(row))
    colors = ("#3b6ea8", "#a8553b", "#3b8f5a", "#7a4fa3", "#9a7d1e", "#2f8c99", "#b03a6b")
    for number, (room, targets) in enumerate(sorted(graph.items())):
        for target in sorted(targets):
            if room in places and target in places:
                bend = 0.25 if places[room][1] == places[target][1] else 0.06
                area.annotate(  # type: ignore[attr-defined]
                    "",
                    xy=places[target],
                    xytext=places[room],
                    arrowprops={
                        "arrowstyle": "-|>",
                        "color": colors[number % len(colors)],
                        "alpha": 0.7,
                        "lw": 1.3,
                        "shrinkA": 14,
                        "shrinkB": 16,
                        "connectionstyle": f"arc3,rad={bend}",
                    },
                )
    for room, (x, y) in places.items():
        box = {"boxstyle": "round,pad=0.45", "fc": "#f4f4f1", "ec": "#555555"}
        area.text(x, y, room, ha="center", va="center", fontsize=11, bbox=box)  # type: ignore[attr-defined]
    area.set_title(f"{package}: what imports what", loc="left", fontsize=13)  # type: ignore[attr-defined]
    area.set_xlim(-0.02, 1.02)  # type: ignore[attr-defined]
    area.set_ylim(-0.5, max(y for _, y in places.values()) + 0.5)  # type: ignore[attr-defined]
    area.axis("off")  # type: ignore[attr-defined]


def main(arguments: list[str]) -> None:
    """Print the measures of a checkout, and draw its rooms."""
    parser = argparse.ArgumentParser(prog="python -m tests.architecture", description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=REPOSITORY, help="checkout to measure")
    parser.add_argument("--output", type=Path, help="SVG picture of the rooms and their imports")
    options = parser.parse_args(arguments)
    print_measures(measure(options.root))
    if options.output is not None:
        graph = import_graph(options.root)
        draw({package: room_graph(graph, package) for package in LEVELS}, options.output)
        print(f"\npicture: {options.output}")


if __name__ == "__main__":
    main(sys.argv[1:])
