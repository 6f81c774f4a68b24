"""`enhance` for Python programs: a path, an array, or an image of nibabel, TorchIO or MONAI in, an `Enhanced` out.

The command line computes and writes with the same functions, `compute` and `write_answer`. Images of other libraries
are known by what they have, not by their classes: none of these libraries is imported, but for nibabel.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from thinslice.compute.consistency import Report, make_report
from thinslice.compute.upsample import Upsampled, upsample
from thinslice.errors import InputRefused, OutputRefused, PlanRefused
from thinslice.io import formats, nifti
from thinslice.io.affines import check_affine, shear_notes
from thinslice.io.atomic import all_or_none
from thinslice.io.encoding import as_numbers, finite
from thinslice.io.formats import ending
from thinslice.io.outputs import LABELS_NAME, ScanOutput, find_output, find_study
from thinslice.io.scratch import allocate
from thinslice.models.engine import EngineSettings
from thinslice.models.files import load_once
from thinslice.models.protocol import Model
from thinslice.models.registry import models_for
from thinslice.plan import Plan, make_plan
from thinslice.progress import no_progress
from thinslice.settings import PROFILES, Grid, Profile
from thinslice.volume import Volume

if TYPE_CHECKING:  # pydicom takes a third of a second to import
    from thinslice.io.dicom.series import Series


class HasAffine(Protocol):
    """An image of another library: nibabel's, TorchIO's ScalarImage, MONAI's MetaTensor, or one like these."""

    @property
    def affine(self) -> Any:
        """[4, 4] voxel index -> patient millimetres (RAS)."""


Image = str | os.PathLike[str] | Volume | HasAffine | ArrayLike
"""What `enhance` takes."""


@dataclass(frozen=True, repr=False)
class Enhanced:
    """A scan with thin slices, and how it was made.

    Attributes:
        volume: the answer: voxels [x, y, z] or [x, y, z, t], affine, and the header of the scan that went in. Whole
            numbers stay whole numbers, 8 bits become 16; a file's rescale is kept, and the voxels lie on its steps.
        plan: every decision.
        report: how well the answer agrees with what was acquired, the time it took, notes.
        acquired: the scan that went in.
        clipped: voxels that lay beyond what the whole numbers hold.
    """

    volume: Volume
    plan: Plan
    report: Report
    acquired: Volume
    clipped: int = 0

    def __repr__(self) -> str:
        plan = self.plan
        before, after = plan.spacing_thick_mm[plan.axis], plan.spacing_thin_mm[plan.axis]
        done = f"{plan.n_thick} slices x {before:.4g} mm -> {plan.n_thin} slices x {after:.4g} mm"
        return f"<Enhanced: {done} with {plan.model}>"

    @property
    def array(self) -> np.ndarray:
        """The voxels [x, y, z] or [x, y, z, t]."""
        return self.volume.voxels

    @property
    def affine(self) -> np.ndarray:
        """[4, 4] float64, voxel index -> patient millimetres (RAS)."""
        return self.volume.affine

    def to_nibabel(self) -> Any:
        """A nibabel image (NIfTI-1, or NIfTI-2 if that went in) that shares `array`; its header is what `save` writes.

        Raises:
            OutputRefused: the grid does not fit into a header.
        """
        return nifti.to_image(self.volume)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the scan, and the report as JSON beside it: both of them whole, or nothing.

        Args:
            path: a name in any format that is written, see `thinslice.io.formats`; of a DICOM series also a folder, for
                a new series of the same study. `array` is what is written, on the steps of that format.
            overwrite: whether files that are there already may be replaced; what went in never is.

        Raises:
            OutputRefused: it may not be written there, or there is no room.
        """
        case = find_output(self.acquired.source or Path(), _series(self.acquired), os.fspath(path), overwrite)
        try:
            thin, report = self.stored_in(case.destination)
            write_answer(case, thin, self.acquired, report)
        except OSError as error:
            raise OutputRefused(
                f"{os.fspath(path)}: got '{error.strerror or error}'; need room and permission there; next: free some "
                "room, or choose another place"
            ) from error

    def stored_in(self, target: Path) -> tuple[Volume, Report]:
        """As a file of that name, perhaps of another format than the scan's own, holds it; and the report on that."""
        if formats.is_same_format(ending(target) or "", formats.own_ending(self.acquired)):
            return self.volume, self.report
        voxels = allocate(self.array.shape, self.array.dtype, target.parent)
        voxels[...] = self.array
        thin = as_stored(replace(self.volume, voxels=voxels), target)
        report = make_report(self.acquired, thin, self.plan, self.report.guard, self.report.seconds, self.clipped)
        return thin, replace(report, source=self.report.source)


def enhance(
    image: Image,
    *,
    affine: ArrayLike | None = None,
    spacing_mm: float | None = None,
    factor: float | None = None,
    thickness_mm: float | None = None,
    profile: Profile = "gaussian",
    grid: Grid = "fov",
    model: str | os.PathLike[str] | Model = "default",
    in_plane: int = 1,
    fuse: bool = False,
    projection: bool = True,
    threads: int | None = None,
    scratch: str | os.PathLike[str] | None = None,
    progress: Callable[[float], None] = no_progress,
) -> Enhanced:
    """Compute the thin slices of a scan, as ``thinslice enhance`` does.

    Args:
        image: one of

            - a file of `thinslice.io.formats`, or a folder with one DICOM series;
            - an array [x, y, z] or [x, y, z, t] of real numbers, with ``affine``;
            - an image of nibabel, or a `thinslice.Volume`;
            - what has an ``affine``, and voxels [1, x, y, z] or [x, y, z] in ``data``: TorchIO's ScalarImage, MONAI's
              MetaTensor.

            It is not changed.
        affine: of an array: [4, 4], voxel index -> patient millimetres (RAS).
        spacing_mm: wanted distance between slices; default: the coarser of the two in-plane spacings.
        factor: alternatively, how many times closer the slices shall be.
        thickness_mm: slice thickness; default: what the file, or the JSON beside it, says, else the slice spacing.
        profile: slice profile, ``gaussian`` or ``box``.
        grid: ``fov`` keeps the outer edges of the field of view, ``centres`` the outermost slice centres.
        model: ``default``, ``planes-mr``, ``planes-ct``, ``cubic`` ..., or a model file (one that is called like one of
            those is reached as ``./cubic``, or as a `pathlib.Path`). It is loaded once per process.
        in_plane: enlarge the slices themselves first, so many times along both sides.
        fuse: ask a network in several orientations and join its answers: slower, a little better.
        projection: make the answer agree with the acquired slices.
        threads: CPU threads for the network; default: all cores this process may use.
        scratch: folder for an answer that is too large for the memory; default: the system's for temporary files.
        progress: called with the share done, 0 .. 1.

    Raises:
        InputRefused: this is no scan, or it cannot be read.
        PlanRefused: it cannot be made thinner as wished; the way out is in the message.
        ModelRefused: no such model.
        OutputRefused: no room on the disk for an answer that is too large for the memory.
    """
    if profile not in PROFILES:
        raise PlanRefused(f"got profile {profile!r}; need {' or '.join(PROFILES)}; next: choose one of them")
    numbers = {"spacing_mm": spacing_mm, "factor": factor, "thickness_mm": thickness_mm}
    for name, value in numbers.items():
        if value is not None and not isinstance(value, Real):
            raise PlanRefused(f"got {name} {value!r}; need a number; next: correct it or leave it out")
    if threads is not None and not (isinstance(threads, Integral) and threads >= 1):
        raise PlanRefused(f"got threads {threads!r}; need 1, 2 ...; next: correct it or leave it out")
    volume = to_volume(image, affine)
    if isinstance(model, Model):
        chosen = model if threads is None else model.with_threads(threads)
    else:
        chosen = models_for(model, EngineSettings(threads=threads), load_once)(volume)
    plan = make_plan(
        volume,
        spacing_mm=spacing_mm,
        factor=factor,
        thickness_mm=thickness_mm,
        profile=profile,
        grid=grid,
        model=chosen.name,
        model_sha256=chosen.sha256,
        envelope=chosen.envelope,
        projection=projection,
        in_plane=in_plane,
        fuse=fuse,
    )
    target = Path(scratch or tempfile.gettempdir()) / f"thin{formats.own_ending(volume)}"
    thin, report, done = compute(volume, plan, chosen, target, progress)
    series = _series(volume)
    if series is not None:
        report = replace(report, source=series.label)
    return Enhanced(thin, plan, report, volume, done.clipped)


# ---- what the command line does too


def compute(
    volume: Volume, plan: Plan, model: Model, target: Path, progress: Callable[[float], None] = no_progress
) -> tuple[Volume, Report, Upsampled]:
    """The answer as ``target`` will hold it, in the scan's own kind of numbers, the report on it, and what it came of.

    Until it is written a large answer lives in the folder of ``target``.

    Whole numbers stay whole numbers, but 8 bits become 16: between bright and dark slices an answer goes beyond
    0 .. 255, and clipped there it would not give the scan back when it is made thick again.
    """
    kind = volume.voxels.dtype
    shape = (*plan.shape_thin, *volume.voxels.shape[3:])
    whole = "int16" if kind.itemsize == 1 else kind
    real = "float64" if kind == "float64" else "float32"
    out = allocate(shape, whole if kind.kind in "iu" else real, target.parent)
    started = perf_counter()
    answer = upsample(volume, plan, model, out, progress)
    seconds = perf_counter() - started
    thin = as_stored(answer.volume, target)
    return thin, make_report(volume, thin, plan, answer.guard, seconds, answer.clipped), answer


def as_stored(thin: Volume, target: Path) -> Volume:
    """An answer with the values that a file of that name, or else a new DICOM series, will hold; it is spent on it."""
    if ending(target):
        return formats.as_stored(thin, target)
    from thinslice.io.dicom.derived import as_stored as as_stored_in_series

    return as_stored_in_series(thin)


def write_answer(
    case: ScanOutput,
    thin: Volume,
    volume: Volume,
    report: Report,
    beside: Mapping[Path, Callable[[Path], None]] | None = None,
    anonymise: bool = False,
) -> None:
    """Put the answer and its report in their places: all files, or none of them.

    Args:
        case: their places.
        thin: the answer, as `compute` gives it back for that place.
        volume: the scan that went in.
        report: the report on both.
        beside: further files, and what writes them to the path that it is given.
        anonymise: without the identity of the patient of a new series.

    Raises:
        OutputRefused, OSError: it cannot be written.
    """
    beside = beside or {}
    slices = _slice_files(case, report.plan.n_thin)

    def find_stale() -> set[Path]:  # an earlier series that is replaced may have had more slices, or labels
        if not case.is_into_series:
            return set()
        return {*case.destination.glob("IM*.dcm"), *case.destination.glob(LABELS_NAME)} - {*slices, *beside}

    with all_or_none([case.sidecar, *beside, *slices], case.overwrite, find_stale) as parts:
        report.save(parts[0])
        for write, part in zip(beside.values(), parts[1:], strict=False):
            write(part)
        _write_thin(thin, volume, report, parts[-len(slices) :], case, anonymise)


def _slice_files(case: ScanOutput, slices: int) -> list[Path]:
    """The file of the answer, or one for each slice of a new series."""
    if not case.is_into_series:
        return [case.destination]
    return [case.destination / f"IM{index:04d}.dcm" for index in range(1, slices + 1)]


def _write_thin(
    thin: Volume, volume: Volume, report: Report, parts: Sequence[Path], case: ScanOutput, anonymise: bool
) -> None:
    if not case.is_into_series:
        formats.write(thin, parts[0])
        return
    from thinslice.io.dicom.derived import images, save

    found = report.consistency
    agreement = (
        f"Made thick again they differ from the acquired ones by {found.rms_percent:.2g} % RMS, "
        f"{found.worst_percent:.2g} % at worst, of the intensity range."
    )
    for image, part in zip(images(thin, volume, report.plan, agreement, anonymise), parts, strict=True):
        save(image, part)


# ---- images


def to_volume(image: Image, affine: ArrayLike | None = None) -> Volume:
    """Whatever `enhance` takes as a `Volume`; it shares the voxels where they can be used as they are.

    Raises:
        InputRefused: see `enhance`.
    """
    own = isinstance(image, str | os.PathLike | Volume) or getattr(image, "affine", None) is not None
    if own and affine is not None:
        raise InputRefused(
            "got affine= for an image that has one of its own; need one of them; next: leave affine out, or give the "
            "voxels as an array"
        )
    if isinstance(image, str | os.PathLike):
        return _read(Path(image))
    if isinstance(image, Volume):
        return _checked(image)
    if nifti.is_image(image):
        return nifti.from_image(image)
    if own:
        return _from_library(image)
    if affine is None:
        raise InputRefused(
            f"got {type(image).__name__} without an affine; need to know where its voxels are; next: enhance(array, "
            "affine=affine) with [4, 4], voxel index -> patient millimetres (RAS)"
        )
    return _checked(Volume(_array(image), _affine(affine)))


def _read(path: Path) -> Volume:
    study = find_study(path)
    if study is None:
        if path.is_dir():
            raise InputRefused(
                f"{path}: got a folder without DICOM; need one scan; next: name a file, or call enhance for each"
            )
        return formats.read(path)
    if len(study.series) == 1:
        from thinslice.io.dicom.pixels import read_series

        return read_series(study.series[0])
    if study.series:
        labels = ", ".join(one.label for one in study.series)
        raise InputRefused(
            f"{path}: got {len(study.series)} series ({labels}); need one; next: name the folder of one, or use the "
            "command line"
        )
    raise InputRefused("; ".join(f"{path}: {one.label}: {one.reason}" for one in study.unusable[:1]))


def _series(volume: Volume) -> "Series | None":
    """The DICOM series that a scan was read from."""
    module = sys.modules.get("thinslice.io.dicom.series")  # not imported: then there is none
    return volume.header if module is not None and isinstance(volume.header, module.Series) else None


def _from_library(image: Any) -> Volume:
    """An image of TorchIO or MONAI, or one like theirs: [channel, x, y, z], or [x, y, z]."""
    if getattr(image, "type", None) == "label":
        raise InputRefused(
            "got a label map; need a scan; next: enhance the scan, and bring labels along with 'thinslice enhance "
            "--labels'"
        )
    voxels = _array(image.data if hasattr(image, "data") else image)
    if voxels.ndim == 4 and voxels.shape[0] == 1:
        voxels = voxels[0]
    if voxels.ndim != 3:
        raise InputRefused(
            f"got an image of shape {voxels.shape}; need one channel, [1, x, y, z]; next: call enhance for each, "
            "or give the voxels [x, y, z] or [x, y, z, t] as an array with affine="
        )
    return _checked(Volume(voxels, _affine(image.affine), source=_file_of(image)))


def _file_of(image: Any) -> Path | None:
    """The file that TorchIO or MONAI says an image came from: for the report, and never to be replaced."""
    meta = getattr(image, "meta", None)
    name = meta.get("filename_or_obj") if isinstance(meta, Mapping) else getattr(image, "path", None)
    return Path(name) if isinstance(name, str | os.PathLike) and os.fspath(name) else None


def _array(data: Any) -> np.ndarray:
    """Of a tensor too, on whatever device, with or without gradients."""
    if isinstance(data, np.ma.MaskedArray):
        raise InputRefused("got a masked array; need a value in every voxel; next: array.filled(value)")
    try:
        for step in ("detach", "cpu"):
            data = getattr(data, step)() if hasattr(data, step) else data
        return np.asarray(data.numpy() if hasattr(data, "numpy") else data)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; torch's numbers that numpy has not
        raise InputRefused(
            f"got {type(data).__name__}, which is no array of numbers ({error}); need [x, y, z]; next: convert it"
        ) from None


def _affine(affine: Any) -> np.ndarray:
    found = _array(affine)
    if found.shape != (4, 4) or found.dtype.kind not in "iuf" or not np.array_equal(found[3], [0, 0, 0, 1]):
        raise InputRefused(
            f"got an affine of shape {found.shape}; need numbers [4, 4], the last line 0 0 0 1; next: voxel index -> "
            "patient millimetres (RAS), such as numpy.diag([1, 1, 5, 1])"
        )
    return np.array(found, np.float64)


def _checked(volume: Volume) -> Volume:
    """Real numbers on a grid that can be; what is not finite is replaced in a copy."""
    affine = _affine(volume.affine)
    check_affine(affine, "give the affine of the scan")
    voxels, notes = finite(as_numbers(np.asarray(volume.voxels)))
    notes = [note for note in [*shear_notes(affine), *notes] if note not in volume.notes]
    return replace(volume, voxels=voxels, affine=affine, notes=(*volume.notes, *notes))
