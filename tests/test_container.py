"""The tenant's container: what its files name exists, and says the same in each of them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "docker"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()


def test_what_is_copied_into_the_image_exists() -> None:
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    copied = [name for line in lines for name in line.split()]
    assert len(copied) > 10
    for name in copied:
        assert list(ROOT.glob(name)), name


def test_the_keys_are_on_the_volume() -> None:
    tenant = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]["tenant"]
    (volume,) = re.findall(r"^VOLUME (\S+)$", DOCKERFILE, re.MULTILINE)
    assert f"keys:{volume}" in tenant["volumes"]
    (home,) = re.findall(r"^ENV HOME=(\S+)$", DOCKERFILE, re.MULTILINE)  # staticIP's files are in it
    assert Path(home).is_relative_to(volume)
    assert (ROOT / "docs" / "docker" / tenant["build"]["context"]).resolve() == ROOT
    assert (ROOT / tenant["build"]["dockerfile"]).samefile(FOLDER / "Dockerfile")


def test_what_the_container_runs_is_a_shell_script() -> None:
    assert re.findall(r'^CMD \["(.+)"\]$', DOCKERFILE, re.MULTILINE) == ["tenant"]
    assert (FOLDER / "tenant").stat().st_mode & 0o111
    subprocess.run(["sh", "-n", FOLDER / "tenant"], check=True, timeout=60)
