"""Side by side with what people run today, on one crop, in one run: PSNR, SSIM, CPU seconds, peak memory.

    python -m venv eclare && eclare/bin/pip install torch==2.13.0 eclare     # once; GPL, so only called as a program
    python benchmarks/peers.py SCAN.nii.gz --eclare eclare/bin/run-eclare --patches 5000 64000

The central 96^3 voxels of a near-isotropic scan are the truth. Thick slices are simulated at four times the spacing,
Gaussian profile, FWHM = spacing, and every method gets the same thick scan and the true thickness. ECLARE trains on
that scan alone. Scores are those of `thinslice evaluate` (foreground, 3-D SSIM). Needs the `test` extra and SimpleITK.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from thinslice.evaluation.benchmark import simulate
from thinslice.evaluation.metrics import data_range, foreground, psnr, ssim
from thinslice.io.nifti import read, write
from thinslice.models.interpolations import interpolation
from thinslice.plan import make_plan
from thinslice.settings import Settings
from thinslice.volume import Volume

SIZE, FACTOR = 96, 4


def main() -> int:
    arguments = _arguments()
    folder = Path(tempfile.mkdtemp(prefix="peers-"))
    truth, thick = make_case(arguments.scan, folder)
    thin_grid = np.array(
        make_plan(thick, Settings(factor=FACTOR, profile="gaussian"), interpolation("cubic")).affine_thin
    )
    rows = []
    for name, command in commands(folder, arguments).items():
        answer = folder / f"{name.replace(' ', '-')}.nii.gz"
        seconds, mebibytes = measured([part.replace("{answer}", str(answer)) for part in command])
        voxels = on_grid(answer, thin_grid, truth.voxels.shape)
        rows.append((name, *scores(voxels, truth.voxels), seconds, mebibytes))
    print(f"\n{arguments.scan.name}, central {SIZE}^3, x{FACTOR}, Gaussian, FWHM = spacing")
    print(f"{'method':28s} {'PSNR dB':>8s} {'SSIM':>7s} {'CPU s':>9s} {'MiB':>7s}")
    for name, decibel, similarity, seconds, mebibytes in rows:
        print(f"{name:28s} {decibel:8.2f} {similarity:7.4f} {seconds:9.1f} {mebibytes:7.0f}")
    shutil.rmtree(folder)
    return 0


def make_case(scan: Path, folder: Path) -> tuple[Volume, Volume]:
    """The central crop as truth and its thick version, saved as thick.nii.gz."""
    volume = read(scan)
    start = [(n - SIZE) // 2 for n in volume.shape]
    crop = volume.voxels[tuple(slice(s, s + SIZE) for s in start)].astype(np.float32)
    cube = Volume(crop, np.diag([1.0, 1.0, 1.0, 1.0]))  # the peers read millimetres; 1 mm voxels serve all alike
    truth, thick = simulate(cube, 2, FACTOR)
    write(thick, folder / "thick.nii.gz")
    return truth, thick


def commands(folder: Path, arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Name -> command line; ``{answer}`` is where the answer goes."""
    thick = str(folder / "thick.nii.gz")
    ours = [sys.executable, "-m", "thinslice", "enhance", "-q", "-i", thick, "-o", "{answer}", "--factor", str(FACTOR)]
    table = {
        "scipy cubic": [sys.executable, __file__, "--answer-with", "scipy", thick, "{answer}"],
        "SimpleITK Lanczos": [sys.executable, __file__, "--answer-with", "simpleitk", thick, "{answer}"],
        "thinslice cubic": [*ours, "--model", "cubic", "--no-projection"],
        "thinslice cubic + projection": [*ours, "--model", "cubic"],
        "thinslice default": ours,
    }
    for patches in arguments.patches if arguments.eclare else ():
        table[f"ECLARE {patches} patches"] = [
            sys.executable, __file__, "--answer-with", f"eclare:{arguments.eclare}:{patches}", thick, "{answer}",
        ]  # fmt: skip
    return table


def measured(command: list[str]) -> tuple[float, float]:
    """CPU seconds (all threads and children) and peak MiB of the largest process of a command."""
    print("$", " ".join(command), flush=True)
    process = subprocess.Popen(["/usr/bin/time", "-f", "%U %S %M", *command], stderr=subprocess.PIPE, text=True)
    _, errors = process.communicate()
    if process.returncode:
        sys.exit(f"failed: {errors}")
    user, system, kibibytes = errors.strip().splitlines()[-1].split()
    return float(user) + float(system), int(kibibytes) / 1024


def on_grid(path: Path, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The answer on the truth's grid: taken as it is where the grids agree, else by cubic interpolation along z."""
    from scipy.ndimage import map_coordinates

    volume = read(path)
    if volume.voxels.shape == shape and np.allclose(volume.affine, affine, atol=1e-3):
        return volume.voxels.astype(np.float64)
    position = (affine[2, 3] + affine[2, 2] * np.arange(shape[2]) - volume.affine[2, 3]) / volume.affine[2, 2]
    rows, columns = (np.arange(n, dtype=float) for n in shape[:2])
    grid = np.meshgrid(rows, columns, position, indexing="ij")
    return map_coordinates(volume.voxels.astype(np.float64), grid, order=3, mode="nearest")


def scores(answer: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    scale, mask = data_range(truth), foreground(truth)
    return psnr(answer, truth, scale, mask), ssim(answer, truth, scale, mask)


def answer_with(peer: str, thick_path: str, answer_path: str) -> None:
    """Run one peer in this process (scipy, SimpleITK) or as a program of its own (ECLARE)."""
    thick = read(Path(thick_path))
    plan = make_plan(thick, Settings(factor=FACTOR, profile="gaussian"), interpolation("cubic"))
    if peer == "scipy":
        from scipy.ndimage import map_coordinates

        axes = [np.arange(n, dtype=float) for n in thick.shape]
        axes[plan.axis] = plan.positions()
        voxels = map_coordinates(thick.voxels, np.meshgrid(*axes, indexing="ij"), order=3, mode="mirror")
        write(Volume(voxels.astype(np.float32), np.array(plan.affine_thin)), Path(answer_path))
    elif peer == "simpleitk":
        import SimpleITK

        image = SimpleITK.ReadImage(thick_path)
        grid = SimpleITK.ResampleImageFilter()
        grid.SetInterpolator(SimpleITK.sitkLanczosWindowedSinc)
        grid.SetSize([int(n) for n in plan.shape_thin])
        grid.SetOutputSpacing([float(s) for s in plan.spacing_thin_mm])
        shift = plan.spacing_thin_mm[2] * plan.first_centre
        grid.SetOutputOrigin([*image.GetOrigin()[:2], image.GetOrigin()[2] - shift])
        grid.SetOutputDirection(image.GetDirection())
        SimpleITK.WriteImage(grid.Execute(image), answer_path)
    else:
        _, program, patches = peer.split(":")
        folder = Path(answer_path).parent / f"eclare-{patches}"
        folder.mkdir()
        subprocess.run(
            [program, "--in-fpath", thick_path, "--out-dir", str(folder), "--n-patches", patches,
             "--relative-slice-thickness", str(FACTOR), "--relative-slice-profile-type", "gaussian", "--gpu-id", "-1"],
            check=True, stdout=subprocess.DEVNULL, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        (answer,) = folder.rglob("*.nii.gz")
        shutil.copy(answer, answer_path)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--eclare", metavar="PROGRAM", help="path of run-eclare in its own environment")
    parser.add_argument("--patches", type=int, nargs="+", default=[5000])
    return parser.parse_args()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--answer-with"]:
        answer_with(*sys.argv[2:])
    else:
        sys.exit(main())
