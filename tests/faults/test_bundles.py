"""Damage to every file of every layout of a bundle, with hashes made again: refused in one line, or answered from.

`python tests/faults/test_bundles.py BUNDLE FOLDER COUNT` opens them one after another, apart from the tests, so that a
crash, a hang or a flood of memory is seen as a failure.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlm_onnx.__main__ import main
from mlm_onnx.bundle.layout import MANIFEST
from mlm_onnx.convert import Request, convert
from support.garbage import attempt, byte_damage, damaged, record, recorded
from support.paths import ROOT

RUN = ROOT / "tests" / "golden" / "run"
REQUESTS = {
    "hub": Request("fp32", layout="hub", with_attention=True),
    "int8": Request("int8", with_attention=True),
    "space": Request("int8", layout="space"),
}
MEGABYTES = 2000
TEXT = "the old miller [MASK] the [MASK] door"


@pytest.mark.slow
def test_thirty_damaged_bundles(tmp_path: Path) -> None:
    assert opened("hub", 30, tmp_path)["cases"] >= 30


@pytest.mark.campaign
@pytest.mark.parametrize("layout", REQUESTS)
def test_six_hundred_damaged_bundles(layout: str, tmp_path: Path) -> None:
    if layout in recorded().get("bundles", {}):
        pytest.skip("done: remove it from benchmarks/results/inputs.json to start anew")
    ended = opened(layout, 220, tmp_path)
    assert ended["cases"] >= 200
    record("bundles", layout, ended)


def opened(layout: str, count: int, folder: Path) -> dict[str, int]:
    """Open so many damaged bundles of a layout in a process of their own; return how that ended."""
    convert(RUN, folder / "bundle", REQUESTS[layout])
    done = subprocess.run(
        [sys.executable, __file__, str(folder / "bundle"), str(folder), str(count)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "export", ROOT / "tests")))},
        capture_output=True, encoding="utf-8", timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    ended = json.loads(done.stdout.splitlines()[-1])
    assert ended["peak_megabytes"] < MEGABYTES
    return ended


def open_all(bundle: Path, folder: Path, count: int) -> None:
    """Damage a file, make its hash again, ask; print what came of it all."""
    home = bundle if (bundle / MANIFEST).is_file() else next(bundle.rglob(MANIFEST)).parent
    whole = {file.relative_to(home).as_posix(): file.read_bytes() for file in sorted(home.rglob("*")) if file.is_file()}
    ended = {"cases": 0, "accepted": 0, "refused": 0}
    target = folder / "damaged"
    shutil.copytree(home, target)
    texts = [name for name in whole if name.endswith(".json")]
    cases = st.sampled_from([*whole, *texts, *texts]).flatmap(
        lambda name: st.tuples(st.just(name), damaged(whole[name]) if name in texts else byte_damage(whole[name]))
    )

    @settings(
        derandomize=True, database=None, deadline=None, max_examples=count, suppress_health_check=list(HealthCheck)
    )
    @given(cases)
    def every(case: tuple[str, bytes]) -> None:
        name, content = case
        print(name, content[:40], flush=True)
        (target / name).write_bytes(content)
        manifest = json.loads(whole[MANIFEST])
        if name != MANIFEST:
            if name in manifest["files"]:
                manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            (target / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        statuses = {
            attempt(lambda words=words: main([words[0], str(target), *words[1:]]), folder).status
            for words in (["info"], ["fill", TEXT, "--json", "--joint"], ["score", "the old"], ["embed", "the old"])
        }
        ended["cases"] += 1
        ended["refused" if statuses == {2} else "accepted"] += 1
        (target / name).write_bytes(whole[name])
        (target / MANIFEST).write_bytes(whole[MANIFEST])

    every()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    print(json.dumps({**ended, "peak_megabytes": int(status.split("VmHWM:")[1].split()[0]) >> 10}), flush=True)


if __name__ == "__main__":
    open_all(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    os._exit(0)
