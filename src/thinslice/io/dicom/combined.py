"""A volume from several series -> a new series of their study, on any grid with axes at right angles.

It keeps what all of their slices say alike. What makes the contrast, and what a series has one of, is that of the
first, whose brightness the volume has. The same series, plan and grid give the same files, byte for byte.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from thinslice.io.affines import SHEAR_COSINE, directions, shear
from thinslice.io.dicom.derived import (
    OF_ALL,
    REACH,
    Account,
    Layout,
    counts_down,
    describe,
    image_at,
    no_surprise,
    program_in_words,
    read_headers,
    references,
    series_description,
    series_number,
    shared_header,
    window_of,
)
from thinslice.io.dicom.groups import shared_words
from thinslice.io.dicom.headers import MAKER, Image, quiet
from thinslice.io.dicom.identity import replacement_uid
from thinslice.io.dicom.series import TO_RAS, Series
from thinslice.io.refusals import refused, unwritable
from thinslice.volume import Volume, fingerprint, patient_axes, runs_backwards, through_plane_axis

logger = logging.getLogger(__name__)

OF_CONTRAST = ("EchoTime", "RepetitionTime", "InversionTime", "FlipAngle", "EchoTrainLength", "KVP")
"""What makes a contrast: of stacks that share one these differ a little, and those of the first are kept.

Archives and viewers tell T1 from T2 by them.
"""

OF_ONE_PLANE = (
    "AcquisitionMatrix", "InPlanePhaseEncodingDirection", "PercentSampling", "PercentPhaseFieldOfView",
    "NumberOfPhaseEncodingSteps", "ReconstructionDiameter", "DataCollectionDiameter", "GantryDetectorTilt",
    "ReferencedImageSequence", "ReferencedSeriesSequence", "NumberOfSeriesRelatedInstances",
)  # fmt: skip
"""What holds in the planes in which slices were acquired, even where all series say the same."""

SAME_AXES = 0.9999
"""Axes whose cosine is larger are the same ones: within 0.8 degrees."""

THICK = 1.5
"""Where voxels are so many times longer along another axis than that of the first series, slices lie across it."""

ABOVE_ENHANCED = 500
"""What is added to the number of a combined series: below that are those of single stacks made thin."""


def check_can_combine(sources: Sequence[Volume], affine: np.ndarray) -> None:
    """Refuses what cannot become one series; to be asked before anything is computed.

    Args:
        sources: the scans as `read_series` gives them back.
        affine: [4, 4] of the grid, voxel index -> patient millimetres (RAS).

    Raises:
        InputRefused: they are of several patients, or of MR and CT.
        OutputRefused: the axes of the grid are not at right angles.
    """
    images = [_series_of(source).images[0] for source in sources]
    if len(patients := {image.patient for image in images}) > 1:
        got, way = f"series of {len(patients)} patients (PatientID)", "leave the others out"
        raise refused(got, "series of one", way, code="dicom-several-patients")
    if len({image.modality for image in images}) > 1:
        raise refused("MR and CT series", "series of one modality", "leave one out", code="dicom-several-modalities")
    if shear(affine) > SHEAR_COSINE:
        got, way = "a grid whose axes are not at right angles", "choose another grid, or write NIfTI (.nii.gz)"
        raise unwritable(got, "one of straight slices for a DICOM series", way, code="dicom-sheared-grid")


def images_of_combined(
    volume: Volume, sources: Sequence[Volume], description: str, key: str, model: str = "", anonymise: bool = False
) -> Iterator[Dataset]:
    """Yields the slices of a new series, in order, to be written with `thinslice.io.dicom.derived.save`.

    Its planes are those of the first series where the grid has its axes and is about as fine across them. Else they lie
    across the coarsest axis, and are shown as usual: the patient's left or back at the right, feet or back below.

    Args:
        volume: the combined volume, as `thinslice.io.dicom.derived.as_stored` gives it back: its header before that
            was the first series. The axes of its grid are at right angles; where they point does not matter.
        sources: the scans that it was computed from, as `read_series` gives them back; the first is the one whose
            brightness it has.
        description: sentences on what was done, without names: motion that was found, how well the stacks agree.
        key: all decisions that led to the voxels, such as the plans as JSON; with the scans and the grid it makes the
            identifiers.
        model: the model with its hash, as people should read it.
        anonymise: without the patient's identity, see `thinslice.io.dicom.identity`.

    Raises:
        InputRefused, OutputRefused: see `check_can_combine`; or what the acquired slices say cannot be written.
    """
    check_can_combine(sources, volume.affine)
    stacks = [_series_of(source) for source in sources]
    turned = turn_to_slices(volume, stacks[0])
    layout = _layout(turned.affine)
    count = turned.shape[2]
    logger.debug("%d slices of a new series from %d series", count, len(stacks))
    with quiet(), no_surprise():
        headers = [read_headers(stack) for stack in stacks]
        account = _account(turned, sources, layout, description, key, model, anonymise)
        shared = _shared([header for of_stack in headers for header in of_stack], stacks[0])
        describe(shared, turned, layout, account, anonymise)
        windows = [window_of(header) for header in headers[0]]
        boxes = [_boxes_mm(stack, layout) for stack in stacks]
        is_downwards = counts_down(stacks[0]) and _has_axes_of(turned.affine, stacks[0].affine)
        for index in range(count):
            image = image_at(shared, turned, layout, index, account.key)
            image.InstanceNumber = count - index if is_downwards else index + 1
            near = [_near(turned, layout, index, stack, box) for stack, box in zip(stacks, boxes, strict=True)]
            _refer(image, near, anonymise)
            image.update(windows[_nearest(turned, index, stacks[0])])
            yield image


def _series_of(source: Volume) -> Series:
    series = source.header
    assert isinstance(series, Series)
    return series


# ---- how the slices lie


def turn_to_slices(volume: Volume, first: Series) -> Volume:
    """Returns the same voxels, not a copy, as [columns, rows from the last to the first, slices along their normal].

    A grid that nobody acquired is shown as usual: of transverse slices, rows run towards the patient's left, and
    columns towards the back.

    Args:
        volume: with axes at right angles.
        first: the series whose axes are taken if the volume has them too, whatever their order and directions.
    """
    across = through_plane_axis(volume) if volume.slice_axis is None else volume.slice_axis
    # Left-right, or else back-front, lies along the rows: the patient axis of the lower number.
    patient = patient_axes(volume.affine)
    order = [*sorted({0, 1, 2} - {across}, key=lambda axis: patient[axis]), across]
    backwards = [not runs_backwards(volume.affine, order[0]), runs_backwards(volume.affine, order[1]), False]
    if _has_axes_of(volume.affine, first.affine):
        cosines = directions(first.affine).T @ directions(volume.affine)
        of_first = [int(axis) for axis in np.abs(cosines).argmax(axis=1)]
        spacing_mm = np.asarray(volume.spacing_mm)
        if of_first[2] == across or spacing_mm[across] < THICK * spacing_mm[of_first[2]]:
            order, backwards = of_first, [bool(cosines[at, axis] < 0) for at, axis in enumerate(of_first)]
    turned = _flipped(volume, order, backwards)
    # The normal of rows and columns is the way in which slices are counted; columns run against the array's rows.
    if np.linalg.det(turned.affine[:3, :3]) < 0:
        return turned
    return _flipped(turned, [0, 1, 2], [False, False, True])


def _has_axes_of(affine: np.ndarray, other: np.ndarray) -> bool:
    """Tells whether two grids have the same axes, in any order and direction."""
    return bool(np.abs(directions(affine).T @ directions(other)).max(axis=0).min() > SAME_AXES)


def _flipped(volume: Volume, order: Sequence[int], backwards: Sequence[bool]) -> Volume:
    """Returns a view with the axes in another order, some of them counted from the other end."""
    affine = np.array(volume.affine, np.float64)
    affine[:3, :3] = volume.affine[:3, list(order)]
    voxels = volume.voxels.transpose(order)
    for axis, is_backwards in enumerate(backwards):
        if is_backwards:
            affine[:3, 3] += (voxels.shape[axis] - 1) * affine[:3, axis]
            affine[:3, axis] *= -1
            voxels = np.flip(voxels, axis)
    return replace(volume, voxels=voxels, affine=affine, slice_axis=2)


def _layout(affine: np.ndarray) -> Layout:
    """Returns how images lie whose array has this affine; see `turn_to_slices`."""
    # To so many digits as the rounding of headers and what was computed from them leaves.
    columns_mm, rows_mm, spacing_mm = (float(mm) for mm in np.linalg.norm(affine[:3, :3], axis=0).round(9))
    along = TO_RAS @ directions(affine)
    cosines = np.round([*along[:, 0], *-along[:, 1]], 12) + 0.0  # -0.0 becomes 0.0
    return Layout(tuple(float(cosine) for cosine in cosines), (rows_mm, columns_mm), spacing_mm)


# ---- what each slice refers to


@dataclass(frozen=True, eq=False)
class _Boxes:
    """Where the images of a stack lie along the three axes of a new series: [images, 3] mm, LPS."""

    low: np.ndarray
    high: np.ndarray
    reach_mm: float


def _boxes_mm(stack: Series, layout: Layout) -> _Boxes:
    columns, rows, count = stack.shape
    corners = [[x, y, z, 1] for z in range(count) for y in (0, rows - 1) for x in (0, columns - 1)]
    places = (stack.affine @ np.array(corners, np.float64).T)[:3]
    along = (_axes(layout) @ TO_RAS @ places).reshape(3, count, 4)
    reach_mm = REACH * float(np.linalg.norm(stack.affine[:3, 2]))
    return _Boxes(along.min(axis=2).T, along.max(axis=2).T, reach_mm)


def _axes(layout: Layout) -> np.ndarray:
    """Returns unit vectors [3, 3] along rows, columns and slices, LPS."""
    along_row, along_column = np.reshape(layout.orientation, (2, 3))
    return np.array([along_row, along_column, np.cross(along_row, along_column)])


def _near(volume: Volume, layout: Layout, index: int, stack: Series, boxes: _Boxes) -> list[Image]:
    """Returns the images of a stack that a new slice crosses, or that lie within `REACH` of their spacings of it.

    Their headers say where they lie: motion that was found later is small against that.
    """
    columns, rows, _ = volume.shape
    corners = volume.affine @ np.array([[0, 0, index, 1], [columns - 1, rows - 1, index, 1]], np.float64).T
    along = _axes(layout) @ TO_RAS @ corners[:3]
    low, high = along.min(axis=1) - boxes.reach_mm, along.max(axis=1) + boxes.reach_mm
    # A little more than the reach: the places of headers are rounded.
    is_near = ((boxes.low <= high + 1e-3) & (boxes.high >= low - 1e-3)).all(axis=1)
    return [image for image, near in zip(stack.images, is_near, strict=True) if near]


def _refer(image: Dataset, near: Sequence[Sequence[Image]], anonymise: bool) -> None:
    """Adds the acquired images that are near, and the series of the same study that they belong to."""
    images = [one for of_stack in near for one in of_stack]
    if not images:
        return
    if sources := references(images, anonymise):
        image.SourceImageSequence = Items(sources)
    # This sequence is for the series of the study that the new one belongs to; by the standard it is complete.
    study = replacement_uid if anonymise else str
    series: dict[str, list[Image]] = {}
    for one in images:
        if one.sop_uid and one.series_uid and study(one.study_uid) == image.StudyInstanceUID:
            series.setdefault(study(one.series_uid), []).append(one)
    if series:
        image.ReferencedSeriesSequence = Items([_series_item(name, of, anonymise) for name, of in series.items()])


def _series_item(name: str, images: Sequence[Image], anonymise: bool) -> Dataset:
    item = Dataset()
    item.SeriesInstanceUID = name
    instances = references(images, anonymise)
    for instance in instances:
        del instance.PurposeOfReferenceCodeSequence
        if "ReferencedFrameNumber" in instance:
            del instance.ReferencedFrameNumber
    item.ReferencedInstanceSequence = Items(instances)
    return item


def _nearest(volume: Volume, index: int, first: Series) -> int:
    """Returns the slice of the first series that is nearest to the middle of a new one."""
    columns, rows, _ = volume.shape
    middle = volume.affine @ [(columns - 1) / 2, (rows - 1) / 2, index, 1]
    place = np.linalg.solve(first.affine, middle)[2]
    return int(np.clip(np.rint(place), 0, len(first.images) - 1))


# ---- what all slices say


def _shared(headers: Sequence[Dataset], first: Series) -> Dataset:
    """Returns what all slices of all series say alike, but for what holds in the planes of acquisition alone."""
    shared = shared_header(headers, first, (*OF_ALL, *OF_CONTRAST))
    for name in OF_ONE_PLANE:
        if name in shared:
            delattr(shared, name)
    return shared


def _account(
    volume: Volume, sources: Sequence[Volume], layout: Layout, done: str, key: str, model: str, anonymise: bool
) -> Account:
    stacks = [_series_of(source) for source in sources]
    first, program = stacks[0], program_in_words()
    spacing_mm = layout.spacing_mm
    named = " ".join(shared_words([stack.images[0].description for stack in stacks])) or first.images[0].description
    with_model = f", model {model}" if model else ""
    return Account(
        key=_key(volume, sources, key, anonymise),
        number=series_number(first.images[0].number or 0, ABOVE_ENHANCED + first.index),
        description=series_description(
            named, first.distinction, f"{len(stacks)} stacks, {spacing_mm:.3g} mm COMPUTED ({MAKER})", anonymise
        ),
        step="COMBINED",
        comments=(
            f"Computed slices, not acquired ones: {program}, combined from {len(stacks)} stacks{with_model}. "
            "Not for diagnosis alone."
        ),
        derivation=(
            f"{volume.shape[2]} slices {spacing_mm:.4g} mm apart computed by {program} from {len(stacks)} stacks of "
            f"acquired ones ({_in_words(stacks)}){with_model}. {done}"
        ).strip(),
        contribution=f"combined {len(stacks)} stacks of acquired slices into one volume{with_model}",
    )


def _in_words(stacks: Sequence[Series]) -> str:
    """Returns how many slices the stacks have, how far apart and how thick they are; equal ones are counted."""
    words = Counter(
        f"{len(stack.images)} slices {np.linalg.norm(stack.affine[:3, 2]):.4g} mm apart"
        + (f" and {stack.thickness_mm:.4g} mm thick" if stack.thickness_mm is not None else "")
        for stack in stacks
    )
    return ", ".join(f"{count} x {each}" if count > 1 else each for each, count in words.items())


def _key(volume: Volume, sources: Sequence[Volume], key: str, anonymise: bool) -> str:
    """Returns what the new identifiers are made of: the scans, their images, the grid, every decision, the program."""
    scans = []
    for source in sources:
        stack = _series_of(source)
        whence = [(image.sop_uid, image.frame) for image in stack.images]
        scans.append((fingerprint(source), whence, stack.index, stack.distinction))
    grid = (volume.shape, (np.round(volume.affine, 6) + 0.0).tolist())
    return repr((scans, grid, key, version("thinslice"), anonymise))
