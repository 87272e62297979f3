"""`python -m mlm_onnx demo`: the page, in Gradio. `facts` measures what it shows; `narrative` puts that into words."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TypedDict

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported

import gradio as gr
from gradio.components import Component
from gradio.themes import Default

from mlm_onnx.answer.attention import AttentionReader, carries_attention
from mlm_onnx.answer.predictor import FillMask
from mlm_onnx.bundle.about import about, memorised
from mlm_onnx.bundle.layout import FILL, MlmOnnxError, QueryError
from mlm_onnx.bundle.read import open_bundle
from mlm_onnx.demo import markup as page
from mlm_onnx.demo.facts import Facts, Word
from mlm_onnx.demo.narrative import ATTENTION

Skip = dict[str, str]  # what `gr.skip` returns: leave the page as it is
TITLE = "Fill the mask"
LEAD = "Hide a word of a sentence to see what the model expects there, and what its answer depends on."
TOP_K = 3
FONTS = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
"""System fonts; Gradio's own would be fetched from the network."""
SHOWN = 60
"""Most characters of an example on its button."""
AT_ONCE = {"queue": False, "show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
"""How every handler is called: without a queue, which would take longer than most answers do."""
LARGEST_PORT = 65_535
NO_ATTENTION = "This bundle has no attention graph: `convert --with-attention` adds one."


@dataclass
class Session:
    """What one visitor's page shows. Handlers change it, so that a slow explanation notices when it is out of date."""

    text: str = ""
    words: tuple[Word, ...] = ()
    hidden: tuple[int, ...] = ()
    query: str = ""
    explained: str | None = None
    """The query whose explanation is being measured or is shown."""
    looking: bool = False
    """Whether the attention is unfolded."""

    def masks(self) -> list[int]:
        """Return the words that the model does not see: hidden ones, and masks in the text itself."""
        return [position for position, word in enumerate(self.words) if word.mask or position in self.hidden]


class Demo:
    """The handlers of one bundle's page."""

    def __init__(self, fill: FillMask) -> None:
        self.facts = Facts(fill)
        self.bundle = fill.bundle
        self.examples = self.bundle.examples()
        self.attention = AttentionReader(self.bundle) if carries_attention(self.bundle) else None

    # ---- handlers --------------------------------------------------------------------------------

    def start(self, session: Session, request: gr.Request) -> tuple[str, int, str, str, str]:
        """Show what the address requests, else the first example with its third word hidden."""
        text, hidden, top_k = page.from_query(str(request.query_params), TOP_K, self.facts.most_shown)
        if text is None:
            text, hidden = (self.examples[0], (2,)) if self.examples else ("", ())
        return (text, top_k, *self.answer(session, text, hidden, top_k))

    def write(self, session: Session, text: str, top_k: int) -> tuple[str, str, str] | Skip:
        """Answer a changed sentence: words stay hidden where the same word is still at that index.

        Nothing happens if a handler made the change.
        """
        return gr.skip() if text == session.text else self.answer(session, text, None, top_k)

    def choose(self, session: Session, text: str, top_k: int) -> tuple[str, str, str, str]:
        return (text, *self.answer(session, text, (2,), top_k))

    def press(self, session: Session, text: str, top_k: int, event: gr.EventData) -> tuple[str, str, str]:
        """Hide or show a word; the page sends all hidden words, so that no press is lost."""
        hidden = [position for position in event._data.get("hidden", []) if isinstance(position, int)]
        return self.answer(session, text, hidden, top_k)

    def again(self, session: Session, text: str, top_k: int) -> tuple[str, str, str]:
        return self.answer(session, text, session.hidden, top_k)

    def answer(self, session: Session, text: str, hidden: Sequence[int] | None, top_k: int) -> tuple[str, str, str]:
        """Return (words, answers, a placeholder for reasons); `hidden` is None to keep the same words hidden."""
        before = {position: word.text for position, word in enumerate(session.words) if position in session.hidden}
        session.text, session.words, session.hidden, session.explained = text, (), (), None
        session.query, words = page.to_query(text, hidden or (), top_k), ""
        if not text.strip():
            return words, page.problem("type a sentence first", session.query), ""
        try:
            session.words = self.facts.words(text)
            if hidden is None:
                hidden = [position for position, word in enumerate(session.words) if before.get(position) == word.text]
            session.hidden = tuple(sorted({position for position in hidden if position < len(session.words)}))
            session.query = page.to_query(text, session.hidden, top_k)
            words = page.chips(text, session.words, session.hidden)
            if not session.masks():
                return words, page.hint(session.words, session.query), ""
            asked = self.facts.ask(text, session.words, session.hidden, top_k)
        except QueryError as error:
            return words, page.problem(str(error), session.query), ""
        return words, page.answers(asked, session.query), page.measuring()

    def explain(self, session: Session) -> str | Skip:
        """Return what the answers depend on; skip if the page has changed meanwhile."""
        query, shown = session.query, ""
        if session.explained == query:
            return gr.skip()
        session.explained = query
        try:
            asked = self.facts.ask(session.text, session.words, session.hidden, top_k=2)
        except QueryError:  # `answer` has shown the reason
            return shown
        try:
            shown = page.reasons(asked, self.facts.why(asked))
        except QueryError as error:
            shown = page.not_explained(str(error))
        return shown if session.query == query else gr.skip()

    def look(self, session: Session, layer: int, head: int) -> str | Skip:
        """Return the heat map if it is unfolded."""
        if not session.looking or self.attention is None:
            return gr.skip()
        reader = self.facts.fill.reader
        try:
            read = reader.encode(self.facts.hide(session.text, session.words, session.masks()))
            attention = self.attention(read)
        except QueryError as error:
            return page.not_explained(str(error))
        named = zip(read.offsets, read.ids.tolist(), strict=True)
        shown = [read.text[start:end].strip() or reader.tokenizer.id_to_token(id) or "" for (start, end), id in named]
        return page.heat_map(attention, shown, read.at.tolist(), layer - 1, head - 1 if head else None)

    def unfold(self, session: Session, layer: int, head: int) -> str | Skip:
        session.looking = True
        return self.look(session, layer, head)

    @staticmethod
    def fold(session: Session) -> None:
        session.looking = False


# ---- the page ------------------------------------------------------------------------------------


def build(demo: Demo) -> gr.Blocks:
    """Build the page of one bundle."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
        session = gr.State(Session())
        gr.Markdown(f"# {TITLE}\n{LEAD}")
        if note := memorised(demo.bundle.manifest):
            gr.HTML(page.notice(note), elem_id="notice", apply_default_css=False)
        text = gr.Textbox(label="Your sentence", lines=2, max_lines=8, placeholder="Type a sentence", elem_id="text")
        choices = []
        if demo.examples:
            with gr.Row(elem_id="examples"):
                choices = [(_example_button(example), gr.State(example)) for example in demo.examples]
        words = _html("words")
        top_k = gr.Slider(1, demo.facts.most_shown, TOP_K, step=1, precision=0, label="Answers shown", elem_id="top-k")
        answers = _html("answers")
        why = _html("why")
        heads = _attention(demo, session)
        gr.HTML(page.footer(about(demo.bundle.manifest)), elem_id="about", apply_default_css=False)

        shown, asked = [words, answers, why], [session, text, top_k]
        asks = [
            blocks.load(demo.start, session, [text, top_k, *shown], **AT_ONCE),
            text.change(demo.write, asked, shown, **AT_ONCE),  # Gradio's `input` does not fire on pasting
            words.click(demo.press, asked, shown, **AT_ONCE),
            top_k.input(demo.again, asked, shown, **AT_ONCE),
        ]
        for button, example in choices:
            asks.append(button.click(demo.choose, [session, example, top_k], [text, *shown], **AT_ONCE))
        for ask in asks:
            ask.then(demo.explain, session, why, **AT_ONCE)
            if heads is not None:
                ask.then(demo.look, *heads, **AT_ONCE)
    return blocks


def _example_button(text: str) -> gr.Button:
    return gr.Button(text if len(text) <= SHOWN else f"{text[:SHOWN]}…", size="sm", min_width=0)


def _html(name: str) -> gr.HTML:
    """Return a part of the page for handlers to fill; its script adds keyboard control and updates the address."""
    return gr.HTML(elem_id=name, js_on_load=_asset("demo.js"), apply_default_css=False, container=False)


def _attention(demo: Demo, session: gr.State) -> tuple[list[Component], gr.HTML] | None:
    """Lay out layer, head and heat map, folded; nothing is computed until they are unfolded.

    Returns:
        The inputs of `Demo.look` and the component that shows it; None for a bundle without attention.
    """
    with gr.Accordion("What the attention heads look at", open=False, elem_id="attention") as part:
        if demo.attention is None:
            gr.Markdown(NO_ATTENTION)
            return None
        gr.Markdown(ATTENTION)
        layers, heads = demo.attention.layers, demo.attention.heads
        with gr.Row():
            layer = gr.Slider(1, layers, layers, step=1, precision=0, label="Layer", visible=layers > 1)
            head = gr.Slider(0, heads, 0, step=1, precision=0, label="Head (0: the mean of all)")
        heat = _html("heat")
        looked_at: list[Component] = [session, layer, head]
        part.expand(demo.unfold, looked_at, heat, **AT_ONCE)
        part.collapse(demo.fold, session, None, **AT_ONCE)
        for slider in (layer, head):
            slider.input(demo.look, looked_at, heat, **AT_ONCE)
    return looked_at, heat


def _asset(name: str) -> str:
    return files("mlm_onnx.demo").joinpath(name).read_text(encoding="utf-8")


class Look(TypedDict):
    """How the page looks, for either way of serving."""

    theme: Default
    css: str


def _look() -> Look:
    theme = Default(primary_hue="blue", font=list(FONTS["font"]), font_mono=list(FONTS["font_mono"]))
    return {"theme": theme, "css": _asset("demo.css")}


def page_for(path: Path, threads: int | None = None) -> gr.Blocks:
    """Build the page of a bundle, whatever its task.

    Raises:
        BundleError: the folder is not a valid bundle.
    """
    bundle = open_bundle(path, full=False, ahead=True)
    if bundle.task == FILL:
        return build(Demo(FillMask(bundle, threads)))
    from mlm_onnx.demo.tasks import build_task, page_of

    return build_task(page_of(bundle, threads), bundle.examples(), about(bundle.manifest), AT_ONCE)


# ---- serving -------------------------------------------------------------------------------------


def serve(path: Path, host: str, port: int, threads: int | None = None) -> None:
    """Serve the page of a bundle until Ctrl-C.

    Raises:
        BundleError: the folder is not a valid bundle.
        AddressError: the port cannot be used.
    """
    import uvicorn
    from fastapi import FastAPI

    listening = _bind(host, port)
    with listening:
        blocks = page_for(path, threads)
        app = gr.mount_gradio_app(FastAPI(), blocks, path="/", ssr_mode=False, footer_links=[], **_look())
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        print(f"http://{host if host != '0.0.0.0' else socket.gethostname()}:{port}  (Ctrl-C to stop)", flush=True)
        server = uvicorn.Server(config)
        # In the main thread it would take the signals for itself, those that were ignored before included.
        thread = threading.Thread(target=server.run, args=([listening],), name="server", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(timeout=1)  # where a lock without a timeout could not be interrupted
        finally:
            server.should_exit = True
            thread.join()


class AddressError(MlmOnnxError):
    """The page cannot be served at this host and port."""


def _bind(host: str, port: int) -> socket.socket:
    """Bind the port before anything is loaded, so that a wrong one is refused at once."""
    if port > LARGEST_PORT:
        raise AddressError(f"--port {port} is not a port: the largest is {LARGEST_PORT}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise AddressError(f"--host {host} is not an address of this machine: {error.strerror}") from None
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise AddressError(f"--host {host} --port {port}: {error.strerror}; choose another --port") from None
    return listening


def launch(path: Path) -> None:
    """Serve the page in a hosted Space, where Gradio chooses host and port."""
    page_for(path).launch(ssr_mode=False, footer_links=[], **_look())
