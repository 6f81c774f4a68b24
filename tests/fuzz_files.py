"""Damage scans, labels, sidecars and model files in many ways and let the command line have them.

    python tests/fuzz_files.py --seconds 600 [--seed 1] [--keep FOLDER]

Each damaged set of files goes to a process of its own. Found wanting is: a traceback, a crash, a warning, more than 30
seconds, an exit code other than 0 and 2, a refusal that says nothing, or an output that is not whole.
"""

import argparse
import contextlib
import gzip
import json
import random
import shutil
import sys
import tempfile
import time
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import onnx
from nibabel.freesurfer.mghformat import MGHImage

from fuzz_dicom import attempt
from thinslice.io.formats import read, write
from thinslice.models.registry import EMBEDDED
from thinslice.volume import Volume

SHAPE = (24, 20, 5)
ENDINGS = (".nii.gz", ".nii", ".mgz", ".nrrd", ".mha")
ODD = [None, True, -1, 0, 1e400, 1e-30, "", "3", [], {}, [[]], "\ud800", 2**70, float("nan"), {"a": {"b": 1}}]
NUMBERS = [b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\x01\0\0\0"]
SIDECAR = {
    "SliceThickness": 3.5, "SpacingBetweenSlices": 4.0, "EchoTime": 0.09, "RepetitionTime": 3, "Modality": "MR",
    "MagneticFieldStrength": 1.5, "ImageType": ["ORIGINAL"], "MRAcquisitionType": "2D", "SeriesDescription": "T2",
}  # fmt: skip


def make_sources(folder):
    """The sound files: a scan and labels in each format, the JSON beside the scan, and a model."""
    folder.mkdir(parents=True)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    image = np.exp(-2 * (x**2 + y**2 + z**2)) + 0.02 * np.random.default_rng(0).normal(size=SHAPE)
    affine = np.diag([1.0, 1, 4, 1])
    for name, voxels in (("scan", (900 * image).astype(np.int16)), ("labels", (image > 0.4).astype(np.uint8))):
        nib.save(nib.Nifti1Image(voxels, affine), folder / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(voxels, affine), folder / f"{name}.nii")
        nib.save(MGHImage(voxels, affine), folder / f"{name}.mgz")
        for ending in (".nrrd", ".mha"):
            write(Volume(voxels, affine), folder / f"{name}{ending}")
            assert read(folder / f"{name}{ending}").shape == SHAPE
    (folder / "scan.json").write_text(json.dumps(SIDECAR))
    shutil.copy(EMBEDDED / "default.onnx", folder / "model.onnx")


def damage(path, rng):
    """Change one file in place; in words, what was done."""
    if path.suffix == ".json" and rng.random() < 0.6:
        return change_json(path, rng)
    if path.suffix == ".onnx" and rng.random() < 0.6:
        with contextlib.suppress(IndexError, ValueError):  # nothing is left to choose from
            return change_model(path, rng)
    if path.stat().st_size < 20:  # it has had enough
        return "nothing"
    try:
        return change_bytes(path, rng, path.name.endswith((".nii.gz", ".mgz")) and rng.random() < 0.7)
    except (OSError, EOFError, zlib.error):  # packed, and damaged already
        return change_bytes(path, rng, packed=False)


def change_bytes(path, rng, packed):
    """Change the bytes of a file, or those that are packed in it."""
    content = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    if not content:
        return "nothing"
    head = min(len(content), 400)
    kind = rng.choice(["flip", "header", "header", "number", "number", "cut", "drop", "insert", "empty", "grow"])
    if kind in ("flip", "header"):
        for _ in range(rng.choice([1, 1, 3, 20])):
            content[rng.randrange(head if kind == "header" else len(content))] = rng.randrange(256)
    elif kind == "number":
        at = rng.randrange(0, max(head - 4, 1))
        content[at : at + 4] = rng.choice(NUMBERS)
    elif kind == "cut":
        del content[rng.randrange(len(content)) :]
    elif kind == "drop":
        at = rng.randrange(len(content))
        del content[at : at + rng.choice([1, 2, 8, 300])]
    elif kind == "insert":
        at = rng.randrange(head)
        content[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice([1, 2, 8, 300])))
    elif kind == "empty":
        content = bytearray(rng.choice([b"", b"\0" * 500, content[:10], b"[" * 100_000, b"\xff\xfe{}"]))
    else:
        content += bytes(rng.choice([1, 1000, 3 * 2**20]))
    path.write_bytes(gzip.compress(bytes(content), 1) if packed else bytes(content))
    return f"{kind} {path.name}"


def change_json(path, rng):
    """Give facts of a sidecar odd values; or write something else that JSON, or an editor, allows."""
    if rng.random() < 0.3:
        path.write_bytes(rng.choice([b"[]", b"null", b"3", b'"x"', b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b"{,}"]))
        return "another JSON"
    facts = json.loads(json.dumps(SIDECAR))
    names = rng.sample(sorted(facts), rng.choice([1, 2, 5]))
    for name in names:
        facts[name] = rng.choice(ODD)
    path.write_text(json.dumps(facts), errors="surrogatepass")
    return f"odd {names}"


def change_model(path, rng):
    """Change a network, or what its card says, so that it still is a file of ONNX."""
    try:
        network = onnx.load(path)
    except Exception:  # damaged already
        return "nothing"
    kind = rng.choice(["card", "card", "weights", "node", "attribute", "shape", "value"])
    if kind == "card":
        entry = rng.choice(network.metadata_props)
        with contextlib.suppress(ValueError):
            card = json.loads(entry.value)
            name = rng.choice(sorted(card))
            if isinstance(card[name], dict) and rng.random() < 0.7:
                inner = rng.choice(sorted(card[name])) if card[name] else "a"
                card[name][inner] = rng.choice(ODD)
            else:
                card[name] = rng.choice(ODD)
            entry.value = json.dumps(card)
            kind = f"card {name}"
    elif kind == "weights":
        weights = rng.choice(network.graph.initializer)
        if weights.raw_data:
            content = bytearray(weights.raw_data)
            content[: rng.choice([4, len(content)])] = rng.choice(NUMBERS[:6])
            weights.raw_data = bytes(content)
    elif kind == "shape":
        weights = rng.choice(network.graph.initializer)
        if weights.dims:
            weights.dims[rng.randrange(len(weights.dims))] = rng.choice([0, 1, 2**40, 7])
    elif kind == "node":
        node = rng.choice(network.graph.node)
        node.op_type = rng.choice(["Sin", "Concat", "Nonsense", "Reshape", "Conv", "Transpose"])
    elif kind == "attribute":
        nodes = [node for node in network.graph.node if node.attribute]
        attribute = rng.choice(rng.choice(nodes).attribute)
        attribute.i = rng.choice([0, -1, 2**40])
        if attribute.ints:
            attribute.ints[0] = rng.choice([0, -1, 2**30])
    else:
        del network.graph.node[rng.randrange(len(network.graph.node))]
    with contextlib.suppress(Exception):
        path.write_bytes(network.SerializeToString())
    return f"model: {kind}"


def wanting(code, said, out):
    """What is wrong with an attempt; None if nothing is."""
    if code is None:
        return "too long"
    if code not in (0, 2):
        return f"exit code {code}"
    if "Traceback" in said or "Warning" in said or "[E:onnxruntime" in said:
        return "a traceback or a warning"
    complaints = [line for line in said.splitlines() if line.startswith("thinslice: ")]
    if (code == 2) != bool(complaints):
        return "a refusal without a reason, or a reason without a refusal"
    there = sorted(path.name for path in out.parent.glob("*")) if out.parent.exists() else []
    if code == 2 and there:
        return f"refused, and left {there}"
    if code == 0:
        try:
            thin = read(out)
        except ValueError as error:
            return f"an answer that cannot be read ({error})"
        plan = json.loads(out.with_name("thin.json").read_text())["plan"]
        if list(thin.shape) != plan["shape_thin"] or not np.isfinite(thin.voxels).all():
            return "another answer than planned"
    return None


def fuzz(seconds, seed, keep=None, cases=None):
    """(attempts, what was found wanting)."""
    rng, found, attempts = random.Random(seed), [], 0
    with tempfile.TemporaryDirectory() as home:
        sources = Path(home) / "sources"
        make_sources(sources)
        end = time.monotonic() + seconds
        while time.monotonic() < end and (cases is None or attempts < cases):
            folder, out = Path(home) / "case", Path(home) / "answer" / "thin.nii"
            folder.mkdir()
            scan, labels = (f"{name}{rng.choice(ENDINGS)}" for name in ("scan", "labels"))
            part = rng.choice([scan, scan, labels, labels, "scan.json", "scan.json", "model.onnx"])
            model = "model.onnx" if part == "model.onnx" else None
            for name in (scan, labels, "scan.json", model):
                if name is not None:
                    shutil.copy(sources / name, folder / name)
            done = [damage(folder / part, rng) for _ in range(rng.choice([1, 1, 1, 3]))]
            words = ["--model", str(folder / model) if model else rng.choice(["linear", "cubic"])]
            if rng.random() < 0.5 or part == labels:
                words += ["--labels", str(folder / labels)]
            code, said = attempt(folder / scan, out, words)
            attempts += 1
            if wrong := wanting(code, said, out):
                found.append(f"{attempts}, {part}, {done}, {words}: {wrong}\n{said[-1500:]}")
                if keep is not None:
                    shutil.copytree(folder, Path(keep) / f"{seed}-{attempts}", dirs_exist_ok=True)
            shutil.rmtree(folder)
            shutil.rmtree(out.parent, ignore_errors=True)
    return attempts, found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    count, failures = fuzz(asked.seconds, asked.seed, asked.keep)
    print("\n\n".join(failures))
    print(f"{count} damaged sets of files, {len(failures)} found wanting")
    sys.exit(bool(failures))
