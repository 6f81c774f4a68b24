"""The browser that tests pages is itself tested: it sees complaints, requests, keys and pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from chromium import Chromium, PageError, needs_chromium

pytestmark = [pytest.mark.browser, needs_chromium]

PAGE = """<!DOCTYPE html><meta charset="utf-8"><title>A page</title>
<style>body { margin: 0 } canvas { display: block }</style>
<canvas id="c" width="60" height="40"></canvas><button id="b">count</button>
<script>
const gl = document.getElementById("c").getContext("webgl2", { preserveDrawingBuffer: true });
gl.clearColor(1, 0, 0, 1); gl.clear(gl.COLOR_BUFFER_BIT);
const seen = { keys: [], clicks: 0, wheel: 0 };
document.addEventListener("keydown", (event) => seen.keys.push(event.key));
document.getElementById("b").addEventListener("click", () => (seen.clicks += 1));
document.addEventListener("wheel", (event) => (seen.wheel += event.deltaY));
</script>"""


@pytest.fixture(scope="module")
def browser():
    with Chromium() as running:
        yield running


def opened(browser, tmp_path, text):
    path = tmp_path / "page.html"
    path.write_text(text)
    browser.open(path)
    return browser


def test_webgl_draws_and_is_seen(browser, tmp_path):
    opened(browser, tmp_path, PAGE)
    pixels = np.asarray(Image.open(io.BytesIO(browser.screenshot("#c"))).convert("RGB"))
    assert pixels.shape == (40, 60, 3)
    assert (pixels == (255, 0, 0)).all()
    assert browser.complaints == []
    assert browser.outside_requests() == []


def test_keys_clicks_and_the_wheel_arrive(browser, tmp_path):
    opened(browser, tmp_path, PAGE)
    browser.key("ArrowUp")
    browser.key("f", times=2)
    browser.click_on("#b")
    browser.wheel(30, 20, 120)
    browser.wait_until("seen.wheel == 120")
    assert browser.evaluate("seen") == {"keys": ["ArrowUp", "f", "f"], "clicks": 1, "wheel": 120}


def test_complaints_and_requests_are_noted(browser, tmp_path):
    opened(
        browser,
        tmp_path,
        "<script>console.error('a bad thing'); fetch('http://127.0.0.1:9/away').catch(() => 0);"
        "setTimeout(() => { throw new Error('nobody caught this') })</script>",
    )
    browser.wait(lambda: len(browser.requests) > 1 or browser.settle())
    browser.settle()
    assert any("a bad thing" in line for line in browser.complaints)
    assert any("nobody caught this" in line for line in browser.complaints)
    assert browser.outside_requests() == ["http://127.0.0.1:9/away"]


def test_an_error_in_what_is_evaluated_is_raised(browser, tmp_path):
    opened(browser, tmp_path, PAGE)
    with pytest.raises(PageError, match="no such thing"):
        browser.evaluate("(() => { throw new Error('no such thing') })()")


def test_the_window_has_the_size_asked_for(browser, tmp_path):
    opened(browser, tmp_path, PAGE)
    browser.resize(390, 844, phone=True)
    assert browser.evaluate("[innerHeight > 800, matchMedia('(pointer: coarse)').matches]")[0]
    browser.resize(1280, 720)
    assert browser.evaluate("[innerWidth, innerHeight]") == [1280, 720]
