"""What the pages name exists: files, addresses, settings, verbs, targets of make, links.

Not asked: docs/log.md and CHANGELOG.md, which say what was once.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from grpo import Run, cli
from grpo.config.config import section_types
from grpo.config.schema import STAGES, Recipe

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    ROOT / "AGENTS.md",
    *sorted(file for file in (ROOT / "docs").rglob("*.[ms]*") if file.name != "log.md"),
    *sorted((ROOT / "recipes").glob("*.yaml")),
]
FOLDERS = "grpo|rewards|rollout|data|recipes|tests|benchmarks|docs"
SOURCES = r"\.(?:py|cpp|h|md|yaml|sbatch)"
NOT_IN_THE_TREE = {
    "benchmarks/results/gpu.json": "written by `make gpu`",
    "data/train.jsonl": "left by a stage `reject`",
    "data/README.md": "left by a stage `reject`",
    "data/counts.json": "left by a stage `reject`",
    "tests/mine.jsonl": "a user's",
    "path/file.py": "a user's",
    "path/to/file.py": "a user's",
    "mine.py": "a user's",
    "recipes/notebooks/NN-name.py": "any notebook",
    "NN-name.py": "any notebook",
    "my_rewards.py": "a user's",
    "config.yaml": "a user's",
    "recipe.yaml": "a user's",
}
# Files that a page shows whole, in a block that is named by the file.
SHOWN = {
    name
    for page in PAGES
    if page.suffix == ".md"
    for name in re.findall(r"^```\w+ (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
}
NO_SETTING = {"args.timeout", "run.lock", "sys.path"}  # of any reward; a file; Python's
# Of a plug-in's code: what an engine is made from and asked for.
NO_SETTING |= {"spec.lora", "spec.quantization", "sampling.stop"}
NO_SETTING |= {
    f"run.{name}" for name in (*dir(Run), "folder", "recipe", "metrics.loc")
}  # of Python


def code(page: Path) -> Iterator[str]:
    """What a page sets as code: in backticks, or a line of a block; the comments of a recipe."""
    fenced = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if page.suffix != ".md":
            yield line
        elif line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced:
            yield line
        else:
            yield from re.findall(r"`([^`]+)`", line)


def paths(page: Path) -> Iterator[str]:
    """Paths below the folders of the tree; a name of a metric has neither a suffix nor a slash."""
    for text in code(page):
        for found in re.findall(rf"(?<![\w/.<-])((?:{FOLDERS})/[\w./*-]*)", text):
            path = found.rstrip(".")
            if re.search(r"\.\w+$|/$|\*", path) or re.match("grpo|tests|benchmarks|docs", path):
                yield path


def source_files(page: Path) -> Iterator[str]:
    """Source files by the end of their path, as in `vllm/compat.py`."""
    for text in code(page) if page.suffix == ".md" else ():
        yield from re.findall(rf"(?<![\w/.*-])(\w[\w/.-]*{SOURCES})(?!\w)", text)


def addresses(page: Path) -> Iterator[str]:
    for text in code(page):
        yield from re.findall(r"(?<![\w/.\"])grpo(?:\.\w+)+(?::\w+)?", text)


def module(parts: list[str]) -> Path | None:
    """The file of a module, which may need torch and is not imported."""
    folder = ROOT.joinpath(*parts)
    for file in (folder.with_suffix(".py"), folder / "__init__.py"):
        if file.is_file():
            return file
    return None


@cache
def defined(file: Path) -> set[str]:
    """The names at the top of a module, and those that `grpo` imports on first use."""
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            if isinstance(node.value, ast.Dict) and file == ROOT / "grpo" / "__init__.py":
                names |= {
                    str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)
                }
    return names


def leads_somewhere(address: str) -> bool:
    parts = re.split("[.:]", address)
    for length in range(len(parts), 0, -1):
        file = module(parts[:length])
        if file is not None and (length > 1 or len(parts) == 2):
            return length == len(parts) or parts[length] in defined(file)
    return False


def settings() -> set[str]:
    """Every dotted name of a setting, and of a section."""
    names = {name for kind in (Recipe, *STAGES.values()) for name in section_types(kind)}
    return names | {
        name.rsplit(".", cut)[0] for name in names for cut in range(1, name.count(".") + 1)
    }


def slug(title: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_files_that_a_page_names_exist(page: Path) -> None:
    lost = [
        path
        for path in paths(page)
        if path not in NOT_IN_THE_TREE and not any(ROOT.glob(path.rstrip("/")))
    ]
    assert lost == []


def test_source_files_that_a_page_names_by_their_end_exist(page: Path) -> None:
    tree = {
        f"/{file.relative_to(ROOT)}"
        for folder in FOLDERS.split("|")
        for file in (ROOT / folder).rglob("*.*")
    } | {f"/{file.name}" for file in ROOT.glob("*.md")}
    lost = [
        name
        for name in source_files(page)
        if name not in {*NOT_IN_THE_TREE, *SHOWN}
        and not any(file.endswith(f"/{name}") for file in tree)
    ]
    assert lost == []


def test_addresses_that_a_page_names_lead_somewhere(page: Path) -> None:
    assert [name for name in addresses(page) if not leads_somewhere(name)] == []


def test_settings_that_a_page_names_exist(page: Path) -> None:
    known = settings()
    keys = {name.rpartition(".")[2] for name in known}
    sections = {name.partition(".")[0] for name in known if "." in name}
    for text in code(page):
        for name in re.findall(r"(?<![\w./:-])([a-z_]+(?:\.[a-z_]+)+)(?![\w/(.-])", text):
            first, _, rest = name.partition(".")
            about_settings = first in sections or name.rpartition(".")[2] in keys
            if about_settings and not re.search(rf"{SOURCES}$|\.jsonl?$|\.sh$|^grpo\.", name):
                of_a_plugin = re.sub(r"(args)\..*", r"\1", name)
                assert {name, rest, of_a_plugin} & (known | NO_SETTING), name


def test_commands_that_a_page_names_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    verbs = set(re.findall(r"^    ([a-z-]+) ", cli.parser().format_help(), re.MULTILINE))
    for text in code(page) if page.suffix == ".md" else ():
        for verb in re.findall(r"^\$? ?grpo ([a-z-]+)", text):
            assert verb in verbs
        for target in re.findall(r"^\$? ?make ([a-z-]+)", text):
            assert target in targets


def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in map(slug, titles), f"{target}#{anchor}"


def test_imports_inside_of_strings_lead_somewhere() -> None:
    # Programs for other processes: no linter reads them, and another installed copy of the
    # toolkit would lend them its modules.
    files = [file for folder in FOLDERS.split("|") for file in (ROOT / folder).rglob("*.py")]
    made_up = ROOT / "tests" / "benchmarks" / "test_house.py"
    lost = [
        f"{file.relative_to(ROOT)}: {where}.{name}"
        for file in files
        if file not in (Path(__file__), made_up)
        for where, names in re.findall(r"from (grpo[\w.]*) import ([\w, ]+)", file.read_text())
        for name in re.findall(r"(?:^|, )(\w+)", names)
        if not name.startswith("__") and not leads_somewhere(f"{where}.{name}")
    ]
    assert files
    assert lost == []
