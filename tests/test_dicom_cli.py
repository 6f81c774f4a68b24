"""DICOM at the terminal: what goes in, where answers go, what is said, and that nothing is left half written."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import dcmread

from dicom_files import AXIAL, CORONAL, enhanced, stack
from faults import catches
from test_nifti import DATA
from thinslice.cli import main
from thinslice.io.formats import read

BAD = DATA / "bad"


@pytest.fixture
def run(capsys):
    """Code, lines of standard output, lines of standard error."""

    def call(*words):
        code = main(list(map(str, words)))
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err.splitlines()

    return call


@pytest.fixture
def quick(run):
    return lambda *words: run("enhance", *words, "--model", "linear")


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_series_becomes_a_series(tmp_path, quick):
    stack(tmp_path / "in")
    code, out, err = quick("-i", tmp_path / "in", "-o", tmp_path / "out")
    assert (code, err) == (0, [])
    assert out[0].startswith("1 T2 TSE: 8 slices x 4 mm -> 36 slices x 0.8889 mm with linear")
    assert out[-1] == f"  wrote {tmp_path / 'out'}"
    assert files_below(tmp_path / "out") == [*(f"IM{n:04d}.dcm" for n in range(1, 37)), "thinslice.json"]
    report = json.loads((tmp_path / "out" / "thinslice.json").read_text())
    assert report["source"] == "1 T2 TSE"
    ds = dcmread(tmp_path / "out" / "IM0001.dcm")
    said = report["consistency"]
    assert f"{said['rms_percent']:.2g} % RMS, {said['worst_percent']:.2g} % at worst" in ds.DerivationDescription


def test_a_series_becomes_a_nifti_file(tmp_path, quick):
    stack(tmp_path / "in")
    assert quick("-i", tmp_path / "in", "-o", tmp_path / "out.nii.gz")[0] == 0
    assert files_below(tmp_path)[-2:] == ["out.json", "out.nii.gz"]
    quick("-i", tmp_path / "in", "-o", tmp_path / "series")
    image = nibabel.load(tmp_path / "out.nii.gz")
    for index in (0, 17, 35):
        ds = dcmread(tmp_path / "series" / f"IM{index + 1:04d}.dcm")
        assert np.array_equal(ds.pixel_array, np.asarray(image.dataobj)[:, ::-1, index].T)
    assert image.header["sform_code"] == image.header["qform_code"] == 1


def test_one_enhanced_file_goes_in_as_a_file(tmp_path, quick):
    enhanced(tmp_path / "scan")
    assert quick("-i", tmp_path / "scan", "-o", tmp_path / "out")[0] == 0
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 27


def test_one_file_of_a_classic_series_is_refused_with_the_way_out(tmp_path, quick):
    stack(tmp_path / "in")
    code, _, err = quick("-i", tmp_path / "in" / "IM000", "-o", tmp_path / "out")
    assert code == 2
    assert "got a single slice; need the whole stack; next: name the folder" in err[0]


def study(folder):
    stack(folder / "a", series=3, description="T2 TSE tra")
    stack(folder / "b", series=4, description="T1 (SE) sag/Ä", orientation=CORONAL)
    stack(folder / "c", series=5, description="broken", skip=(2, 3, 4, 5))
    stack(folder / "d", series=1, description="loc", count=3, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    stack(folder / "e", series=6, description="3D", step_mm=0.9)


def test_of_a_study_what_can_be_done_is_done_and_the_rest_named(tmp_path, quick):
    study(tmp_path / "in")
    code, out, err = quick("-i", tmp_path / "in", "-o", tmp_path / "out")
    assert code == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["003_T2_TSE_tra", "004_T1_SE_sag"]
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 72
    assert "note: left out: 1 loc: a localizer" in out
    assert [line for line in err if "5 broken: got 4 slices 4 mm apart, and 20 mm between" in line]
    assert [line for line in err if "6 3D: " in line and "need slices at least 1.05 times farther apart" in line]
    assert err[-1] == "thinslice: 2 of 4 scans refused, 2 enhanced"
    assert len([line for line in out if "wrote" in line]) == 2


def test_info_says_of_every_series_what_would_be_done_or_why_not(tmp_path, run):
    study(tmp_path)
    code, out, err = run("info", "-i", tmp_path)
    assert code == 2
    assert len([line for line in out if line.startswith("scan ")]) == 5
    assert [line for line in out if "3 T2 TSE tra" in line and str(tmp_path / "a") in line]
    assert len([line for line in out if line == "would  refuse"]) == 2
    assert [line for line in out if line.startswith("would  leave it out: got a localizer")]
    assert len(err) == 2
    code, out, _ = run("info", "-i", tmp_path, "--json")
    facts = json.loads("\n".join(out))
    assert [fact["source"] for fact in facts][:3] == ["3 T2 TSE tra", "4 T1 (SE) sag/Ä", "6 3D"]
    assert facts[0]["plan"]["n_thin" if "n_thin" in facts[0]["plan"] else "shape_thin"]
    assert facts[-1]["plan"] is None


def test_several_series_for_one_file_are_refused(tmp_path, quick):
    stack(tmp_path / "in" / "a", series=1)
    stack(tmp_path / "in" / "b", series=2)
    code, _, err = quick("-i", tmp_path / "in", "-o", tmp_path / "out.nii.gz")
    assert code == 2
    assert "got 2 series (1 T2 TSE, 2 T2 TSE) for one file" in err[0]
    assert not (tmp_path / "out.nii.gz").exists()


@catches("io/outputs.py", "    if foreign:\n", "    if False:\n")
def test_an_output_folder_that_is_not_empty_is_left_alone(tmp_path, quick):
    stack(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    for more in ((), ("--overwrite",)):
        code, _, err = quick("-i", tmp_path / "in", "-o", tmp_path / "out", *more)
        assert code == 2
        assert len(err) == 1
        assert files_below(tmp_path / "out") == ["thesis.txt"]


def test_what_a_run_that_was_killed_left_hidden_is_no_file_of_others(tmp_path, quick):
    stack(tmp_path / "in")
    (tmp_path / "out" / ".thinslice-dead" / "new").mkdir(parents=True)
    (tmp_path / "out" / ".thinslice-dead" / "new" / "IM0001.dcm").write_bytes(b"half")
    assert quick("-i", tmp_path / "in", "-o", tmp_path / "out")[0] == 0
    assert quick("-i", tmp_path / "in", "-o", tmp_path / "out", "--overwrite")[0] == 0


def test_the_input_folder_is_never_written_into(tmp_path, quick):
    stack(tmp_path / "in")
    before = files_below(tmp_path)
    for more in ((), ("--overwrite",)):
        assert quick("-i", tmp_path / "in", "-o", tmp_path / "in", *more)[0] == 2
    assert files_below(tmp_path) == before


def test_a_computed_series_is_replaced_only_when_asked(tmp_path, quick):
    stack(tmp_path / "in")
    quick("-i", tmp_path / "in", "-o", tmp_path / "out", "--factor", 4)
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 32
    assert quick("-i", tmp_path / "in", "-o", tmp_path / "out", "--factor", 2)[0] == 2
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 32
    assert quick("-i", tmp_path / "in", "-o", tmp_path / "out", "--factor", 2, "--overwrite")[0] == 0
    assert len({dcmread(file).SeriesInstanceUID for file in (tmp_path / "out").glob("*.dcm")}) == 1
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 16


def test_an_empty_folder_may_be_the_output(tmp_path, quick):
    """As a volume that is mounted into a container is."""
    stack(tmp_path / "in")
    (tmp_path / "out").mkdir()
    inode = (tmp_path / "out").stat().st_ino
    assert quick("-i", tmp_path / "in", "-o", f"{tmp_path / 'out'}/")[0] == 0
    assert (tmp_path / "out").stat().st_ino == inode


def test_labels_drawn_on_the_series_come_along(tmp_path, quick, run):
    stack(tmp_path / "in")
    quick("-i", tmp_path / "in", "-o", tmp_path / "scan.nii.gz", "--factor", 1.5)
    from thinslice.io.dicom.pixels import read_series
    from thinslice.io.dicom.series import find_study

    thick = read_series(find_study(tmp_path / "in").series[0])
    drawn = nibabel.Nifti1Image((thick.voxels > 500).astype(np.uint8), thick.affine)
    nibabel.save(drawn, tmp_path / "seg.nii.gz")
    code, _, err = quick("-i", tmp_path / "in", "-o", tmp_path / "out", "--labels", tmp_path / "seg.nii.gz")
    assert (code, err) == (0, [])
    labels = nibabel.load(tmp_path / "out" / "labels.nii.gz")
    assert labels.shape == (24, 20, 36)
    assert set(np.unique(labels.dataobj)) == {0, 1}


def test_a_segmentation_beside_the_slices_is_no_scan(tmp_path, quick, run):
    stack(tmp_path / "in")
    (tmp_path / "in" / "seg.nii.gz").write_bytes(b"whatever")
    code, out, err = quick("-i", tmp_path / "in", "-o", tmp_path / "out")
    assert (code, err) == (0, [])
    assert "note: seg.nii.gz beside the slices left alone" in out
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 36
    code, _, err = run("info", "-i", tmp_path / "out")
    assert code == 2
    assert "computed by thinslice" in err[0]


def test_labels_of_an_earlier_run_do_not_stay(tmp_path, quick):
    stack(tmp_path / "in")
    thick = read(tmp_path / "in")
    nibabel.save(nibabel.Nifti1Image((thick.voxels > 500).astype(np.uint8), thick.affine), tmp_path / "seg.nii.gz")
    quick("-i", tmp_path / "in", "-o", tmp_path / "out", "--labels", tmp_path / "seg.nii.gz")
    assert (tmp_path / "out" / "labels.nii.gz").exists()
    assert quick("-i", tmp_path / "in", "-o", tmp_path / "out", "--factor", 3, "--overwrite")[0] == 0
    assert not (tmp_path / "out" / "labels.nii.gz").exists()


def test_anonymised_labels_say_nothing_of_the_patient(tmp_path, quick):
    stack(tmp_path / "in")
    thick = read(tmp_path / "in")
    image = nibabel.Nifti1Image((thick.voxels > 500).astype(np.uint8), thick.affine)
    image.header["descrip"], image.header["aux_file"] = b"Muster", b"Erika"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"Muster^Erika"))
    nibabel.save(image, tmp_path / "seg.nii.gz")
    options = ("-o", tmp_path / "out", "--labels", tmp_path / "seg.nii.gz", "--anonymise")
    assert quick("-i", tmp_path / "in", *options)[0] == 0
    written = gzip.decompress((tmp_path / "out" / "labels.nii.gz").read_bytes())
    assert b"Muster" not in written
    assert b"Erika" not in written


def test_an_output_inside_the_input_is_left_out_of_the_next_run(tmp_path, quick):
    stack(tmp_path / "in")
    for more in ((), ("--overwrite",)):
        code, _, err = quick("-i", tmp_path / "in", "-o", tmp_path / "in" / "out", *more)
        assert (code, err) == (0, [])


def test_a_name_for_one_slice_is_refused(tmp_path, quick):
    stack(tmp_path / "in")
    code, _, err = quick("-i", tmp_path / "in", "-o", tmp_path / "x.dcm")
    assert code == 2
    assert "need a folder for slices" in err[0]
    assert not (tmp_path / "x.dcm").exists()


def test_folders_that_were_made_for_nothing_vanish(tmp_path, quick):
    stack(tmp_path / "in")
    code, _, _ = quick("-i", tmp_path / "in", "-o", tmp_path / "p" / "q" / ("z" * 300))
    assert code == 2
    assert files_below(tmp_path)[0] == "in"
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("encoding", ["ascii", "utf-8:strict", "latin-1"])
def test_names_of_every_alphabet_are_no_crash(tmp_path, encoding):
    folder = os.fsencode(tmp_path) + b"/m\xfcller"
    os.mkdir(folder)
    stack(tmp_path / "in", description="膝 T2", SpecificCharacterSet="ISO_IR 192")
    for file in (tmp_path / "in").iterdir():
        os.rename(os.fsencode(file), folder + b"/" + os.fsencode(file.name))
    words = [sys.executable, "-m", "thinslice", "info", "-i", folder, "--model", "linear"]
    done = subprocess.run(words, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""


def test_a_file_name_cannot_command_the_terminal(tmp_path, quick):
    stack(tmp_path / "in")
    (tmp_path / "in" / "\x1b[2Jx\ny").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 9)
    _, _, err = quick("-i", tmp_path / "in", "-o", tmp_path / "out")
    assert "\x1b" not in "".join(err)
    assert len(err) == 2


def test_a_directory_file_says_to_name_the_folder(tmp_path, quick):
    from pydicom.data import get_testdata_file

    code, _, err = quick("-i", get_testdata_file("DICOMDIR"), "-o", tmp_path / "out")
    assert code == 2
    assert "next: name the folder that the images lie in" in err[0]


def test_labels_for_several_series_are_refused(tmp_path, quick):
    stack(tmp_path / "in" / "a", series=1)
    stack(tmp_path / "in" / "b", series=2)
    code, _, err = quick("-i", tmp_path / "in", "-o", tmp_path / "out", "--labels", tmp_path / "seg.nii.gz")
    assert code == 2
    assert "--labels for 2 series" in err[0]
    assert not (tmp_path / "out").exists()


def test_anonymised_not_even_the_names_tell(tmp_path, quick):
    stack(tmp_path / "in" / "a", series=1, description="Muster knee")
    stack(tmp_path / "in" / "b", series=2, description="Muster hip")
    assert quick("-i", tmp_path / "in", "-o", tmp_path / "out", "--anonymise")[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["001", "002"]
    for file in (tmp_path / "out").rglob("*"):
        if file.is_file():
            assert b"Muster" not in file.read_bytes()


def test_burned_in_text_is_not_anonymised(tmp_path, quick):
    stack(tmp_path / "in", BurnedInAnnotation="YES")
    code, _, err = quick("-i", tmp_path / "in", "-o", tmp_path / "out", "--anonymise")
    assert code == 2
    assert "text burned into them" in err[0]
    assert not (tmp_path / "out").exists()


def test_anonymise_needs_dicom_and_its_package(tmp_path, quick, monkeypatch):
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 4), np.int16), np.diag([1, 1, 4, 1])), tmp_path / "a.nii.gz")
    code, _, err = quick("-i", tmp_path / "a.nii.gz", "-o", tmp_path / "b.nii.gz", "--anonymise")
    assert code == 2
    assert "--anonymise for files that are no DICOM" in err[0]
    stack(tmp_path / "in")
    monkeypatch.setitem(sys.modules, "dicomanonymizer", None)
    code, _, err = quick("-i", tmp_path / "in", "-o", tmp_path / "out", "--anonymise")
    assert code == 2
    assert "next: pip install 'thinslice[dicom]'" in err[0]


def test_dicom_without_images_and_folders_without_scans_are_refused(tmp_path, quick):
    (tmp_path / "empty").mkdir()
    code, _, err = quick("-i", tmp_path / "empty", "-o", tmp_path / "out")
    assert code == 2
    assert "need " in err[0]
    stack(tmp_path / "in", count=2, change=lambda ds, index: [delattr(ds, name) for name in ("Rows", "PixelData")])
    code, _, err = quick("-i", tmp_path / "in", "-o", tmp_path / "out")
    assert code == 2
    assert not (tmp_path / "out").exists()


def test_a_nifti_name_with_dicom_in_it_is_said(tmp_path, quick):
    stack(tmp_path / "in", count=2)
    shutil.copy(tmp_path / "in" / "IM000", tmp_path / "scan.nii")
    code, _, err = quick("-i", tmp_path / "scan.nii", "-o", tmp_path / "out.nii.gz")
    assert code == 2
    assert "a DICOM file" in err[0]


def test_a_full_disk_or_a_failing_writer_leaves_nothing(tmp_path, quick, monkeypatch):
    from thinslice.io.dicom import derived

    stack(tmp_path / "in")
    save, count = derived.save, [0]

    def fail(image, path):
        count[0] += 1
        if count[0] == 20:
            raise OSError(28, "No space left on device")
        save(image, path)

    monkeypatch.setattr(derived, "save", fail)
    code, _, err = quick("-i", tmp_path / "in", "-o", tmp_path / "out")
    assert code == 2
    assert "No space left" in err[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ctrl_c_in_the_middle_leaves_nothing(tmp_path):
    stack(tmp_path / "in", count=40, rows=384, columns=384)
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is deaf to it\n"
        "from thinslice.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, "enhance", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    time.sleep(2.0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("dcm_generic_compressed_jpegls", "isotropic"),
        ("dcm_generic_compressed_rle", "isotropic"),
    ],
)
def test_bad_folders_are_refused_with_the_reason(tmp_path, quick, name, outcome):
    if not (BAD / name).exists():
        pytest.skip(f"no {BAD / name}")
    code, _, err = quick("-i", BAD / name, "-o", tmp_path / "out")
    assert code == 2
    assert outcome in err[0]
    assert not (tmp_path / "out").exists()


def test_the_philips_enhanced_image_becomes_a_series(tmp_path, quick):
    if not BAD.exists():
        pytest.skip(f"no {BAD}")
    code, _, _ = quick("-i", BAD / "dcm_philips_enhanced_anatomical_001", "-o", tmp_path / "out")
    assert code == 0
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 10


def test_with_the_embedded_model_the_series_gives_the_scan_back(tmp_path, run):
    values = stack(tmp_path / "in", rows=48, columns=40)
    code, _, err = run("enhance", "-i", tmp_path / "in", "-o", tmp_path / "out")
    assert (code, err) == (0, [])
    report = json.loads((tmp_path / "out" / "thinslice.json").read_text())
    assert report["consistency"]["rms_percent"] < 0.5
    files = sorted((tmp_path / "out").glob("*.dcm"))
    thin = np.stack([dcmread(file).pixel_array for file in files]).astype(float)
    from thinslice.plan import Plan

    plan = Plan.from_json(json.dumps(report["plan"]))
    again = np.tensordot(plan.acquisition().matrix(), thin, axes=1)
    assert np.sqrt(np.mean((again - values) ** 2)) < 0.005 * (values.max() - values.min())


def test_made_thick_again_the_series_gives_the_scan_back(tmp_path, quick, run):
    values = stack(tmp_path / "in")
    quick("-i", tmp_path / "in", "-o", tmp_path / "thin")
    code, out, err = run("reslice", "-i", tmp_path / "thin", "--like", tmp_path / "in", "-o", tmp_path / "back.nii.gz")
    assert (code, err) == (0, [])
    assert "profile of 3.5 mm" in out[0]  # of the plan in the series' folder
    back = np.asarray(nibabel.load(tmp_path / "back.nii.gz").dataobj)[:, ::-1].transpose(2, 1, 0)
    report = json.loads((tmp_path / "thin" / "thinslice.json").read_text())
    assert np.abs(back - values).max() <= report["consistency"]["worst"] + 1


def test_orientation_does_not_change_the_answer(tmp_path, quick):
    """Where the patient lies is no matter of voxels."""
    answers = []
    for name, orientation in (("a", AXIAL), ("b", CORONAL)):
        stack(tmp_path / name, orientation=orientation)
        quick("-i", tmp_path / name, "-o", tmp_path / f"{name}-out", "--profile", "gaussian")  # no value ends in .5
        files = sorted((tmp_path / f"{name}-out").glob("*.dcm"))
        answers.append(np.stack([dcmread(file).pixel_array for file in files]))
    assert np.array_equal(*answers)


def test_an_unreadable_file_is_named(tmp_path, quick):
    stack(tmp_path / "in")
    victim = sorted((tmp_path / "in").iterdir())[2]
    victim.chmod(0)
    if os.access(victim, os.R_OK):
        pytest.skip("this user may read everything")
    code, _, err = quick("-i", tmp_path / "in", "-o", tmp_path / "out")
    assert code == 2
    assert victim.name in " ".join(err)


@pytest.mark.slow
def test_damaged_files_never_crash_it(tmp_path):
    """A short run of `fuzz_dicom.py`, which is there to be run for longer by hand."""
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    script = Path(__file__).with_name("fuzz_dicom.py")
    command = [sys.executable, str(script), "--seconds", "20", "--seed", str(int(time.time()))]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-1000:]
