"""Data sets for tests: folders of scans, BIDS, and the jobs that they become."""

import hashlib
import json
import os

import pytest

import dicom_files
from test_cli import make_scan
from thinslice.datasets.find import Orders
from thinslice.datasets.job import Job
from thinslice.models.registry import identify
from thinslice.settings import Settings

CUBIC = Settings(model="cubic")


def make_job(folder, name="scan.nii.gz", settings=CUBIC, **more):
    stem = name.removesuffix(".nii.gz")
    places = {"model_sha256": identify(settings.model), "thumbnail": folder / "out" / f"{stem}.png"}
    return Job(name, folder / "in" / name, folder / "out" / name, settings, **(places | more))


def orders(**more):
    return Orders(CUBIC, None, **more)


def with_page(page, is_wanted=True):
    """Where the page of a job lies, whether or not it makes one."""
    return {"extras": {"page": page}, "wanted": frozenset({"page"} if is_wanted else ())}


def names_of(found):
    return [one.name for one in found.jobs]


def make_raw(root):
    """Two participants, one with sessions; thick, thin and foreign images; a derivative that is not to be looked at."""
    for name in (
        "sub-01/anat/sub-01_T2w",
        "sub-01/anat/sub-01_acq-ax_run-2_FLAIR",
        "sub-02/ses-a/anat/sub-02_ses-a_T2w",
        "sub-02/ses-b/anat/sub-02_ses-b_T1w",
    ):
        make_scan(root / f"{name}.nii.gz")
        (root / f"{name}.json").write_text('{"SliceThickness": 4, "MagneticFieldStrength": 3}')
    make_scan(root / "sub-01/anat/sub-01_T1w.nii.gz", spacing_mm=(1.0, 1.0, 1.0))
    make_scan(root / "derivatives/other/sub-01/anat/sub-01_desc-x_T2w.nii.gz")
    description = {"Name": "Two heads", "BIDSVersion": "1.9.0", "License": "CC0", "DatasetType": "raw"}
    (root / "dataset_description.json").write_text(json.dumps(description))
    (root / "README").write_text("Two heads that were made up.\n")
    return root


def make_latin(folder):
    """A folder with a scan whose name is Latin-1, and so is that of a folder with a DICOM series."""
    make_scan(folder / "x.nii.gz")
    try:
        os.rename(folder / "x.nii.gz", os.fsencode(folder) + b"/M\xfcller.nii.gz")
        dicom_files.stack(folder / "series")
        os.rename(folder / "series", os.fsencode(folder) + b"/S\xe9rie")
    except OSError:
        pytest.skip("this file system knows UTF-8 alone")
    first = min((folder / os.fsdecode(b"S\xe9rie")).iterdir())
    first.rename(first.with_name(os.fsdecode(b"\xe9.dcm")))
    return folder


def tree(root):
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()}
