"""Pages of bundles, open in Chromium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.pages import Driven, check_requests

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture
def open_page(chromium: Browser, serve: Callable[[Path], str]) -> Iterator[Callable[..., Driven]]:
    """Opens the page of a bundle; at the end, nothing may have gone wrong in it or been asked of another server."""
    opened: list[tuple[Driven, Any]] = []

    def start(folder: Path, hash: str = "", **options: Any) -> Driven:
        context = chromium.new_context(**options)
        opened.append((Driven(context.new_page(), serve(folder)), context))
        return opened[-1][0].open(hash)

    yield start
    for driven, context in opened:
        context.close()
        check_requests(driven)


@pytest.fixture(scope="module")
def asked(chromium: Browser, serve: Callable[[Path], str]) -> Iterator[Callable[[Path], Driven]]:
    """Opens the page of each bundle once, for questions that say all they depend on."""
    opened: dict[Path, Driven] = {}
    with chromium.new_context() as context:

        def start(folder: Path) -> Driven:
            if folder not in opened:
                opened[folder] = Driven(context.new_page(), serve(folder)).open()
            return opened[folder]

        yield start
    for driven in opened.values():
        check_requests(driven)
