"""A whole reader study in a real browser: what is clicked, pressed and touched is what is scored."""

import json
import re
import time
from pathlib import Path

import pytest

from chromium import Chromium, needs_chromium
from test_study import data_of, save_scans
from thinslice.evaluation.reader_scores import score

pytestmark = [pytest.mark.browser, needs_chromium]

DESK, PHONE = (1280, 720), (390, 844)


@pytest.fixture(scope="module")
def browser():
    with Chromium(*DESK) as one:
        yield one


@pytest.fixture
def page(browser, run, tmp_path):
    """A page of 6 comparisons and 2 repeats, opened, without the memory of earlier ones."""
    words = ["--methods", "lanczos,nearest", "--pairs", 6, "--repeats", 2, "-q"]
    path = tmp_path / "study.html"
    assert run("study", "-i", save_scans(tmp_path / "in"), "-o", path, *words)[0] == 0
    browser.resize(*DESK)
    browser.prefer(prefers_reduced_motion="no-preference")
    browser.open(path)
    browser.evaluate("localStorage.clear()")
    browser.open(path)
    return path


@pytest.fixture(autouse=True)
def quiet_and_alone(browser):
    """After every test: nothing was asked of the network, nothing was complained of."""
    yield
    assert browser.complaints == []
    assert browser.outside_requests() == []


def enter(browser: Chromium, reader: str) -> None:
    browser.evaluate("document.querySelector('#reader').focus()")
    browser.evaluate("document.querySelector('#reader').select()")
    browser.command("Input.insertText", text=reader)
    browser.key("Enter")


def wait_for_pair(browser: Chromium, number: int) -> None:
    """Until it has been on the screen for long enough to be judged."""
    shown = "!document.querySelector('#compare').hidden && !document.querySelector('.waiting')"
    browser.wait_until(f"{shown} && document.querySelector('#place').textContent.startsWith('Pair {number} ')")
    time.sleep(0.3)


def download(browser: Chromium) -> Path:
    for old in browser.downloads.iterdir():
        old.unlink()
    browser.click_on("main:not([hidden]) .save")
    browser.wait(lambda: list(browser.downloads.glob("*.json")), words="a saved file")
    return next(browser.downloads.glob("*.json"))


def side_of(page: Path, number: int, method: str) -> str:
    """Where the key says that a method is."""
    fact = json.loads(page.with_name("study.key.json").read_text())["trials"][number]
    return "left" if fact["left"] == method else "right"


def shown(browser: Chromium) -> list[str]:
    return browser.evaluate("['left', 'right'].map(side => document.getElementById(`${side}-picture`).src)")


@pytest.mark.parametrize("by", ["keys", "mouse", "touch"])
def test_a_whole_study_ends_in_the_preference_that_was_shown(browser, page, by):
    data = data_of(page.read_text())
    if by == "touch":
        browser.resize(*PHONE, phone=True)
    enter(browser, "Dr. Ä. Łęcka")
    for number, trial in enumerate(data["trials"]):
        wait_for_pair(browser, number + 1)
        pictures = [f"data:image/png;base64,{data['pictures'][trial[side]]}" for side in ("left", "right")]
        assert shown(browser) == pictures
        side = side_of(page, number, "lanczos")
        if by == "keys":
            browser.key({"left": "ArrowLeft", "right": "ArrowRight"}[side])
        elif by == "mouse":
            browser.click_on(f"#choose-{side}")
        else:
            left, top, width, height = browser.box(f"#choose-{side}")
            point = [{"x": left + width / 2, "y": top + height / 2}]
            browser.command("Input.dispatchTouchEvent", type="touchStart", touchPoints=point)
            browser.command("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
            browser.settle()
    browser.wait_until("!document.querySelector('#end').hidden")
    path = download(browser)
    assert re.fullmatch(rf"study-{data['study']}-Dr-[A-Za-z-]+\.json", path.name)
    found = score([path], page.with_name("study.key.json"))
    (row, _) = found.rows
    assert (row.method, row.over, row.reader) == ("nearest", "lanczos", "Dr. Ä. Łęcka")
    assert (row.preferred, row.against, row.ties, row.repeats, row.agreed) == (0, 6, 0, 2, 2)
    assert 0.2 < found.readers[0].seconds < 30
    assert browser.evaluate("document.querySelector('#text').value").split('"saved"')[0] in path.read_text()


def test_no_difference_by_key_and_button_back_and_another_mind(browser, page):
    enter(browser, "A")
    for number, act in enumerate(["ArrowDown", " ", "ArrowLeft", "ArrowLeft"]):
        wait_for_pair(browser, number + 1)
        browser.key(act)
    wait_for_pair(browser, 5)
    browser.click_on("#choose-none")
    wait_for_pair(browser, 6)
    browser.key("ArrowUp")
    wait_for_pair(browser, 5)
    assert browser.evaluate("document.querySelector('#choose-none').getAttribute('aria-pressed')") == "true"
    browser.key("b")
    wait_for_pair(browser, 4)
    browser.key("ArrowRight")
    wait_for_pair(browser, 5)
    browser.click_on("#forward")
    wait_for_pair(browser, 6)
    saved = json.loads(download(browser).read_text())
    assert [one["choice"] for one in saved["answers"]] == ["none", "none", "left", "right", "none"]
    assert saved["answers"][3]["ms"] > saved["answers"][2]["ms"]
    assert browser.evaluate("document.querySelector('#progress').value") == 5


def test_a_reader_goes_on_where_he_stopped_and_another_begins(browser, page):
    enter(browser, "A")
    for number in range(3):
        wait_for_pair(browser, number + 1)
        browser.key("ArrowLeft")
    wait_for_pair(browser, 4)
    browser.open(page)
    assert browser.evaluate("document.querySelector('#reader').value") == "A"
    enter(browser, "B")
    wait_for_pair(browser, 1)
    browser.open(page)
    enter(browser, "  A ")
    wait_for_pair(browser, 4)
    saved = json.loads(download(browser).read_text())
    assert [one["choice"] for one in saved["answers"]] == ["left"] * 3


def test_it_works_where_the_browser_keeps_nothing(browser, page):
    script = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('none here'); }})"
    added = browser.command("Page.addScriptToEvaluateOnNewDocument", source=script)["identifier"]
    try:
        browser.open(page)
        enter(browser, "A")
        wait_for_pair(browser, 1)
        browser.key("ArrowLeft")
        wait_for_pair(browser, 2)
        assert browser.evaluate("typeof window.onbeforeunload") == "function"
        assert len(json.loads(download(browser).read_text())["answers"]) == 1
        assert browser.evaluate("window.onbeforeunload") is None
    finally:
        browser.command("Page.removeScriptToEvaluateOnNewDocument", identifier=added)


def test_a_double_click_and_a_key_held_down_are_one_answer(browser, page):
    enter(browser, "A")
    wait_for_pair(browser, 1)
    browser.evaluate("for (let i = 0; i < 2; i++) document.querySelector('#choose-left').click()")
    wait_for_pair(browser, 2)
    held = "new KeyboardEvent('keydown', {key: 'ArrowLeft', repeat: true, bubbles: true})"
    browser.evaluate(f"document.body.dispatchEvent({held})")
    browser.settle()
    assert len(json.loads(download(browser).read_text())["answers"]) == 1


def test_no_name_no_study(browser, page):
    enter(browser, "   ")
    browser.settle()
    assert browser.evaluate("document.querySelector('#compare').hidden")


VISIBLE = "['left', 'right'].filter(id => getComputedStyle(document.getElementById(id)).visibility === 'visible')"


def test_both_in_one_place_take_turns(browser, page):
    enter(browser, "A")
    wait_for_pair(browser, 1)
    assert browser.evaluate(VISIBLE) == ["left", "right"]
    browser.key("f")
    assert browser.evaluate(VISIBLE) == ["left"]
    browser.wait(lambda: browser.evaluate(VISIBLE) == ["right"], words="a turn")
    browser.key("x")
    assert browser.evaluate(VISIBLE) == ["left"]
    time.sleep(1)
    assert browser.evaluate(VISIBLE) == ["left"]  # who turns by hand wants no clock
    browser.key("ArrowRight")
    wait_for_pair(browser, 2)
    assert browser.evaluate(VISIBLE) == ["left", "right"]


def test_nothing_moves_by_itself_for_who_wants_that(browser, page):
    browser.prefer(prefers_reduced_motion="reduce")
    enter(browser, "A")
    wait_for_pair(browser, 1)
    browser.key("f")
    time.sleep(1.2)
    assert browser.evaluate(VISIBLE) == ["left"]
    browser.click_on("#other")
    assert browser.evaluate(VISIBLE) == ["right"]


def test_zoom_and_drag_move_both(browser, page):
    transforms = "[...document.querySelectorAll('.frame img')].map(image => image.style.transform)"
    enter(browser, "A")
    wait_for_pair(browser, 1)
    browser.key("+")
    browser.click_on("#zoom-in")
    left, top, width, height = browser.box("#left .frame")
    browser.drag((left + 100, top + 100), (left + 130, top + 90))
    one, other = browser.evaluate(transforms)
    assert one == other == "translate(30px, -10px) scale(2)"
    browser.drag((left + 10, top + 10), (left + width, top + height))
    assert browser.evaluate(transforms)[0] == f"translate({width / 2:g}px, {height / 2:g}px) scale(2)"
    browser.wheel(left + 100, top + 100, down=100)
    assert browser.evaluate("document.querySelector('#zoom').textContent") == "1.5×"
    browser.key("0")
    assert browser.evaluate(transforms)[0] == "translate(0px, 0px) scale(1)"


def test_everything_can_be_reached_with_the_tab_key(browser, page):
    enter(browser, "A")
    wait_for_pair(browser, 1)
    reached = []
    for _ in range(12):
        browser.key("Tab")
        reached.append(browser.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"save", "choose-left", "choose-none", "choose-right", "flicker", "zoom-in"} <= {
        one.split()[0] for one in reached if one
    }
    browser.evaluate("document.querySelector('#choose-none').focus()")
    browser.key(" ")
    wait_for_pair(browser, 2)
    assert [one["choice"] for one in json.loads(download(browser).read_text())["answers"]] == ["none"]


@pytest.mark.parametrize(("size", "phone"), [(DESK, False), (PHONE, True), ((844, 390), True)])
def test_a_pair_fits_the_window(browser, page, size, phone):
    """Without scrolling: both pictures, of equal size, beside or above each other; buttons for a finger."""
    browser.resize(*size, phone=phone)
    browser.open(page)
    enter(browser, "A")
    wait_for_pair(browser, 1)
    browser.key("f")
    browser.key("f")
    assert browser.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == list(
        size
    )
    one, other = browser.box("#left .frame"), browser.box("#right .frame")
    assert one[2:] == pytest.approx(other[2:])
    assert (one[0] == other[0]) == (size == PHONE)
    assert min(one[2:]) > 180
    for selector in ("#choose-left", "#choose-none", "#choose-right", "#flicker", "#zoom-in"):
        left, top, width, height = browser.box(selector)
        assert min(left, top) >= 0
        assert left + width <= size[0]
        assert top + height <= size[1]
        assert height >= 40
    for button in ("back", "choose-left", "choose-right"):
        words = browser.evaluate(f"document.querySelector('#{button}').innerText.trim()")
        assert words
        assert ("Left" in words) <= (size != PHONE)


def test_what_is_shown_has_names_for_who_cannot_see_it(browser, page):
    enter(browser, "A")
    wait_for_pair(browser, 1)
    nameless = (
        "[...document.querySelectorAll('button, input, img, progress, [role=group]')].filter(one => "
        "!(one.innerText || '').trim() && !one.ariaLabel && !one.alt && !(one.labels || []).length "
        "&& one.checkVisibility()).map(one => one.outerHTML)"
    )
    assert browser.evaluate(nameless) == []
    assert browser.evaluate("document.querySelector('#said').textContent") == "Pair 1 of 8."
