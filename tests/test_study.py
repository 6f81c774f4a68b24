"""The blinded reader study: what is shown, what is hidden, what simulated readers get for their answers."""

import base64
import io
import json
import re
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest

from dicom_files import stack
from faults import catches
from planning import plan_for
from thinslice.cli import main
from thinslice.compute.upsample import upsample
from thinslice.errors import InputRefused, PlanRefused
from thinslice.evaluation import reader_study
from thinslice.evaluation.reader_scores import score, sign_test, wilson
from thinslice.evaluation.reader_study import Scan, StudySettings, make_study
from thinslice.io import nifti
from thinslice.models.registry import find_model
from thinslice.physics.intensity import intensity_range
from thinslice.reports.picture import Picture, render, reslice_planes
from thinslice.volume import Volume

METHODS = ("nearest", "lanczos", "linear")


def make_volume(seed: int = 0, shape=(40, 36, 6), spacing_mm=(1.0, 1.0, 4.0)) -> Volume:
    """A bright ball full of texture in dark noise."""
    noise = np.random.default_rng(seed)
    at = [np.linspace(-1, 1, n) for n in shape]
    inside = sum(x**2 for x in np.meshgrid(*at, indexing="ij")) < 0.8
    voxels = noise.normal(0, 5, shape) + inside * noise.normal(700, 150, shape)
    return Volume(np.round(voxels).astype(np.int16), np.diag([*spacing_mm, 1.0]))


def save_scans(folder: Path, count: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        nifti.write(make_volume(number), folder / f"patient-{number}.nii.gz")
    return folder


def plan(volume, model):
    return plan_for(volume, model=model.name, model_sha256=model.sha256, envelope=model.envelope)


DOZEN = StudySettings(pairs=12)


def made(methods=METHODS, wish=DOZEN, volumes=None, plan=plan):
    volumes = [make_volume(seed) for seed in (0, 1)] if volumes is None else volumes
    scans = [Scan(f"patient-{number}.nii.gz", lambda one=one: one) for number, one in enumerate(volumes)]
    return make_study(scans, {name: find_model(name) for name in methods}, plan, wish)


def data_of(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def firsts(key: dict) -> list[dict]:
    return [one for one in key["trials"] if one["repeats"] is None]


def saved(key: dict, folder: Path, reader: str, choose, only: int | None = None, **changes) -> Path:
    """The file of a reader who chooses by the facts of each showing."""
    answers = [{"trial": one["id"], "choice": choose(one), "ms": 1000 + at} for at, one in enumerate(key["trials"])]
    answers = answers[:only]
    lines = [key["study"], reader, *(f"{one['trial']} {one['choice']} {one['ms']}" for one in answers)]
    content = {
        "format": reader_study.RESULTS_FORMAT,
        "study": key["study"],
        "reader": reader,
        "answers": answers,
        "check": f"{zlib.crc32(chr(10).join(lines).encode()):08x}",
    }
    folder.mkdir(exist_ok=True)
    path = folder / f"{reader}.json"
    path.write_text(json.dumps(content | changes))
    return path


def prefers(method: str):
    return lambda one: "left" if one["left"] == method else "right" if one["right"] == method else "none"


# ---- what is shown


@pytest.fixture(scope="module")
def example():
    return made()


def test_a_seed_makes_the_same_study_to_the_byte(example):
    assert made() == example
    other = made(wish=StudySettings(pairs=12, seed=1))
    assert other.page != example.page
    assert other.key != example.key


@catches(
    "evaluation/reader_study.py",
    'named = {use: _hide_number(secret, "picture", index) for index, use in enumerate(pictures)}',
    'named = {use: f"{use[1]}-{index}" for index, use in enumerate(pictures)}',
)
def test_the_page_says_nothing_of_methods_and_files(example):
    data = data_of(example.page)
    for word in (*METHODS, "patient", ".nii", 'sha256":', "seed"):
        assert word not in example.page.replace(json.dumps(data["pictures"]), "")
    assert set(data) == {"study", "format", "trials", "pictures"}
    assert all(set(trial) == {"id", "left", "right"} for trial in data["trials"])
    names = [*data["pictures"], *(trial["id"] for trial in data["trials"])]
    assert all(re.fullmatch("[0-9a-f]{12}", name) for name in names)
    assert len(set(names)) == len(names)
    for picture in data["pictures"].values():
        assert set(Image.open(io.BytesIO(base64.b64decode(picture))).info) == set()


def test_pictures_are_sorted_by_their_numbers_and_not_by_method(example):
    assert list(data_of(example.page)["pictures"]) == sorted(data_of(example.page)["pictures"])


def test_the_page_can_fetch_nothing(example):
    policy = re.search('http-equiv="Content-Security-Policy" content="(.*?)"', example.page)[1]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    assert not re.search(r"https?:|//[a-z]", example.page.replace(json.dumps(data_of(example.page)), ""))
    assert "@" not in re.sub("@media|@[0-9]", "", example.page)


@catches(
    "evaluation/reader_study.py",
    '        "left": trial.left,\n        "right": trial.right,\n',
    '        "left": trial.right,\n        "right": trial.left,\n',
)
def test_the_key_says_which_method_is_on_which_side(example):
    """Drawn again here, method by method, every picture is the one that the key says."""
    data, key = data_of(example.page), json.loads(example.key)
    volumes = [make_volume(seed) for seed in (0, 1)]
    answers = {}
    for trial, fact in zip(data["trials"], key["trials"], strict=True):
        assert trial["id"] == fact["id"]
        volume = volumes[fact["scan"]]
        centre = (fact["at"], 0, 0) if fact["plane"] == 0 else (0, fact["at"], 0)
        for side in ("left", "right"):
            name = fact[side]
            if (fact["scan"], name) not in answers:
                model = find_model(name)
                answers[fact["scan"], name] = upsample(volume, plan(volume, model), model).volume
            thin = answers[fact["scan"], name]
            plane = reslice_planes(thin, 2, centre)[fact["plane"]]
            drawn = render(Picture("", plane, intensity_range(volume.voxels), marks=True), reader_study.LONG_SIDE / 40)
            shown = Image.open(io.BytesIO(base64.b64decode(data["pictures"][trial[side]])))
            np.testing.assert_array_equal(np.asarray(shown), np.asarray(drawn))


@pytest.fixture
def small(monkeypatch):
    """Pictures that are drawn fast."""
    monkeypatch.setattr(reader_study, "LONG_SIDE", 16)


@catches(
    "evaluation/reader_study.py",
    "turns = [(start + turn) % 2 == 1 for turn in range(count)]",
    "turns = [False for turn in range(count)]",
)
@given(pairs=st.integers(3, 31), seed=st.integers(0, 5), count=st.integers(2, 3))
def test_sides_pairs_and_scans_are_balanced(small, pairs, seed, count):
    methods = METHODS[:count]
    key = json.loads(made(methods, StudySettings(pairs, seed=seed)).key)
    shown = firsts(key)
    assert len(shown) == pairs
    of_pair = Counter(frozenset((one["left"], one["right"])) for one in shown)
    assert len(of_pair) == count * (count - 1) // 2
    assert max(of_pair.values()) - min(of_pair.values()) <= 1
    for pair in of_pair:
        left = Counter(one["left"] for one in shown if {one["left"], one["right"]} == pair)
        assert abs(left[min(pair)] - left[max(pair)]) <= 1
    scans = Counter((one["scan"]) for one in shown)
    assert abs(scans[0] - scans[1]) <= len(of_pair)
    assert (
        len({(one["scan"], one["plane"], one["at"], frozenset((one["left"], one["right"]))) for one in shown}) == pairs
    )


@catches(
    "evaluation/reader_study.py", "mirrored = replace(trial, left=trial.right, right=trial.left)", "mirrored = trial"
)
@given(pairs=st.integers(2, 40), seed=st.integers(0, 5), data=st.data())
def test_repeats_are_mirrored_and_come_later(small, pairs, seed, data):
    repeats = data.draw(st.integers(0, pairs // 2))
    key = json.loads(made(METHODS[:2], StudySettings(pairs, repeats, seed)).key)
    place = {one["id"]: at for at, one in enumerate(key["trials"])}
    again = [one for one in key["trials"] if one["repeats"] is not None]
    assert len(again) == repeats
    assert len({one["repeats"] for one in again}) == repeats
    for one in again:
        first = key["trials"][place[one["repeats"]]]
        assert (one["left"], one["right"]) == (first["right"], first["left"])
        assert [one[fact] for fact in ("scan", "plane", "at")] == [first[fact] for fact in ("scan", "plane", "at")]
        between = [other for other in key["trials"][place[first["id"]] : place[one["id"]]] if other["repeats"] is None]
        assert len(between) >= min(reader_study.REPEATS_APART, pairs // 2)


def test_order_is_random():
    key = json.loads(made(METHODS[:2], StudySettings(20, 0)).key)
    places = [(one["scan"], one["plane"], one["at"]) for one in key["trials"]]
    assert places != sorted(places)
    assert len({one["left"] for one in key["trials"][:8]}) == 2


def test_places_are_where_there_is_anatomy():
    volume = make_volume(shape=(60, 60, 6))
    voxels = np.random.default_rng(0).normal(0, 5, (60, 60, 6))
    voxels[10:25, 30:50] += 500
    key = json.loads(made(METHODS[:2], StudySettings(30, 0), [replace(volume, voxels=voxels)]).key)
    assert all(10 <= one["at"] < 25 for one in key["trials"] if one["plane"] == 0)
    assert all(30 <= one["at"] < 50 for one in key["trials"] if one["plane"] == 1)
    assert len({one["at"] for one in key["trials"] if one["plane"] == 0}) == 15


def test_what_a_window_shows_black_is_no_anatomy(small):
    voxels = np.random.default_rng(0).normal(0, 5, (60, 60, 6))
    voxels[5:55, 5:55] += 500
    voxels[40:50, 20:30] += 500
    key = json.loads(
        made(METHODS[:2], StudySettings(12, 0, window=(600, 1000)), [Volume(voxels, np.diag([1, 1, 4, 1.0]))]).key
    )
    assert all(40 <= one["at"] < 50 for one in key["trials"] if one["plane"] == 0)
    assert all(20 <= one["at"] < 30 for one in key["trials"] if one["plane"] == 1)


def test_a_window_that_shows_nothing_is_refused():
    with pytest.raises(InputRefused, match=r"patient-0.nii.gz: got [23] places to show and 0 planes with anatomy"):
        made(METHODS[:2], StudySettings(5, 0, window=(5000, 6000)), [make_volume()])


def test_a_window_may_be_named(example):
    assert made(wish=StudySettings(12, window=(0, 300))).page != example.page


def test_of_a_series_the_first_volume_is_shown(example):
    volumes = [make_volume(seed) for seed in (0, 1)]
    series = [replace(one, voxels=np.stack([one.voxels, one.voxels[::-1]], axis=-1)) for one in volumes]
    assert data_of(made(volumes=series).page)["pictures"].keys() == data_of(example.page)["pictures"].keys()


def test_slices_that_were_enlarged_show_the_same_places():
    def larger(volume, model):
        return plan_for(volume, model=model.name, envelope=model.envelope, in_plane=2, factor=4)

    volumes = [make_volume(0, shape=(24, 20, 6))]
    one, two = made(METHODS[1:], StudySettings(4), volumes), made(METHODS[1:], StudySettings(4), volumes, larger)
    places = [[(fact["plane"], fact["at"]) for fact in json.loads(s.key)["trials"]] for s in (one, two)]
    assert places[0] == places[1]
    images = [
        Image.open(io.BytesIO(base64.b64decode(next(iter(data_of(s.page)["pictures"].values()))))) for s in (one, two)
    ]
    assert max(images[0].size) == max(images[1].size) == reader_study.LONG_SIDE


def test_pictures_shrink_until_the_page_can_be_opened_and_that_is_said(example, monkeypatch):
    assert example.notes == ()
    whole = sum(map(len, data_of(example.page)["pictures"].values()))
    monkeypatch.setattr(reader_study, "MOST_BYTES", whole // 2)
    smaller = made()
    assert sum(map(len, data_of(smaller.page)["pictures"].values())) <= whole // 2
    assert "instead of 560 pixels" in smaller.notes[0]
    monkeypatch.setattr(reader_study, "MOST_BYTES", 20_000)
    with pytest.raises(InputRefused, match=r"too many for one page .* next: lower `pairs`"):
        made()


def test_equal_pictures_are_counted():
    flat = make_volume()
    voxels = np.repeat(flat.voxels[:, :, :1], 6, axis=2)  # the same slice all along: all methods answer nearly the same
    found = made(METHODS[1:], StudySettings(8, 0, window=(-9e5, 8e5)), [replace(flat, voxels=voxels)])
    data = data_of(found.page)
    same = [data["pictures"][one["left"]] == data["pictures"][one["right"]] for one in data["trials"]]
    assert [one["equal"] for one in json.loads(found.key)["trials"]] == same
    assert any(same)
    assert found.notes == (f"{sum(same)} of 8 comparisons show two pictures that are equal to the last grey value",)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"methods": ("linear",)}, "got 1 method; need two"),
        ({"volumes": []}, "got no scan"),
        ({"wish": StudySettings(2)}, "got 2 comparisons for 3 pairs of methods"),
        ({"wish": StudySettings(12, 7)}, "got 7 repeats of 12 comparisons; need 0 to 6"),
        ({"wish": StudySettings(900)}, r"patient-\d.nii.gz: got \d+ places to show and \d+ planes with anatomy"),
        ({"volumes": [replace(make_volume(), voxels=np.ones((40, 36, 6)))]}, "got the same value everywhere"),
    ],
)
def test_what_cannot_be_shown_is_refused(changes, reason):
    with pytest.raises(InputRefused, match=f"{reason}.*; next: "):
        made(**changes)


def test_methods_must_make_the_same_slices():
    with pytest.raises(PlanRefused, match=r"got .* slices by lanczos.* by planes-mr; need the same slices"):
        made(("lanczos", "planes-mr"), volumes=[make_volume(spacing_mm=(1, 1, 3.0))])


# ---- statistics


@catches("evaluation/reader_scores.py", "float(2 * tail / 2**trials)", "float(tail / 2**trials)")
@pytest.mark.parametrize("trials", [1, 2, 7, 10, 40, 500])
def test_interval_and_test_are_scipys(trials):
    for successes in sorted({0, 1, trials // 3, trials // 2, trials - 1, trials}):
        known = binomtest(successes, trials)
        low, high = known.proportion_ci(0.95, "wilson")
        assert wilson(successes, trials) == pytest.approx((low, high), abs=1e-12)
        assert sign_test(successes, trials - successes) == pytest.approx(known.pvalue, rel=1e-9)


def test_known_values():
    """Of 10, 8: Brown, Cai and DasGupta's formula by hand; and (1 + 10 + 45) / 1024, twice."""
    assert wilson(8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-5)
    assert sign_test(8, 2) == pytest.approx(2 * 56 / 1024)
    assert sign_test(0, 0) == sign_test(5, 5) == 1
    assert sign_test(3000, 2000) == pytest.approx(binomtest(3000, 5000).pvalue, rel=1e-6)
    assert wilson(7.5, 10)[0] > wilson(7, 10)[0]


# ---- score


@pytest.fixture
def keyed(example, tmp_path):
    (tmp_path / "study.key.json").write_text(example.key)
    return json.loads(example.key)


def rows_of(found, reader):
    return {(row.method, row.over): row for row in found.rows if row.reader == reader}


@catches(
    "evaluation/reader_scores.py",
    "firsts.count(None), firsts.count(method)",
    "firsts.count(None), len([one for one in firsts if one not in (None, method)])",
)
@catches("evaluation/reader_scores.py", "points = preferred + ties / 2", "points = float(preferred)")
@catches(
    "evaluation/reader_scores.py",
    'for one in showings if one["repeats"] is None and one["id"] in chosen]',
    'for one in showings if one["id"] in chosen]',
)
def test_a_reader_who_sees_the_method_prefers_it_always_and_says_so_again(keyed, tmp_path):
    found = score([saved(keyed, tmp_path, "A", prefers("lanczos"))])
    rows = rows_of(found, "A")
    assert list(rows) == [("lanczos", "nearest"), ("linear", "nearest"), ("linear", "lanczos")]
    won, tied, lost = rows.values()
    assert (won.comparisons, won.preferred, won.against, won.ties, won.share) == (4, 4, 0, 0, 1)
    assert (lost.preferred, lost.against, lost.share, lost.share_without_ties) == (0, 4, 0, 0)
    assert (tied.ties, tied.share, tied.share_without_ties, tied.p) == (4, 0.5, None, 1)
    assert won.interval == wilson(4, 4)
    assert won.p == pytest.approx(2 / 16)
    assert sum(row.repeats for row in rows.values()) == sum(row.agreed for row in rows.values()) == 2


def test_a_reader_who_always_says_left_prefers_nothing_and_never_agrees(keyed, tmp_path):
    found = score([saved(keyed, tmp_path, "A", lambda one: "left")])
    for row in rows_of(found, "A").values():
        assert (row.preferred, row.against, row.share, row.agreed) == (2, 2, 0.5, 0)
    assert sum(row.repeats for row in found.rows if row.reader) == 2
    assert (found.readers[0].left, found.readers[0].right, found.readers[0].none) == (14, 0, 0)


def test_ties_count_half(keyed, tmp_path):
    turn = iter(range(100))
    choose = lambda one: "none" if next(turn) % 2 else prefers("lanczos")(one)  # noqa: E731
    row = rows_of(score([saved(keyed, tmp_path, "A", choose)]), "A")["lanczos", "nearest"]
    assert row.ties > 0
    assert row.against == 0
    assert row.share == (row.preferred + row.ties / 2) / 4
    assert row.interval == wilson(row.preferred + row.ties / 2, 4)
    assert row.p == sign_test(row.preferred, 0)


def test_all_readers_are_the_sum_of_them(keyed, tmp_path):
    files = [saved(keyed, tmp_path, "A", prefers("lanczos")), saved(keyed, tmp_path, "B", prefers("nearest"), only=9)]
    found = score(files)
    both, one, other = (rows_of(found, name) for name in (None, "A", "B"))
    for pair, row in both.items():
        for fact in ("comparisons", "preferred", "against", "ties", "repeats", "agreed"):
            assert getattr(row, fact) == getattr(one[pair], fact) + getattr(other[pair], fact)
    assert [(reader.name, reader.answered, reader.showings) for reader in found.readers] == [
        ("A", 14, 14),
        ("B", 9, 14),
    ]


def test_where_nothing_was_compared_nothing_is_claimed(keyed, tmp_path):
    rows = rows_of(score([saved(keyed, tmp_path, "A", prefers("lanczos"), only=1)]), "A").values()
    empty = [row for row in rows if not row.comparisons]
    assert len(empty) == 2
    assert all((row.interval, row.p) == ((0, 1), 1) for row in empty)


def refusals(keyed, folder):
    """Wrong files, each with a word of what is said about it."""
    good = saved(keyed, folder, "A", prefers("lanczos"))
    content = json.loads(good.read_text())
    answers = content["answers"]
    flipped = [{**answers[0], "choice": "left" if answers[0]["choice"] != "left" else "right"}, *answers[1:]]
    changed = "got results that were changed or cut"
    yield "edited", json.dumps(content | {"answers": flipped}), changed
    yield "cut", json.dumps(content | {"answers": answers[:-1]}), changed
    yield "twice", json.dumps(content | {"answers": [*answers, answers[0]]}), changed
    yield "renamed", json.dumps(content | {"reader": "C"}), changed
    yield "numbers", json.dumps(content | {"answers": [1, 2]}), changed
    yield "nobody", json.dumps({k: v for k, v in content.items() if k != "reader"}), changed
    yield "lists", json.dumps(content | {"answers": [{"trial": [], "choice": {}, "ms": None}]}), changed
    yield "torn", good.read_text()[:50], "got no JSON"
    yield "deep", "[" * 100_000, "got no JSON"
    yield "list", "[]", "got other JSON"
    yield "format", json.dumps(content | {"format": ["x"]}), "got other JSON"
    yield "key", json.dumps(keyed), "got the key of a study"
    yield "empty", saved(keyed, folder, "D", prefers("lanczos"), only=0).read_text(), "got no answer in it"


@catches("evaluation/reader_scores.py", 'sound = content["check"] == check and all(', "sound = all(")
def test_wrong_results_are_refused(keyed, tmp_path):
    for name, text, reason in refusals(keyed, tmp_path):
        wrong = tmp_path / f"{name}.json"
        wrong.write_text(text)
        with pytest.raises(InputRefused) as refusal:
            score([wrong])
        assert str(refusal.value).startswith(f"{wrong}: {reason}"), name
        assert "; next: " in str(refusal.value)


def test_consistent_nonsense_is_refused(keyed, tmp_path):
    """With a check sum of its own: showings that the study has not, and choices that nobody could make."""
    foreign = {**keyed, "trials": [{**keyed["trials"][0], "id": "0" * 12}]}
    for name, known, choose in (("E", foreign, prefers("linear")), ("F", keyed, lambda one: "best")):
        with pytest.raises(InputRefused, match="were changed or cut"):
            score([saved(known, tmp_path, name, choose)])


def test_two_files_of_one_reader_or_of_two_studies_are_refused(keyed, tmp_path):
    one = saved(keyed, tmp_path, "A", prefers("lanczos"))
    again = saved(keyed, tmp_path / "later", "a", prefers("lanczos"))
    with pytest.raises(InputRefused, match=r"a second file of reader a, beside .*A.json; need one of each"):
        score([one, again])
    with pytest.raises(InputRefused, match="a second file of reader A"):
        score([one, one])
    other = saved({**keyed, "study": "123"}, tmp_path, "B", prefers("lanczos"))
    with pytest.raises(InputRefused, match=r"results of another study than .*; need one study"):
        score([one, other])


def test_the_key_is_found_beside_the_results_or_named(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    key = json.loads(example.key)
    results = saved(key, tmp_path / "results", "A", prefers("lanczos"))
    with pytest.raises(InputRefused, match=r"got no key of study \w+ beside the results; .* next: give it with `key`"):
        score([results])
    other = tmp_path / "a.key.json"
    other.write_text(json.dumps(key | {"study": "123"}))
    with pytest.raises(InputRefused, match="got no key of study"):
        score([results])
    with pytest.raises(InputRefused, match="got the key of another study"):
        score([results], other)
    with pytest.raises(InputRefused, match="got a reader's results; need the key"):
        score([results], results)
    (tmp_path / "b.key.json").write_text(example.key)
    found = score([results])
    assert score([results], tmp_path / "b.key.json") == found
    for broken in ({"trials": [{}]}, {"methods": []}, {"trials": None}):
        other.write_text(json.dumps(key | broken))
        with pytest.raises(InputRefused, match="got a key that was changed"):
            score([results], other)


# ---- at the terminal


def test_round_trip(run, tmp_path, monkeypatch):
    page = tmp_path / "out" / "study.html"
    words = ["study", "-i", save_scans(tmp_path / "in"), "-o", page, "--methods", "lanczos,linear", "--pairs", 10]
    code, out, err = run(*words)
    assert (code, err) == (0, [])
    assert out[0] == "made   10 comparisons of 2 scan(s), 2 of them shown twice"
    assert sorted(path.name for path in page.parent.iterdir()) == ["study.html", "study.key.json"]
    key = json.loads((page.parent / "study.key.json").read_text())
    assert key["scans"] == ["patient-0.nii.gz", "patient-1.nii.gz"]
    assert [plans["linear"]["factor"] for plans in key["plans"]] == [4, 4]
    results = [
        saved(key, page.parent, name, prefers(method)) for name, method in (("Ann", "linear"), ("Bo", "lanczos"))
    ]
    code, out, err = run("study", "--score", *results)
    assert (code, err) == (0, [])
    table = [re.split(r"\s{2,}", line) for line in out[:4]]
    assert table[1] == [
        "linear over lanczos",
        "Ann",
        "10",
        "10",
        "0",
        "0",
        "100.0 %",
        "72.2 to 100.0 %",
        "0.002",
        "2 of 2 alike",
    ]
    assert table[2][:7] == ["linear over lanczos", "Bo", "10", "0", "10", "0", "0.0 %"]
    assert table[3][:7] == ["linear over lanczos", "all readers", "20", "10", "10", "0", "50.0 %"]
    assert out[5].startswith("Ann: 12 of 12 pairs answered; left ")
    code, out, _ = run("study", "--score", results[0], "--json")
    found = json.loads("\n".join(out))
    assert found["rows"][0] | {"interval": 0, "p": 0} == {
        "method": "linear", "over": "lanczos", "reader": "Ann", "comparisons": 10, "preferred": 10, "against": 0,
        "ties": 0, "share": 1, "interval": 0, "share_without_ties": 1, "p": 0, "repeats": 2, "agreed": 2,
    }  # fmt: skip


def test_nothing_is_overwritten_unless_asked_to(run, tmp_path):
    page, key = tmp_path / "s.html", tmp_path / "s.key.json"
    words = [
        "study",
        "-i",
        save_scans(tmp_path / "in", 1),
        "-o",
        page,
        "--methods",
        "lanczos,linear",
        "--pairs",
        4,
        "-q",
    ]
    key.write_text("precious")
    code, out, err = run(*words)
    assert (code, out) == (2, [])
    reason = "got an output that exists already; need a free name; next: choose another, or give --overwrite"
    assert err == [f"thinslice: {key}: {reason}"]
    assert not page.exists()
    assert run(*words, "--overwrite") == (0, [], [])
    assert json.loads(key.read_text())["format"] == reader_study.KEY_FORMAT


def test_a_scan_that_is_refused_is_named_and_left_out(run, tmp_path):
    folder = save_scans(tmp_path / "in")
    nifti.write(make_volume(spacing_mm=(1, 1, 1)), folder / "thin.nii.gz")
    words = ["--methods", "lanczos,linear", "--pairs", 4]
    code, out, err = run("study", "-i", folder, "-o", tmp_path / "s.html", *words)
    assert code == 2
    assert err[0].startswith("thinslice: thin.nii.gz: got slices 1 mm apart")
    assert err[1] == "thinslice: 1 of 3 scans refused, 2 shown"
    assert "of 2 scan(s)" in out[0]
    code, out, err = run("study", "-i", folder / "thin.nii.gz", "-o", tmp_path / "t.html", *words)
    assert (code, out, len(err)) == (2, [], 1)
    assert not (tmp_path / "t.html").exists()


def test_series_of_a_study_are_shown_and_what_cannot_be_is_named(run, tmp_path):
    stack(tmp_path / "in" / "a", rows=40, columns=36)
    stack(tmp_path / "in" / "b", count=1, series=2, description="SCOUT")
    words = ["-o", tmp_path / "s.html", "--methods", "lanczos,linear", "--pairs", 4]
    code, out, err = run("study", "-i", tmp_path / "in", *words)
    assert code == 2
    assert err[0].startswith("thinslice: 2 SCOUT: got a single slice; ")
    assert err[1:] == ["thinslice: 1 of 2 scans refused, 1 shown"]
    assert out[0].startswith("made   4 comparisons of 1 scan(s)")
    assert json.loads((tmp_path / "s.key.json").read_text())["scans"] == ["1 T2 TSE"]


def test_an_input_is_never_replaced(run, tmp_path):
    stack(tmp_path / "in", count=1)
    scan = next((tmp_path / "in").iterdir()).rename(tmp_path / "scan.html")
    code, _, err = run("study", "-i", scan, "-o", scan, "--methods", "lanczos,linear", "--overwrite")
    assert code == 2
    assert "got an output that is an input" in err[0]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "got no -i; need -i, -o and --methods, or --score"),
        (["-i", "IN", "-o", "s.html"], "got no --methods"),
        (["-i", "IN", "-o", "s.html", "--methods", "linear,linear"], "got method linear twice"),
        (["-i", "IN", "-o", "s.html", "--methods", "linear"], "got 1 method"),
        (["-i", "IN", "-o", "s.html", "--methods", "linear,bicubic"], "got model 'bicubic'"),
        (
            ["-i", "IN", "-o", "s.nii.gz", "--methods", "linear,cubic"],
            "s.nii.gz: got another kind of name",
        ),
        (["-i", "IN", "-o", "s.html", "--methods", "linear,cubic", "--json"], "got --json to make one"),
        (["-i", "IN", "-o", "s.html", "--methods", "linear,cubic", "--window", "9", "1"], "got --window 9 1"),
        (["-i", "IN", "-o", "s.html", "--methods", "linear,cubic", "--pairs", "0"], "got 0 comparisons"),
        (["-i", "no", "-o", "s.html", "--methods", "linear,cubic"], "no: got no access"),
        (["--score", "r.json", "-o", "s.html"], "got -o to score a study"),
        (["--score", "r.json"], "r.json: got 'No such file or directory'"),
    ],
)
def test_refusals_are_one_line(run, tmp_path, monkeypatch, words, reason):
    monkeypatch.chdir(tmp_path)
    save_scans(tmp_path / "IN", 1)
    code, out, err = run("study", *words)
    assert (code, out, len(err)) == (2, [], 1)
    assert err[0].startswith(f"thinslice: {reason}")
    assert "; next: " in err[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["IN"]


@pytest.mark.parametrize("option", [["--pairs", "-1"], ["--pairs", "4.5"], ["--seed", "x"], ["--window", "1"]])
def test_numbers_that_are_none_are_refused(run, option):
    code, out, err = run("study", *option)
    assert (code, out, len(err)) == (2, [], 1)


def test_networks_are_shown_as_computed_and_interpolations_as_other_programs_do(tmp_path):
    scans = save_scans(tmp_path / "in", 1)
    words = [
        "study",
        "-i",
        str(scans),
        "-o",
        str(tmp_path / "s.html"),
        "--methods",
        "lanczos,default",
        "--pairs",
        "4",
        "-q",
    ]
    assert main(words) == 0
    (plans,) = json.loads((tmp_path / "s.key.json").read_text())["plans"]
    assert {name: one["projection"] for name, one in plans.items()} == {"lanczos": False, "default": True}
