"""The page that `convert --for web` writes, driven in a browser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

if TYPE_CHECKING:
    from playwright.sync_api import Page


class Driven:
    """A page of a bundle, asked through its address."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.address = page, address
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)

    def open(self, hash: str = "") -> Driven:
        self.page.goto(f"{self.address}/{hash}")
        self.page.wait_for_selector("body[data-ready]")
        return self.settle()

    def settle(self) -> Driven:
        """Waits until the newest question is answered."""
        self.page.wait_for_selector("#results[aria-busy=false]", state="attached")
        return self

    def ask(self, text: str, hidden: Sequence[int] = (), top: int = 3) -> list[list[tuple[int, float]]]:
        """(id, probability) of the candidates at each mask."""
        return self.show(text=text, hide=",".join(map(str, hidden)), top=str(top)).answers()

    def show(self, **what: str) -> Driven:
        """Have the page show what an address names."""
        self.page.evaluate("document.getElementById('results').setAttribute('aria-busy', 'true')")
        self.page.evaluate("hash => { location.hash = hash }", urlencode(what))
        return self.settle()

    def answers(self) -> list[list[tuple[int, float]]]:
        items = "[...card.querySelectorAll('li')].map(({ dataset }) => [+dataset.id, +dataset.probability])"
        return self.page.eval_on_selector_all("#answers:not([hidden]) > .card", f"cards => cards.map(card => {items})")

    def text(self, name: str) -> str:
        return self.page.text_content(f"#{name}") or ""

    def contrast(self, *selectors: str) -> float:
        """Return the lowest contrast of some texts with what is behind them, as WCAG 2 defines it."""
        return self.page.evaluate(CONTRAST, list(selectors))

    def chip(self, word: str) -> Any:
        return self.page.get_by_role("toolbar").get_by_role("button", name=word, exact=True)


def check_requests(driven: Driven) -> None:
    """Nothing went wrong in the page, and nothing was asked of another server."""
    assert driven.errors == []
    assert all(url.startswith((driven.address, "data:")) for url in driven.requests)


CONTRAST = """(names) => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = colour.map((part) => (part /= 255) <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratios = names.map((name) => {
    const element = document.querySelector(name);
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(parts(getComputedStyle(at).backgroundColor));
    const over = (below, [r, g, b, alpha = 1]) => [r, g, b].map((part, i) => alpha * part + (1 - alpha) * below[i]);
    const backdrop = layers.reverse().reduce(over, [255, 255, 255]);
    const [one, other] = [light(parts(getComputedStyle(element).color).slice(0, 3)), light(backdrop)];
    return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  });
  return Math.min(...ratios);
}"""
