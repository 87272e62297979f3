"""The report and the comparison: self-contained, true to the files of the run, safe whatever the texts hold."""

import json
import re
import threading
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from jax_mlm import compare
from jax_mlm.presets import PRESETS
from jax_mlm.report.figures import PLOTS, PLOTS_FOLDER, draw
from jax_mlm.report.page import REPORT_FILE
from jax_mlm.report.summary import checkpoints, summarise
from jax_mlm.run.directory import write_run
from jax_mlm.run.log import MetricsLog, read_metrics


def make_run(run: Path, lr: float = 2e-3, until: int = 60, final: bool = True, word: str = "fox") -> Path:
    """A run directory with made-up figures, as training writes it."""
    run.mkdir(parents=True)
    config = replace(PRESETS["tiny"], data=("text.txt",), optim=replace(PRESETS["tiny"].optim, lr=lr))
    write_run(run, config, {"backend": "cpu", "kind": "cpu"}, {"train": "abc"})
    log = MetricsLog(run)
    for step in range(10, until + 1, 10):
        rates = {"tokens": 4000, "tokens_per_second": 1000.0 + step, "lr": lr, "mask_rate": 0.15}
        log.write("train", step, {"loss": 8 - step / 20, "accuracy": step / 200, **rates, "seconds": step / 4})
        if step % 20 == 0:
            log.write("valid", step, {"loss": 8.125 - step / 25 + (step == 60) * 1.5, "accuracy": step / 250})
            share = step / 100
            guesses = [{"token": word, "probability": share}, {"token": "of", "probability": 0.1}]
            sample = {"text": "the [MASK] runs", "split": ["the ", " runs"], "right": word, "probability": share}
            log.write_samples(step, [{**sample, "candidates": guesses}])
    if final:
        log.write("final", until, {"loss": 6.54321, "accuracy": 0.31, "seconds": until / 4 + 1})
    log.close()
    return run


class Tags(HTMLParser):
    """Checks that tags are balanced, and gathers what might fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.links, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag not in ("meta", "link", "line", "circle", "polyline", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("line", "circle", "polyline"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def checked(document: str) -> str:
    """The page's text, after the checks that every page has to pass."""
    tags = Tags()
    tags.feed(document)
    assert not tags.open
    assert tags.links == ["data:,"], "nothing is fetched, not even an icon"
    assert not re.search(r"https?:|//\w|@import|url\(|<script", document)
    assert 'name="viewport"' in document
    assert "prefers-color-scheme: dark" in document
    return "".join(tags.text)


def test_the_report_holds_the_last_figures_samples_and_checkpoints_and_fetches_nothing(tmp_path):
    run = make_run(tmp_path / "runs" / "mine", lr=1.5e-3)
    for step, size in ((40, 1000), (60, 3000)):
        (run / "checkpoints" / str(step) / "state").mkdir(parents=True)
        (run / "checkpoints" / str(step) / "state" / "x").write_bytes(bytes(size * 1000))
    (run / "checkpoints" / "60.orbax-checkpoint-tmp-1").mkdir()
    draw(run)
    document = (run / REPORT_FILE).read_text()
    text = checked(document)
    assert "6.5432" in text
    assert "finished: 60 steps" in text
    assert "24,000" in text, "tokens"
    assert re.search(r"step 406\.52501\.0 MBbest", text), "the best is not the last"
    assert re.search(r"step 607\.22503\.0 MBnewest", text)
    assert text.count("fox") == 4, "the hidden word, and a guess at each of three evaluations"
    assert "60%" in text
    assert '<tr class="changed"><th>--lr</th><td title="the preset has 0.002">0.0015</td></tr>' in document
    assert "abc" in text


def test_a_run_that_has_only_begun_and_one_with_hostile_names_have_reports(tmp_path):
    for run in (
        make_run(tmp_path / "begun", until=10, final=False),
        make_run(tmp_path / "<script>alert(1)<", word="</td><script>'\"&"),
    ):
        draw(run)
        assert run.name in checked((run / REPORT_FILE).read_text())
        for name in PLOTS:
            plot = ElementTree.fromstring((run / PLOTS_FOLDER / f"{name}.svg").read_text())
            assert run.name in "".join(plot.itertext())


def test_a_drawing_reads_each_file_of_the_run_once(tmp_path, monkeypatch):
    run, read, names = make_run(tmp_path / "run"), Path.read_text, []

    def read_text(path: Path, *options, **named) -> str:
        names.extend([path.name] if path.parent == run else [])
        return read(path, *options, **named)

    monkeypatch.setattr(Path, "read_text", read_text)
    draw(run)
    assert sorted(names) == ["metrics.jsonl", "run.json", "samples.jsonl"]


def call(capsys, *arguments) -> tuple[int, str, str]:
    code = compare.main([str(a) for a in arguments])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_the_comparison_has_the_figures_of_the_metrics_and_the_options_that_differ(tmp_path, capsys):
    paths = [make_run(tmp_path / "a", lr=1e-3), make_run(tmp_path / "b", lr=2e-3, until=40, final=False)]
    code, out, err = call(capsys, *paths, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    for path, row in zip(paths, told["runs"], strict=True):
        lines = read_metrics(path)
        valid = [line for line in lines if line["kind"] == "valid"]
        best = min(valid, key=lambda line: line["loss"])
        assert (row["best_loss"], row["best_accuracy"], row["best_step"]) == (
            best["loss"], best["accuracy"], best["step"],
        )  # fmt: skip
        assert row["steps"] == lines[-1]["step"]
        assert row["tokens"] == sum(line["tokens"] for line in lines if line["kind"] == "train")
        assert row["seconds"] == max(line.get("seconds", 0) for line in lines)
    assert told["differences"] == {"--lr": [1e-3, 2e-3]}
    code, out, _ = call(capsys, *paths, "--out", tmp_path / "both.html")
    assert (code, out.splitlines()[-1]) == (0, str(tmp_path / "both.html"))
    assert "b (not finished)" in out
    assert re.search(r"^--lr +0\.001 +0\.002", out, re.M)
    text = checked((tmp_path / "both.html").read_text())
    assert "6.5250" in text
    assert text.count("validation loss") == 3, "over steps, tokens and time"
    code, out, _ = call(capsys, *paths, "--out", tmp_path / "both.svg")
    assert (code, out.splitlines()[-1]) == (0, str(tmp_path / "both.svg"))
    text = "\n".join(ElementTree.parse(tmp_path / "both.svg").getroot().itertext())
    for shown, count in (("validation loss", 2), ("validation accuracy", 2), ("step", 2), ("time (seconds)", 2)):
        assert len(re.findall(f"^{re.escape(shown)}$", text, re.M)) == count, shown
    assert text.count("b: 6.525 at 40") == 1, "a point's title: the best loss of the run that is not finished, by step"


def test_runs_of_one_name_are_told_apart_and_old_runs_are_read(tmp_path, capsys):
    paths = [make_run(tmp_path / "a" / "x"), make_run(tmp_path / "b" / "x")]
    lines = [{k: v for k, v in line.items() if k != "tokens"} for line in read_metrics(paths[1])]
    (paths[1] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (paths[1] / "samples.jsonl").unlink()
    draw(paths[1])
    code, out, _ = call(capsys, *paths, "--json")
    assert code == 0
    told = json.loads(out)
    assert [row["run"] for row in told["runs"]] == [str(path) for path in paths]
    assert told["runs"][1]["tokens"] is None
    assert told["differences"] == {}
    assert "all options are the same" in call(capsys, *paths)[1]


def test_bad_input_is_one_line(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    (tmp_path / "bare").mkdir()
    write_run(tmp_path / "bare", PRESETS["tiny"], {}, {})
    for arguments, named in [
        ([], "RUN"),
        ([run, tmp_path / "none"], "none"),
        ([tmp_path / "bare"], "metrics.jsonl"),
        ([run, "--out", "x.pdf"], "x.pdf"),
        ([run, "--out", "x.png"], "ends in .html or .svg"),
        ([run, "--out", tmp_path / "no" / "x.html"], "no folder"),
    ]:
        code, out, err = call(capsys, *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error:")
        assert err.count("\n") == 1
        assert named in err


def test_a_line_that_is_being_written_and_a_line_separator_in_a_text_do_no_harm(tmp_path):
    run = make_run(tmp_path / "run", word="zwei\u2028Zeilen\x85ü")
    whole = (run / "samples.jsonl").read_bytes()
    for cut in range(1, 5):  # among them one within the ü, which is two bytes long
        at = whole.rindex("ü".encode()) + cut - 2
        (run / "samples.jsonl").write_bytes(whole[:at])
        assert [line["step"] for line in summarise(run).samples] == [20, 40]
    MetricsLog(run, resume_after=40).close()
    assert [line["step"] for line in summarise(run).samples] == [20, 40]


@pytest.mark.parametrize("broken", ["", "{"])
def test_an_empty_or_cut_metrics_file_still_gives_a_report(tmp_path, broken):
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text(broken)
    draw(run)
    assert "nothing measured yet" in checked((run / REPORT_FILE).read_text())


def test_a_checkpoint_that_is_replaced_while_the_report_is_written_does_no_harm(tmp_path):
    run = make_run(tmp_path / "run")
    for step in range(20, 61, 20):
        for part in "abc":
            (run / "checkpoints" / str(step) / part).mkdir(parents=True)
            (run / "checkpoints" / str(step) / part / "data").write_bytes(bytes(100))
    summary, stop = summarise(run), threading.Event()

    def replace_them() -> None:
        while not stop.is_set():
            for step in (20, 40, 60):
                for part in "abc":
                    folder = run / "checkpoints" / str(step) / part
                    (folder / "data").unlink()
                    folder.rmdir()
                    folder.mkdir()
                    (folder / "data").write_bytes(bytes(100))

    other = threading.Thread(target=replace_them)
    other.start()
    try:
        sizes = {c.size for _ in range(200) for c in checkpoints(summary)}
    finally:
        stop.set()
        other.join()
    assert sizes <= set(range(0, 301, 100))


def listen(page) -> tuple[list[str], list[str]]:
    """What a browser's page will ask for, and what it will complain of."""
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    return asked, said


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_the_pages_fit_a_telephone_and_nothing_is_asked_of_anybody(tmp_path, chromium, scheme, capsys):
    paths = [
        make_run(tmp_path / f"a-run-with-quite-a-long-name-{n}", lr=n / 1000, word="wordwithoutend" * 3) for n in (1, 2)
    ]
    draw(paths[0])
    assert call(capsys, *paths, "--out", tmp_path / "both.html")[0] == 0
    for width in (375, 1280):
        page = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        asked, said = listen(page)
        for file in (paths[0] / REPORT_FILE, tmp_path / "both.html"):
            asked.clear()
            page.goto(file.as_uri())
            assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
            for details in page.query_selector_all("details"):
                details.evaluate("d => d.open = true")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, file
            ink, paper = page.evaluate(
                "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
            )
            brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
            assert abs(brightness[0] - brightness[1]) > 450, "it can be read"
            assert (brightness[1] < 200) == (scheme == "dark")
            assert page.query_selector("polyline").evaluate("p => getComputedStyle(p).stroke") not in ("", "none")
        assert not said
        page.close()
