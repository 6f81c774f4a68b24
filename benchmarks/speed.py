"""Whole-process time and memory of `thinslice enhance`, and its share of this machine's convolution peak.

    python benchmarks/speed.py [--shape 320 320 36] [--spacing 0.72 0.72 4] [--runs 3] [--model default]
    python benchmarks/speed.py --shape 512 512 60 --spacing 0.7 0.7 3 --model planes-ct --in-plane 2 --factor 2

Needs the `test` extra (onnx builds the convolution whose rate is the peak). The peak is the best rate that the same
engine reaches in this run on plain 3x3 convolutions, the most favourable of several shapes; the share is the
network's multiply-adds over whole-process wall time, over that peak; networks for planes do not count theirs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from thinslice.io.nifti import read
from thinslice.models.registry import find_model
from thinslice.plan import make_plan
from thinslice.settings import Settings

SHAPES = ((32, 320), (48, 320), (64, 160), (96, 160), (128, 160))
"""(channels, pixels a side) of the convolutions that are tried for the peak."""


def main() -> int:
    arguments = _arguments()
    wish = ["--in-plane", str(arguments.in_plane)] if arguments.in_plane > 1 else []
    wish += ["--factor", str(arguments.factor)] if arguments.factor else []
    with tempfile.TemporaryDirectory() as folder:
        scan, answer = Path(folder) / "thick.nii.gz", Path(folder) / "thin.nii.gz"
        make_scan(scan, arguments.shape, arguments.spacing)
        work = multiply_adds(scan, find_model(arguments.model), arguments.factor)
        rows = []
        for _ in range(arguments.runs):
            peak = max(convolution_rate(channels, side) for channels, side in SHAPES)
            seconds, mebibytes = run_once(scan, answer, arguments.model, wish)
            rows.append((peak, seconds, mebibytes, 2 * work / seconds / peak))
            print(
                f"peak {peak / 1e9:6.0f} GFLOP/s   enhance {seconds:6.2f} s  {mebibytes:6.0f} MiB"
                + told(*rows[-1], work)
            )
    peak, seconds, mebibytes, share = np.median(rows, axis=0)
    shape, cores = "x".join(map(str, arguments.shape)), len(os.sched_getaffinity(0))
    print(
        f"median of {arguments.runs}: {shape} at {arguments.spacing} mm in {seconds:.1f} s, {mebibytes:.0f} MiB, "
        f"on {cores} cores" + told(peak, seconds, mebibytes, share, work)
    )
    return 0


def told(peak: float, seconds: float, mebibytes: float, share: float, work: float) -> str:
    """The network's own rate, where its work is known."""
    if not work:
        return ""
    return f"   {2 * work / seconds / 1e9:6.0f} GFLOP/s   share {100 * share:3.0f} % of {peak / 1e9:.0f} GFLOP/s"


def make_scan(path: Path, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> None:
    """A smooth random scan that passes for Hounsfield units: the time does not depend on what is in it."""
    rng = np.random.default_rng(0)
    voxels = np.cumsum(rng.normal(size=shape), axis=0)
    voxels = np.maximum(300 * (voxels - voxels.mean()) / voxels.std(), -1000)
    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.int16), np.diag([*spacing, 1.0])), path)


def multiply_adds(scan: Path, model, factor: float | None) -> float:
    """Of the network alone, for one scan; 0 where the card does not say."""
    cost = model.card.get("multiply_adds")
    if cost is None:
        return 0.0
    plan = make_plan(read(scan), Settings(factor=factor), model)
    per_slice = np.prod([n for i, n in enumerate(plan.shape_thick) if i != plan.axis])
    return float(per_slice * (plan.n_thick * cost["per_acquired_pixel"] + plan.n_thin * cost["per_thin_voxel"]))


def run_once(scan: Path, answer: Path, model: str, wish: list[str]) -> tuple[float, float]:
    """Wall seconds and peak MiB of the whole process."""
    command = [sys.executable, "-m", "thinslice", "enhance", "-i", str(scan), "-o", str(answer), "--model", model]
    start = time.perf_counter()
    process = subprocess.Popen([*command, *wish, "--overwrite", "-q"])
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return seconds, usage.ru_maxrss / 1024


def convolution_rate(channels: int, side: int, layers: int = 4, repeats: int = 5) -> float:
    """FLOP/s of a stack of 3x3 convolutions in the inference engine, the fastest of some repeats."""
    kernel = np.random.default_rng(0).normal(size=(channels, channels, 3, 3)).astype(np.float32) / (9 * channels)
    nodes = [
        helper.make_node("Conv", [f"x{i}", "k"], [f"x{i + 1}"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        for i in range(layers)
    ]
    shape = [1, channels, side, side]
    graph = helper.make_graph(
        nodes,
        "peak",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"x{layers}", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(kernel, "k")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    image = np.zeros(shape, np.float32)
    best = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        session.run(None, {"x0": image})
        best = min(best, time.perf_counter() - start)
    return 2 * 9 * channels**2 * side**2 * layers / best


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(320, 320, 36))
    parser.add_argument("--spacing", type=float, nargs=3, default=(0.72, 0.72, 4.0))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--model", default="default")
    parser.add_argument("--factor", type=float, help="default: as enhance chooses")
    parser.add_argument("--in-plane", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
