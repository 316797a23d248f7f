"""Files that lie where Python looks for modules are not for model code to read, in any tier.

A script with a key in it, a settings file beside it, the working folder, the home folder, the root
of a checkout, of one that is installed editable, and a folder that packages were installed into.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from .environments import PYTHON, copy_checkout, copy_packages, make_venv, python_in

# A program that says what it can open or list, and asserts of what it should come to.
SCRIPT = r"""
API_KEY = "{key}"
import json, os, sys
import helper
from grpo.rewards.code.reward import Code
from grpo.rewards.sandbox.probe import probe
from grpo.types import Task

PROGRAM = '''```python
import os
def f(place):
    try:
        return os.listdir(place) if os.path.isdir(place) else open(place).read()[:20]
    except OSError:
        return "denied"
```'''
files, folders = json.loads(sys.argv[1])
library = os.path.join(os.path.dirname(os.__file__), "colorsys.py")
found = {{}}
for tier in ("landlock+namespaces", "namespaces", "bubblewrap", "landlock"):
    if not probe(tier).holds:
        continue
    # in a view, folders on the way to what is shown may be listed: nothing else is there
    denied = [*files, *(folders if "landlock" in tier else [])]
    asserts = [f"assert f({{place!r}}) == 'denied', {{place!r}}" for place in denied]
    asserts.append(f"assert f({{library!r}}) != 'denied'")
    code = Code(sandbox=tier, workers=1)
    task = Task(uid="", prompt="", columns={{"tests": {{"asserts": asserts}}}})
    found[tier] = code.verify(PROGRAM, task)
    code.close()
print(json.dumps({{tier: [score.value, score.detail] for tier, score in found.items()}}))
"""
KEY = "sk-secret"


def write(path: Path, text: str = f"API_KEY={KEY}\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_secrets_beside_modules_cannot_be_read(tmp_path):
    checkout = copy_checkout(tmp_path / "checkout")
    other = tmp_path / "editable"
    target = tmp_path / "target"
    copy_packages(target, ("numpy",))
    record = "six.py,,\nmine/__init__.py,,\nmine-1.dist-info/RECORD,,\n../bin/mine,,\n"
    write(target / "mine-1.dist-info" / "RECORD", record)
    write(target / "six.py", "shown = 1\n")
    write(target / "mine" / "__init__.py", "")
    venv = tmp_path / "project" / "venv"
    place = make_venv(venv)
    write(place / "__editable__.mine.pth", f"{other}\n{checkout}\n")
    script = write(tmp_path / "project" / "train.py", SCRIPT.format(key=KEY))
    secrets = [
        script,
        write(tmp_path / "project" / ".env"),
        write(tmp_path / "project" / "helper.py.bak"),
        write(tmp_path / "work" / "settings.json"),
        write(tmp_path / "home" / ".netrc"),
        write(checkout / ".env"),
        write(checkout / "notes.py"),
        write(other / "settings.py"),
        write(target / ".env"),
        write(target / "train.py"),
        write(target / "unrecorded" / "keys.py"),
        write(venv / ".env"),
        write(venv / "bin" / "start_with_key"),
    ]
    write(tmp_path / "project" / "helper.py", "loaded = 'by the script only'\n")
    files = [*map(str, secrets), str(tmp_path / "project" / "helper.py")]
    folders = sorted({str(path.parent) for path in secrets})
    done = subprocess.run(
        [python_in(venv), str(script), json.dumps([files, folders])],
        cwd=tmp_path / "work",
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path / "home"), "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    if not found:
        pytest.skip("no tier holds on this machine")
    tests = len(files) + 1
    for tier, (value, detail) in found.items():
        assert value == 1.0, (tier, detail)
        assert detail.startswith(f"{tests + len(folders) * ('landlock' in tier)}/"), detail


WHAT_IS_SHOWN = (
    "import json; from grpo.rewards.sandbox import readable; "
    "print(json.dumps(readable.installed()))"
)


def test_only_what_pip_recorded_is_shown_of_a_folder_of_packages(tmp_path):
    checkout = copy_checkout(tmp_path / "checkout")
    target = tmp_path / "target"
    record = 'six.py,,\n"mine, too/__init__.py",,\nmine-1.dist-info/RECORD,,\n../bin/mine,,\n'
    write(target / "mine-1.dist-info" / "RECORD", record)
    for name in ("six.py", "mine, too/__init__.py", "train.py", "unrecorded/__init__.py", ".env"):
        write(target / name)
    done = subprocess.run(
        [PYTHON, "-c", WHAT_IS_SHOWN],
        env={"PYTHONPATH": f"{checkout}:{target}"},
        capture_output=True,
        text=True,
        check=True,
    )
    shown = [path for path in json.loads(done.stdout) if path.startswith(str(tmp_path))]
    assert shown == [str(target / name) for name in ("mine, too", "mine-1.dist-info", "six.py")]
