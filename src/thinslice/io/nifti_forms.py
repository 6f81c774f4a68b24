"""The two forms of a NIfTI header, sform and qform: which of them says where the voxels are, and how both are kept.

A header may hold two places, each with a code. Which one a program reads differs: nibabel and FSL the sform, programs
built on ITK the qform unless the sform's code is 1. A scan is read here by one of them, and an answer is written with
both, so that it overlays its scan in either kind of program. Headers are nibabel's; nothing of nibabel is needed here.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from thinslice.io.affines import SHEAR_COSINE, check_affine, check_affine_to_write, directions, shear, shear_notes
from thinslice.io.refusals import by, refused
from thinslice.volume import grid_distance_mm

logger = logging.getLogger(__name__)

SMALL_TURN = 3e-3
"""Directions of two forms that differ by less, 0.17 degrees, are the same: a float32 quaternion is that inexact."""

SAME_SPACING = 0.01
"""Spacings of two forms that differ by a smaller share are the same: pixdim is often written with two decimals."""

LONGEST_QUATERNION = 1.01
"""Squared length of the three stored numbers of a quaternion, up to which they are a rounding over one, and mean half
a turn: so long three numbers with two decimals may be."""

LONG_QUATERNION = 1 + 1e-5
"""From this squared length on it is told that they were shortened: what 32 bits round is below."""

ALIGNED = 2
"""The code of a form that aligns with another scan and claims no position in the scanner (NIFTI_XFORM_ALIGNED_ANAT)."""

FLAT = 1e-3
"""A form whose unit directions span less volume has axes in one plane, as for `check_affine`."""

_UNITS: dict[int, tuple[str, float]] = {0: ("mm", 1.0), 1: ("metres", 1e3), 2: ("mm", 1.0), 3: ("micrometres", 1e-3)}
"""The codes of units of length (xyzt_units), their names, and their size in mm."""

_CONVERT = "make one from the DICOM series with dcm2niix"
_SET_SPACING = (
    "convert the DICOM series again with dcm2niix, or write the true spacing in mm into a copy: "
    "nifti_tool -mod_hdr -mod_field pixdim '1 DX DY DZ 1 1 1 1' -prefix fixed.nii.gz -infiles scan.nii.gz"
)


@dataclass(frozen=True)
class Place:
    """Where the voxels of a file are.

    Attributes:
        affine: [4, 4] float64, voxel index -> patient millimetres (RAS).
        notes: what had to be decided.
        other_spacing_mm: the spacing that pixdim states where it is another one than that of the affine, else None.
    """

    affine: np.ndarray
    notes: tuple[str, ...] = ()
    other_spacing_mm: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class _Forms:
    """What a header says, in its own unit; None for what is unset or of no use.

    Attributes:
        sform, qform: [4, 4].
        sform_code, qform_code: as stored, 0 for unset ones.
        pixdim: the three spacings, of negative ones the absolute value; None where one is no length.
        notes: what was left out or mended.
    """

    sform: np.ndarray | None
    qform: np.ndarray | None
    sform_code: int
    qform_code: int
    pixdim: np.ndarray | None
    notes: tuple[str, ...] = ()

    @property
    def used(self) -> np.ndarray | None:
        """That by which the scan is read, as in nibabel: the sform where it can be used."""
        return self.qform if self.sform is None else self.sform


def find_place(header: Any, shape: tuple[int, ...]) -> Place:
    """Returns where the voxels of a header of nibabel are: by the sform, else the qform, else by pixdim alone.

    A form that is of no use (zero, not finite, without an inverse, no rotation) is left out where the other one is
    good, and a note says so.

    Args:
        header: as stored; it is not changed.
        shape: of the voxels.

    Raises:
        InputRefused: nothing in it says where they are.
    """
    forms = _read_forms(header)
    unit, mm = _mm_per_unit(header)
    logger.debug("sform code %d, qform code %d", forms.sform_code, forms.qform_code)
    notes = list(forms.notes)
    affine = forms.used
    if affine is None:
        affine = _by_pixdim(header, forms, mm)
        notes.append(
            "neither sform nor qform is set: spacing from pixdim, position and orientation unknown; the axes are taken "
            "to run right to left, back to front, foot to head"
        )
    elif forms.sform is not None:
        notes += _differences(forms, shape, mm)
    affine = np.array(affine)
    affine[:3] *= mm
    check_affine(affine, _SET_SPACING)
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    if mm != 1:
        notes.append(f"lengths are in {unit}, the spacing is {by(spacing_mm)} mm; if that is wrong, correct xyzt_units")
    notes += shear_notes(affine)
    other = None
    if forms.pixdim is not None and not np.allclose(spacing_mm, forms.pixdim * mm, rtol=SAME_SPACING, atol=0):
        x, y, z = (float(length) for length in forms.pixdim * mm)
        other = x, y, z
    return Place(affine, tuple(notes), other)


def set_forms(header: Any, affine: np.ndarray) -> None:
    """Moves both forms of a header, which still holds those of the scan, to another grid; their codes stay.

    The form by which the scan was read gets ``affine``. The other one changes as that did: what it said of the scan it
    says of the answer. A form that was unset or of no use gets the affine too, with code 0, which claims nothing. So
    does a qform that would have to be sheared (see `loses_qform`), which no quaternion can say.

    Args:
        header: of nibabel; changed in place.
        affine: [4, 4] of the answer, in mm.
    """
    check_affine_to_write(affine)
    affine = np.diag([1 / _mm_per_unit(header)[1]] * 3 + [1]) @ affine
    forms = _read_forms(header)
    qform = _moved_qform(forms, affine)
    by_pixdim = forms.used is None
    can_turn = shear(qform) <= SHEAR_COSINE
    header.set_qform(qform if can_turn else affine, 0)  # pixdim too
    header.set_sform(affine, 0)
    sform_code = forms.sform_code if forms.sform is not None else 0
    qform_code = forms.qform_code if forms.qform is not None and can_turn else 0
    if by_pixdim:
        # Only pixdim spoke, and it puts the middle of the grid at the origin; "aligned" claims no scanner position.
        base, tolerance = header.get_base_affine(), 1e-3 * header["pixdim"][1:4].min()
        sform_code = 0 if np.allclose(base, affine, rtol=1e-6, atol=tolerance) else ALIGNED
    elif not sform_code:
        stored = _read_qform(header, np.asarray(header["pixdim"][1:4], np.float64))[0]
        if not can_turn or stored is None or not np.allclose(stored, affine, rtol=1e-6, atol=1e-5):
            sform_code = forms.qform_code
    header["sform_code"], header["qform_code"] = sform_code, qform_code


def set_both_forms(header: Any, affine: np.ndarray) -> None:
    """Gives both forms of a new header an affine [4, 4], in mm, with code 1; a sheared one the sform alone."""
    check_affine_to_write(affine)
    header.set_qform(affine, 0 if shear(affine) > SHEAR_COSINE else 1)
    header.set_sform(affine, 1)


def loses_qform(header: Any, affine: np.ndarray) -> bool:
    """Says whether the qform of a scan cannot be kept on another grid, as it would have to be sheared there."""
    forms = _read_forms(header)
    affine = np.diag([1 / _mm_per_unit(header)[1]] * 3 + [1]) @ affine
    return forms.qform is not None and shear(_moved_qform(forms, affine)) > SHEAR_COSINE


def _moved_qform(forms: _Forms, affine: np.ndarray) -> np.ndarray:
    """Returns what the qform says of the grid of an affine [4, 4], in the file's unit."""
    if forms.sform is None or forms.qform is None:
        return affine
    # From where the sform says that things are to where the qform says so; the same for every grid.
    return np.asarray(forms.qform @ np.linalg.inv(forms.sform) @ affine)


# ---- reading


def _mm_per_unit(header: Any) -> tuple[str, float]:
    """Returns the name of the file's unit of length, and its size in mm; mm where the header is silent."""
    return _UNITS.get(int(header["xyzt_units"]) & 7, _UNITS[0])


def _read_forms(header: Any) -> _Forms:
    sform_code, qform_code = max(0, int(header["sform_code"])), max(0, int(header["qform_code"]))
    stored = np.asarray(header["pixdim"][1:4], np.float64)
    pixdim = np.abs(stored) if np.isfinite(stored).all() and (stored != 0).all() else None
    sform = qform = None
    notes, why_not_sform, why_not_qform = [], "", ""
    if sform_code:
        sform = np.asarray(header.get_sform(), np.float64)
        if why_not_sform := _fault_of(sform):
            sform = None
    if qform_code:
        qform, why_not_qform = _read_qform(header, pixdim)
    if sform is not None:
        if why_not_qform:
            notes.append(f"the qform {why_not_qform} and is ignored; the sform is used")
        elif pixdim is None:
            notes.append(f"pixdim says {by(stored)}, which is no spacing, and is ignored; the sform is used")
    elif qform is not None and why_not_sform:
        notes.append(f"the sform {why_not_sform} and is ignored; the qform is used")
    if pixdim is not None and (stored < 0).any():
        notes.append(f"pixdim says {by(stored)}: taken for {by(pixdim)}, as other programs take it")
    squared = float(np.sum(np.square(_quaternion(header))))
    if qform is not None and squared > LONG_QUATERNION:
        notes.append(
            f"the quaternion of the qform is {math.sqrt(squared):.4g} long, which is no rotation: taken for half a turn"
        )
    return _Forms(sform, qform, sform_code, qform_code, pixdim, tuple(notes))


def _fault_of(form: np.ndarray) -> str:
    """Returns why a form [4, 4] cannot say where voxels are; an empty text for one that can."""
    if not np.isfinite(form).all():
        return "has numbers that are not finite"
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(form[:3, :3], axis=0)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        return f"has columns of {by(lengths)}"
    if abs(np.linalg.det(form[:3, :3] / lengths)) < FLAT:
        return "has axes in one plane"
    return ""


def _quaternion(header: Any) -> np.ndarray:
    return np.array([float(header[f"quatern_{part}"]) for part in "bcd"])


def _read_qform(header: Any, pixdim: np.ndarray | None) -> tuple[np.ndarray | None, str]:
    """Returns the qform [4, 4] in the file's unit; else None, and why it is of no use."""
    if pixdim is None:
        return None, f"has a pixdim of {by(header['pixdim'][1:4])}"
    parts, offset = _quaternion(header), np.array([float(header[f"qoffset_{axis}"]) for axis in "xyz"])
    with np.errstate(all="ignore"):
        squared = float(np.sum(np.square(parts)))
    if not squared <= LONGEST_QUATERNION:  # nor is NaN
        return None, "is not a rotation"
    if not np.isfinite(offset).all():
        return None, "has an origin that is not finite"
    header = header.copy()
    header["pixdim"][1:4] = pixdim
    if float(header["pixdim"][0]) != -1:
        header["pixdim"][0] = 1  # the standard: anything else means 1
    if squared > 1:
        # Not to one: what 32 bits round may lie above it again.
        for part, value in zip("bcd", parts / math.sqrt(squared) * (1 - 1e-7), strict=True):
            header[f"quatern_{part}"] = value
    return np.asarray(header.get_qform(), np.float64), ""


def _by_pixdim(header: Any, forms: _Forms, mm: float) -> np.ndarray:
    """Returns what pixdim alone says, where no form is set, or refuses the header."""
    stored = header["pixdim"][1:4]
    if forms.sform_code:
        affine = np.asarray(header.get_sform(), np.float64)
        affine[:3] *= mm
        check_affine(affine, f"if pixdim is right, clear sform_code, else {_SET_SPACING}")
    if forms.pixdim is None:
        raise refused(f"a spacing (pixdim) of {by(stored)}", "three positive lengths", _SET_SPACING, code="bad-spacing")
    if forms.qform_code:
        raise refused(
            "an impossible rotation (qform quaternion)", "a valid one, or an sform", _CONVERT, code="bad-affine"
        )
    header = header.copy()
    header["pixdim"][1:4] = forms.pixdim
    return np.asarray(header.get_base_affine(), np.float64)


# ---- what speaks against the form that is used


def _differences(forms: _Forms, shape: tuple[int, ...], mm: float) -> list[str]:
    """Returns how the sform, which is used, differs from what else the header says.

    By more than a tenth of a voxel in position, 1 % in spacing, or 0.17 degrees: near half a turn a float32 quaternion
    is wrong by up to 0.1 degrees.
    """
    sform, qform, pixdim = forms.sform, forms.qform, forms.pixdim
    if sform is None or pixdim is None:
        return []
    spacing = np.linalg.norm(sform[:3, :3], axis=0)
    same_spacing = np.allclose(spacing, pixdim, rtol=SAME_SPACING, atol=0)
    if qform is None:
        if same_spacing:
            return []
        return [f"pixdim says {by(pixdim * mm)} mm and the sform {by(spacing * mm)} mm; the sform is used"]
    same_start = np.linalg.norm(sform[:3, 3] - qform[:3, 3]) <= 0.1 * pixdim.min()
    if same_spacing and same_start and np.allclose(directions(sform), directions(qform), rtol=0, atol=SMALL_TURN):
        return []
    apart_mm = grid_distance_mm(sform, qform, shape) * mm
    how = _describe_turn(sform, qform)
    return [
        f"sform and qform disagree by {how}, up to {apart_mm:.1f} mm apart; the sform is used, and what is written "
        "keeps both"
    ]


def _describe_turn(sform: np.ndarray, qform: np.ndarray) -> str:
    """Returns what leads from the qform to the sform, in a few words."""
    to_s, to_q = directions(sform), directions(qform)
    turn = to_s @ np.linalg.inv(to_q)
    if np.linalg.det(turn) < 0:
        return _describe_mirror(turn, np.linalg.inv(to_q) @ to_s, to_q)
    degrees = math.degrees(math.acos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
    return (
        f"a rotation of {degrees:.1f} degrees"
        if degrees > math.degrees(SMALL_TURN)
        else "a shift or a change of spacing"
    )


def _describe_mirror(world_turn: np.ndarray, array_turn: np.ndarray, to_world: np.ndarray) -> str:
    """Names a flip of one axis of the patient or array by the patient's; some degrees of rotation are allowed."""
    names = ("left-right", "front-back", "head-foot")
    for axis in range(3):
        flip = np.diag(np.where(np.arange(3) == axis, -1.0, 1.0))
        if np.allclose(world_turn, flip, atol=0.1):
            return f"a {names[axis]} flip"
        if np.allclose(array_turn, flip, atol=0.1):
            return f"a {names[int(np.abs(to_world[:, axis]).argmax())]} flip"
    return "a mirror image"
