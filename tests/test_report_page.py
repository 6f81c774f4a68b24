"""The page and the figure of `enhance`: what they say, where they go, and that they never cost the enhanced scan."""

import json
import re
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from PIL import Image

from dicom_files import stack
from faults import catches
from planning import plan_for
from thinslice.cli import main
from thinslice.compute.consistency import make_report
from thinslice.compute.guard import GuardCount
from thinslice.compute.upsample import upsample
from thinslice.io.formats import read
from thinslice.models.interpolations import interpolation
from thinslice.models.registry import find_model
from thinslice.pipeline import Enhanced
from thinslice.reports import report_page


@pytest.fixture
def run(capsys):
    def call(*words):
        code = main(list(map(str, words)))
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err.splitlines()

    return call


def save_scan(path, shape=(40, 36, 8), seed=0):
    noise = np.random.default_rng(seed)
    at = [np.linspace(-1, 1, n) for n in shape]
    inside = sum(x**2 for x in np.meshgrid(*at, indexing="ij")) < 0.8
    voxels = np.rint(noise.normal(0, 3, shape) + inside * noise.normal(700, 60, shape)).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1, 1, 4, 1])), path)
    return path


def text_of(page):
    """What a reader sees of a page's own words."""
    html = page.read_text()
    return re.sub(r"<[^>]+>", " ", re.sub(r"<script.*?</script>", " ", html, flags=re.S))


def test_a_page_and_a_figure_beside_the_answer(tmp_path, run):
    save_scan(tmp_path / "scan.nii.gz")
    files = {"-o": tmp_path / "thin.nii.gz", "--report": tmp_path / "p.html", "--figure": tmp_path / "f.png"}
    code, out, err = run("enhance", "-i", tmp_path / "scan.nii.gz", *[w for pair in files.items() for w in pair])
    assert (code, err) == (0, [])
    assert out[-1] == f"  wrote {tmp_path / 'p.html'} and {tmp_path / 'f.png'}"
    report = json.loads((tmp_path / "thin.json").read_text())
    said = " ".join(text_of(tmp_path / "p.html").split())
    for words in (
        "scan.nii.gz",
        "8 of 4 mm -&gt; 32 of 1 mm",
        f"{report['plan']['profile']}, {report['plan']['thickness_mm']:.4g} mm",
        f"default, sha256 {report['model']['sha256'][:16]}",
        f"{report['consistency']['rms']:.3g} RMS ({report['consistency']['rms_percent']:.2g} % of the range, "
        f"{report['consistency']['rms_in_noise']:.2g} times the noise of the slices)",
        f"noise of the slices {100 * report['plan']['slice_noise']:.2g} % of the intensity range",
        f"{report['consistency']['worst']:.3g} at worst ({report['consistency']['worst_percent']:.2g} %)",
        f"{report['seconds']:.1f} s",
        "expected error a map; checked against known truth for this model on MR",
        "learnt from 31 scans",
        "onnxruntime",
    ):
        assert words in said, words
    assert Image.open(tmp_path / "f.png").size[0] > 600


def test_the_answer_is_the_same_with_and_without_a_page(tmp_path, run):
    save_scan(tmp_path / "scan.nii.gz")
    run("enhance", "-i", tmp_path / "scan.nii.gz", "-o", tmp_path / "a.nii.gz", "--report", tmp_path / "p.html")
    run("enhance", "-i", tmp_path / "scan.nii.gz", "-o", tmp_path / "b.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("model", ["cubic", "nearest"])
def test_of_an_interpolation_no_expected_error_is_claimed(tmp_path, run, model):
    save_scan(tmp_path / "scan.nii.gz")
    words = ("-o", tmp_path / "a.nii.gz", "--report", tmp_path / "p.html", "--model", model)
    assert run("enhance", "-i", tmp_path / "scan.nii.gz", *words)[0] == 0
    assert "not known of an interpolation" in text_of(tmp_path / "p.html")


@pytest.mark.parametrize("name", ["default", "mine"])
@pytest.mark.parametrize("is_embedded", [True, False])
@catches("compute/uncertainty.py", "return model.sha256 == CHECKED_SHA256", 'return model.name == "default"')
@catches("reports/report_page.py", "checked = is_checked(scan.model)", 'checked = plan.model == "default"')
@catches(
    "reports/report_page.py",
    "CHECKED_IN_WORDS if checked else",
    "CHECKED_IN_WORDS if True else",
)
def test_the_weights_decide_what_was_checked_against_truth_not_their_name(tmp_path, name, is_embedded):
    """Every model that is trained anew is called `default` too, and the embedded one can be copied to any name."""
    model = replace(find_model("default"), name=name)
    if not is_embedded:
        model = replace(model, sha256="0" * 64)
    volume = read(save_scan(tmp_path / "scan.nii.gz"))
    plan = plan_for(volume, model=name, model_sha256=model.sha256, factor=2, envelope=model.envelope)
    thin = upsample(volume, plan, model).volume
    report = make_report(volume, thin, plan, GuardCount(), 1.0)
    report_page.write_report_page(tmp_path / "p.html", Enhanced(thin, plan, report, volume, model))
    claimed = "checked against known truth for this model" in text_of(tmp_path / "p.html")
    explained = "it ranked the true error" in (tmp_path / "p.html").read_text()
    assert claimed == explained == is_embedded


@pytest.mark.parametrize(("option", "suffix"), [("--report", ".html"), ("--figure", ".png")])
def test_in_a_folder_each_scan_has_its_own(tmp_path, run, option, suffix):
    for number in range(2):
        save_scan(tmp_path / "in" / f"s{number}.nii.gz", seed=number)
    words = ("-o", tmp_path / "out", option, f"{tmp_path / 'pages'}/", "--model", "cubic")
    assert run("enhance", "-i", tmp_path / "in", *words)[0] == 0
    assert sorted(path.name for path in (tmp_path / "pages").iterdir()) == [f"s0{suffix}", f"s1{suffix}"]


def test_of_a_dicom_series_too(tmp_path, run):
    stack(tmp_path / "in")
    words = (
        "-o",
        tmp_path / "out",
        "--report",
        tmp_path / "p.html",
        "--figure",
        tmp_path / "f.png",
        "--model",
        "linear",
    )
    assert run("enhance", "-i", tmp_path / "in", *words)[0] == 0
    assert "1 T2 TSE" in text_of(tmp_path / "p.html")
    assert (
        run("enhance", "-i", tmp_path / "in", "-o", tmp_path / "o2", "--report", tmp_path / "q.html", "--anonymise")[0]
        == 0
    )
    for secret in ("Muster", "4711", "T2 TSE"):
        assert secret not in text_of(tmp_path / "q.html")


@catches(
    "cli/enhance.py",
    "check_outputs([*outputs, *others], inputs, arguments.overwrite)",
    "check_outputs([*outputs, *others], inputs, True)",
)
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--report", "p.txt"), "need .html"),
        (("--figure", "f.jpg"), "need .png"),
        (("--report", "there.html"), "exists already"),
    ],
)
def test_wrong_names_are_refused_before_any_work(tmp_path, run, words, reason):
    save_scan(tmp_path / "scan.nii.gz")
    (tmp_path / "there.html").write_text("mine")
    option, name = words
    code, _, err = run("enhance", "-i", tmp_path / "scan.nii.gz", "-o", tmp_path / "a.nii.gz", option, tmp_path / name)
    assert code == 2
    assert reason in err[0]
    assert not (tmp_path / "a.nii.gz").exists()
    assert (tmp_path / "there.html").read_text() == "mine"


def test_one_page_for_several_scans_is_refused(tmp_path, run):
    for number in range(2):
        save_scan(tmp_path / "in" / f"s{number}.nii.gz", seed=number)
    code, _, err = run("enhance", "-i", tmp_path / "in", "-o", tmp_path / "out", "--report", tmp_path / "p.html")
    assert code == 2
    assert "got one name for --report and --report; need two; next: name a folder" in err[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError(), RuntimeError("what?")])
def test_a_page_that_fails_never_loses_the_scan(tmp_path, run, monkeypatch, error):
    save_scan(tmp_path / "scan.nii.gz")

    def fail(*_):
        raise error

    monkeypatch.setattr(report_page, "write_viewer_page", lambda *_, **__: fail())
    words = ("-o", tmp_path / "a.nii.gz", "--report", tmp_path / "p.html", "--model", "cubic")
    code, _, err = run("enhance", "-i", tmp_path / "scan.nii.gz", *words)
    assert code == 2
    assert f"the scan itself is whole: {tmp_path / 'a.nii.gz'}" in err[0]
    assert nibabel.load(tmp_path / "a.nii.gz").shape == (40, 36, 32)
    assert (tmp_path / "a.json").exists()
    assert not (tmp_path / "p.html").exists()


def test_in_a_folder_pages_that_fail_are_not_called_refused_scans(tmp_path, run, monkeypatch):
    for number in range(2):
        save_scan(tmp_path / "in" / f"s{number}.nii.gz", seed=number)
    monkeypatch.setattr(
        report_page, "write_viewer_page", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    words = ("-o", tmp_path / "out", "--report", tmp_path / "pages", "--model", "cubic")
    code, _, err = run("enhance", "-i", tmp_path / "in", *words)
    assert code == 2
    assert err[-1] == "thinslice: 0 of 2 scans refused, 2 enhanced, 2 without the page asked for"
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


def test_the_demo_keeps_the_scan_when_the_page_fails(tmp_path, run, monkeypatch):
    monkeypatch.setattr(
        report_page, "write_viewer_page", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    code, _, err = run("demo", "-o", tmp_path / "demo", "--model", "cubic")
    assert code == 2
    assert "No space left" in err[0]
    assert sorted(path.suffix for path in (tmp_path / "demo").iterdir()) == [".gz", ".json", ".png"]


def test_of_a_series_it_is_said_that_the_first_volume_is_shown(tmp_path, run):
    voxels = np.random.default_rng(0).integers(0, 900, (20, 18, 6, 3)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1, 1, 4, 1])), tmp_path / "scan.nii.gz")
    words = ("-o", tmp_path / "a.nii.gz", "--report", tmp_path / "p.html", "--model", "cubic")
    assert run("enhance", "-i", tmp_path / "scan.nii.gz", *words)[0] == 0
    assert "Of this 4-D series the first volume is shown" in text_of(tmp_path / "p.html")


def test_among_the_slices_of_a_series_is_no_place_for_a_page(tmp_path, run):
    stack(tmp_path / "in")
    words = ("-o", tmp_path / "out", "--report", tmp_path / "out" / "p.html", "--model", "linear")
    code, _, err = run("enhance", "-i", tmp_path / "in", *words)
    assert code == 2
    assert "among the slices of the new series" in err[0]
    assert not (tmp_path / "out").exists()


def test_a_figure_names_the_model_and_is_large_enough_to_print(tmp_path, run, monkeypatch):
    from thinslice.reports import picture

    save_scan(tmp_path / "scan.nii.gz")
    said = []
    draw_side_by_side = picture.draw_side_by_side
    monkeypatch.setattr(
        picture, "draw_side_by_side", lambda rows, **more: said.append(rows) or draw_side_by_side(rows, **more)
    )
    words = ("-o", tmp_path / "a.nii.gz", "--figure", tmp_path / "f.png", "--model", "lanczos")
    assert run("enhance", "-i", tmp_path / "scan.nii.gz", *words)[0] == 0
    assert [cell.caption.splitlines()[0] for cell in said[0][0]] == [
        "acquired",
        "cubic interpolation",
        "computed by lanczos",
    ]
    assert Image.open(tmp_path / "f.png").size[0] > 2400


@catches("reports/report_page.py", "projection=False,", "projection=True,")
@catches("reports/report_page.py", "every=1,", "every=scan.plan.every,")
@catches("reports/report_page.py", "alternating_gain=1.0,", "alternating_gain=scan.plan.alternating_gain,")
@catches("reports/report_page.py", "smoothed_noise=0.0,", "smoothed_noise=scan.plan.smoothed_noise,")
def test_the_cubic_layer_is_cubic_as_people_use_it(tmp_path):
    """Not projected, of all slices, with their noise: it differs from what --model cubic gives."""
    volume = read(save_scan(tmp_path / "scan.nii.gz"))
    plan = plan_for(volume, model="linear", factor=3)
    model = interpolation("linear")
    enhanced = Enhanced(upsample(volume, plan, model).volume, plan, None, volume, model)
    bare = upsample(volume, plan_for(volume, model="cubic", factor=3, projection=False), interpolation("cubic")).volume
    assert np.allclose(report_page.interpolate_cubic(enhanced).voxels, bare.voxels, atol=0.51)
    for found in ({"every": 2}, {"alternating_gain": 1.2}, {"smoothed_noise": 0.05}):
        other = replace(enhanced, plan=replace(plan, **found))
        assert np.allclose(report_page.interpolate_cubic(other).voxels, bare.voxels, atol=0.51)
