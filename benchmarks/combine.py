"""How much better one volume from several stacks is than the best of them: real stacks, other ways, time and memory.

    python benchmarks/combine.py spine knees prostate fetal --data DATA [--out PICTURES]
    python benchmarks/combine.py others --data DATA         # against averages of resampled stacks, least squares
    python benchmarks/combine.py speed                      # three stacks of 320 x 320 x 30 voxels

*spine*: two stacks of one CT acquisition, without motion. Every fourth slice of one of them is held out: replaced by
cubic interpolation before it is made thin, and without weight when the two are combined. What the combined volume says
of these slices is compared with what was acquired: RMS in Hounsfield units between `HU_LOW` and `HU_HIGH`.

*knees*, *prostate*, *fetal*: all stacks are placed and matched in brightness; then each is left out in turn, and its
slices are compared with what the others say of them, combined and each alone: RMS in intensity ranges of the first
stack over samples that all of them see and that are brighter than `BRIGHT`. Who is left out has a say only in where it
lies, how bright it is, and in how slices of others would look that moved within their stack.

*others*: three orthogonal stacks, x4, of the middle of each volume in DATA/iso_dev; each way in a process of its own:
PSNR over the foreground, seconds, and the largest memory of the process. It needs SimpleITK.

*speed*: the whole command in a process of its own.
"""

import argparse
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import nibabel
import numpy as np
from scipy.interpolate import CubicSpline

from thinslice.combination import combine_volumes, describe_combination
from thinslice.compute.combine import join
from thinslice.compute.stacks import ObservedStack, Stack, VoxelGrid, find_misfit, observe, straighten
from thinslice.compute.upsample import upsample
from thinslice.evaluation.metrics import data_range, foreground, psnr
from thinslice.models.engine import EngineSettings
from thinslice.models.registry import find_model, models_for
from thinslice.physics.acquisition import Acquisition
from thinslice.physics.intensity import intensity_range
from thinslice.physics.noise import add_noise
from thinslice.pipeline import read_scan
from thinslice.reports.picture import Picture, Plane, draw_side_by_side, reslice_planes, write_picture
from thinslice.volume import Volume

HU_LOW, HU_HIGH = -400, 1500
"""Soft tissue and bone: neither the air around the patient nor metal."""

HU_WINDOW = (-200.0, 700.0)
"""Hounsfield units shown black and white."""

HELD_OUT_EVERY = 4
"""Every fourth slice of a stack is held out."""

BRIGHT = 0.05
"""Samples darker than this, in intensity ranges, are air."""

PICTURE_SIDE = 300
"""Length in pixels of the longest side of a plane in a picture."""

FACTOR = 4
"""Of the simulated stacks."""


@dataclass(frozen=True)
class Group:
    """Real stacks of one person.

    Attributes:
        scans: below DATA; the first sets the grid.
        spacing_mm: of the answer.
        registration: whether they are placed where they fit.
    """

    scans: tuple[str, ...]
    spacing_mm: float | None
    registration: bool = True


GROUPS = {
    "spine": Group(("ct/ct_spine_cor3mm_taichi.nii.gz", "stacks/ct_spine_sag3mm_taichi.nii.gz"), None, False),
    "knees": Group(("thick/knee_pdfs_sag.nii.gz", "thick/knee_pdfs_cor.nii.gz", "dicom/knee_ax_pdfs_jpegll"), 0.8),
    "prostate": Group(
        (
            "stacks/prostate_t2_px0000_tra.nii.gz",
            "stacks/prostate_t2_px0000_cor.nii.gz",
            "thick/prostate_t2_sag_px0000.nii.gz",
        ),
        0.8,
    ),
    "fetal": Group(tuple(f"stacks/fetal_t2_mial01_run{run}.nii.gz" for run in range(1, 7)), 1.2),
}
"""The stacks of each of the real comparisons."""


def main() -> int:
    arguments = _arguments()
    for what in arguments.what:
        if what == "speed":
            lines = measure_speed(arguments.shape, arguments.spacing)
        elif what == "others":
            lines = compare_ways(arguments.data / "iso_dev", arguments.side, arguments.noise, arguments.model)
        else:
            lines = compare_real(what, arguments.data, arguments.model, arguments.out, arguments.mm)
        for line in lines:
            print(line, flush=True)
        print()
    return 0


# ---- real stacks


def compare_real(what: str, data: Path, name: str, out: Path | None, mm: float | None) -> Iterator[str]:
    """Yields what was found of a group of real stacks; with ``out``, draws it."""
    group = GROUPS[what]
    scans = [read_scan(data / scan) for scan in group.scans]
    done = combine_volumes(
        scans,
        models_for(name, EngineSettings()),
        names=[_stem(scan) for scan in group.scans],
        spacing_mm=mm or group.spacing_mm,
        registration=group.registration,
    )
    yield f"{what}: {describe_combination(done)}, {done.seconds:.0f} s"
    for told in done.stacks:
        yield f"    {told.describe()}"
    grid = VoxelGrid(done.volume.shape, done.volume.affine)
    fits = [k for k, told in enumerate(done.stacks) if told.left_out is None]
    stacks = [_make_stack(scans[k], done.stacks[k], done.volume) for k in fits]
    names = [_stem(group.scans[k]) for k in fits]
    observed, low, width = observe(stacks, grid)
    if out is not None:
        mean = sum(one.say * one.thin for one in observed) / np.maximum(sum(one.say for one in observed), 1e-6)
        shown = [(names[0] + "\nmade thin alone", observed[0].thin), ("all of them\nmean", mean)]
        draw(shown, done.volume, low, width, observed, out / f"combine-{what}.png")
    if what == "spine":
        for k in range(len(stacks)):
            yield from hold_out(k, stacks, names, grid)
    else:
        yield from leave_out(observed, names)


def _make_stack(scan: Volume, told, combined: Volume) -> Stack:
    """Returns a stack where it was placed, thin from slices that lie evenly apart, as when it was combined."""
    within = None if told.within is None else told.within.motions @ np.linalg.inv(told.motion)
    placed, even, plan = Stack(scan, told.plan, scan, told.motion, within), scan, told.plan
    if within is not None:
        even, plan = straighten(placed, VoxelGrid(combined.shape, combined.affine), combined.voxels * told.fit.gain)
    return replace(placed, thin=upsample(even, plan, find_model(plan.model, EngineSettings())).volume)


def hold_out(k: int, stacks: Sequence[Stack], names: Sequence[str], grid: VoxelGrid) -> Iterator[str]:
    """Yields how far off held-out slices of a stack are that the combined volume predicts, and what one stack does."""
    one, axis = stacks[k], stacks[k].plan.axis
    count = one.acquired.shape[axis]
    held = np.arange(count) % HELD_OUT_EVERY == HELD_OUT_EVERY // 2
    filled = _interpolate_slices(one.acquired, held, axis)
    thin = upsample(filled, one.plan, find_model(one.plan.model, EngineSettings())).volume
    lacking = [replace(one, acquired=filled, thin=thin) if j == k else other for j, other in enumerate(stacks)]
    observed, low, width = observe(lacking, grid)
    whole, whole_low, whole_width = observe(stacks, grid)
    is_held = held.reshape([count if a == axis else 1 for a in range(3)])
    truth = whole[k].samples * whole_width + whole_low
    counted = (whole[k].counted > 0) & is_held & (truth > HU_LOW) & (truth < HU_HIGH)
    others = [other for j, other in enumerate(observed) if j != k]
    known = sum(other.say for other in others) > 0.5
    counted &= observed[k].acquisition.forward(known.astype(np.float32)) > 0.9
    observed[k].counted = observed[k].counted * ~is_held
    # What was interpolated has no say in the start either, but where it is all there is.
    share = observed[k].acquisition.adjoint(np.broadcast_to(~is_held, truth.shape).astype(np.float32))
    share /= np.maximum(observed[k].acquisition.adjoint(np.ones_like(truth)), 1e-6)
    observed[k].say = observed[k].say * np.clip(share, 1e-3, 1)
    for j, seen in enumerate(observed):
        seen.misfit = find_misfit(seen, [other for i, other in enumerate(observed) if i != j])
    combined, *_ = join(observed)
    see = observed[k].acquisition.forward
    found = {"combined": see(combined)} | {f"{n} alone": see(o.thin) for n, o in zip(names, observed, strict=True)}
    found["cubic from its neighbours"] = observed[k].samples

    def rate(samples: np.ndarray) -> float:
        return float(np.sqrt(np.mean((samples[counted] * width + low - truth[counted]) ** 2)))

    rms = {name: rate(samples) for name, samples in found.items()}
    best = min(value for name, value in rms.items() if name != "combined")
    words = ", ".join(f"{name} {value:.1f}" for name, value in rms.items())
    yield f"    {names[k]}, slices held out, RMS in HU: {words}: {100 * (1 - rms['combined'] / best):.0f} % less"


def _interpolate_slices(scan: Volume, held: np.ndarray, axis: int) -> Volume:
    """Returns a stack some slices of which are replaced by cubic interpolation of the others."""
    voxels = np.moveaxis(scan.voxels.astype(np.float32), axis, 0).copy()
    voxels[held] = CubicSpline(np.flatnonzero(~held), voxels[~held], axis=0)(np.flatnonzero(held))
    kind = scan.voxels.dtype
    limits = np.iinfo(kind)
    return replace(scan, voxels=np.clip(np.rint(np.moveaxis(voxels, 0, axis)), limits.min, limits.max).astype(kind))


def leave_out(observed: Sequence[ObservedStack], names: Sequence[str]) -> Iterator[str]:
    """Yields for each stack how far off it is from what the others say, combined and each alone."""
    for k, one in enumerate(observed):
        others = [replace(other) for j, other in enumerate(observed) if j != k]
        for j, other in enumerate(others):
            other.misfit = find_misfit(other, [further for i, further in enumerate(others) if i != j])
        counted = (one.counted > 0) & (one.samples > BRIGHT)
        for other in others:
            counted &= one.acquisition.forward((other.say > 0.5).astype(np.float32)) > 0.9
        if np.count_nonzero(counted) < 1000:
            yield f"    {names[k]} left out: the others have too little in common with it"
            continue
        combined, *_ = join(others)
        mean = sum(o.say * o.thin for o in others) / np.maximum(sum(o.say for o in others), 1e-6)

        def rate(volume: np.ndarray, one: ObservedStack = one, counted: np.ndarray = counted) -> float:
            return float(np.sqrt(np.mean((one.acquisition.forward(volume) - one.samples)[counted] ** 2)))

        alone = [rate(other.thin) for other in others]
        found = rate(combined)
        words = ", ".join(
            f"{name} {value:.4f}" for name, value in zip((n for j, n in enumerate(names) if j != k), alone, strict=True)
        )
        yield (
            f"    {names[k]} left out ({np.count_nonzero(counted)} samples): combined {found:.4f}, "
            f"mean {rate(mean):.4f}, {words}: {100 * (1 - found / min(alone)):.1f} % less than the best alone"
        )


def draw(
    shown: Sequence[tuple[str, np.ndarray]],
    combined: Volume,
    low: float,
    width: float,
    observed: Sequence[ObservedStack],
    path: Path,
) -> None:
    """Draws the three planes through what all stacks see: one stack, the mean, and what was combined, side by side."""
    held = sum((one.say > 0.5).astype(np.int16) for one in observed)
    bright = (held == held.max()) & (combined.voxels > low + 0.2 * width)
    centre = tuple(int(np.median(where)) for where in np.nonzero(bright))
    volumes = [(name, replace(combined, voxels=voxels * width + low)) for name, voxels in shown]
    volumes.append(("all of them\ncombined", combined))
    window = HU_WINDOW if low < 0 else intensity_range(combined.voxels[held == held.max()])
    columns = [(name, _three_planes(volume, centre)) for name, volume in volumes]
    rows = [[Picture(name, planes[row], window) for name, planes in columns] for row in range(3)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(draw_side_by_side(rows, long_side=PICTURE_SIDE), path)


def _three_planes(volume: Volume, centre: tuple[int, int, int]) -> list[Plane]:
    return [*reslice_planes(volume, 0, centre), reslice_planes(volume, 1, centre)[0]]


# ---- other ways


def compare_ways(folder: Path, side: int, noises: Sequence[float], name: str) -> Iterator[str]:
    """Yields PSNR, seconds and memory of several ways to join three simulated stacks."""
    yield "| scan | noise % | way | PSNR dB | seconds | MiB |"
    yield "|---|--:|---|--:|--:|--:|"
    spawn = multiprocessing.get_context("spawn")
    ways: dict[str, tuple[Callable[..., np.ndarray], str]] = {
        "SimpleITK B-spline, mean": (average_resampled, ""),
        "least squares from cubic": (combine_simulated, "cubic"),
        f"combine ({name})": (combine_simulated, name),
    }
    for path in sorted(folder.glob("*.nii*")):
        for noise in noises:
            for way, (join_them, model) in ways.items():
                with spawn.Pool(1) as pool:
                    decibel, seconds, mebibytes = pool.apply(_rate, (path, side, noise, join_them, model))
                yield f"| {_stem(path.name)} | {noise:g} | {way} | {decibel:.2f} | {seconds:.1f} | {mebibytes:.0f} |"


def _rate(path: Path, side: int, noise: float, join_them: Callable[..., np.ndarray], model: str):
    truth, stacks = simulate(read_scan(path), side, noise)
    started = perf_counter()
    answer = join_them(stacks, truth, model)
    seconds = perf_counter() - started
    decibel = psnr(answer.astype(np.float64), truth.voxels, data_range(truth.voxels), foreground(truth.voxels))
    return decibel, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def simulate(volume: Volume, side: int, noise: float) -> tuple[Volume, list[Volume]]:
    """Returns the middle of a volume, and three stacks of touching Gaussian slices of it, one along each axis."""
    corner = [max((size - side) // 2, 0) for size in volume.shape]
    voxels = volume.voxels[tuple(slice(at, at + side) for at in corner)].astype(np.float32)
    voxels = voxels[tuple(slice(0, n // FACTOR * FACTOR) for n in voxels.shape)]
    low, high = intensity_range(voxels)
    affine = np.diag([*volume.spacing_mm, 1.0])
    rng = np.random.default_rng(5)
    stacks = []
    for axis, n in enumerate(voxels.shape):
        centres = (FACTOR - 1) / 2 + FACTOR * np.arange(n // FACTOR)
        thick = Acquisition(centres, n, float(FACTOR), "gaussian", axis).forward(voxels)
        thick = add_noise(thick, noise / 100 * (high - low), False, rng)
        there = affine.copy()
        there[axis, 3] = (FACTOR - 1) / 2 * affine[axis, axis]
        there[axis, axis] *= FACTOR
        stacks.append(Volume(thick, there, thickness_mm=float(there[axis, axis])))
    return Volume(voxels, affine), stacks


def average_resampled(stacks: Sequence[Volume], truth: Volume, model: str) -> np.ndarray:
    """Returns the mean of all stacks after B-spline interpolation by SimpleITK."""
    import SimpleITK as sitk

    def to_image(voxels: np.ndarray, affine: np.ndarray) -> "sitk.Image":
        image = sitk.GetImageFromArray(voxels.T)
        image.SetSpacing(np.diag(affine)[:3].tolist())
        image.SetOrigin(affine[:3, 3].tolist())
        return image

    like = to_image(truth.voxels, truth.affine)
    found = []
    for stack in stacks:
        # Beyond the middle of the outermost slice SimpleITK knows nothing: there it goes on as it ends.
        axis = int(np.argmax(stack.spacing_mm))
        padded = np.pad(stack.voxels, [(2, 2) if a == axis else (0, 0) for a in range(3)], mode="edge")
        affine = stack.affine.copy()
        affine[axis, 3] -= 2 * affine[axis, axis]
        image = sitk.Resample(to_image(padded, affine), like, sitk.Transform(), sitk.sitkBSpline)
        found.append(sitk.GetArrayFromImage(image).T)
    return np.mean(found, axis=0)


def combine_simulated(stacks: Sequence[Volume], truth: Volume, model: str) -> np.ndarray:
    """Returns what ``thinslice.combine`` makes of stacks."""
    return combine_volumes(stacks, models_for(model, EngineSettings()), grid=truth).array


# ---- time and memory


def measure_speed(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Iterator[str]:
    """Yields time and memory of the whole command for three orthogonal stacks of a smooth random body."""
    with tempfile.TemporaryDirectory() as folder:
        paths = make_random_stacks(Path(folder), shape, spacing_mm)
        answer = Path(folder) / "combined.nii.gz"
        command = [sys.executable, "-m", "thinslice", "combine", "-i", *map(str, paths), "-o", str(answer)]
        load = os.getloadavg()[0]
        started = perf_counter()
        process = subprocess.Popen([*command, "--spacing", str(spacing_mm[0])])
        _, status, used = os.wait4(process.pid, 0)
        seconds = perf_counter() - started
        if status:
            raise SystemExit(f"combine failed: {status}")
        yield (
            f"3 stacks of {'x'.join(map(str, shape))} at {spacing_mm} mm: {seconds:.0f} s, "
            f"{used.ru_utime + used.ru_stime:.0f} s of CPU time, {used.ru_maxrss / 1024:.0f} MiB, "
            f"{len(os.sched_getaffinity(0))} cores, load before {load:.1f}"
        )


def make_random_stacks(folder: Path, shape: Sequence[int], spacing_mm: Sequence[float]) -> list[Path]:
    """Writes three orthogonal stacks of one random body, which is smooth and has a rim."""
    from scipy.ndimage import gaussian_filter

    side, count, pixel, step = shape[0], shape[2], spacing_mm[0], spacing_mm[2]
    body = gaussian_filter(np.random.default_rng(0).normal(size=(side,) * 3).astype(np.float32), 3.0)
    at = np.ogrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j, -1 : 1 : side * 1j]
    body = np.where(sum(one**2 for one in at) < 0.8, 400 + 150 * body / body.std(), 0).clip(0)
    thick = round(step / pixel)
    first = (side - count * thick) // 2
    paths = []
    for axis in range(3):
        across = np.moveaxis(body, axis, 2)[..., first : first + count * thick]
        slices = across.reshape(side, side, count, thick).mean(axis=3)
        affine = np.diag([pixel, pixel, pixel, 1.0])
        affine[axis, axis] *= thick
        affine[axis, 3] = (first + (thick - 1) / 2) * pixel
        paths.append(folder / f"stack{axis}.nii.gz")
        image = nibabel.Nifti1Image(np.moveaxis(slices, 2, axis).astype(np.int16), affine)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, paths[-1])
    return paths


def _stem(name: str) -> str:
    return Path(name).name.split(".")[0]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=[*GROUPS, "others", "speed"])
    parser.add_argument("--data", type=Path, help="the folder with ct, dicom, iso_dev, stacks and thick")
    parser.add_argument("--model", default="default")
    parser.add_argument("--mm", type=float, help="spacing of the answer to real stacks; default: each group's own")
    parser.add_argument("--side", type=int, default=96, help="voxels a side of the simulated scans")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 2.0], help="in percent of the intensity range")
    parser.add_argument("--shape", type=int, nargs=3, default=(320, 320, 30))
    parser.add_argument("--spacing", type=float, nargs=3, default=(0.8, 0.8, 4.0))
    parser.add_argument("--out", type=Path, help="where pictures go; default: none are drawn")
    arguments = parser.parse_args()
    if arguments.data is None and set(arguments.what) != {"speed"}:
        parser.error("--data is needed for all but speed")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
