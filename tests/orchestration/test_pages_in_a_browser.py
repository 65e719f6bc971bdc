"""Our pages as readers see them: on a phone and a desk, by day and by night, without a network."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

from orchestration import view
from orchestration.comparison_page import comparison_page
from orchestration.comparison_plots import write_plots
from orchestration.metrics import MetricsLog, write_summary
from orchestration.report import write_report
from orchestration.rollouts import Rollouts
from tests.browser import FAINT, Browser, browser, in_a_browser
from tests.orchestration.compared_runs import comparison_file, planned
from tests.orchestration.test_compare_report import AFTER, compared, finish
from tests.orchestration.test_metrics import SUMMARY, metrics
from tests.orchestration.test_rollouts import run

__all__ = ["run"]  # a fixture
pytestmark = [in_a_browser, pytest.mark.timeout(240)]

PHONE, DESK = 390, 1200
GROUNDS = {"light": (0xFB, 0xFB, 0xFA), "dark": (0x14, 0x16, 0x1A)}
TREE = "document.querySelector('#rollouts .tree').innerText"
FADED = "[...document.querySelectorAll('#rollouts .faded > details')].map(one => one.innerText)"
VIEWS: list[tuple[int, Literal["light", "dark"]]] = [(PHONE, "light"), (PHONE, "dark"), (DESK, "light"), (DESK, "dark")]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as one:
        yield one


@pytest.fixture
def report(run: Path) -> str:
    write_summary(run / "summary.json", replace(SUMMARY, sampler="dde"))
    with MetricsLog(run / "metrics.jsonl") as log:
        for update in range(1, 40):
            log.append(metrics(update, reward_mean=update / 40, success=update / 50))
    return write_report(run).as_uri()


@pytest.fixture
def comparison(tmp_path: Path) -> str:
    path = comparison_file(tmp_path)
    finish(planned(path, tmp_path), *AFTER)
    found = compared(path, tmp_path, {})
    page = tmp_path / "comparison.html"
    page.write_text(comparison_page(found, write_plots(found, tmp_path / "x")), encoding="utf-8")
    return page.as_uri()


@pytest.fixture
def live(run: Path) -> Iterator[str]:
    with view.serving(Rollouts(run), 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join(10)


@pytest.mark.parametrize("page", ["report", "comparison", "live"])
def test_pages_fit_are_readable_and_load_nothing(tab: Browser, page: str, request: pytest.FixtureRequest) -> None:
    url: str = request.getfixturevalue(page)
    pictures: dict[tuple[int, str], Image.Image] = {}
    for width, scheme in VIEWS:
        tab.show(url, width, scheme)
        if page != "comparison":
            tab.wait_for(TREE + ".includes('branch')")
        assert tab.value("document.documentElement.scrollWidth") <= width, "it has to be pushed sideways"
        assert tab.value(FAINT) == []
        assert float(tab.value("getComputedStyle(document.body).fontSize").removesuffix("px")) >= 14
        assert [asked for asked in tab.asked_for() if not asked.startswith((url.rstrip("/"), "data:"))] == []
        assert tab.complaints() == []
        pictures[width, scheme] = tab.picture()
        assert pictures[width, scheme].getpixel((1, 1)) == GROUNDS[scheme]
        assert len(pictures[width, scheme].getcolors(2**24) or []) > 50, "an empty page"
    assert pictures[PHONE, "light"].size[0] == PHONE


def test_curves_are_drawn_on_a_phone(tab: Browser, report: str) -> None:
    """Every chart that is shown has a size, and its first curve's colour is in the picture."""
    tab.show(report, PHONE, "light", height=6000)
    sizes = tab.value(
        "[...document.querySelectorAll('svg')].filter(s => s.checkVisibility())"
        ".map(s => s.getBoundingClientRect()).map(r => [r.width, r.height])"
    )
    assert len(sizes) > 8
    assert all(200 < width <= PHONE and height > 80 for width, height in sizes)
    colours = {colour for _, colour in tab.picture().getcolors(2**24) or []}
    assert (0x25, 0x63, 0xC9) in colours


def test_the_viewer_filters(tab: Browser, live: str) -> None:
    tab.show(live, DESK, "light")
    tab.wait_for(
        "document.querySelectorAll('#rollouts .list button').length === 3 && " + TREE + ".includes('solution')"
    )
    choose = "(() => {{ const box = document.querySelector('#rollouts select'); box.value = '{}';"
    choose += " box.dispatchEvent(new Event('input')); return box.value }})()"
    assert tab.value(choose.format("unparsable")) == "unparsable"
    tab.wait_for("!" + TREE + ".includes('solution')")
    assert tab.value(choose.format("solved")) == "solved"
    tab.wait_for(TREE + ".includes('solution')")
    assert len(tab.value(FADED)) == 2, "those that are wrong"
