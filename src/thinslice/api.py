"""`enhance` and `combine` for Python programs: paths, arrays, or images of nibabel, TorchIO or MONAI in.

Images of other libraries are known by what they have, not by their classes: none of these libraries is imported, but
for nibabel.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from thinslice.combination import Combined, Grid, combine_volumes
from thinslice.errors import InputRefused, PlanRefused
from thinslice.io import formats, nifti
from thinslice.io.affines import check_affine, shear_notes
from thinslice.io.encoding import as_numbers, finite
from thinslice.models.engine import EngineSettings
from thinslice.models.files import load_once
from thinslice.models.protocol import Model
from thinslice.models.registry import models_for
from thinslice.pipeline import Enhanced, enhance_volume, read_labels, read_scan, series_of
from thinslice.progress import Progress, no_progress
from thinslice.settings import Profile, Settings
from thinslice.volume import Volume

__all__ = ["Combined", "Enhanced", "combine", "enhance"]


class HasAffine(Protocol):
    """An image of another library: nibabel's, TorchIO's ScalarImage, MONAI's MetaTensor, or one like these."""

    @property
    def affine(self) -> Any:
        """[4, 4] voxel index -> patient millimetres (RAS)."""


Image = str | os.PathLike[str] | Volume | HasAffine | ArrayLike
"""What `enhance` takes."""


def enhance(
    image: Image,
    settings: Settings | None = None,
    *,
    affine: ArrayLike | None = None,
    model: str | os.PathLike[str] | Model | None = None,
    labels: Image | None = None,
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    scratch: str | os.PathLike[str] | None = None,
    progress: Progress = no_progress,
    **changes: Any,
) -> Enhanced:
    """Computes the thin slices of a scan, as ``thinslice enhance`` does.

    Args:
        image: one of

            - a file of `thinslice.io.formats`, or a folder with one DICOM series;
            - an array [x, y, z] or [x, y, z, t] of real numbers, with ``affine``;
            - an image of nibabel, or a `thinslice.Volume`;
            - what has an ``affine``, and voxels [1, x, y, z] or [x, y, z] in ``data``: TorchIO's ScalarImage, MONAI's
              MetaTensor.

            It is not changed.
        settings: what is asked for, see `thinslice.Settings`; default: its defaults.
        affine: of an array: [4, 4], voxel index -> patient millimetres (RAS).
        model: ``default``, ``planes-mr``, ``planes-ct``, ``cubic`` ..., a model file (one that is called like one of
            those is reached as ``./cubic``, or as a `pathlib.Path`), or a model that is loaded; default: that of the
            settings. A file is loaded once per process.
        labels: a segmentation on the grid of the scan, as an image; `Enhanced.save` and `Enhanced.labels_to_thin` bring
            it along.
        threads: CPU threads for the network; default: all cores that this process may use.
        device: what runs the network, such as ``cpu``.
        precision: of the network's numbers, such as ``fp32``.
        scratch: folder for an answer that is too large for the memory; default: the system's for temporary files.
        progress: called with the share done, 0 .. 1.
        changes: fields of `thinslice.Settings` by name, in place of those of ``settings``: ``factor=4``.

    Raises:
        InputRefused: this is no scan, or it cannot be read.
        PlanRefused: it cannot be made thinner as asked; the way out is in the message.
        ModelRefused: there is no such model.
        OutputRefused: no room on the disk for an answer that is too large for the memory.

    Example:
        >>> import numpy as np
        >>> thick = np.zeros((32, 32, 6), "float32")
        >>> thick[8:24, 8:24, 2:4] = 100
        >>> done = enhance(thick, affine=np.diag([1, 1, 4, 1]), model="cubic", profile="box")
        >>> done.array.shape, float(done.affine[2, 2])
        ((32, 32, 24), 1.0)
        >>> done.report.consistency.worst_percent < 5
        True
    """
    if model is not None and not isinstance(model, Model):
        changes["model"] = os.fspath(model)
    settings = _changed(settings, changes)
    _check_threads(threads)
    volume = to_volume(image, affine)
    # `model` itself and not its text in the settings: a `pathlib.Path` is never the name of an embedded model.
    wanted = settings.model if model is None else model
    chosen = _models_for(wanted, threads, device, precision)(volume)
    # Nothing gets this name: its folder is where a large answer lives, its ending says which values it can hold.
    target = Path(scratch) / f"thin{formats.own_ending(volume)}" if scratch is not None else None
    series = series_of(volume)
    return enhance_volume(
        volume,
        settings,
        chosen,
        target=target,
        # An array of labels has no affine of its own: it lies where the array of the scan does.
        labels=None if labels is None else _to_labels(labels, affine if _is_bare(labels) else None, volume),
        name=None if series is None else series.label,
        progress=progress,
    )


def combine(
    images: Sequence[Image],
    *,
    affines: Sequence[ArrayLike] | None = None,
    spacing_mm: float | None = None,
    grid: Grid | Image = "first",
    registration: bool = True,
    labels: Image | None = None,
    model: str | os.PathLike[str] | Model = "default",
    thickness_mm: float | None = None,
    profile: Profile | None = None,
    denoise: bool = True,
    interleaving: bool = True,
    noise: float | None = None,
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    progress: Progress = no_progress,
) -> Combined:
    """Finds the one volume that several stacks of a body agree with, as ``thinslice combine`` does.

    Args:
        images: two stacks or more of one body in one contrast, in any directions; each as for `enhance`, [x, y, z]. The
            first one sets grid, brightness and type of the answer.
        affines: of arrays, one for each.
        spacing_mm: distance between voxels along all axes; default: that which `enhance` gives the first stack.
        grid: ``first``: the field of view of the first stack; ``union``: around all of them; or an image whose grid the
            answer gets.
        registration: whether stacks are placed where they fit each other, which needs SimpleITK (the extra
            ``combine``); else their headers are believed.
        labels: a segmentation on the grid of the first stack, brought along.
        model: as for `enhance`.
        thickness_mm, profile, denoise, interleaving, noise: of all stacks, see `thinslice.Settings`.
        threads, device, precision: as for `enhance`.
        progress: called with the share done, 0 .. 1.

    Raises:
        InputRefused: they are not several stacks of one body in one contrast.
        PlanRefused: one of them cannot be made thin.
        ModelRefused: there is no such model.

    Example:
        >>> import numpy as np
        >>> random = np.random.default_rng(0)
        >>> body = np.kron(random.random((8, 8, 8)), np.ones((6, 6, 6))) * 100
        >>> axial, coronal = body.reshape(48, 48, 12, 4).mean(axis=3), body.reshape(48, 12, 4, 48).mean(axis=2)
        >>> affines = np.diag([1.0, 1.0, 4.0, 1.0]), np.diag([1.0, 4.0, 1.0, 1.0])
        >>> affines[0][2, 3], affines[1][1, 3] = 1.5, 1.5
        >>> done = combine([axial, coronal], affines=affines, model="cubic", registration=False)
        >>> done.array.shape, [stack.left_out for stack in done.stacks]
        ((48, 48, 48), [None, None])
    """
    if isinstance(images, str | os.PathLike):
        raise InputRefused(
            got="one name", need="a list of stacks", next="combine([axial, sagittal])", place=images, code="one-stack"
        )
    if affines is not None and len(affines) != len(images):
        raise InputRefused(
            got=f"{len(affines)} affines for {len(images)} images",
            need="one for each",
            next="give as many",
            code="not-as-many-affines",
        )
    _check_threads(threads)
    settings = Settings(
        model="cubic" if isinstance(model, Model) else os.fspath(model),
        thickness_mm=thickness_mm,
        profile=profile,
        denoise=denoise,
        interleaving=interleaving,
        noise=noise,
    )
    volumes = [to_volume(image, None if affines is None else affines[n]) for n, image in enumerate(images)]
    # An array of labels has no affine of its own: it lies where the array of the first stack does.
    of_labels = affines[0] if affines is not None and labels is not None and _is_bare(labels) else None
    return combine_volumes(
        volumes,
        _models_for(model, threads, device, precision),
        spacing_mm=spacing_mm,
        grid=_to_grid(grid),
        registration=registration,
        labels=None if labels is None else _to_labels(labels, of_labels, volumes[0]),
        settings=settings,
        progress=progress,
    )


def _check_threads(threads: int | None) -> None:
    is_count = isinstance(threads, Integral) and not isinstance(threads, bool) and threads >= 1
    if threads is not None and not is_count:
        raise PlanRefused(
            got=f"`threads={threads!r}`", need="1, 2 ...", next="correct it or leave it out", code="not-a-whole-number"
        )


def _models_for(
    model: str | os.PathLike[str] | Model, threads: int | None, device: str, precision: str
) -> Callable[[Volume], Model]:
    """Returns what chooses the model for a scan; a file is loaded once per process."""
    if isinstance(model, Model):
        chosen = model if threads is None else model.with_threads(threads)
        return lambda _: chosen
    return models_for(model, EngineSettings(device=device, threads=threads, precision=precision), load_once)


def _to_grid(grid: Grid | Image) -> Grid | Volume:
    """Returns the word that says where an answer lies, or the volume whose grid it gets."""
    if isinstance(grid, str) and grid in ("first", "union"):
        return "first" if grid == "first" else "union"
    return to_volume(grid)


def _changed(settings: Settings | None, changes: Mapping[str, Any]) -> Settings:
    """Returns the settings with the fields changed that were given by name."""
    if settings is not None and not isinstance(settings, Settings):
        raise PlanRefused(
            got=f"{type(settings).__name__} as `settings`",
            need="thinslice.Settings",
            next="give fields by name: enhance(image, factor=4); an affine goes in as `affine`",
            code="not-settings",
        )
    known = [field.name for field in fields(Settings)]
    if unknown := sorted(set(changes) - set(known)):
        # A `TypeError` is what Python raises for a wrong keyword, and programs count on that.
        raise TypeError(f"enhance() got an unexpected keyword argument '{unknown[0]}'; it takes {', '.join(known)}")
    # `replace` builds the object anew, so the fields that were given by name are checked like all others.
    return replace(settings or Settings(), **changes)


def _to_labels(labels: Image, affine: ArrayLike | None, scan: Volume) -> Volume:
    """Returns a segmentation of a scan as a `Volume`."""
    if isinstance(labels, str | os.PathLike) and os.fspath(labels):
        return read_labels(Path(labels), scan)
    return to_volume(labels, affine, labels=True)


def _is_bare(image: Any) -> bool:
    """Returns whether an image does not say where its voxels are."""
    return not isinstance(image, str | os.PathLike | Volume) and getattr(image, "affine", None) is None


# ---- images


def to_volume(image: Image, affine: ArrayLike | None = None, labels: bool = False) -> Volume:
    """Returns whatever `enhance` takes as a `Volume`; it shares the voxels where they can be used as they are.

    Args:
        image: see `enhance`.
        affine: of an array: [4, 4], voxel index -> patient millimetres (RAS).
        labels: whether it may be a label map of another library.

    Raises:
        InputRefused: see `enhance`.
    """
    own = not _is_bare(image)
    if own and affine is not None:
        raise InputRefused(
            got="`affine` for an image that has one of its own",
            need="one of them",
            next="leave `affine` out, or give the voxels as an array",
            code="two-affines",
        )
    if isinstance(image, str | os.PathLike):
        # As a `Path` it would be the current folder, and the scan in there would be taken.
        if not os.fspath(image):
            raise InputRefused(
                got=f"an empty name for {'`labels`' if labels else 'the scan'}",
                need="the name of a file or folder",
                next="name it; a variable may be empty",
                code="input-empty-name",
            )
        return read_scan(Path(image))
    if isinstance(image, Volume):
        return _checked(image)
    # Before the images that are known by their affine: nibabel's have one too, and a header that is to be kept.
    if nifti.is_image(image):
        return nifti.from_image(image)
    if own:
        return _from_library(image, labels)
    if affine is None:
        raise InputRefused(
            got=f"{type(image).__name__} without an affine",
            need="to know where its voxels are",
            next="enhance(array, affine=affine) with [4, 4], voxel index -> patient millimetres (RAS)",
            code="no-affine",
        )
    return _checked(Volume(_array(image), _affine(affine)))


def _from_library(image: Any, labels: bool) -> Volume:
    """Returns an image of TorchIO or MONAI, or one like theirs ([channel, x, y, z] or [x, y, z]), as a volume."""
    if getattr(image, "type", None) == "label" and not labels:
        raise InputRefused(
            got="a label map",
            need="a scan",
            next="enhance the scan, and give the label map as `labels`",
            code="labels-for-scan",
        )
    voxels = _array(image.data if hasattr(image, "data") else image)
    # Channels come first in both libraries; in an array of ours the fourth axis is time and comes last.
    if voxels.ndim == 4 and voxels.shape[0] == 1:
        voxels = voxels[0]
    if voxels.ndim != 3:
        raise InputRefused(
            got=f"an image of shape {voxels.shape}",
            need="one channel, [1, x, y, z]",
            next="call enhance for each, or give the voxels [x, y, z] or [x, y, z, t] as an array with `affine`",
            code="several-channels",
        )
    return _checked(Volume(voxels, _affine(image.affine), source=_file_of(image)))


def _file_of(image: Any) -> Path | None:
    """Returns the file that TorchIO or MONAI says an image came from: for the report, and never to be replaced."""
    meta = getattr(image, "meta", None)
    name = meta.get("filename_or_obj") if isinstance(meta, Mapping) else getattr(image, "path", None)
    return Path(name) if isinstance(name, str | os.PathLike) and os.fspath(name) else None


def _array(data: Any) -> np.ndarray:
    """Returns an array of what may be a tensor, on whatever device, with or without gradients."""
    # `np.asarray` would give the numbers below the mask, which mean nothing.
    if isinstance(data, np.ma.MaskedArray):
        raise InputRefused(
            got="a masked array", need="a value in every voxel", next="array.filled(value)", code="masked-array"
        )
    try:
        for step in ("detach", "cpu"):
            data = getattr(data, step)() if hasattr(data, step) else data
        return np.asarray(data.numpy() if hasattr(data, "numpy") else data)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; torch's numbers that numpy has not
        raise InputRefused(
            got=f"{type(data).__name__}, which is no array of numbers ({error})",
            need="[x, y, z]",
            next="convert it",
            code="not-an-array",
        ) from error


def _affine(affine: Any) -> np.ndarray:
    found = _array(affine)
    if found.shape != (4, 4) or found.dtype.kind not in "iuf" or not np.array_equal(found[3], [0, 0, 0, 1]):
        raise InputRefused(
            got=f"an affine of shape {found.shape}",
            need="numbers [4, 4], the last line 0 0 0 1",
            next="voxel index -> patient millimetres (RAS), such as numpy.diag([1, 1, 5, 1])",
            code="not-an-affine",
        )
    # A copy: what the caller does to the array afterwards must not move the scan.
    return np.array(found, np.float64)


def _checked(volume: Volume) -> Volume:
    """Returns a volume of real numbers on a sound grid; what is not finite is replaced in a copy."""
    affine = _affine(volume.affine)
    check_affine(affine, "give the affine of the scan")
    voxels, notes = finite(as_numbers(np.asarray(volume.voxels)))
    # A volume that went through here before has these notes already.
    notes = [note for note in [*shear_notes(affine), *notes] if note not in volume.notes]
    return replace(volume, voxels=voxels, affine=affine, notes=(*volume.notes, *notes))
