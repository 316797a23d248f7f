"""`grpo.setup`: what is missing is installed, what is there stays, and errors say what to do."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import grpo
from grpo.commands.api import packages


def wheel(folder: Path, name: str, version: str, needs: str = "") -> None:
    """A wheel with one empty module, written by hand (PEP 427)."""
    info = f"{name}-{version}.dist-info"
    needed = f"Requires-Dist: {needs}\n" if needs else ""
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", "")
        head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needed}"
        file.writestr(f"{info}/METADATA", head)
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")


def test_a_package_is_missing_by_its_normal_name() -> None:
    there = {"math-verify", "torch"}
    lines = ["torch>=2.6", "Math_Verify>=0.8", "trl>=1.16", "pyyaml>=6"]
    assert packages.missing(lines, there) == ["trl>=1.16", "pyyaml>=6"]


def test_requirements_with_and_without_extras() -> None:
    plain, with_extra = packages.requirements(), packages.requirements("smollm2, lora")
    assert {line.partition(">")[0] for line in with_extra} - {
        line.partition(">")[0] for line in plain
    } >= {"gguf", "peft"}
    assert not [line for line in plain if line.startswith(("ray", "vllm", "pytest"))]
    with pytest.raises(grpo.GrpoError, match=r"unknown extra .smolm.\. Did you mean .smollm2."):
        grpo.setup("smolm")


def test_a_checkout_that_is_not_installed_knows_what_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed = packages.requirements("ray")
    monkeypatch.setattr(packages, "PACKAGE", "not-installed-anywhere")
    checkout = packages.requirements("ray")
    assert sorted(map(packages._name, checkout)) == sorted(map(packages._name, installed))


def test_what_is_missing_is_found_before_anything_is_installed() -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(grpo.__file__).parent.parent)!r})
import grpo
from grpo.commands.api import packages
assert grpo.setup is packages.setup
from grpo.outside.version import toolkit_version
assert toolkit_version().startswith("0.")
print(len(packages.missing(packages.requirements(), packages.installed())))
"""
    command = [sys.executable, "-S", "-c", code]  # -S: the standard library and nothing else
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 15


def test_pip_adds_the_tested_version_and_replaces_nothing(tmp_path: Path) -> None:
    """`wants` is there in 1.0 (tested), 2.0 and 3.0; `held` is installed in 1.0, and 2.0 exists."""
    for name, version, needs in [
        ("held", "1.0", ""),
        ("held", "2.0", ""),
        ("wants", "1.0", "held>=1"),
        ("wants", "2.0", "held>=1"),
        ("wants", "3.0", "held>=2"),
        ("newer", "1.0", "held>=2"),
        ("both", "1.0", "held>=1"),
        ("both", "2.0", "held>=2"),
    ]:
        wheel(tmp_path, name, version, needs)
    pins = tmp_path / "pins.txt"
    pins.write_text("# tested\nwants==1.0\nheld==2.0\nboth==2.0\n")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    code = f"""
import sys
sys.path.insert(0, {str(Path(grpo.__file__).parent.parent)!r})
from pathlib import Path
from grpo.commands.api import packages
from grpo.errors import GrpoError
packages.PINS = Path({str(pins)!r})
assert not packages._pip(["held==1.0"], [])
packages.install(["wants>=1"], packages.installed())
packages.install(["both>=1"], packages.installed())  # tested: 2.0, which needs another held
try:
    packages.install(["newer"], packages.installed())
except GrpoError as error:
    print(error)
found = packages.installed()
print({{name: found.get(name) for name in ("held", "wants", "both", "newer")}})
"""
    environment = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    said, found = done.stdout.strip().splitlines()[-2:]
    assert found == "{'held': '1.0', 'wants': '1.0', 'both': '1.0', 'newer': None}"
    assert said.startswith("pip cannot add newer to what is installed without replacing a package")


def test_setup_names_what_a_run_computes_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert "CPU cores, compute type float32" in grpo.setup()
    assert capsys.readouterr().out == ""  # nothing was missing


def test_python_m_grpo_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "grpo", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("grpo-toolkit 0.")
    wrong = subprocess.run(
        [sys.executable, "-m", "grpo", "nosuch"], capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("grpo: error:")
