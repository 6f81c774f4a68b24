"""The page as a file: what it holds is what was given, nothing gets in that should not, and it fits its budget."""

import base64
import gzip
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import nibabel
import numpy as np
import pytest

from faults import catches
from thinslice.reports.downsample import BUDGET_BYTES, align_axes, make_excerpts
from thinslice.reports.viewer_page import NIIVUE, VIEWER, Layer, Overlay, write_comparison_page, write_viewer_page
from thinslice.volume import Volume, patient_axes

WINDOW = (0.0, 1000.0)
LEFT_HANDED = np.array([[-0.9, 0, 0, 40.0], [0, 0.8, 0, -30.0], [0, 0, 4.0, -7.0], [0, 0, 0, 1]])
SAGITTAL = np.array([[0, 0, -4.0, 21.0], [0.8, 0, 0, -50.0], [0, -0.9, 0, 33.0], [0, 0, 0, 1]])


def oblique(spacing=(0.9, 0.8, 4.0), angles=(0.3, -0.2), origin=(-20.0, 11.0, 5.0)):
    (a, b), (c, s) = angles, (np.cos, np.sin)
    turn = np.array([[c(a), -s(a), 0], [s(a), c(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, c(b), -s(b)], [0, s(b), c(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = origin
    return affine


AFFINES = {"left-handed": LEFT_HANDED, "sagittal": SAGITTAL, "oblique": oblique()}


def scan(shape=(14, 12, 6), affine=LEFT_HANDED, dtype=np.int16, seed=0):
    voxels = np.random.default_rng(seed).integers(0, 1000, shape)
    return Volume(voxels.astype(dtype), np.array(affine))


def write(path, acquired, others=None, /, **more):
    layers = [Layer(f"other {i}", v, False) for i, v in enumerate(others or [acquired])]
    write_viewer_page(
        path, **({"title": "A scan", "acquired": Layer("acquired", acquired, True), "others": layers} | more)
    )
    return path.read_text()


def embedded(text):
    """The scans and maps on a page, read by nibabel, and the page's data."""
    packed = re.findall(r'class="voxels">([^<]*)<', text)
    raws = [gzip.decompress(base64.b64decode(one)) for one in packed]
    images = [nibabel.Nifti1Image.from_stream(io.BytesIO(raw)) for raw in raws]
    return images, json.loads(re.search(r'id="page-data">([^<]*)<', text)[1])


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32])
def test_what_is_embedded_decodes_to_the_same_voxels_and_places(tmp_path, affine, dtype):
    acquired = Volume((scan(affine=affine).voxels % 250).astype(dtype), affine)
    (first, second), _ = embedded(write(tmp_path / "page.html", acquired, window=WINDOW))
    for image in (first, second):
        np.testing.assert_array_equal(image.get_fdata(), acquired.voxels)
        np.testing.assert_allclose(image.affine, affine, atol=1e-5)


@catches(
    "reports/downsample.py",
    "return Excerpt(stored, selection.affine, slope, low)",
    "return Excerpt(stored, selection.affine, slope, 0.0)",
)
def test_fractions_keep_their_value_to_a_small_share_of_the_window(tmp_path):
    acquired = scan()
    voxels = acquired.voxels.astype(np.float32) + 0.3
    text = write(tmp_path / "page.html", acquired, [Volume(voxels, LEFT_HANDED)], window=WINDOW)
    (_, image), _ = embedded(text)
    np.testing.assert_allclose(image.get_fdata(), voxels, atol=1000 / 4096)
    assert "values that are no whole numbers were rounded to steps of 0.24" in text


def test_what_is_no_number_becomes_the_lowest(tmp_path):
    voxels = scan().voxels.astype(np.float32) + 0.5
    voxels[0, 0, 0], voxels[1, 0, 0], voxels[2, 0, 0] = np.nan, np.inf, -np.inf
    text = write(tmp_path / "page.html", Volume(voxels, LEFT_HANDED), window=WINDOW)
    (image, _), data = embedded(text)
    assert np.isfinite(image.get_fdata()).all()
    assert image.get_fdata()[0, 0, 0] == image.get_fdata().min()
    assert "NaN" not in json.dumps(data)


def test_a_far_outlier_does_not_cost_the_rest_its_steps(tmp_path):
    voxels = scan().voxels.astype(np.float32) + 0.25
    voxels[3, 3, 3] = 1e9
    (image, _), _ = embedded(write(tmp_path / "page.html", Volume(voxels, LEFT_HANDED), window=WINDOW))
    rest = voxels < 1e6
    np.testing.assert_allclose(image.get_fdata()[rest], voxels[rest], atol=0.3)


def test_of_a_series_the_first_volume_is_shown_and_that_is_said(tmp_path):
    first = scan()
    series = Volume(np.stack([first.voxels, first.voxels + 1], axis=-1), LEFT_HANDED)
    text = write(tmp_path / "page.html", series, window=WINDOW)
    (image, _), _ = embedded(text)
    np.testing.assert_array_equal(image.get_fdata(), first.voxels)
    assert "of a 4-D series the first volume is shown" in text


def test_the_same_scans_give_the_same_bytes(tmp_path):
    one, two = (tmp_path / name for name in ("one.html", "two.html"))
    assert write(one, scan()) == write(two, scan())
    assert one.read_bytes() == two.read_bytes()


# ---- budgets


def blob(shape=(64, 56, 12), affine=LEFT_HANDED):
    """Something bright in the middle of nothing, with one brightest voxel."""
    centre = np.array(shape) / 2
    distance = np.linalg.norm([(i - c) / n for i, c, n in zip(np.indices(shape), centre, shape, strict=True)], axis=0)
    voxels = np.where(distance < 0.2, 800, 0).astype(np.int16)
    return Volume(voxels, np.array(affine))


def middle_mm(image, affine=None):
    """Patient millimetres of the centre of mass."""
    voxels, affine = (image.get_fdata(), image.affine) if affine is None else (image, affine)
    index = [np.average(grid, weights=voxels) for grid in np.indices(voxels.shape)]
    return (affine @ [*index, 1])[:3]


@catches(
    "reports/downsample.py",
    "start = np.array([part.start for part in self.box]) + (np.array(self.steps) - 1) / 2",
    "start = (np.array(self.steps) - 1) / 2",
)
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_cropping_leaves_every_voxel_where_it_was(tmp_path, affine):
    acquired = blob(affine=affine)
    whole = 2 * 2 * acquired.voxels.size
    text = write(tmp_path / "page.html", acquired, window=WINDOW, budget_bytes=whole // 2)
    (image, _), _ = embedded(text)
    assert image.get_fdata().size < acquired.voxels.size / 2
    assert image.get_fdata().sum() == acquired.voxels.sum(dtype=float)
    np.testing.assert_allclose(middle_mm(image), middle_mm(acquired.voxels.astype(float), affine), atol=1e-3)
    assert "For this page only: cropped to what is not background. The scans" in text


@catches("reports/downsample.py", "for part in self.box]) + (np.array(self.steps) - 1) / 2", "for part in self.box])")
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_averaging_leaves_the_centre_of_mass_where_it_was(tmp_path, affine):
    acquired = blob(affine=affine)
    text = write(tmp_path / "page.html", acquired, window=WINDOW, budget_bytes=6000)
    (image, other), _ = embedded(text)
    assert sum(one.get_fdata().size for one in (image, other)) <= 6000
    np.testing.assert_allclose(middle_mm(image), middle_mm(acquired.voxels.astype(float), affine), atol=0.35)
    assert re.search(r"averaged over \d x \d x 1 voxels \(acquired\), \d x \d x 1 voxels \(other 0\)", text)


def test_a_ramp_keeps_its_value_at_every_millimetre():
    """Averaged in whole steps a linear scan is the same linear scan: a shift of half a voxel would show."""
    x, y, z = np.indices((24, 30, 8))
    ramp = Volume((7.0 * x + 5.0 * y + 11.0 * z).astype(np.float32), oblique(spacing=(1.0, 0.7, 3.0)))
    scans, _, said = make_excerpts([("ramp", ramp)], [], (0.0, 500.0), budget_bytes=1000)
    (one,) = scans
    index = np.stack([*np.indices(one.stored.shape), np.ones(one.stored.shape)])
    at = np.tensordot(np.linalg.inv(ramp.affine) @ one.affine, index, axes=1)
    told = one.stored * one.slope + one.inter
    np.testing.assert_allclose(told, 7 * at[0] + 5 * at[1] + 11 * at[2], atol=0.5 * 1125 / 255 + 1e-6)
    assert "averaged over" in said[-1]


def test_eight_bits_come_before_averaging_and_are_said(tmp_path):
    acquired = scan((20, 20, 20))
    text = write(tmp_path / "page.html", acquired, window=(100.0, 900.0), budget_bytes=2 * 8000)
    (image, _), _ = embedded(text)
    assert image.header.get_data_dtype() == np.uint8
    np.testing.assert_allclose(image.get_fdata(), acquired.voxels.clip(-100, 1700), atol=0.5 * 1800 / 255 + 1e-6)
    assert "shown in 8 bits over the values -100 to 1700" in text
    assert "averaged" not in text


@catches(
    "reports/downsample.py",
    "return [_limit_spacing(selection, direction, least_mm) for selection in selections]",
    "return [_limit_spacing(s, direction, least_mm) if s.shape == largest.shape else s for s in selections]",
)
def test_in_plane_is_averaged_before_the_slices_that_the_page_is_there_to_show():
    thick = Volume(np.random.default_rng(0).integers(0, 900, (40, 40, 10)).astype(np.int16), np.diag([1.0, 1, 4, 1]))
    thin = Volume(np.repeat(thick.voxels, 4, axis=2), np.diag([1.0, 1, 0.99, 1]))
    scans, _, _ = make_excerpts([("thick", thick), ("thin", thin)], [], (0.0, 900.0), budget_bytes=40 * 40 * 50 // 4)
    assert scans[1].stored.shape == (20, 20, 40)


def test_values_far_beyond_the_window_are_cut_and_that_is_said():
    voxels = np.random.default_rng(0).normal(500, 100, (20, 20, 10)).astype(np.float32)
    voxels[0, 0, 0] = 1e6
    _, _, said = make_excerpts([("a", Volume(voxels, np.eye(4)))], [], (0.0, 1000.0))
    assert "values more than 4 windows beyond the window were cut off" in said


def test_the_worst_place_is_one_that_the_page_shows(tmp_path):
    """Where it was cropped away, that of what is left."""
    thick = np.zeros((40, 40, 10), np.int16)
    thick[10:20, 10:20] = 500
    error = np.zeros((40, 40, 10), np.float32)
    error[12, 13, 4], error[39, 39, 9] = 5, 50
    volume = Volume(thick, np.diag([1.0, 1, 4, 1]))
    overlay = Overlay("misfit", Volume(error, volume.affine), "", 60.0, "", (39.0, 39.0, 36.0))
    write_viewer_page(
        tmp_path / "p.html",
        title="t",
        acquired=Layer("a", volume, True),
        others=[Layer("b", volume, False)],
        overlays=[overlay],
        window=(0.0, 500.0),
        budget_bytes=2 * 9000,
    )
    text = (tmp_path / "p.html").read_text()
    assert "cropped to what is not background" in text
    assert '"worst_mm": [12.0, 13.0, 16.0]' in text


def test_a_scan_on_another_scale_has_a_window_of_its_own(tmp_path):
    first = scan((20, 20, 20))
    labels = Volume((first.voxels > first.voxels.mean()).astype(np.uint8), first.affine)
    write_comparison_page(tmp_path / "p.html", [("scan", first), ("seg", labels)])
    text = (tmp_path / "p.html").read_text()
    assert "seg has another scale of intensities, and a grey window of its own." in text
    assert '"window": [0.0, 1.0]' in text
    assert "Computed slices were not acquired" not in text


def test_scans_of_one_grid_stay_on_one_grid(tmp_path):
    """Whoever compares two answers must not see one of them coarser."""
    thin = scan((32, 32, 24), np.diag([1.0, 1, 1, 1]))
    text = write(tmp_path / "page.html", scan((32, 32, 6)), [thin, thin, thin], window=WINDOW, budget_bytes=40000)
    images, _ = embedded(text)
    assert len({image.shape for image in images[1:]}) == 1
    assert sum(image.get_fdata().size for image in images) <= 40000


def test_no_scan_stays_sharper_than_another(tmp_path):
    """Averaging the thin scans alone would make the acquired slices look better than what was computed from them."""
    thin = scan((32, 32, 48), np.diag([1.0, 1, 1, 1]))
    text = write(tmp_path / "page.html", scan((32, 32, 6), np.diag([1.0, 1, 8, 1])), [thin], budget_bytes=15000)
    (acquired, other), _ = embedded(text)
    assert acquired.header.get_zooms() == pytest.approx((2, 2, 8))
    assert other.header.get_zooms()[:2] == pytest.approx((2, 2))


def test_a_large_scan_fits_the_budget():
    large = Volume(np.zeros((512, 512, 60), np.int16), LEFT_HANDED)
    large.voxels[100:400, 120:420] = 500
    scans, _, said = make_excerpts([("a", large), ("b", large)], [], WINDOW)
    assert sum(one.stored.nbytes for one in scans) <= BUDGET_BYTES
    assert said == ["cropped to what is not background"]


def test_it_is_not_cropped_where_that_would_cut_something_off():
    voxels = np.zeros((64, 64, 8), np.int16)
    voxels[20:40, 20:40] = 500
    voxels[np.random.default_rng(0).integers(0, 64, 200), 1, 2] = 900  # a thin bright line near the edge
    scans, _, said = make_excerpts([("a", Volume(voxels, LEFT_HANDED))], [], WINDOW, budget_bytes=65000)
    kept = scans[0].stored
    assert np.count_nonzero(kept) >= 0.999 * np.count_nonzero(voxels)
    assert len(said) > 0


# ---- other axes


def test_scans_whose_axes_run_along_each_other_are_not_resampled():
    for affine in (LEFT_HANDED, SAGITTAL):
        assert not align_axes(scan(affine=affine), scan())[1]


def test_a_turned_scan_is_resampled_to_the_same_values_at_the_same_millimetres():
    x, y, z = np.indices((20, 22, 18))
    affine = oblique(spacing=(1.0, 1.1, 1.2))
    turned = Volume((3.0 * x + 2.0 * y - 4.0 * z + 100).astype(np.float32), affine)
    like = Volume(
        np.zeros((60, 60, 30), np.int16), np.diag([1.0, 1.0, 2.0, 1.0]) + np.outer([-30, -30, -20, 0], [0, 0, 0, 1])
    )
    found, resampled = align_axes(turned, like)
    assert resampled
    assert sorted(patient_axes(found.affine)) == [0, 1, 2]
    index = np.stack([*np.indices(found.shape), np.ones(found.shape)])
    at = np.tensordot(np.linalg.inv(affine) @ found.affine, index, axes=1)
    inside = np.all([(at[a] >= 0) & (at[a] <= n - 1) for a, n in enumerate(turned.shape)], axis=0)
    assert inside.sum() > 500
    expected = 3 * at[0] + 2 * at[1] - 4 * at[2] + 100
    np.testing.assert_allclose(found.voxels[inside], expected[inside], atol=0.01)


# ---- what must not get in


class Elements(HTMLParser):
    """Names of the elements and their event handlers, as a browser would see them."""

    def __init__(self):
        super().__init__()
        self.names, self.handlers, self.words = [], [], []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.words.append(data)


HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>\"'&$title ${data}"


@catches("reports/viewer_page.py", '.replace("<", "\\\\u003c")', "")
@catches("reports/viewer_page.py", "<td>{escape(value)}", "<td>{value}")
def test_hostile_names_stay_words(tmp_path):
    acquired = scan()
    map_ = Overlay(HOSTILE, acquired, HOSTILE, 10.0, HOSTILE, (0.0, 0.0, 0.0))
    plain = Elements()
    plain.feed(
        write(
            tmp_path / "plain.html",
            acquired,
            overlays=[Overlay("a", acquired, "b", 1.0, "c")],
            facts=[("a", "b")],
            notes=["a"],
        )
    )
    found = Elements()
    text = write(
        tmp_path / "page.html",
        acquired,
        title=HOSTILE,
        acquired=Layer(HOSTILE, acquired, True),
        others=[Layer(HOSTILE, acquired, False)],
        overlays=[map_],
        facts=[(HOSTILE, HOSTILE)],
        notes=[HOSTILE],
    )
    found.feed(text)
    assert found.names == plain.names
    assert found.handlers == []
    assert found.words.count(HOSTILE) >= 4
    assert embedded(text)[1]["layers"][0]["name"] == HOSTILE


def test_only_the_two_programs_may_run_and_nothing_may_be_fetched(tmp_path):
    text = write(tmp_path / "page.html", scan())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert not re.search(r"https?:|\*|unsafe|'self'", policy)
    programs = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in programs]
    assert rules["script-src"].split() == [f"'sha256-{one}'" for one in hashes]
    assert len(hashes) == 2
    assert not re.search(r'(src|href)="(?!data:)', re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL))


def test_the_vendored_program_is_the_one_that_was_published():
    """npm's @niivue/niivue 0.69.0, dist/niivue.umd.js, untouched."""
    found = hashlib.sha256((VIEWER / NIIVUE).read_bytes()).hexdigest()
    assert found == "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
    assert "BSD 2-Clause" in (VIEWER / "niivue-LICENSE.txt").read_text()


def test_a_page_that_fails_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "taken.html").mkdir()
    with pytest.raises(OSError, match="taken"):
        write(tmp_path / "taken.html", scan())
    assert [p.name for p in tmp_path.iterdir()] == ["taken.html"]


def test_there_must_be_something_to_compare_with(tmp_path):
    with pytest.raises(ValueError, match="got no scan beside the acquired one; need"):
        write_viewer_page(tmp_path / "page.html", title="x", acquired=Layer("a", scan(), True), others=[])
    assert not list(tmp_path.iterdir())


def test_planes_that_are_tilted_are_said_to_be(tmp_path):
    assert "The planes follow the scan's own axes, which are up to 21 degrees" in write(
        tmp_path / "page.html", scan(affine=oblique())
    ).replace("&#x27;", "'")
    assert "The planes follow" not in write(tmp_path / "page.html", scan())
