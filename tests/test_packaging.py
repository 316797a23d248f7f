"""What is installed is what is in the tree: the links, the package list, and a built wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
MOUNTS = ("rewards", "rollout", "data", "recipes")
NOTEBOOKS = ROOT / "recipes" / "notebooks"  # opened from the repository, by hand or in Colab
CODE_SUFFIXES = (".py", ".cpp", ".h")
DATA_SUFFIXES = (".yaml", ".json", ".jsonl", ".safetensors")


def tree() -> set[str]:
    """Every file a wheel should hold, by its path below site-packages."""
    found = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "grpo").rglob("*")
        if file.is_file()
        and (file.suffix in CODE_SUFFIXES or file.name in ("py.typed", "constraints.txt"))
        and file.relative_to(ROOT).parts[1] not in MOUNTS
    }
    for mount in MOUNTS:
        suffixes = (*CODE_SUFFIXES, *DATA_SUFFIXES) if mount == "recipes" else CODE_SUFFIXES
        found |= {
            str(Path("grpo") / file.relative_to(ROOT))
            for file in (ROOT / mount).rglob("*")
            if file.is_file() and file.suffix in suffixes and file.parent != NOTEBOOKS
        }
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the files as they are, built from a copy so that the tree stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = {".git", "build", "dist", "runs", "benchmarks", "tests", "models"}
    source.mkdir()
    for entry in ROOT.iterdir():
        others = entry.name.startswith(".venv") or entry.name.endswith(".egg-info")
        if entry.name not in ignored and not others:
            # -P keeps the links inside grpo/ links, as git does.
            subprocess.run(["cp", "-RP", str(entry), str(source)], check=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return next(folder.glob("*.whl"))


def test_mounts_are_relative_links() -> None:
    for mount in MOUNTS:
        link = ROOT / "grpo" / mount
        assert link.is_symlink()
        assert os.readlink(link) == f"../{mount}"


def test_every_package_of_the_tree_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {str(Path(file).parent).replace("/", ".") for file in tree() if file.endswith(".py")}
    assert set(listed) == folders


def test_a_wheel_holds_exactly_the_tree(wheel: Path) -> None:
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert names == tree()


def test_the_wheel_imports_and_runs_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import grpo, grpo.rewards, grpo.rollout, grpo.data, grpo.recipes, grpo.config.config; "
        "from grpo.rewards import REWARDS; "
        "print(grpo.__file__); print(*sorted(grpo.config.config.shipped())); "
        "grpo.config.config.load('parity-pretrain')"
    )
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env
    )
    assert done.returncode == 0, done.stderr
    where, recipes = done.stdout.splitlines()
    assert Path(where).is_relative_to(site)
    assert recipes.split() == sorted(file.stem for file in (ROOT / "recipes").glob("*.yaml"))


def test_public_names_exist_are_few_and_import_no_torch() -> None:
    import grpo

    assert len(grpo.__all__) <= 30
    for name in grpo.__all__:
        assert getattr(grpo, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = grpo.no_such_name
    code = "import sys, grpo; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_checkout_runs_uninstalled(tmp_path: Path) -> None:
    code = "import grpo.rewards, grpo.data; print(grpo.rewards.__file__)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path += {sys.path!r}; {code}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=env,
        check=True,
    )
    assert Path(done.stdout.strip()).resolve() == ROOT / "rewards" / "__init__.py"


def copied(containerfile: str) -> list[str]:
    """What a Containerfile copies from the tree."""
    lines = containerfile.replace("\\\n", " ").splitlines()
    copies = [line.split()[1:-1] for line in lines if line.startswith("COPY ")]
    return [name for names in copies if not names[0].startswith("--from") for name in names]


def test_the_container_is_built_from_what_the_package_is_built_from() -> None:
    names = copied((ROOT / "Containerfile").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    about = {project["project"]["readme"], *project["project"]["license-files"]}
    mapped = set(project["tool"]["setuptools"]["package-dir"].values())
    assert [name for name in names if not (ROOT / name).exists()] == []
    assert set(names) == {"pyproject.toml", "grpo/constraints.txt"} | about | mapped


def test_no_bound_excludes_what_colab_has() -> None:
    """A package that Colab has stays as it is, so a bound above its version cannot be met there."""
    text = (ROOT / "benchmarks" / "colab" / "requirements.txt").read_text()
    lines = [Requirement(line) for line in text.splitlines() if not line.startswith("#")]
    there = {canonicalize_name(line.name): str(line.specifier)[2:] for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [
        *project["optional-dependencies"]["lora"],
        *project["optional-dependencies"]["smollm2"],
    ]
    needs = [Requirement(line) for line in project["dependencies"] + extras]
    shared = [(need, there[need.name]) for need in needs if need.name in there]
    assert len(shared) >= 12
    assert [f"{need}: {has}" for need, has in shared if not need.specifier.contains(has)] == []
