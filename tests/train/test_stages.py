"""A long run whose mask rate falls is compiled for fewer targets later, and learns the same."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.runs import TINY, stopped_after, train_line

from jax_mlm.config import MaskConfig
from jax_mlm.data.tokenizer import Vocabulary
from jax_mlm.presets import PRESETS
from jax_mlm.run.log import read_metrics
from jax_mlm.tasks.masking import slots
from jax_mlm.tasks.mlm import masked_lm
from jax_mlm.train import program
from jax_mlm.train.__main__ import COMMAND
from jax_mlm.train.loop import train

STEPS = 10
LINE = [*TINY, "--dtype", "float32", "--log-every", "1", "--steps", str(STEPS), "--eval-every", "100"]


def losses(folder: Path, *options: Any) -> list[float]:
    text = folder / "a.txt"
    text.write_text("".join(f"w{i} x{i % 7} y\n\n" for i in range(400)))
    assert train_line(*LINE, "--data", text, *options) == 0
    return [line["loss"] for line in read_metrics(Path(options[-1])) if line["kind"] == "train"]


def test_each_third_of_a_long_run_has_its_program_and_the_losses_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []

    def noted(task: Any, *rest: Any) -> Any:
        step = jitted_step(task, *rest)

        class Noted:
            def lower(self, *given: Any) -> Any:
                self.lowered = step.lower(*given)
                return self

            def compile(self, **options: Any) -> Any:
                compiled = self.lowered.compile(**options)

                def run(*given: Any) -> Any:
                    used.append(task.targets)
                    return compiled(*given)

                return run

        return Noted()

    whole = losses(tmp_path, "--out", tmp_path / "short")
    jitted_step = program.jitted_step
    monkeypatch.setattr(program, "jitted_step", noted)
    monkeypatch.setattr(program, "LONG_STEPS", STEPS)
    staged = losses(tmp_path, "--out", tmp_path / "long")
    masks = MaskConfig(mask_rate=0.4, mask_rate_end=0.15)
    assert used == [slots(masks, 32, (step >= STEPS / 3) / 3 + (step >= 2 * STEPS / 3) / 3) for step in range(STEPS)]
    assert used[0] > used[STEPS // 2] > used[-1]
    assert staged == pytest.approx(whole, rel=1e-5)
    before, out = list(used), tmp_path / "resumed"
    used.clear()
    config = COMMAND.read([*map(str, [*LINE, "--data", tmp_path / "a.txt", "--out", out])])
    with pytest.raises(KeyboardInterrupt):
        train(config, stopped_after(5))
    assert train_line("--resume", "--out", out) == 0
    assert used == before
    assert [line["loss"] for line in read_metrics(out) if line["kind"] == "train"] == staged
    used.clear()
    losses(tmp_path, "--mask-rate", "0.4", "--out", tmp_path / "constant")
    assert set(used) == {slots(masks, 32)}, "a constant rate has one stage"


@pytest.mark.parametrize(
    ("budget", "steps", "long"),
    [
        (None, program.LONG_STEPS, True),
        (None, program.LONG_STEPS - 1, False),
        (program.LONG_SECONDS, 0, True),
        (program.LONG_SECONDS - 1.0, program.LONG_STEPS, False),
    ],
)
def test_a_budget_or_a_number_of_steps_makes_a_run_long(budget: float | None, steps: int, long: bool) -> None:
    config, vocabulary = MaskConfig(mask_rate=0.4, mask_rate_end=0.15), Vocabulary(9, 0, 1, 2, 3, 4, (0, 1, 2, 3, 4))
    task = masked_lm(PRESETS["tiny"].model, config, vocabulary, 128, "float32")
    setup: Any = SimpleNamespace(budget=budget, config=SimpleNamespace(steps=steps), task=task)
    found = program.stages(setup)
    assert [(share, each.targets) for share, each in found] == [(0.0, 52), (1 / 3, 41), (2 / 3, 30)][: 3 if long else 1]
