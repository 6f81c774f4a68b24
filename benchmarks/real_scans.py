"""How models do on real scans, where the slice profile is not told: pictures and figures without simulated slices.

    python benchmarks/real_scans.py --data DATA [--models cubic default] [--only knees] [--nothing-told] [--out OUT]

*Pairs.* One stack is made thin, sampled where the voxels of another stack of the same person lie (by both affines),
averaged by that stack's own thickness, and compared with what was acquired there. The spine's two stacks are
reformats of one CT acquisition: RMS in Hounsfield units, from `HU_LOW` to `HU_HIGH`. Others were acquired one after
the other: the correlation of the fine detail over the foreground, and PSNR after the linear match of intensities that
suits plain cubic. *Fine detail* is what is left when a Gaussian along the direction that was made thin is taken away
with a response of one half at 1 / (2 spacings), the highest frequency that the acquired slices resolve (`DETAIL`).

*Thicker.* Every stack is made thicker by averaging each two neighbouring slices, made thin again to the acquired
slices, and compared with them: PSNR over the foreground.

Every model is asked with nothing told of the slice profile, and then with each profile of `Case.told`. The reference is
plain cubic interpolation, without projection. Tables go to the standard output as Markdown, pictures into OUT. It needs
scipy.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d, map_coordinates

from thinslice.evaluation.metrics import data_range, foreground, psnr
from thinslice.models.registry import find_model
from thinslice.physics.acquisition import Acquisition
from thinslice.physics.intensity import intensity_range
from thinslice.physics.profile import reach_vox, slice_profile
from thinslice.pipeline import enhance_volume, read_scan
from thinslice.plan import Plan
from thinslice.reports.picture import Picture, draw_side_by_side, find_picture_centre, reslice_planes, write_picture
from thinslice.settings import Profile, Settings
from thinslice.volume import Volume, patient_axes, through_plane_axis

HU_LOW, HU_HIGH = -400, 1500
"""Soft tissue and bone: neither the air around the patient nor metal."""

HU_WINDOW = (-200.0, 700.0)
"""Hounsfield units shown black and white."""

DETAIL = np.sqrt(2 * np.log(2)) / np.pi
"""Standard deviation, in slice spacings, of the Gaussian with a response of one half at 1 / (2 spacings)."""

THICKER = 2
"""So many neighbouring slices are averaged."""

NOTHING = "nothing"

Told = tuple[Profile, float]
"""A slice profile, and its full width at half maximum in millimetres."""


@dataclass(frozen=True)
class Case:
    """One stack to make thin, and what it is compared with.

    Attributes:
        scan: below DATA.
        others: further stacks of the same person, and the width in millimetres of the box by which each of them sees.
        told: what is told of the slice profile of ``scan``, in turns.
        hounsfield: whether all are of one CT acquisition.
    """

    scan: str
    others: dict[str, float]
    told: tuple[Told, ...] = ()
    hounsfield: bool = False


def _each_against_the_others(thickness_mm: dict[str, float], told: dict[str, tuple[Told, ...]]) -> tuple[Case, ...]:
    return tuple(
        Case(scan, {name: mm for name, mm in thickness_mm.items() if name != scan}, told.get(scan, ()))
        for scan in thickness_mm
    )


KNEES = {"thick/knee_pdfs_sag.nii.gz": 3.3, "thick/knee_pdfs_cor.nii.gz": 3.0, "dicom/knee_ax_pdfs_jpegll": 3.5}
"""Slice thickness in millimetres: as the manifest of the data says it, and the header of the axial series."""

PROSTATE = {
    "thick/prostate_t2_sag_px0000.nii.gz": 3.6,
    "stacks/prostate_t2_px0000_tra.nii.gz": 3.0,
    "stacks/prostate_t2_px0000_cor.nii.gz": 3.0,
}
"""Slice spacings in millimetres; the thickness is not known."""

GROUPS = {
    "spine": (
        Case(
            "ct/ct_spine_cor3mm_taichi.nii.gz",
            {"stacks/ct_spine_sag3mm_taichi.nii.gz": 3.0},
            (("box", 3.0), ("gaussian", 3.0)),
            hounsfield=True,
        ),
    ),
    "knees": _each_against_the_others(
        KNEES,
        {
            "thick/knee_pdfs_sag.nii.gz": (("box", 3.3), ("gaussian", 4.29)),
            "thick/knee_pdfs_cor.nii.gz": (("box", 3.0), ("gaussian", 3.9)),
        },
    ),
    "prostate": _each_against_the_others(PROSTATE, {}),
}
"""The pairs of `--only`."""


def main() -> int:
    arguments = _arguments()
    is_telling = not arguments.nothing_told
    for group in arguments.only:
        if group == "thicker":
            paths = sorted((arguments.data / "thick").glob("*.nii*"))
            lines = thicker_table(paths, arguments.models, arguments.out, is_telling)
        else:
            cases = [case if is_telling else replace(case, told=()) for case in GROUPS[group]]
            lines = pair_table(cases, arguments.data, arguments.models, arguments.out)
        for line in lines:
            print(line, flush=True)
        print()
    return 0


# ---- answers


def answers(
    scan: Volume, models: Sequence[str], told: Sequence[Told], **wish: float
) -> Iterator[tuple[str, str, str, Volume]]:
    """Yields model, what it was told, what was assumed, and its answer; plain cubic interpolation first."""
    plan, thin = _answer(scan, "cubic", Settings(model="cubic", projection=False, **wish))
    yield "plain cubic", "", "", thin
    for name in models:
        if name == "cubic":
            continue
        for one in (None, *told):
            settings = Settings(model=name, **wish)
            if one is not None:
                settings = replace(settings, profile=one[0], thickness_mm=one[1])
            plan, thin = _answer(scan, name, settings)
            yield name, _words(*one) if one else NOTHING, _words(plan.profile, plan.thickness_mm), thin


def _answer(scan: Volume, name: str, settings: Settings) -> tuple[Plan, Volume]:
    done = enhance_volume(scan, settings, find_model(name))
    return done.plan, done.volume


# ---- pairs


def pair_table(cases: Sequence[Case], data: Path, models: Sequence[str], out: Path | None) -> Iterator[str]:
    """Yields the lines of a table in Markdown; with ``out``, draws each pair."""
    heads = ["RMS HU"] if cases[0].hounsfield else ["fine detail", "over cubic", "PSNR dB", "over cubic"]
    yield "| made thin | against | model | told | assumed | " + " | ".join(heads) + " |"
    yield "|---|---|---|---|---|" + "--:|" * len(heads)
    for case in cases:
        scan = read_scan(data / case.scan)
        pairs = [_Pair(scan, read_scan(data / name), mm, case.hounsfield) for name, mm in case.others.items()]
        for model, told, assumed, thin in answers(scan, models, case.told):
            for pair, name in zip(pairs, case.others, strict=True):
                cells = pair.score(f"{model}\n{f'told {told}' if told else ''}", thin)
                yield f"| {_stem(case.scan)} | {_stem(name)} | {model} | {told} | {assumed} | {' | '.join(cells)} |"
        for pair, name in zip(pairs, case.others, strict=True):
            if out is not None:
                pair.draw(out / f"{_stem(case.scan)}-against-{_stem(name)}.png")


class _Pair:
    """One stack that is made thin, another that was acquired, and what has been compared so far; plain cubic first."""

    def __init__(self, scan: Volume, other: Volume, other_mm: float, hounsfield: bool) -> None:
        self.scan, self.other, self.other_mm, self.hounsfield = scan, other, other_mm, hounsfield
        self.along = facing_axis(scan, other)
        self.first: tuple[float, float] | None = None
        self.match = np.array([1.0, 0.0])
        self.shown: list[tuple[str, np.ndarray]] = []

    def score(self, caption: str, thin: Volume) -> list[str]:
        """The cells of an answer."""
        seen = seen_by(thin, self.other, self.other_mm)
        if self.hounsfield:
            self.shown.append((caption, seen))
            return [f"{rms_hounsfield(seen, self.other):.1f}"]
        mask = np.isfinite(seen) & foreground(self.other.voxels)
        if self.first is None:
            self.match = np.polyfit(seen[mask], self.other.voxels[mask], 1)
        seen = np.polyval(self.match, seen)
        self.shown.append((caption, seen))
        found = correlate_detail(seen, self.other, self.along, self.scan), _psnr(seen, self.other.voxels, mask)
        self.first = self.first or found
        detail, decibel = (now - then for now, then in zip(found, self.first, strict=True))
        return [f"{found[0]:.3f}", f"{detail:+.3f}", f"{found[1]:.2f}", f"{decibel:+.2f}"]

    def draw(self, path: Path) -> None:
        """All answers beside what was acquired."""
        window = HU_WINDOW if self.hounsfield else intensity_range(self.other.voxels)
        shown = [*self.shown, ("acquired:\nthe other stack", self.other.voxels)]
        _draw(self.other, shown, self.along, window, path)


def facing_axis(scan: Volume, other: Volume) -> int:
    """Returns the other's array axis that runs across the slices of ``scan``."""
    across = patient_axes(scan.affine)[through_plane_axis(scan)]
    return patient_axes(other.affine).index(across)


def seen_by(thin: Volume, other: Volume, width_mm: float) -> np.ndarray:
    """What the other stack would see of thin slices: float32 of its shape, NaN beyond their field of view.

    Its slice profile is taken for a box of ``width_mm``.
    """
    axis, step_mm = through_plane_axis(other), min(thin.spacing_mm) / 2
    reach = int(reach_vox(width_mm / step_mm, "box"))
    offsets = np.arange(-reach, reach + 1)
    weights = slice_profile(offsets.astype(float), width_mm / step_mm, "box")
    to_thin = np.linalg.inv(thin.affine) @ other.affine
    index = np.indices(other.shape, dtype=np.float32)
    place = np.tensordot(to_thin[:3, :3].astype(np.float32), index, axes=1) + to_thin[:3, 3].reshape(3, 1, 1, 1)
    stride = (to_thin[:3, axis] * step_mm / other.spacing_mm[axis]).reshape(3, 1, 1, 1)
    voxels, total = thin.voxels.astype(np.float32), np.zeros(other.shape, np.float32)
    for offset, weight in zip(offsets, weights / weights.sum(), strict=True):
        if weight > 0:
            total += np.float32(weight) * map_coordinates(voxels, place + offset * stride, order=1, cval=np.nan)
    return total


def rms_hounsfield(seen: np.ndarray, other: Volume) -> float:
    """Root mean square difference in soft tissue and bone."""
    mask = np.isfinite(seen) & (other.voxels > HU_LOW) & (other.voxels < HU_HIGH)
    return float(np.sqrt(np.mean((seen[mask].astype(np.float64) - other.voxels[mask]) ** 2)))


def correlate_detail(seen: np.ndarray, other: Volume, along: int, scan: Volume) -> float:
    """Correlation, over the foreground, of what is finer along one axis than the slices of ``scan`` resolve."""
    mask = np.isfinite(seen) & foreground(other.voxels)
    sigma = DETAIL * scan.spacing_mm[through_plane_axis(scan)] / other.spacing_mm[along]
    weight = np.maximum(gaussian_filter1d(mask.astype(np.float32), sigma, along), 1e-3)

    def detail(image: np.ndarray) -> np.ndarray:
        inside = np.where(mask, image, 0).astype(np.float32)
        fine: np.ndarray = (inside - gaussian_filter1d(inside, sigma, along) / weight)[mask]
        return fine

    return float(np.corrcoef(detail(seen), detail(other.voxels))[0, 1])


# ---- thick to thicker


def thicker_table(
    paths: Sequence[Path], models: Sequence[str], out: Path | None, is_telling: bool = True
) -> Iterator[str]:
    """Yields lines of Markdown: stacks made thicker, made thin again and compared with the acquired slices."""
    yield "| scan | model | told | assumed | PSNR dB | over cubic |"
    yield "|---|---|---|---|--:|--:|"
    for path in paths:
        truth, thicker = make_thicker(read_scan(path))
        axis = through_plane_axis(thicker)
        told: list[Told] = [("box", thicker.spacing_mm[axis])] if is_telling else []
        mask, first, shown = foreground(truth.voxels), None, []
        for model, what, assumed, thin in answers(thicker, models, told, factor=float(THICKER)):
            found = _psnr(thin.voxels, truth.voxels, mask)
            first = found if first is None else first
            yield (f"| {_stem(path.name)} | {model} | {what} | {assumed} | {found:.2f} | {found - first:+.2f} |")
            shown.append((f"{model}\n{f'told {what}' if what else ''}", thin.voxels))
        if out is not None:
            shown.append(("acquired\n", truth.voxels))
            _draw(truth, shown, axis, intensity_range(truth.voxels), out / f"{_stem(path.name)}-thicker.png")


def make_thicker(scan: Volume) -> tuple[Volume, Volume]:
    """The stack, without its last slices where they do not go into whole thicker ones, and the thicker stack.

    What sees the acquired slices is a box over `THICKER` of them, whatever their own profile is.
    """
    axis = through_plane_axis(scan)
    count = scan.shape[axis] // THICKER
    voxels = np.take(scan.voxels, np.arange(count * THICKER), axis=axis).astype(np.float32)
    centre = (THICKER - 1) / 2
    acquisition = Acquisition(centre + THICKER * np.arange(count), count * THICKER, float(THICKER), "box", axis)
    affine = np.array(scan.affine)
    affine[:3, 3] += centre * affine[:3, axis]
    affine[:3, axis] *= THICKER
    truth = replace(scan, voxels=voxels, thickness_mm=None)
    return truth, replace(truth, voxels=acquisition.forward(voxels), affine=affine)


# ---- what both use


def _psnr(answer: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    return psnr(answer, truth, data_range(truth), mask)


def _draw(
    grid: Volume, shown: Sequence[tuple[str, np.ndarray]], along: int, window: tuple[float, float], path: Path
) -> None:
    """Draws arrays on one grid beside each other: a plane in which the axis lies that was made thin."""
    seen = np.isfinite(shown[0][1])
    # Cut to where both stacks have a field of view.
    flat = [np.flatnonzero(seen.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    box = tuple(slice(found[0], found[-1] + 1) for found in flat)
    volumes = [replace(grid, voxels=np.nan_to_num(voxels[box], nan=window[0])) for _, voxels in shown]
    grid = volumes[-1]
    centre = find_picture_centre(grid)
    # Of the two planes with that axis the one with smaller pixels: an acquired slice of the other stack.
    which = min((0, 1), key=lambda at: max(reslice_planes(grid, along, centre)[at].pixel_mm))
    row = [
        Picture(caption, reslice_planes(volume, along, centre)[which], window)
        for (caption, _), volume in zip(shown, volumes, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(draw_side_by_side([row]), path)


def _words(profile: str, thickness_mm: float) -> str:
    return f"{profile} {thickness_mm:.3g} mm"


def _stem(name: str) -> str:
    return Path(name).name.split(".")[0]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with ct, dicom, stacks and thick")
    parser.add_argument("--models", nargs="+", default=["cubic", "default"])
    parser.add_argument("--only", nargs="+", choices=[*GROUPS, "thicker"], default=[*GROUPS, "thicker"])
    parser.add_argument("--nothing-told", action="store_true", help="leave out the answers that are told a profile")
    parser.add_argument("--out", type=Path, help="where pictures go; default: none are drawn")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
