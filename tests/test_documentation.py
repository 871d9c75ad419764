"""README.md, CONTRIBUTING.md and docs/: what they name is there, jobs take their commands, and sentences are short."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from jobs import benchmark, cli
from maskrcnn_core.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
JOBS = (
    *("train", "label", "evaluate", "verify", "report", "export", "convert", "priors", "propose", "serve", "demo"),
    "benchmark",
)

MOST_README_LINES = 170
MOST_WORDS = 40
FILE_ENDINGS = (".py", ".yaml", ".md", ".toml", ".png", ".jpg", ".svg", ".lock")
FOLDERS = ("jobs", "pipelines", "maskrcnn_core", "tests", "docs", "deploy")
WRITTEN_BY_JOBS = {"curves.svg", "runs/mine/curves.svg", "data.yaml", "demo/contact_sheet.png", "drawn.png"}


@dataclass(frozen=True)
class Page:
    """A page, cut up.

    Attributes:
        prose: its lines without code blocks.
        code: language and text of its code blocks; indented ones have no language.
    """

    prose: str
    code: tuple[tuple[str, str], ...]


def read_page(text: str) -> Page:
    """A block of code stands between fences, or is indented by four and follows an empty line."""
    prose: list[str] = []
    code: list[tuple[str, list[str]]] = []
    fenced = indented = False
    empty_before = True
    for line in text.splitlines():
        is_fence = line.startswith("```")
        starts = not fenced and not indented and empty_before and line.startswith("    ") and not line.isspace()
        if starts or (is_fence and not fenced):
            code.append((line[3:].strip() if is_fence else "", []))
        if fenced and not is_fence:
            code[-1][1].append(line)
        fenced = fenced != is_fence
        indented = not fenced and not is_fence and (starts or (indented and (line.startswith("    ") or not line)))
        if indented:
            code[-1][1].append(line[4:])
        elif not fenced and not is_fence:
            prose.append(line)
        empty_before = not line.strip()
    return Page("\n".join(prose), tuple((language, "\n".join(lines)) for language, lines in code))


def test_a_page_is_cut_up() -> None:
    page = read_page("One.\n\n    a \\\n      b\n\n    c\n\nTwo.\n- item\n    of it\n\n```sql\nSELECT 1\n```\nThree.")
    assert page.code == (("", "a \\\n  b\n\nc\n"), ("sql", "SELECT 1"))
    assert page.prose.split() == ["One.", "Two.", "-", "item", "of", "it", "Three."]


@cache
def page(path: Path) -> Page:
    return read_page(path.read_text(encoding="utf-8"))


def spans(prose: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", prose)


each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)


# Length.


def sentences(prose: str) -> Iterator[str]:
    """Of paragraphs and list items; tables, headings and comments apart. Code counts as no word: it is a name."""
    kept = [line for line in prose.splitlines() if not re.match(r"\s*(\||#|<!--)", line)]
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", "\n".join(kept))
    text = re.sub(r"`[^`]*`", "`", text)
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text):
        yield from re.split(r"(?<=[.!?])[)*\"]*\s+", " ".join(paragraph.split()))


def num_words(sentence: str) -> int:
    return len(re.findall(r"\w[\w'’.,/-]*", sentence))


def test_words_and_sentences_are_counted() -> None:
    prose = "# A heading\n\nOne two\nthree. Four, [five six](7/eight.md): `code of it`!\n- nine 1,000\n- ten\n\n| a |\n"
    assert [num_words(sentence) for sentence in sentences(prose)] == [3, 3, 2, 1]


@each_page
def test_no_sentence_is_long(path: Path) -> None:
    long = {sentence: num_words(sentence) for sentence in sentences(page(path).prose)}
    assert {sentence: count for sentence, count in long.items() if count > MOST_WORDS} == {}


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= MOST_README_LINES


# Links and names.


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page(path).prose, flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return {
        f"{name}-{plain[:index].count(name)}" if name in plain[:index] else name for index, name in enumerate(plain)
    }


@each_page
def test_every_link_leads_somewhere(path: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page(path).prose):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


def test_every_page_is_linked_from_the_readme() -> None:
    linked = re.findall(r"\]\(([^)#\s]+)", page(REPOSITORY / "README.md").prose)
    assert {str(path.relative_to(REPOSITORY)) for path in PAGES} - {"README.md"} <= set(linked)


def expanded(pattern: str) -> list[str]:
    """a{b,c}d -> abd, acd."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [name for choice in found[1].split(",") for name in expanded(before + choice + after)]


def is_path(text: str) -> bool:
    """Whether a span names a file or folder of this repository."""
    if text in WRITTEN_BY_JOBS or not re.fullmatch(r"[\w./*{},-]+", text):
        return False
    return text.endswith(FILE_ENDINGS) or (text.split("/")[0] in FOLDERS and "/" in text)


def missing_paths(prose: str) -> list[str]:
    """Paths that are not there: from the root, the core, the presets or docs/, or beside the one before in the line."""
    missing = []
    for line in prose.splitlines():
        beside = REPOSITORY
        for text in filter(is_path, spans(line)):
            for name in expanded(text):
                homes = (
                    beside,
                    REPOSITORY,
                    REPOSITORY / "maskrcnn_core",
                    REPOSITORY / "jobs/configs",
                    REPOSITORY / "docs",
                )
                there = next((path for home in homes for path in home.glob(name)), None)
                if there is None:
                    missing.append(name)
                else:
                    beside = there if there.is_dir() else there.parent
    return missing


def test_a_missing_path_is_found() -> None:
    assert missing_paths("`jobs/cli.py` and `train.py`, `data/{files,cocoa}.py`") == ["data/cocoa.py"]
    assert missing_paths("`runs/mine` and `--data.train.images` and `val.json` are of no concern") == []


@each_page
def test_every_path_in_backticks_is_there(path: Path) -> None:
    assert missing_paths(page(path).prose) == []


@each_page
def test_every_make_target_is_there(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))
    lines = [*spans(page(path).prose), *(line for _, code in page(path).code for line in code.splitlines())]
    named = {found[1] for line in lines if (found := re.match(r"(?:[A-Z_]+=\S+ )*make ([a-z-]+)", line))}
    assert named <= targets


# Commands.


def commands(path: Path) -> list[str]:
    """Every `python -m jobs.X ...` of a page, with variables of the shell put in."""
    texts = [" ".join(span.split()) for span in spans(page(path).prose)]
    for _, code in page(path).code:
        lines = code.replace("\\\n", " ").splitlines()
        given = [found for line in lines if (found := re.fullmatch(r'(\w+)="?([^"]*)"?', line))]
        variables = {found[1]: found[2] for found in given}
        texts += [re.sub(r"\$(\w+)", lambda name: variables[name[1]], line) for line in lines]  # noqa: B023
    return [found[1] for text in texts if (found := re.search(r"python -m (jobs\.\w.*)", text))]


class Parsed(Exception):
    """Raised in place of a job's work: its own parser took the command line."""


@pytest.fixture(scope="module")
def run_types() -> Iterator[list[type[Any]]]:
    """Jobs end with `Parsed` where they would begin; each time the list gets the type of the run."""
    taken: list[type[Any]] = []

    def parse_only(run_type: type[Any], action: object, *, prog: str, argv: list[str], **rest: object) -> int:
        taken.append(run_type)
        names = {argument[2:] for argument in argv if argument.startswith("--")}
        assert names <= {"config", *cli._leaf_types(run_type)}
        if "..." not in argv:  # else the page leaves out the rest
            cli.parse_run(run_type, prog=prog, argv=argv)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        patch.setattr(cli, "_build_parser", cache(cli._build_parser))  # most of the time
        for name in JOBS:
            patch.setattr(import_module(f"jobs.{name}"), "run_job", parse_only)
        yield taken


def accept(command: str) -> None:
    """Hand a command line to its job."""
    name, *arguments = shlex.split(command, comments=True)
    with pytest.raises(Parsed):
        import_module(name).main(arguments)


@each_page
def test_every_command_is_accepted(path: Path, run_types: list[type[Any]]) -> None:
    for command in commands(path):
        name, *arguments = shlex.split(command, comments=True)
        assert name.removeprefix("jobs.") in JOBS, command
        if arguments and arguments != ["NAME"]:  # else the page speaks of the job
            accept(command)


@pytest.mark.usefixtures("run_types")
def test_a_wrong_command_is_not_accepted() -> None:
    for command in ("jobs.label --checkpoint C", "jobs.train --train.step 3 ...", "jobs.export --labels L --format of"):
        with pytest.raises((AssertionError, ConfigError)):
            accept(command)


def test_there_are_commands_of_every_job() -> None:
    named = {command.split()[0].removeprefix("jobs.") for path in PAGES for command in commands(path)}
    assert named == set(JOBS) - {"demo"}  # that one is make demo


@each_page
def test_every_setting_in_backticks_is_one(path: Path, run_types: list[type[Any]]) -> None:
    run_types.clear()
    for name in [*JOBS[:-1], *(f"benchmark {name}" for name in benchmark.BENCHMARKS)]:
        accept(f"jobs.{name} ...")
    known = {name for run_type in run_types for name in cli._leaf_types(run_type)}
    named = {name for span in spans(page(path).prose) for name in re.findall(r"(?<!\S)--([a-z][\w.]*)", span)}
    assert named <= {*known, "config", "help", "print_config", "section.name"}


@pytest.mark.usefixtures("run_types")
def test_every_system_of_the_table_can_be_trained() -> None:
    settings = [
        span for span in spans(page(REPOSITORY / "docs/systems.md").prose) if re.match("--(model|config)[. ]", span)
    ]
    whole = [span for span in settings if len(shlex.split(span)) % 2 == 0]  # else a name without a value
    assert len(whole) > 12
    for span in whole:
        accept(f"jobs.train {span} --output runs/one")
