"""The report in a real browser, Debian's headless Chromium: it opens, filters, drills down and fetches nothing."""

import shutil
from pathlib import Path

import pytest

from flows.views.report import write_report
from polyepo.report import Prompt, render
from polyepo.report.page import MAX_CHARACTERS
from tests.flows.test_report import root  # noqa: F401 - a fixture
from tests.support.pages import HOSTILE, report, response

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs a Chromium (apt-get install chromium)")
    playwright.expect.set_options(timeout=60_000)  # how long a busy machine may take is no property of the page
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser):
    """Open a page in a fresh context; whatever it complains of or asks for fails the test."""
    seen = {"requests": [], "complaints": []}

    def open_(path: Path, **options):
        page = browser.new_context(**options).new_page()
        page.on("request", lambda request: seen["requests"].append(request.url))
        page.on("console", lambda message: seen["complaints"].append(message.text))
        page.on("pageerror", lambda error: seen["complaints"].append(str(error)))
        page.on("dialog", lambda dialog: seen["complaints"].append(dialog.message))
        page.goto(path.as_uri())
        playwright.expect(page.locator("html[data-ready=true]")).to_have_count(1)
        playwright.expect(page.locator(".plot:empty")).to_have_count(0)
        return page

    yield open_
    assert not seen["complaints"]
    assert all(url.startswith(("file://", "data:")) for url in seen["requests"])
    assert sum(url.startswith("file://") for url in seen["requests"]) == 1


@pytest.fixture(scope="module")
def real(root, tmp_path_factory):  # noqa: F811
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(root, ["small"], path)
    return path


@pytest.fixture
def hostile(tmp_path):
    prompts = [
        Prompt(0, "train", 1, text[:90], [response(text), response("plain", 0.0, 1)], reply=text) for text in HOSTILE
    ]
    path = tmp_path / "hostile.html"
    histories = {text[:90]: [(0, "train", 1, text, 2, 1)] for text in HOSTILE}
    path.write_text(render(report(prompts, problems={text[:90]: text for text in HOSTILE}, histories=histories)))
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_opens_and_fits_the_window(open_page, real, scheme, width):
    page = open_page(real, color_scheme=scheme, viewport={"width": width, "height": 800})
    assert page.locator("h1").inner_text() == "small"
    assert page.locator("figure.figure svg").count() >= 15
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background


def test_filters_search_and_drill_down(open_page, real):
    page = open_page(real)
    step = page.locator(".stepper output")
    assert step.inner_text() == "5"
    assert page.locator(".list li").count() == 4
    page.get_by_role("button", name="all steps").click()
    assert page.locator(".list li").count() == 20

    prompts = page.evaluate("JSON.parse(document.getElementById('data').textContent).prompts")
    ours = [p for p in prompts if p["r"] == 1 and "a" in p]
    wrong = [p for p in ours if max(p["w"]) <= 0.5]
    page.locator(".chips [data-filter=wrong]").click()
    assert page.locator(".list li").count() == len(wrong)
    assert page.locator(".chips [data-filter=wrong]").get_attribute("aria-pressed") == "true"
    page.locator(".chips [data-filter=diverse]").click()
    distinct = [
        int(text.split("◆ ")[1].split()[0])
        for text in page.locator(".list .item-facts").all_inner_texts()
        if "◆" in text
    ]
    assert distinct == sorted(distinct, reverse=True)
    expected = sorted(
        (len({c for c, w in zip(p["c"], p["w"], strict=True) if w > 0.5 and c >= 0}) for p in ours), reverse=True
    )
    assert distinct == [d for d in expected if d > 1]

    page.locator(".chips [data-filter=all]").click()
    page.keyboard.press("/")
    page.keyboard.type("no such text anywhere")
    playwright.expect(page.locator(".list li")).to_have_count(0)
    assert "No prompt" in page.locator(".detail").inner_text()
    page.locator("input[type=search]").fill("")
    playwright.expect(page.locator(".list li")).to_have_count(20)

    # The keyboard: down the list, then to another step.
    page.locator(".list").focus()
    page.keyboard.press("ArrowDown")
    assert page.locator(".list li").nth(1).get_attribute("aria-selected") == "true"
    page.get_by_role("button", name="all steps").click()
    page.locator(".list").focus()
    page.keyboard.press("ArrowLeft")
    assert step.inner_text() == "4"

    # One prompt: sizes add up to N, and the marks stand where the tokens part.
    assert sum(int(text.split()[0]) for text in page.locator(".cluster .size").all_inner_texts()) == 4
    assert page.locator(".history svg").count() == 1
    page.locator("select").nth(1).select_option(label="heldout")
    assert "heldout" in page.locator(".detail .kicker").inner_text()


def test_divergence_is_marked_where_the_tokens_part(open_page, tmp_path):
    prompts = [
        Prompt(0, "train", 1, "p", [
            response("add 12 then 5", tokens=(1, 12, 2, 5)), response("add 13 then 5", cluster=1, tokens=(1, 13, 2, 5)),
            response("add 12 then 7", cluster=2, tokens=(1, 12, 2, 7)),
        ])
    ]  # fmt: skip
    words = {1: "add ", 2: " then ", 12: "12", 13: "13", 5: "5", 7: "7"}
    made = report(prompts)
    object.__setattr__(made, "decoders", [lambda ids: "".join(words[i] for i in ids)])
    path = tmp_path / "page.html"
    path.write_text(render(made))
    page = open_page(path)
    assert page.locator(".column").count() == 2
    assert page.locator(".column").nth(1).locator(".shared").inner_text() == "add "
    assert page.locator(".column").nth(1).locator("mark").inner_text() == "token 2"
    page.locator("[data-response='2']").click()
    assert page.locator(".column").count() == 3
    assert page.locator(".column").nth(2).locator(".shared").inner_text() == "add 12 then "
    assert page.locator(".column").nth(2).locator("mark").inner_text() == "token 4"


def test_two_judges_are_set_against_each_other(open_page, real):
    page = open_page(real)
    assert page.locator("#judges-body figure svg").count() == 2
    page.locator(".differing button").first.click()
    assert page.locator(".difference[open] table.matrix").count() == 1
    counts = page.locator(".matrix td.num").all_inner_texts()
    assert sum(int(count) for count in counts if count != "·") == 4


def test_sql_is_there_to_copy_and_policies_can_be_hidden(open_page, real):
    page = open_page(real)
    details = page.locator("figure[data-figure=reward_mean] details.sql")
    details.locator("summary").click()
    assert "FROM updates" in details.locator("pre").inner_text()
    details.get_by_role("button", name="Copy").click()
    playwright.expect(page.locator("#status")).to_have_text("SQL copied")
    svg = page.locator("figure[data-figure=reward_mean] svg")
    assert "grpo" in svg.get_attribute("aria-label")
    page.locator(".legend button", has_text="grpo").click()
    assert "grpo" not in svg.get_attribute("aria-label")


def test_hostile_text_is_shown_as_text(open_page, hostile):
    page = open_page(hostile)
    assert page.locator(".list li").count() == len(HOSTILE)
    for place, text in enumerate(HOSTILE):
        page.locator(".list li").nth(place).click()
        page.locator(".detail details").evaluate_all("(all) => all.forEach((details) => (details.open = true))")
        shown = page.locator(".responses .verbatim").first.inner_text()
        assert page.evaluate("window.hacked") is None
        assert page.locator(".detail :is(script, img, iframe, b:not(.facts b, .measures b))").count() == 0
        visible = [c for c in text[:MAX_CHARACTERS] if c.isprintable()]
        assert "".join(visible)[:200] in shown or not all(c.isprintable() for c in text)
        assert not set(shown) & set("\u202e\u2066\u200b\x00\x1b\x07\u2028")
        if len(text) > MAX_CHARACTERS:
            assert "984,000 more characters are in the store" in page.locator(".responses").first.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_it_prints(open_page, real, tmp_path):
    page = open_page(real)
    page.pdf(path=str(tmp_path / "page.pdf"), format="A4")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    page.emulate_media(media="print")
    assert not page.locator(".bar").is_visible()
    assert page.locator("figure.figure svg").first.is_visible()
