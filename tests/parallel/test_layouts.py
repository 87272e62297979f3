"""--mesh: every layout of eight simulated devices computes what one device does, and keeps its part of the state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from support.eight import on_eight_devices
from support.steps import TUNED, losses

from jax_mlm.errors import UserError
from jax_mlm.parallel.mesh import Layout, read_layout
from jax_mlm.run.checkpoint import load_params

FEW = ("muon:2:data=2,fsdp=2,tensor=2",)
ALL = tuple(
    case
    for optimizer in ("adamw", "muon", "lamb")
    for mesh in ("data=8", "data=4,fsdp=2", "data=2,fsdp=4", "data=2,fsdp=2,tensor=2")
    if (case := f"{optimizer}:2:{mesh}") not in FEW
)

TASKS = ("single:1:data=4,fsdp=2", *(f"{task}:2:data=2,fsdp=2,tensor=2" for task in TUNED))
SLOW = tuple(pytest.param(cases, marks=pytest.mark.slow) for cases in (ALL, TASKS))


def on_eight(*what: str) -> Any:
    """What `support.layouts` reports: held; temporaries; or what is learned, with a folder to save a state in or ""."""
    return json.loads(on_eight_devices("import runpy; runpy.run_module('support.layouts', run_name='__main__')", *what))


class Few(NamedTuple):
    found: dict[str, Any]
    folder: Path
    """Where a state was saved."""


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Few:
    """One process for what the default suite asks of eight devices."""
    folder = tmp_path_factory.mktemp("layouts")
    return Few(on_eight(str(folder), *FEW), folder)


@pytest.fixture(scope="module")
def held() -> dict[str, Any]:
    """What compiled steps hold and gather."""
    return on_eight("held")


def assert_learned_alike(cases: tuple[str, ...], found: list[list[float]]) -> None:
    one = {name: losses(name, 1, None) for name in {case.split(":")[0] for case in cases}}
    for case, each in zip(cases, found, strict=True):
        np.testing.assert_allclose(each, one[case.split(":")[0]], rtol=1e-5, err_msg=case)
        assert each[-1] < each[0]


def test_every_layout_learns_as_one_device_does(few: Few) -> None:
    """Twenty steps on isolated documents, with dropout, in float32."""
    assert_learned_alike(FEW, few.found["losses"])


@pytest.mark.slow
@pytest.mark.parametrize("cases", [ALL, TASKS], ids=["masked tokens", "tasks"])
def test_every_other_layout_does_too(cases: tuple[str, ...]) -> None:
    assert_learned_alike(cases, on_eight("", *cases)["losses"])


@pytest.mark.slow
def test_memory_falls_as_theory_says(held: dict[str, Any]) -> None:
    """What a compiled step holds between steps: along data a copy of the parameters, and an eighth of the moments.

    The square matrix of the head has no axis for tensor: twice as much of it and of its two moments is held.
    """
    for text, found in held["memory"].items():
        moments = found["matrices"] - found["params"]
        layout = read_layout(text, 8)
        own = found["params"] / (layout.fsdp * layout.tensor)
        again = found["head"] / 4 + 2 * found["head"] / 8 if "tensor" in text else 0
        expected = own + moments / 8 + again + found["rest"]
        assert found["arguments"] == pytest.approx(expected, rel=0.05, abs=256), text
        assert found["gathers"], text


@pytest.mark.slow
def test_the_next_state_takes_the_place_of_the_last(held: dict[str, Any]) -> None:
    """All that a step is given but its rows, the key and the horizon is donated."""
    for text, found in held["memory"].items():
        assert found["aliased"] == pytest.approx(found["arguments"] - found["given"], abs=64), text


@pytest.mark.slow
def test_each_device_orthogonalises_its_share_of_the_matrices(held: dict[str, Any]) -> None:
    alone = held["muon"].pop("data=1")
    assert list(held["muon"].values()) == pytest.approx([alone / 8] * 4, rel=0.1)


@pytest.mark.slow
def test_weights_are_gathered_once_a_step_in_the_type_of_the_products(held: dict[str, Any]) -> None:
    """In 16 bits, with two microbatches. JAX 0.10 gathers what is laid out for its products as well, on CPUs."""
    matrices = [f"[{rows},{columns}]" for rows, columns in held["matrices"]]
    weights = [found for found in held["gathers"] if found[found.index("[") :] in matrices]
    assert sorted(weights) == sorted("bf16" + matrix for matrix in matrices)


@pytest.mark.slow
def test_temporaries_fall_with_the_rows_of_a_device_as_theory_says() -> None:
    """A device that computes 16 of 128 rows at a time needs what one device needs for 16 rows; 32 need twice as much.

    Weights do not fall along fsdp: they are whole while they are multiplied. Their gradients do, which are whole along
    data. Along tensor what is as wide as the heads, the feed-forward layer or the vocabulary is halved, and hidden
    states are whole on both devices.
    """
    alone = [("data=1", 16, 1), ("data=1", 32, 1), ("data=1", 128, 8)]
    divided = [("data=8", 128, 1), ("fsdp=8", 128, 1), ("data=4,tensor=2", 128, 1)]
    few, more, parts, data, fsdp, tensor = on_eight("temporaries", json.dumps([*alone, *divided]))
    assert more == pytest.approx(2 * few, rel=0.1)
    assert [parts, data, fsdp] == pytest.approx([few] * 3, rel=0.1)
    assert 0.5 * more < tensor < 0.8 * more


def test_a_checkpoint_is_restored_onto_any_other_layout_and_count(few: Few) -> None:
    with np.load(few.folder / "state.npz") as saved:
        assert len(saved.files) == few.found["saved"]
        written = {array.tobytes() for array in saved.values()}
    _, params = load_params(few.folder)  # here, on one device
    assert all(np.asarray(leaf).tobytes() in written for leaf in jax.tree.leaves(params))


def test_every_device_has_a_vote_of_its_own_on_any_layout(few: Few) -> None:
    """Hosts that gave copies of one vote would each read their own: only one of them would stop."""
    assert few.found["votes"] == [[8, True]] * 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data=4,fdsp=2", "no axis 'fdsp' .*did you mean fsdp"),
        ("data=4,data=2", "each axis once"),
        ("data=0", "each axis once"),
        ("data", "each axis once"),
        ("data=²", "each axis once"),
        ("data=4", "is for 4 devices, but there are 8"),
    ],
)
def test_a_layout_that_does_not_fit_is_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_layout(text, 8)
    assert read_layout("", 8) == Layout(8) == read_layout(" data = 8", 8)
    assert str(read_layout("tensor=2,fsdp=4", 8)) == "fsdp=4,tensor=2"
