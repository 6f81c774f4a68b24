"""Damage DICOM files in many ways and let the command line have them.

    python tests/fuzz_dicom.py --seconds 600 [--seed 1] [--keep FOLDER]

Each damaged folder goes to a process of its own. Found wanting is: a traceback, a crash, more than 30 seconds, an exit
code other than 0 and 2, a refusal that says nothing, or an output that is not whole.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

from pydicom import dcmread
from pydicom.dataelem import DataElement

from dicom_files import COMPRESSED, PLAIN, enhanced, stack

DATA = Path(os.environ.get("THINSLICE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
LONGEST_S = 30
VALUES = [
    "",
    "0",
    "-1",
    "nan",
    "1e400",
    "99999999999",
    "abc",
    "1\\2",
    "\\\\",
    "65535",
    "0.0",
    "-0.5",
    "ORIGINAL",
    "1e-30",
]
NUMBERS = [0, 1, 2, 3, 7, 8, 12, 16, 17, 32, 255, 4096, 32767, 65535]
FACTS = (
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
    "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
    "RescaleSlope", "RescaleIntercept", "SeriesNumber", "InstanceNumber", "ImageType", "SOPClassUID", "EchoNumbers",
    "PhotometricInterpretation", "SpecificCharacterSet", "WindowCenter", "Modality", "SeriesInstanceUID", "EchoTime",
    "PatientName", "StudyDate", "SOPInstanceUID", "SeriesDescription", "SpacingBetweenSlices",
)  # fmt: skip


def make_sources(folder):
    """One folder for each kind of series."""
    sources = []
    for name, syntax in {**PLAIN, **COMPRESSED}.items():
        stack(folder / name, count=5, rows=12, columns=10, syntax=syntax)
        sources.append(folder / name)
    stack(folder / "CT", modality="CT", count=5, rows=12, columns=10)
    enhanced(folder / "enhanced", count=5, rows=12, columns=10, echoes=2)
    real = [
        *sorted((DATA / "dicom" / "knee_ax_pdfs_jpegll").glob("*"))[:4],
        *(DATA / "bad" / "dcm_philips_enhanced_anatomical_001").glob("*"),
    ]
    for file in real:
        (folder / "real" / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / "real" / file.parent.name / file.name)
    return [*sources, folder / "CT", folder / "enhanced", *(folder / "real").glob("*")]


def damage(path, rng):
    """Change one file in place; in words, what was done."""
    content = bytearray(path.read_bytes())
    if len(content) < 200:  # it has had enough
        return "nothing"
    kind = rng.choice(["flip", "flip", "header", "cut", "drop", "insert", "extreme", "fact", "fact", "remove", "empty"])
    head = min(len(content), 2500)
    if kind in ("flip", "header"):
        for _ in range(rng.choice([1, 1, 3, 20])):
            content[rng.randrange(head if kind == "header" else len(content))] = rng.randrange(256)
    elif kind == "cut":
        del content[rng.randrange(len(content)) :]
    elif kind == "drop":
        at = rng.randrange(len(content))
        del content[at : at + rng.choice([1, 2, 8, 300])]
    elif kind == "insert":
        at = rng.randrange(len(content))
        content[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice([1, 2, 8, 300])))
    elif kind == "extreme":
        at = rng.randrange(132, head)
        content[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80"])
    elif kind == "empty":
        content = bytearray(rng.choice([b"", b"\0" * 128 + b"DICM", b"\0" * 200, content[:132]]))
    else:
        return change_fact(path, rng, kind == "remove")
    path.write_bytes(content)
    return f"{kind} {path.name}"


def change_fact(path, rng, remove):
    name = rng.choice(FACTS)
    try:
        warnings.simplefilter("ignore")
        ds = dcmread(path)
        places = [ds, *(item for element in ds.iterall() if element.VR == "SQ" for item in element.value)]
        place = rng.choice([p for p in places if name in p] or [ds])
        if remove:
            place.pop(name, None)
        else:
            from pydicom.datadict import dictionary_VR, tag_for_keyword

            vr = dictionary_VR(tag_for_keyword(name))
            value = rng.choice(NUMBERS) if vr == "US" else rng.choice(VALUES)
            place.add(DataElement(tag_for_keyword(name), vr, value, validation_mode=0))
        ds.save_as(path)
    except Exception as error:  # some values cannot be written at all
        return f"nothing ({error})"
    return f"{'remove' if remove else 'set'} {name} in {path.name}"


def attempt(folder, out, words=("--model", "linear")):
    """Run the command in a process of its own: exit code or None for too long, and what it said."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            code = 99
            try:
                from thinslice.cli import main

                code = main(["enhance", "-i", str(folder), "-o", str(out), *words])
            except SystemExit as stop:
                code = int(stop.code or 0)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        end = time.monotonic() + LONGEST_S
        status = None
        while status is None and time.monotonic() < end:
            done, found = os.waitpid(child, os.WNOHANG)
            status = found if done else time.sleep(0.002)
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        said.seek(0)
        return (None if status is None else os.waitstatus_to_exitcode(status)), said.read().decode("utf-8", "replace")


def wanting(code, said, out):
    """What is wrong with an attempt; None if nothing is."""
    if code is None:
        return "too long"
    if code not in (0, 2):
        return f"exit code {code}"
    if "Traceback" in said or "Warning" in said:
        return "a traceback or a warning"
    if code == 2 and "thinslice: " not in said:
        return "a refusal without a reason"
    if [path for path in out.parent.rglob(".*") if path.is_relative_to(out)] or list(out.parent.glob(".thinslice*")):
        return "hidden leftovers"
    for folder in {path.parent for path in out.rglob("*.dcm")}:
        if wrong := not_whole(folder):
            return wrong
    if code == 0 and not list(out.rglob("thinslice.json")):
        return "success without an answer"
    return None


def not_whole(folder):
    """What is wrong with a series that was written; None if nothing is."""
    if not (folder / "thinslice.json").exists():
        return "slices without a report"
    plan = json.loads((folder / "thinslice.json").read_text())["plan"]
    files = sorted(folder.glob("*.dcm"))
    if len(files) != plan["shape_thin"][plan["axis"]]:
        return "fewer slices than planned"
    unreadable = [file.name for file in files if not readable(file)]
    return f"slices that cannot be read: {unreadable}" if unreadable else None


def readable(file):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dcmread(file).pixel_array is not None
    except Exception:
        return False


def fuzz(seconds, seed, keep=None, cases=None):
    """(attempts, what was found wanting)."""
    rng, found, attempts = random.Random(seed), [], 0
    with tempfile.TemporaryDirectory() as home:
        sources = make_sources(Path(home) / "sources")
        end = time.monotonic() + seconds
        while time.monotonic() < end and (cases is None or attempts < cases):
            folder, out = Path(home) / "case", Path(home) / "answer" / "out"
            source = rng.choice(sources)
            if source.is_dir():
                shutil.copytree(source, folder)
                done = [damage(rng.choice(sorted(folder.iterdir())), rng) for _ in range(rng.choice([1, 1, 2, 5]))]
            else:
                folder.mkdir()
                shutil.copy(source, folder / source.name)
                done = [damage(folder / source.name, rng) for _ in range(rng.choice([1, 1, 3]))]
            code, said = attempt(folder, out)
            attempts += 1
            if wrong := wanting(code, said, out):
                found.append(f"{source.name}, {done}: {wrong}\n{said[-1500:]}")
                if keep is not None:
                    shutil.copytree(folder, Path(keep) / f"{seed}-{attempts}")
            shutil.rmtree(folder)
            shutil.rmtree(out.parent, ignore_errors=True)
    return attempts, found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path)
    wish = parser.parse_args()
    count, failures = fuzz(wish.seconds, wish.seed, wish.keep)
    print("\n\n".join(failures))
    print(f"{count} damaged folders, {len(failures)} found wanting")
    sys.exit(bool(failures))
