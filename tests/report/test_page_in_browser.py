"""The page in a real browser, headless: it fits every width, asks for nothing, and runs nothing."""

import shutil

import pytest
from small_runs import large_report, small_report
from test_page import ATTACK, poisoned

from sms_hf.report.facts import Run
from sms_hf.report.page import make_comparison, make_page

sync_api = pytest.importorskip("playwright.sync_api", reason="Needs playwright: pip install sms_hf[dev].")
pytest.importorskip("matplotlib", reason="The page needs matplotlib: pip install sms_hf[report].")
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.figures,
    pytest.mark.skipif(CHROMIUM is None, reason=f"Needs a browser on the PATH: one of {', '.join(NAMES)}."),
]


def timed(report):
    for number, record in enumerate(report["phases"][0]["candidates"]):
        record |= {"started": 1_700_000_000.0 + 12.5 * number, "process": number % 2}
    return report


def hostile():
    report = poisoned(small_report())
    report["metric"] = ATTACK
    report["dense"][ATTACK] = 35.0
    return Run("x" * 300, report, unfinished=ATTACK, load=["y" * 300])


PAGES = {
    "small": lambda: make_page(Run("my-run", timed(small_report()), sizes={"model.safetensors": 123_456_789})),
    "large": lambda: make_page(Run("large", large_report())),
    "hostile": lambda: make_page(hostile()),
    "comparison": lambda: make_comparison([Run(f"run-{n}-{'z' * 60}", small_report()) for n in range(8)]),
}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, make in PAGES.items():
        (folder / f"{name}.html").write_text(make(), encoding="utf-8")
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_it_fits_every_width_and_asks_for_nothing(browser, folder, name, scheme):
    told, asked = [], []
    view = browser.new_page(color_scheme=scheme)
    view.on("console", lambda message: told.append(message.text))
    view.on("pageerror", lambda error: told.append(str(error)))
    view.on("dialog", lambda dialog: told.append(dialog.message))
    view.on("request", lambda request: asked.append(request.url))
    url = (folder / f"{name}.html").as_uri()
    view.goto(url)
    for width in (360, 768, 1280, 1600):
        view.set_viewport_size({"width": width, "height": 900})
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        # With everything opened, too.
        view.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert view.evaluate("document.documentElement.scrollWidth") <= width
    assert told == []
    assert [address for address in asked if not address.startswith("data:")] == [url]
    view.close()


def test_figures_follow_light_and_dark(browser, folder):
    colours = {}
    for scheme in ("light", "dark"):
        view = browser.new_page(color_scheme=scheme)
        view.goto((folder / "small.html").as_uri())
        colours[scheme] = view.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('svg text')).fill]"
        )
        assert colours[scheme][1] == view.evaluate("getComputedStyle(document.body).color")
        view.close()
    assert colours["light"][0] != colours["dark"][0]
    assert colours["light"][1] != colours["dark"][1]


def test_figures_are_named_for_those_who_do_not_see_them(browser, folder):
    view = browser.new_page()
    view.goto((folder / "small.html").as_uri())
    for title in ("Scores by phase", "Losses in phase 1", "Who trained when"):
        assert view.get_by_role("img", name=title).count() == 1
    assert view.get_by_role("row", name="candidate-1 31.50 62.50 seed=41 · in the soup").count() == 1
    view.close()


def test_a_table_that_is_too_wide_scrolls_in_its_own_place_and_is_whole_on_paper(browser, folder):
    view = browser.new_page(viewport={"width": 360, "height": 800})
    view.goto((folder / "comparison.html").as_uri())
    wide = "[...document.querySelectorAll('.scroll')].some(e => e.scrollWidth > e.clientWidth)"
    assert view.evaluate(wide)
    view.emulate_media(media="print")
    assert view.evaluate("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    view.close()
