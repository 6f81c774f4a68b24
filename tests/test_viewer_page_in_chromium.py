"""The page in a real browser: it draws the right voxels at the right millimetres, and whatever one presses works."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chromium import Chromium, needs_chromium
from faults import catches
from test_viewer_page import LEFT_HANDED, SAGITTAL, oblique
from thinslice.reports.viewer_page import Layer, Overlay, write_viewer_page
from thinslice.volume import Volume, patient_axes

pytestmark = [pytest.mark.browser, needs_chromium]

AFFINES = {
    "left-handed": LEFT_HANDED,
    "sagittal": SAGITTAL,
    "oblique": oblique(),
    "tilted coronal": oblique()[:, [0, 2, 1, 3]],
}
SHAPE, BRIGHT, FACTOR = (22, 26, 9), (15, 8, 6), 4
FAR = np.array([-300.0, 200.0, 900.0, 0])  # scanners put patients far from zero


def phantoms(affine):
    """One bright voxel in a thick scan with a faint background, and the same block in a thin scan of its field."""
    axis = int(np.argmax(np.linalg.norm(affine[:3, :3], axis=0)))
    shape = tuple(sorted(SHAPE, reverse=True)[1 - (a > axis)] if a != axis else 9 for a in range(3))
    bright = tuple(6 if a == axis else (15, 8)[a > axis] for a in range(3))
    thick = np.full(shape, 100, np.int16)
    thick[bright] = 1000
    finer = np.repeat(thick, FACTOR, axis=axis)
    thin_affine = affine.copy()
    thin_affine[:3, axis] /= FACTOR
    thin_affine[:3, 3] -= thin_affine[:3, axis] * (FACTOR - 1) / 2
    place = (affine @ [*bright, 1])[:3]
    return Volume(thick, affine), Volume(finer, thin_affine), place, axis


def textured(seed=1):
    """A thick scan and two different thin ones."""
    rng = np.random.default_rng(seed)
    thick = Volume(rng.integers(100, 1000, (24, 28, 8)).astype(np.int16), np.diag([1.0, 1.0, 4.0, 1.0]))
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[2, 3] = -1.5
    smooth = Volume(np.repeat(thick.voxels, 4, axis=2), affine)
    other = Volume((1100 - smooth.voxels).astype(np.int16), affine)
    return thick, smooth, other


@pytest.fixture(scope="module")
def browser():
    with Chromium() as running:
        yield running


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    thick, smooth, other = textured()
    misfit = Volume(np.zeros(smooth.shape, np.float32), smooth.affine)
    misfit.voxels[4:9, 5:12, 20:28] = 40.0
    expected = Volume(np.linspace(0, 20, 8)[None, None].repeat(24, 0).repeat(28, 1).astype(np.float32), thick.affine)
    path = tmp_path_factory.mktemp("page") / "report.html"
    worst = tuple(float(mm) for mm in (smooth.affine @ [6, 8, 24, 1])[:3])
    write_viewer_page(
        path,
        title="scan.nii.gz",
        acquired=Layer("acquired", thick, True),
        others=[Layer("cubic interpolation", smooth, False), Layer("enhanced", other, False)],
        overlays=[
            Overlay("How well it agrees", misfit, "HU", 40.0, "Where it differs from what was acquired.", worst),
            Overlay("Expected error", expected, "HU", 20.0, "From eight answers."),
        ],
        facts=[("slices", "8 of 4 mm became 32 of 1 mm"), ("model", "default " + "x" * 200)],
        notes=["a note"],
        window=(0.0, 1000.0),
        start_mm=(12.0, 14.0, 12.0),
    )
    return path


@pytest.fixture
def page(browser, report):
    browser.resize(1280, 720)
    browser.prefer(prefers_reduced_motion="no-preference")
    opened(browser, report)
    yield browser
    assert browser.complaints == []
    assert browser.outside_requests() == []


def opened(browser, path):
    browser.open(Path(path))
    assert browser.wait_until("document.documentElement.dataset.ready") == "yes", browser.complaints
    browser.settle()


def state(browser):
    return browser.evaluate("({...thinslice.choice, ...thinslice.state, at: thinslice.patientMm()})")


def pixels(browser, side):
    """[rows, columns] brightness of the inside of one side."""
    image = Image.open(io.BytesIO(browser.screenshot(f"#{side}"))).convert("L")
    return np.asarray(image, np.float64)[1:-1, 1:-1]


def pixels_of_both_sides(browser):
    """What `pixels` says of each side, out of one picture."""
    window = np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("L"), np.float64)
    for side in ("left", "right"):
        left, top, width, height = (round(number) for number in browser.box(f"#{side}"))
        yield side, window[top + 1 : top + height - 1, left + 1 : left + width - 1]


def grey_at(image, x, y):
    return image[round(y - 0.5), round(x - 0.5)]


def places(browser, side):
    return {one["plane"]: one for one in browser.evaluate(f"thinslice.places('{side}')")}


def press(browser, text):
    browser.evaluate(f"[...document.querySelectorAll('button')].find(b => b.textContent.includes('{text}')).click()")
    browser.settle()


def slide(browser, selector, value):
    browser.evaluate(
        f"(() => {{ const one = document.querySelector('{selector}'); one.value = {value}; "
        "one.dispatchEvent(new Event('input', { bubbles: true })) })()"
    )
    browser.settle()
    browser.settle()


# ---- the truth: where is what


@catches("reports/viewer/page.js", "isNearestInterpolation: staircase", "isNearestInterpolation: !staircase")
@catches("reports/viewer/page.js", "isRadiologicalConvention: true", "isRadiologicalConvention: false")
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_the_voxel_that_is_bright_is_under_the_crosshair_to_its_edges(browser, tmp_path, affine):
    """The block is drawn where it is in the patient: 0.4 voxels from its centre still bright, 0.6 not any more."""
    affine = affine + np.outer(FAR, [0, 0, 0, 1])
    thick, thin, place, _ = phantoms(affine)
    write_viewer_page(
        tmp_path / "page.html",
        title="phantom",
        acquired=Layer("thick", thick, True),
        others=[Layer("thin", thin, True)],
        window=(0.0, 1000.0),
        start_mm=tuple(place.tolist()),
    )
    browser.resize(1000, 560)
    opened(browser, tmp_path / "page.html")
    np.testing.assert_allclose(state(browser)["at"], place, atol=1e-3)
    assert browser.evaluate("thinslice.values()") == [1000, 1000]
    for side, image in pixels_of_both_sides(browser):
        for plane in places(browser, side).values():
            assert grey_at(image, *plane["at"]) > 240, plane["plane"]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    for axis, patient in enumerate(patient_axes(affine)):
        for share in (-0.62, -0.38, 0.38, 0.62):
            mm = place + affine[:3, axis] / spacing[axis] * spacing[axis] * share
            browser.evaluate(f"thinslice.moveToPatient({mm.tolist()})")
            for side, image in pixels_of_both_sides(browser):
                for plane in places(browser, side).values():
                    assert (grey_at(image, *plane["at"]) > 240) == (abs(share) < 0.5), (side, plane["plane"], patient)
    assert browser.complaints == []


def test_the_patients_right_is_on_the_left_and_the_front_of_sagittal_planes_too(browser, tmp_path):
    voxels = np.zeros((20, 20, 20), np.int16)
    voxels[15:, 13:, 16:] = 1000  # right, front, head in a scan whose axes run to the right, front and head
    volume = Volume(voxels, np.eye(4))
    write_viewer_page(
        tmp_path / "page.html",
        title="corner",
        acquired=Layer("a", volume, True),
        others=[Layer("b", volume, False)],
        window=(0.0, 1000.0),
        start_mm=(17.0, 16.0, 18.0),
    )
    opened(browser, tmp_path / "page.html")
    for side in ("left", "right"):
        image, found = pixels(browser, side), places(browser, side)
        for plane in ("axial", "coronal", "sagittal"):
            x, y, w, h = (round(v) for v in found[plane]["box"])
            tile = image[y + 2 : y + h - 2, x + 2 : x + w - 2] > 240
            rows, columns = (np.arange(n) / n for n in tile.shape)
            assert np.average(columns, weights=tile.sum(0) + 1e-9) < 0.4, plane  # on the left
            assert np.average(rows, weights=tile.sum(1) + 1e-9) < 0.4, plane  # above


def test_pixels_are_square_in_millimetres_and_both_sides_have_one_scale(page):
    left, right = places(page, "left"), places(page, "right")
    assert {name: one["box"] for name, one in left.items()} == {name: one["box"] for name, one in right.items()}
    scales = [
        one["box"][2] / mm for name, mm in (("axial", 24), ("coronal", 24), ("sagittal", 28)) for one in [left[name]]
    ]
    scales += [
        one["box"][3] / mm for name, mm in (("axial", 28), ("coronal", 32), ("sagittal", 32)) for one in [left[name]]
    ]
    np.testing.assert_allclose(scales, scales[0], rtol=0.02)


def test_the_acquired_scan_is_a_staircase_and_the_others_are_smooth(page):
    """Along a line through 4 mm slices the acquired values are flat within a slice, the interpolated ones are not."""
    box = places(page, "left")["coronal"]["box"]
    page.key("2")
    left, right = pixels(page, "left"), pixels(page, "right")
    x, y, w, h = (round(v) for v in box)
    changes = [np.count_nonzero(np.abs(np.diff(image[y + 2 : y + h - 2, x + w // 3])) > 2) for image in (left, right)]
    assert changes[0] <= 3 * 8
    assert changes[1] > 2 * changes[0]


# ---- what is drawn


def test_both_sides_draw_and_differ(page):
    left, right = pixels(page, "left"), pixels(page, "right")
    assert left.std() > 20
    assert right.std() > 20
    assert np.abs(left - right).mean() > 10
    assert page.evaluate("[...document.querySelectorAll('.stage')].every(s => s.clientHeight > 250)")


def test_a_click_moves_both_to_the_same_millimetre(page):
    box = places(page, "left")["axial"]["box"]
    left, top, *_ = page.box("#left")
    page.click(left + 1 + box[0] + box[2] * 0.25, top + 1 + box[1] + box[3] * 0.75)
    right_mm, front_mm, up_mm = state(page)["at"]
    assert right_mm == pytest.approx(23.5 - 0.25 * 24, abs=0.2)
    assert front_mm == pytest.approx(27.5 - 0.75 * 28, abs=0.2)
    assert up_mm == pytest.approx(12, abs=1e-3)
    (one,), (other,) = (page.evaluate(f"thinslice.drawnMm('{side}')") for side in ("left", "right"))
    np.testing.assert_allclose(one, other, atol=1e-3)
    for side in ("left", "right"):
        assert places(page, side)["axial"]["at"] == pytest.approx(
            [box[0] + box[2] * 0.25, box[1] + box[3] * 0.75], abs=1
        )
    assert "17.5 mm right, 6.5 mm front, 12.0 mm up" in page.evaluate("document.getElementById('place').textContent")


def test_dragging_on_the_right_moves_the_left_too(page):
    box = places(page, "right")["coronal"]["box"]
    left, top, *_ = page.box("#right")
    at = [(left + 1 + box[0] + box[2] * x, top + 1 + box[1] + box[3] * y) for x, y in ((0.5, 0.5), (0.2, 0.3))]
    page.drag(*at)
    found = state(page)
    assert found["at"][0] == pytest.approx(23.5 - 0.2 * 24, abs=0.2)
    assert found["at"][2] == pytest.approx(30 - 0.3 * 32, abs=0.2)
    assert found["axis"] == 1
    (one,), (other,) = (page.evaluate(f"thinslice.drawnMm('{side}')") for side in ("left", "right"))
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_keys_move_one_voxel_in_the_direction_they_point(page):
    page.evaluate("document.getElementById('left').focus()")
    before = state(page)["at"]
    for key, axis, by in (
        ("ArrowLeft", 0, 1),
        ("ArrowRight", 0, -1),
        ("ArrowUp", 1, 1),
        ("ArrowDown", 1, -1),
        ("PageUp", 2, 1),
        ("PageDown", 2, -1),
    ):
        page.key(key)
        after = state(page)["at"]
        moved = np.subtract(after, before)
        assert moved[axis] == pytest.approx(by, abs=1e-3), key
        assert np.abs(np.delete(moved, axis)).max() < 1e-6
        before = after


def test_the_wheel_turns_through_the_slices_and_zooms_with_ctrl(page):
    box = places(page, "left")["sagittal"]["box"]
    left, top, *_ = page.box("#left")
    x, y = left + box[0] + box[2] / 2, top + box[1] + box[3] / 2
    before = state(page)["at"]
    page.wheel(x, y, -100)
    page.wait_until(f"thinslice.patientMm()[0] > {before[0]} + 0.9")
    place = places(page, "left")["axial"]["at"]
    page.mouse("mouseWheel", x, y, deltaX=0, deltaY=-100, modifiers=2)
    page.wait_until("thinslice.state.zoom > 1.1")
    page.settle()
    assert places(page, "left")["axial"]["at"] == pytest.approx(place, abs=1)  # about the crosshair
    assert places(page, "right")["axial"]["at"] == pytest.approx(place, abs=1)
    page.key("r")
    assert state(page)["zoom"] == 1


def test_zoomed_and_moved_the_crosshair_is_still_on_its_voxel(browser, tmp_path):
    thick, thin, place, _ = phantoms(LEFT_HANDED)
    layers = {"acquired": Layer("thick", thick, True), "others": [Layer("thin", thin, True)]}
    write_viewer_page(tmp_path / "p.html", title="p", **layers, window=(0.0, 1000.0), start_mm=tuple(place.tolist()))
    opened(browser, tmp_path / "p.html")
    for _ in range(3):
        browser.key("+")
    x, y, *_ = browser.box("#left")
    box = places(browser, "left")["sagittal"]["box"]
    at = x + box[0] + box[2] / 2, y + box[1] + box[3] / 2
    before = places(browser, "left")["sagittal"]["at"]
    browser.drag(at, (at[0] + 20, at[1] - 10), button="right")
    after = places(browser, "left")["sagittal"]["at"]
    assert np.subtract(after, before) == pytest.approx([20, -10], abs=0.5)
    np.testing.assert_allclose(state(browser)["at"], place, atol=1e-3)
    for side in ("left", "right"):
        image = pixels(browser, side)
        for plane in places(browser, side).values():
            assert grey_at(image, *plane["at"]) > 240, plane["plane"]


# ---- what can be pressed


def test_keys_and_buttons_swap_the_right_in_place(page):
    seen = {}
    for key in "123":
        page.key(key)
        seen[key] = pixels(page, "right")
        assert state(page)["shown"] == int(key) - 1
        assert page.evaluate("[...document.querySelectorAll('#choices button')].map(b => b.ariaPressed)") == [
            str(one == key).lower() for one in "123"
        ]
    np.testing.assert_array_equal(seen["1"], pixels(page, "left"))
    assert np.abs(seen["2"] - seen["3"]).mean() > 10
    press(page, "cubic")
    np.testing.assert_array_equal(pixels(page, "right"), seen["2"])
    assert page.evaluate("document.getElementById('right-name').textContent") == "cubic interpolation"


def test_flicker_goes_on_by_itself_until_it_is_stopped(page):
    page.key("f")
    for shown in (2, 0, 2):
        page.wait_until(f"thinslice.choice.shown === {shown}", 5)
    page.key("f")
    assert state(page)["timer"] == 0


def test_whoever_wants_no_motion_gets_one_swap_per_key(page):
    page.prefer(prefers_reduced_motion="reduce")
    page.key("f")
    assert (state(page)["shown"], state(page)["timer"]) == (0, 0)
    page.key("f")
    assert state(page)["shown"] == 2


def test_fading_mixes_the_two_that_were_last_chosen(page):
    page.key("2")
    page.key("3")
    enhanced = pixels(page, "right")
    slide(page, "#fade", 50)
    half = pixels(page, "right")
    slide(page, "#fade", 100)
    cubic = pixels(page, "right")
    np.testing.assert_allclose(half, (enhanced + cubic) / 2, atol=3)
    assert np.abs(cubic - enhanced).mean() > 10
    assert "faded 100 % to cubic" in page.evaluate("document.getElementById('right-name').textContent")


def test_the_slice_slider_and_the_plane_move_the_crosshair(page):
    assert page.evaluate("document.getElementById('plane').selectedOptions[0].text") == "axial"
    slide(page, "#slice", 5)
    assert state(page)["at"][2] == pytest.approx(14 + 5, abs=0.3)
    page.evaluate(
        "(() => { const p = document.getElementById('plane'); p.value = 0; p.dispatchEvent(new Event('change')) })()"
    )
    page.settle()
    slide(page, "#slice", 0)
    assert state(page)["at"][0] == pytest.approx(11.5, abs=0.3)


def test_black_and_white_change_both_sides_alike(page):
    page.key("1")
    before = pixels(page, "left")
    slide(page, "#white", 600)
    left, right = pixels(page, "left"), pixels(page, "right")
    assert left.mean() > before.mean() + 10
    np.testing.assert_array_equal(left, right)


def test_maps_show_in_colour_and_tell_their_numbers(page):
    page.evaluate("thinslice.moveToPatient([6, 8, 22.5])")
    page.settle()
    plain = colours(page)
    page.key("o")
    page.wait_until("document.querySelectorAll('#right .sheet').length === 4")
    page.wait(lambda: (colours(page) != plain).any(), 20)
    page.settle()
    seen, at = colours(page), places(page, "right")["axial"]
    x, y = (round(v) for v in at["at"])
    assert np.ptp(seen[y + 4, x + 4].astype(int)) > 30  # colour over grey, in the block
    box = [round(v) for v in at["box"]]
    corner = np.s_[box[1] + box[3] - 30 : box[1] + box[3] - 10, box[0] + 10 : box[0] + 30]
    np.testing.assert_array_equal(seen[corner], plain[corner])  # and nothing where it is zero
    assert "How well it agrees: 40 HU" in page.evaluate("document.getElementById('values').textContent")
    slide(page, ".overlay input[type=range]", 0)
    np.testing.assert_array_equal(colours(page), plain)
    page.key("o")
    assert "agrees" not in page.evaluate("document.getElementById('values').textContent")


def colours(browser):
    return np.asarray(Image.open(io.BytesIO(browser.screenshot("#right"))).convert("RGB"))[1:-1, 1:-1]


def test_the_second_map_has_a_key_too(page):
    page.key("e")
    page.wait_until("document.querySelectorAll('#right .sheet').length === 4")
    page.settle()
    assert "Expected error" in page.evaluate("document.getElementById('values').textContent")
    page.key("e")
    assert "Expected error" not in page.evaluate("document.getElementById('values').textContent")


def test_a_scan_on_another_scale_is_shown_in_a_window_of_its_own(browser, tmp_path):
    """A thousandth of the intensities, the same picture; and black and white move both alike."""
    thick, smooth, _ = textured()
    faint = Volume((smooth.voxels / 1000).astype(np.float32), smooth.affine)
    write_viewer_page(
        tmp_path / "p.html",
        title="t",
        acquired=Layer("acquired", thick, True),
        others=[Layer("same", smooth, False), Layer("faint", faint, False, (0.0, 1.0))],
        window=(0.0, 1000.0),
    )
    browser.resize(1280, 720)
    opened(browser, tmp_path / "p.html")
    for white in (None, 600):
        if white:
            slide(browser, "#white", white)
        browser.key("2")
        same = pixels(browser, "right").astype(int)
        browser.key("3")
        assert np.abs(pixels(browser, "right").astype(int) - same).max() <= 3
        assert np.ptp(same) > 100


def test_the_worst_place_is_gone_to(page):
    press(page, "Go to the worst place")
    assert state(page)["at"] == pytest.approx([6, 8, 22.5], abs=1e-3)
    assert page.evaluate("document.querySelector('.overlay input').checked")
    assert page.evaluate("document.querySelectorAll('.overlay button').length") == 1
    page.wait_until("document.querySelectorAll('#right .sheet').length === 4")
    page.settle()


def test_everything_can_be_reached_by_keyboard_and_has_a_name(page):
    reached = []
    for _ in range(40):
        page.key("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    for wanted in ("flicker", "fade", "left", "right", "plane", "slice", "black", "white", "closer", "reset"):
        assert wanted in reached, reached
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, select')].filter(e => "
        "!(e.ariaLabel || e.textContent.trim() || (e.labels && e.labels[0] && e.labels[0].textContent.trim())))"
        ".map(e => e.outerHTML)"
    )
    assert unnamed == []


@pytest.mark.parametrize(("width", "height", "phone"), [(1280, 720, False), (390, 844, True)])
def test_it_fits_without_scrolling_sideways(page, width, height, phone):
    page.resize(width, height, phone)
    page.settle()
    page.settle()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    left, right = (
        page.evaluate(f"(r => [r.left, r.top, r.width])(document.getElementById('{side}').getBoundingClientRect())")
        for side in ("left", "right")
    )
    assert (left[0] == right[0]) == phone  # stacked on a phone
    for side in ("left", "right"):
        assert pixels(page, side).std() > 15
    page.resize(1280, 720)


def test_scans_of_different_fields_of_view_are_shown_at_one_place_and_scale(browser, tmp_path):
    """What one of them does not reach stays black there; nothing is stretched."""
    large = Volume(np.full((40, 40, 10), 500, np.int16), np.diag([1.0, 1.0, 4.0, 1.0]))
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = (20, 10, 10)
    small = Volume(np.full((10, 10, 12), 900, np.int16), affine)
    layers = {"acquired": Layer("large", large, True), "others": [Layer("small", small, False)]}
    write_viewer_page(tmp_path / "p.html", title="p", **layers, window=(0.0, 1000.0), start_mm=(24.0, 14.0, 15.0))
    opened(browser, tmp_path / "p.html")
    assert places(browser, "left")["axial"]["box"] == places(browser, "right")["axial"]["box"]
    image, at = pixels(browser, "right"), places(browser, "right")["axial"]
    x, y, w, h = at["box"]
    scale = w / 40
    assert grey_at(image, *at["at"]) == pytest.approx(0.9 * 255, abs=3)
    assert grey_at(image, at["at"][0] + 8 * scale, at["at"][1] + 8 * scale) == 0
    lit = (image[round(y) + 2 : round(y + h) - 2, round(x) + 2 : round(x + w) - 2] > 200).sum()
    assert np.sqrt(lit) / scale == pytest.approx(10, abs=0.5)
    browser.evaluate("thinslice.moveToPatient([24, 14, 30])")  # above the small one
    browser.settle()
    assert grey_at(pixels(browser, "right"), *places(browser, "right")["axial"]["at"]) == 0
    assert browser.evaluate("thinslice.values()") == [500, None]


def test_hostile_names_run_nothing(browser, tmp_path):
    name = "</script><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    thick, smooth, _ = textured()
    layers = {"acquired": Layer(name, thick, True), "others": [Layer(name, smooth, False)]}
    write_viewer_page(
        tmp_path / "p.html",
        title=name,
        **layers,
        facts=[(name, name)],
        notes=[name],
        overlays=[Overlay(name, thick, name, 1.0, name)],
    )
    opened(browser, tmp_path / "p.html")
    assert browser.evaluate("document.querySelector('h1').textContent") == name
    assert browser.evaluate("document.title") == name
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert browser.complaints == []


def test_nothing_can_be_fetched_from_the_page(browser, report):
    opened(browser, report)
    assert browser.evaluate("fetch('http://127.0.0.1:9/').then(() => 'got', () => 'refused')") == "refused"
    assert any("Content Security Policy" in line for line in browser.complaints)


def test_a_finger_places_the_crosshair(page):
    page.resize(390, 844, phone=True)
    page.settle()
    page.settle()
    left, top, *_ = page.box("#left")
    box = places(page, "left")["axial"]["box"]
    page.tap(left + 1 + box[0] + box[2] * 0.25, top + 1 + box[1] + box[3] * 0.75)
    assert state(page)["at"] == pytest.approx([17.5, 6.5, 12], abs=0.3)
    page.resize(1280, 720)


def test_without_webgl_it_says_so(browser, report):
    script = browser.before_pages("HTMLCanvasElement.prototype.getContext = () => null")
    try:
        browser.open(report)
        assert browser.wait_until("document.documentElement.dataset.ready") == "no"
    finally:
        browser.no_more_before_pages(script)
    said = browser.evaluate("document.getElementById('trouble').textContent")
    assert "cannot be drawn here" in said
    assert "Need a browser with WebGL 2; next:" in said
    assert browser.evaluate("document.getElementById('trouble').checkVisibility()")
    assert browser.evaluate("document.querySelector('table').checkVisibility()")  # the facts can still be read
