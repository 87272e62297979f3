"""The constraints files hold what both pyproject.toml ask for: the lower bounds, and tested versions above them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from support.paths import ROOT

PYTHONS = ("3.11", "3.12", "3.13")
TESTED = {"test", "convert", "demo", "data"}
"""Extras whose requirements are pinned; the others need an accelerator or an account, or bring torch."""
OURS = {"jax-mlm"}


def asked() -> Iterator[Requirement]:
    """Yield what both distributions ask for, base and tested extras."""
    for file in (ROOT / "pyproject.toml", ROOT / "export" / "pyproject.toml"):
        project = tomllib.loads(file.read_text())["project"]
        lines = list(project["dependencies"])
        for extra, more in project["optional-dependencies"].items():
            lines += more if extra in TESTED else []
        yield from (each for each in map(Requirement, lines) if each.name not in OURS)


def pinned(name: str, python: str) -> dict[str, Version]:
    """Return package → version of a constraints file, as that Python takes it."""
    found: dict[str, Version] = {}
    for line in (ROOT / name).read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"python_version": python}):
            continue
        (pin,) = requirement.specifier
        assert pin.operator == "==", line
        assert requirement.name not in found, f"{line} is the second for Python {python}"
        found[requirement.name] = Version(pin.version)
    return found


def lower(requirement: Requirement) -> Version:
    """Return the lowest version that a requirement takes."""
    (bound,) = [each.version for each in requirement.specifier if each.operator in (">=", "==")]
    return Version(bound)


@pytest.mark.parametrize("python", PYTHONS)
def test_tested_versions_are_those_of_every_direct_dependency(python: str) -> None:
    newest = pinned("constraints.txt", python)
    assert set(newest) == {each.name for each in asked()}
    for each in asked():
        assert each.specifier.contains(newest[each.name]), f"{each} and {newest[each.name]}"


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    bounds: dict[str, Version] = {}
    for each in asked():
        assert bounds.setdefault(each.name, lower(each)) == lower(each), f"two lower bounds of {each.name}"
    assert pinned("constraints-lowest.txt", "3.11") == bounds


def test_no_file_names_an_index() -> None:
    for name in ("constraints.txt", "constraints-lowest.txt"):
        assert not re.search(r"https?:|^-|file:", (ROOT / name).read_text(), re.M)


def test_what_a_space_installs_has_the_same_lower_bounds() -> None:
    from mlm_onnx.convert.space import GRADIO, NEEDED

    bounds = {each.name: lower(each) for each in asked()}
    assert {each.name: lower(each) for each in map(Requirement, NEEDED)}.items() <= bounds.items()
    assert Version(GRADIO) == pinned("constraints.txt", "3.11")["gradio"]


def test_here_are_versions_within_the_bounds() -> None:
    for each in asked():
        try:
            here = version(each.name)
        except PackageNotFoundError:  # the extra is not installed
            continue
        assert each.specifier.contains(here), f"{each} and {here}"
