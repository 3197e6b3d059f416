"""The page of a sweep of 1,000 runs in a real browser: offline, in light and dark, wide and narrow."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import Browser, Page
from simulated_sweeps import curves_of, large

from lora_lab.analysis import Report, html_page, report_of
from lora_lab.analysis.figure import DARK, LIGHT

MEGABYTE = 1e6
GROUND = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}
PLOTS = "[...document.querySelectorAll('[data-figure]')]"
DRAWN = "document.body?.dataset.drawn === 'true'"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """The report and its page, curves included."""
    folder = tmp_path_factory.mktemp("page")
    frame = large(500)
    curves_of(folder, frame["run"].tolist())
    report = report_of(frame, folder)
    path = folder / "report.html"
    path.write_text(html_page(report, "Sweep large", "1,000 runs", [("ICC(1)", "0.97")], ["t0001-s0 diverged"]))
    return report, path


@pytest.fixture
def page(made: tuple[Report, Path], browser: Browser) -> Page:
    shown = browser.page()
    shown.open(made[1].as_uri())
    shown.until(DRAWN)
    return shown


def test_it_opens_offline_and_draws_every_figure(made: tuple[Report, Path], page: Page) -> None:
    report, path = made
    assert path.stat().st_size < 5 * MEGABYTE
    page.picture("report_light.png")
    assert page.errors() == []
    asked = [url for url in page.requests() if not url.startswith(("data:", "blob:"))]
    assert asked == [path.as_uri()], "nothing but the file itself"
    assert page.value(f"{PLOTS}.map((p) => p.dataset.figure)") == [figure.key for figure in report.figures]
    empty = "[...p.querySelectorAll('.trace .point, .trace .points path, .trace .js-line')].length === 0"
    assert page.value(f"{PLOTS}.filter((p) => {empty}).map((p) => p.dataset.figure)") == []
    assert page.value("document.querySelectorAll('.gtitle').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_its_colours_follow_the_system_and_the_button(scheme: str, made: tuple[Report, Path], browser: Browser) -> None:
    page = browser.page(dark=scheme == "dark")
    page.open(made[1].as_uri())
    page.until(DRAWN)
    page.picture(f"report_{scheme}.png")
    other = "light" if scheme == "dark" else "dark"

    def seen() -> tuple[str, list[str], str]:
        body = page.value("getComputedStyle(document.body).backgroundColor")
        plots = page.value(f"[...new Set({PLOTS}.map((p) => p.querySelector('.main-svg').style.background))]")
        line = page.value("document.querySelector('#plot-stability .js-line').style.stroke")
        return body, plots, line

    palette = {"light": LIGHT, "dark": DARK}
    for now in (scheme, other):
        body, plots, line = seen()
        assert body == GROUND[now] and plots == [GROUND[now]]
        assert line == "rgb({}, {}, {})".format(*(int(palette[now][0][i : i + 2], 16) for i in (1, 3, 5)))
        page.value("document.getElementById('theme').click()")


@pytest.mark.parametrize("width", [1600, 800, 390])
def test_no_width_cuts_anything_off(width: int, made: tuple[Report, Path], browser: Browser) -> None:
    page = browser.page(width)
    page.open(made[1].as_uri())
    page.until(DRAWN)
    page.picture(f"report_{width}.png")
    assert page.value("document.documentElement.scrollWidth") <= width
    wide = "p.querySelector('.main-svg').getBoundingClientRect().right > innerWidth + 1"
    assert page.value(f"{PLOTS}.filter((p) => {wide}).map((p) => p.dataset.figure)") == []


def test_a_keyboard_reaches_its_parts_in_order(page: Page) -> None:
    page.press("Tab")
    assert page.value("document.activeElement.className") == "skip"
    page.press("Tab")
    assert page.value("document.activeElement.id") == "theme"
    page.press("Enter")
    assert page.value("document.documentElement.dataset.theme") == "dark"
    page.press("Tab")
    assert page.value("document.activeElement.getAttribute('href')") == "#ablation"
