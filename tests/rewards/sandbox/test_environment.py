"""The sandbox works wherever Python and its packages lie, and says so where it cannot.

What is hidden from a guest fails as a late import, which the libraries that grade take for "not
equal": every test here looks at scores and not at files.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo.rewards.sandbox import bubblewrap

from .environments import (
    PACKAGES,
    PYTHON,
    copy_checkout,
    copy_installed,
    copy_packages,
    make_venv,
    python_in,
)

TIERS = ("landlock+namespaces", "namespaces", "bubblewrap", "landlock")
# Run inside an environment: scores of known answers, or the error. An interval against an
# inequality needs SymPy's solvers, numpy.random is not loaded by `import numpy`.
SCORE = r"""
import json, sys
import grpo
from grpo.errors import RewardError
from grpo.rewards.code.reward import Code
from grpo.rewards.math.reward import Math
from grpo.types import Task

found = {"grpo": grpo.__file__}
for tier in sys.argv[1:]:
    math, code = Math(workers=1, sandbox=tier), Code(workers=1, sandbox=tier)
    gold = Task(uid="", prompt="", answer="[2,\\infty)")
    tests = Task(uid="", prompt="", columns={"tests": {"stdio": [{"input": "", "output": "3\n"}]}})
    program = "```python\nimport numpy as np\nr = np.random.default_rng(0)\nprint(%s)\n```"
    asked = [
        (math, "\\boxed{x \\ge 2}", gold),
        (math, "\\boxed{x > 2}", gold),
        (code, program % "r.integers(0, 10, 3).shape[0]", tests),
        (code, program % "r.integers(0, 10, 4).shape[0]", tests),
    ]
    try:
        found[tier] = [reward.verify(text, task).value for reward, text, task in asked]
    except RewardError as error:
        found[tier] = str(error)
    finally:
        math.close()
        code.close()
print(json.dumps(found))
"""
RIGHT = [1.0, 0.0, 1.0, 0.0]


def scores(
    *command: str, tiers: tuple[str, ...] = ("auto",), path: tuple[Path, ...] = ()
) -> dict[str, object]:
    """What `SCORE` finds with an interpreter (the last word), started far from this project."""
    environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    if path:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    words = [*command, "-c", SCORE, *tiers]
    done = subprocess.run(words, cwd="/", env=environment, capture_output=True, text=True)
    if "unshare failed" in done.stderr or "mount:" in done.stderr:
        pytest.skip("cannot make a mount namespace here")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def absent(tier: str) -> bool:
    """Whether a machine cannot have the tier, whatever the environment is."""
    from grpo.rewards.sandbox.probe import probe

    return not probe(tier).holds


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment below the temporary folder that holds all that is graded with."""
    folder = tmp_path_factory.mktemp("with a space") / "venv"
    place = make_venv(folder)
    copy_packages(place)
    copy_installed(place)
    return folder


@pytest.mark.parametrize("tier", TIERS)
def test_an_environment_in_the_temporary_folder(venv, tier):
    if absent(tier):
        pytest.skip(f"{tier} does not hold on this machine")
    found = scores(python_in(venv), tiers=(tier,))
    assert str(found["grpo"]).startswith(str(venv))
    assert found[tier] == RIGHT


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_links_to_the_interpreter_come_with_a_folder_that_is_shown(venv, monkeypatch):
    monkeypatch.setattr(sys, "executable", python_in(venv))
    monkeypatch.setattr(sys, "prefix", str(venv))
    assert python_in(venv) in bubblewrap.command([])
    assert python_in(venv) not in bubblewrap.command([str(venv)])  # a link inside cannot be made


@pytest.fixture(params=["/opt", "/mnt", "/home", "/root"])
def root(request: pytest.FixtureRequest) -> Iterator[Path]:
    if not os.access(request.param, os.W_OK | os.X_OK):
        pytest.skip(f"{request.param} cannot be written to")
    if os.statvfs(request.param).f_flag & os.ST_NOEXEC:
        pytest.skip(f"nothing below {request.param} can be executed")
    folder = Path(tempfile.mkdtemp(prefix="grpo test ", dir=request.param))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_an_environment_in_another_folder(root):
    place = make_venv(root / "venv")
    copy_packages(place)
    copy_installed(place)
    found = scores(python_in(root / "venv"))
    assert str(found["grpo"]).startswith(str(root))
    assert found["auto"] == RIGHT


# A Python below /root is out of a user's reach: show it through a view of /root of our own.
AS_USER = r"""
mount -t tmpfs none /mnt || exit
case "$1" in /root/*)
    mkdir /mnt/prefix && mount --bind "$1" /mnt/prefix && mount -t tmpfs -o mode=755 none /root &&
    mkdir -p "$1" && mount --bind /mnt/prefix "$1" || exit
esac
shift
exec setpriv --reuid 12345 --regid 12345 --clear-groups "$@"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests already run as an ordinary user")
def test_an_environment_of_an_ordinary_user():
    with tempfile.TemporaryDirectory(prefix="grpo test ") as folder:
        os.chmod(folder, 0o755)
        place = make_venv(Path(folder) / "venv")
        copy_packages(place)
        copy_installed(place)
        prefix = str(Path(PYTHON).parents[1])
        command = ["unshare", "-m", "sh", "-c", AS_USER, "sh", prefix]
        tiers = tuple(tier for tier in ("auto", "landlock") if tier == "auto" or not absent(tier))
        found = scores(*command, python_in(Path(folder) / "venv"), tiers=tiers)
    assert [found[tier] for tier in tiers] == [RIGHT] * len(tiers)


def test_an_environment_behind_a_link(venv, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(venv)
    assert scores(python_in(link))["auto"] == RIGHT


def test_packages_that_are_linked_into_the_environment(tmp_path):
    """As some installers do: folders of their own store, or single files of it."""
    store, place = tmp_path / "store", make_venv(tmp_path / "venv")
    copy_packages(store / "a", PACKAGES[:3])
    copy_packages(store / "b", PACKAGES[3:], info=False)
    for entry in (store / "a").iterdir():
        (place / entry.name).symlink_to(entry)
    for name in (entry.name for entry in (store / "b").iterdir()):
        shutil.copytree(store / "b" / name, place / name, copy_function=os.symlink)
    copy_installed(place)
    assert scores(python_in(tmp_path / "venv"))["auto"] == RIGHT


def test_a_checkout_that_is_installed_editable(tmp_path):
    checkout, place = copy_checkout(tmp_path / "checkout"), make_venv(tmp_path / "venv")
    copy_packages(place)
    (place / "__editable__.grpo.pth").write_text(f"{checkout}\n")
    found = scores(python_in(tmp_path / "venv"))
    assert str(found["grpo"]).startswith(str(checkout))
    assert found["auto"] == RIGHT


@pytest.mark.parametrize("tier", ["auto", "bubblewrap"])
def test_packages_in_folders_of_pythonpath(tmp_path, tier):
    """Installed there by pip, or just lying there; `-m grpo` of a checkout is started so too."""
    if tier != "auto" and absent(tier):
        pytest.skip(f"{tier} does not hold on this machine")
    copy_packages(tmp_path / "target", PACKAGES[:3] + PACKAGES[4:])
    copy_packages(tmp_path / "loose", ("mpmath",), info=False)
    checkout = copy_checkout(tmp_path / "checkout")
    path = (checkout, tmp_path / "loose", tmp_path / "target")
    found = scores(PYTHON, tiers=(tier,), path=path)
    assert str(found["grpo"]).startswith(str(checkout))
    assert found[tier] == RIGHT


def test_a_broken_package_is_refused_before_the_first_score(tmp_path):
    place = make_venv(tmp_path / "venv")
    copy_packages(place)
    copy_installed(place)
    (place / "sympy" / "sets" / "setexpr.py").unlink()  # imported where sines are simplified
    said = str(scores(python_in(tmp_path / "venv"))["auto"])
    assert "math" in said
    assert "No module named 'sympy.sets.setexpr'" in said
    assert "grpo doctor" in said


# The first answer is judged, then a module goes that only the second one needs.
VANISH = r"""
import json, os, sys
import sympy.integrals
from grpo.rewards.math.reward import Math
from grpo.types import Task

math, task = Math(workers=1), Task(uid="", prompt="", answer="x^2+1")
integral = Task(uid="", prompt="", answer="\\int 2x dx")
before = math.verify("\\boxed{(x+1)^2-2x}", task)
os.unlink(os.path.join(sympy.integrals.__path__[0], "manualintegrate.py"))
after = math.verify("\\boxed{x^2}", integral)
again = math.verify("\\boxed{(x-1)^2+2x}", task)
math.close()
print(json.dumps([[s.value, s.status, s.detail] for s in (before, after, again)]))
"""


def test_a_module_that_vanishes_later_is_the_graders_fault(tmp_path):
    place = make_venv(tmp_path / "venv")
    copy_packages(place)
    copy_installed(place)
    command = [python_in(tmp_path / "venv"), "-c", VANISH]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, env={})
    assert done.returncode == 0, done.stderr[-3000:]
    before, after, again = json.loads(done.stdout)
    assert before[:2] == again[:2] == [1.0, "correct"]
    assert after[:2] == [None, "grader_error"]
    assert "No module named 'sympy.integrals.manualintegrate'" in after[2]


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's guests are the same user")
def test_packages_that_guests_may_not_read_are_noticed(tmp_path):
    """As after an installation by root with a umask of 077."""
    if absent("namespaces"):
        pytest.skip("namespaces does not hold on this machine")
    place = make_venv(tmp_path / "venv")
    copy_packages(place)
    copy_installed(place)
    (place / "mpmath").chmod(0o700)
    found = scores(python_in(tmp_path / "venv"), tiers=("namespaces", "auto"))
    assert "cannot read the installed packages" in str(found["namespaces"])
    assert f"{place}/mpmath/__init__.py (Permission denied)" in str(found["namespaces"])
    # Landlock needs no other view of the files, and its guests keep the right to read
    assert absent("landlock") or found["auto"] == RIGHT


def test_what_is_hidden_is_found_by_a_guest(monkeypatch):
    """The views of a tier are compared with what this process can read, not with a plan."""
    if absent("namespaces"):
        pytest.skip("namespaces does not hold on this machine")
    from grpo.errors import RewardError
    from grpo.rewards.sandbox import probe, readable, sandbox

    monkeypatch.setattr(readable, "samples", lambda paths: [*paths, "/etc/hostname"])
    report = probe.probe("namespaces")
    assert list(report.broken) == ["read the installed packages"]
    assert "/etc/hostname (No such file or directory)" in report.reason
    guests = sandbox.Sandbox("namespaces", ("grpo.rewards.math.guest",))
    with pytest.raises(RewardError, match="cannot read /etc/hostname"):
        guests.guest("math", sandbox.Limits())
