# SPDX-License-Identifier: Apache-2.0
"""The report in a real browser, by Playwright. Skipped, with the reason, where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bertbench.common.cli.report import main
from tests.browser.records import write_results

if TYPE_CHECKING:
    from playwright.sync_api import Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, [os.environ.get("CHROMIUM") or "", *NAMES])), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: install Debian's package chromium, or set CHROMIUM"
)
Open = Callable[..., "Page"]
ROOT = Path(__file__).parents[2]
CELLS = (
    "((t, c) => [...document.querySelectorAll(`table[aria-labelledby=${t}] tbody tr`)]"
    ".filter((r) => !r.hidden).map((r) => r.cells[c].firstChild.textContent.trim()))"
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    assert main([str(write_results(folder / "results")), "--out", str(folder)]) == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="no Playwright: bash init.sh --dev")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--disable-gpu"])
        yield running
        running.close()


@pytest.fixture
def requests() -> list[str]:
    """Every address that a test's pages asked for, themselves included."""
    return []


@pytest.fixture
def complaints() -> list[str]:
    """Exceptions and messages of a test's pages."""
    return []


@pytest.fixture
def show(browser: Any, requests: list[str], complaints: list[str]) -> Iterator[Open]:
    """Open a file in a page of a width in pixels, with media such as ``color_scheme="dark"``."""
    contexts = []

    def opened(file: Path, width: int = 1280, **media: str) -> Page:
        view = {"width": width, "height": 900}
        contexts.append(browser.new_context(viewport=view, is_mobile=width < 600, **media))
        page = contexts[-1].new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(file.resolve().as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def page(show: Open, report: Path) -> Page:
    return show(report)


def test_nothing_is_fetched_and_nothing_complains(
    page: Page, report: Path, requests: list[str], complaints: list[str]
) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    page.evaluate("document.querySelectorAll('button.sort').forEach((b) => b.click())")
    page.wait_for_timeout(50)  # lets events arrive
    assert requests == [report.resolve().as_uri()]
    assert complaints == []


def test_the_records_of_this_repository(
    show: Open, tmp_path: Path, requests: list[str], complaints: list[str]
) -> None:
    assert main([str(ROOT / "results"), "--out", str(tmp_path)]) == 0
    page = show(tmp_path / "report.html")
    page.wait_for_timeout(50)
    assert complaints == [] and len(requests) == 1
    assert page.evaluate("document.querySelectorAll('table.data tr.published').length") > 100
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_request_and_a_complaint_would_be_noticed(
    show: Open, tmp_path: Path, requests: list[str], complaints: list[str]
) -> None:
    (tmp_path / "bad.html").write_text(
        "<!DOCTYPE html><img src='other.png'><script>console.log(1); nothing()</script>"
    )
    show(tmp_path / "bad.html").wait_for_timeout(50)
    assert len(requests) == 2
    assert len(complaints) >= 3


def test_hostile_text_is_only_text(page: Page) -> None:
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.scripts.length") == 1
    assert page.evaluate("document.querySelectorAll('img, [onload], [onerror]').length") == 0
    told = page.evaluate("document.body.textContent")
    assert "<script>window.hacked=1</script>" in told and "{{ 7*7 }}" in told
    hrefs = page.evaluate("[...document.querySelectorAll('a')].map((a) => a.protocol)")
    assert set(hrefs) <= {"file:", "https:", "http:"}


def test_the_policy_stops_what_escaping_would_miss(page: Page, complaints: list[str]) -> None:
    page.evaluate(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.hacked = 2';"
        "document.body.append(s); new Image().src = 'https://example.org/x.png' })()"
    )
    assert page.evaluate("window.hacked") is None
    page.wait_for_timeout(50)
    assert any("Content Security Policy" in text for text in complaints)


def numbers(page: Page, column: int) -> list[float]:
    told = page.evaluate(f"{CELLS}('configurations', {column})")
    return [float(text.split()[0].replace(",", "")) for text in told if text]


def sort(page: Page, column: int, table: str = "configurations") -> str:
    """Press a column's button; its aria-sort afterwards."""
    return page.evaluate(
        f"(() => {{ const th = document.querySelector('table[aria-labelledby={table}] thead')"
        f".rows[0].cells[{column}]; th.querySelector('button').click();"
        f"return th.getAttribute('aria-sort') }})()"
    )


def test_tables_sort_by_number_and_by_text(page: Page) -> None:
    rates = numbers(page, 4)
    assert len(rates) > 3 and rates != sorted(rates)
    assert sort(page, 4) == "descending"
    assert numbers(page, 4) == sorted(rates, reverse=True)
    assert sort(page, 4) == "ascending"
    assert numbers(page, 4) == sorted(rates)
    empty = page.evaluate(f"{CELLS}('configurations', 4)")
    assert sort(page, 2) == "ascending"
    named = page.evaluate(f"{CELLS}('configurations', 2)")
    assert named[-2:] == sorted(named[-2:]) and len(named) == len(empty)
    others = page.evaluate(
        "[...document.querySelectorAll('table[aria-labelledby=configurations] th[aria-sort]')]"
        ".filter((th) => th.getAttribute('aria-sort') !== 'none').length"
    )
    assert others == 1


def test_values_that_are_missing_sort_last(page: Page) -> None:
    column = 6
    for _ in range(2):
        sort(page, column)
        told = page.evaluate(f"{CELLS}('configurations', {column})")
        there = [bool(text) for text in told]
        assert there == sorted(there, reverse=True)


def choose(page: Page, name: str, value: str) -> None:
    page.evaluate(
        f"(() => {{ const s = document.querySelector('select[name={name}]'); s.value = '{value}';"
        f"s.dispatchEvent(new Event('change', {{bubbles: true}})) }})()"
    )


def test_filters(page: Page) -> None:
    whole = page.evaluate("document.getElementById('shown').textContent")
    choose(page, "precision", "fp32")
    assert set(page.evaluate(f"{CELLS}('configurations', 2)")) == {"fp32"}
    assert page.evaluate("document.getElementById('shown').textContent") != whole
    groups = "[...document.querySelectorAll('.group')].filter((g) => !g.hidden)"
    assert set(page.evaluate(f"{groups}.map((g) => g.dataset.precision)")) == {"fp32"}
    choose(page, "backend", "published")
    assert page.evaluate(f"{CELLS}('configurations', 2)") == []
    page.evaluate("document.querySelector('button[type=reset]').click()")
    page.evaluate("new Promise((done) => setTimeout(done, 20))")
    assert page.evaluate("document.getElementById('shown').textContent") == whole
    page.evaluate("document.querySelector('input[name=published]').click()")
    left = "[...document.querySelectorAll('tr.published')].filter((r) => !r.hidden).length"
    assert page.evaluate(left) == 0
    assert page.evaluate(f"{CELLS}('configurations', 2)") != []


def test_plots_have_all_points(page: Page) -> None:
    plots: dict[str, list[int]] = page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('figure')].map((f) => [f.querySelector("
        "'figcaption').textContent, [...f.querySelectorAll('.series')].map((s) => "
        "s.querySelectorAll('.m').length)]))"
    )
    # Eight runs of this recipe that evaluated: 3 times each, twice, and once.
    accuracy = plots["toy: mlm_accuracy over samples"]
    assert sorted(accuracy) == [1, 2, 3, 3, 3, 3, 3, 3, 3]
    assert sum(plots["toy: throughput over steps"]) == 2 * sum(accuracy)
    assert plots["Scaling, measured"] == [2, 0]
    shaded = page.evaluate(
        "[...document.querySelectorAll('figure')].filter((f) => f.querySelector('.window'))"
        ".map((f) => f.querySelectorAll('.window').length)"
    )
    assert shaded == [2] * 12  # four sensors of three runs, two windows each
    assert page.evaluate("document.querySelectorAll('figure .target').length") > 0
    assert page.evaluate("document.querySelectorAll('figure .mark').length") > 0


def test_everything_has_an_accessible_name(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")
    known = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree["nodes"]
        if not node["ignored"]
    ]
    wanted = {"button", "link", "combobox", "checkbox", "table", "image", "region", "form",
              "navigation", "heading", "img"}  # fmt: skip
    roles = {role for role, _ in known}
    assert {"button", "link", "combobox", "checkbox", "table", "region", "heading"} <= roles
    assert roles & {"image", "img"}
    assert [role for role, name in known if role in wanted and not name.strip()] == []
    names = [name for role, name in known if role in ("image", "img")]
    assert "toy: mlm_accuracy over samples" in " ".join(names)
    plots = page.evaluate(
        "[...document.querySelectorAll('svg:not([aria-hidden])')].filter((s) => !s.querySelector("
        "'title').textContent || !s.querySelector('desc').textContent).length"
    )
    assert plots == 0
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.evaluate("document.querySelectorAll('h1').length") == 1


def test_the_keyboard_is_enough(page: Page) -> None:
    seen = []
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.className || document.activeElement."
                                  "tagName"))  # fmt: skip
        if seen[-1] == "sort":
            break
    assert seen[0] == "skip" and seen[-1] == "sort"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.closest('th').getAttribute('aria-sort')") != "none"
    page.keyboard.press("Space")
    assert page.evaluate("document.activeElement.className") == "sort"


def test_a_cell_leads_to_its_run(page: Page) -> None:
    hash_of = page.evaluate(
        "[...document.querySelectorAll('#failures, table[aria-labelledby=failures] a')]"
        ".filter((a) => a.hash).map((a) => a.hash)[0]"
    )
    page.evaluate(f"(() => {{ location.hash = '{hash_of}' }})()")
    page.evaluate("new Promise((done) => setTimeout(done, 100))")
    assert page.evaluate(f"document.querySelector('{hash_of}').open") is True
    dead = page.evaluate(
        "[...document.querySelectorAll('a[href^=\"#\"]')]"
        ".filter((a) => !document.getElementById(a.hash.slice(1))).length"
    )
    assert dead == 0
    twice = page.evaluate(
        "(() => { const all = [...document.querySelectorAll('[id]')].map((e) => e.id);"
        "return all.length - new Set(all).size })()"
    )
    assert twice == 0


@pytest.mark.parametrize("width", [360, 800, 1600])
def test_no_page_is_wider_than_its_window(show: Open, report: Path, width: int) -> None:
    page = show(report, width)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_tables_scroll_inside_themselves_on_a_phone(show: Open, report: Path) -> None:
    page = show(report, 360)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    boxes = "[...document.querySelectorAll('table')].map((t) => t.closest('.scroll'))"
    assert page.evaluate(f"{boxes}.every((box) => box && box.clientWidth <= innerWidth)")
    assert page.evaluate(f"{boxes}.some((box) => box.scrollWidth > box.clientWidth)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_link_opens_every_fold_around_its_target(page: Page) -> None:
    run = page.evaluate("document.querySelector('details details.run').id")
    page.evaluate(f"(() => {{ location.hash = '#{run}' }})()")
    page.evaluate("new Promise((done) => setTimeout(done, 100))")
    assert page.evaluate(f"document.getElementById('{run}').checkVisibility()")
    assert page.evaluate(f"document.getElementById('{run}').open") is True


def contrast(page: Page, selector: str) -> float:
    """WCAG's ratio of an element's colour and the page's."""
    colours: list[Any] = page.evaluate(
        f"[document.querySelector('{selector}'), document.body].map((e, i) => getComputedStyle(e)"
        f"[i ? 'backgroundColor' : 'color'].match(/[0-9.]+/g).slice(0, 3).map(Number))"
    )

    def luminance(rgb: list[float]) -> float:
        linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return sum(c * w for c, w in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))

    low, high = sorted(luminance(c) for c in colours)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(show: Open, report: Path, scheme: str) -> None:
    page = show(report, color_scheme=scheme)
    for selector in ("body", ".intro", "td a", ".published td a", "td small", ".sref", ".s0", ".s1",
                     ".s2"):  # fmt: skip
        least = 3.0 if selector.startswith(".s") else 4.5
        assert contrast(page, selector) >= least, selector


def test_it_prints(page: Page, tmp_path: Path) -> None:
    page.emulate_media(media="print")
    for gone in ("nav", ".filters", ".values", ".sort"):
        assert (
            page.evaluate(f"getComputedStyle(document.querySelector('{gone}')).display") == "none"
        )
    page.set_viewport_size({"width": 1031, "height": 700})  # A4 on its side, less its margins
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    wide = "[...document.querySelectorAll('table')].filter((t) => t.getBoundingClientRect().right"
    assert page.evaluate(f"{wide} > innerWidth + 1).length") == 0
    heading = "getComputedStyle(document.querySelector('table.data th[data-name]'), '::before')"
    assert "Workload" in page.evaluate(f"{heading}.content")  # a button is not repeated on page 2
    page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
    assert (tmp_path / "report.pdf").read_bytes()[:5] == b"%PDF-"


@pytest.mark.parametrize("width", [360, 768, 1400])
def test_the_first_screen_names_the_fastest_device(show: Open, report: Path, width: int) -> None:
    page = show(report, width)
    bottom = "document.querySelector('header .answer').getBoundingClientRect().bottom"
    assert page.evaluate(f"{bottom} <= innerHeight")
    assert "is the fastest of" in page.evaluate("document.querySelector('.answer').textContent")
