"""Draws pictures to judge by eye: the two planes across the slices, at true aspect, in one common grey window.

Planes are shown as radiologists hang them: head up, or front up in axial planes; front to the left in sagittal
planes, the patient's right to the left in the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from thinslice.io.atomic import whole_or_not
from thinslice.physics.intensity import intensity_range
from thinslice.volume import Volume, patient_axes, through_plane_axis

LONG_SIDE = 340
"""Length in pixels of the longest side of the largest plane on a sheet of an evaluation: six fit beside each other."""

DEMO_LONG_SIDE = 460
"""The same on a sheet of the demonstration, which has three beside each other."""

GAP = 8
"""Pixels between planes."""

CAPTION = 40
"""Pixels above the planes of a row: two lines of `CAPTION_SIZE` and some air."""

MARGIN = 26
"""Pixels left of a row, for its name, turned by a quarter."""

CAPTION_SIZE = 13
"""Height in pixels of the captions' letters."""

INK = 235
"""Grey of the captions, 0 .. 255: not quite white, so that it does not outshine the scan."""

PAPER = 16
"""Grey of the background, 0 .. 255: not quite black, so that the edge of a scan can be seen."""

DIM = 150
"""Grey of what is less important than a caption, 0 .. 255."""

LETTERS = {"sagittal": tuple("APSI"), "coronal": tuple("RLSI"), "axial": tuple("RLAP")}
"""What left, right, top and bottom of a plane are in the patient: right, left, anterior, posterior, superior, inferior.

For oblique planes those of the plane that is nearest, as on every scanner.
"""

LETTER_SIZE = 14
"""Least height in pixels of the letters in a picture."""

LETTERS_ALONG = 32
"""Letters that the shorter side of a large picture is long: so they can be read when it is printed small."""

LEAST_MARKED = 120
"""Pixels of the shorter side of a picture below which letters would cover more than they tell."""

SCALE_BARS_MM = (1, 2, 5, 10, 20, 50, 100, 200)
"""Lengths of scale bars: the longest that is no longer than `SCALE_BAR_SHARE` of the picture's width."""

SCALE_BAR_SHARE = 0.3
"""Of the width of a picture what its scale bar takes at most."""

PLANE_NAMES = ("sagittal", "coronal", "axial")
"""The plane that lies across the patient's left-right, front-back and head-foot axis."""


@dataclass(frozen=True)
class Plane:
    """One plane of a scan, ready to be shown.

    Attributes:
        name: sagittal, coronal or axial, whichever is nearest.
        pixels: [rows, columns], the scan's own units.
        pixel_mm: height and width of a pixel.
        thick_rows: True where the thick slices lie along the rows' direction (rows are slices), else the columns are.
    """

    name: str
    pixels: np.ndarray
    pixel_mm: tuple[float, float]
    thick_rows: bool


@dataclass(frozen=True)
class Picture:
    """One cell of `draw_side_by_side`.

    Attributes:
        caption: up to two lines.
        plane: what is shown.
        window: values shown black and white.
        staircase: every slice is shown as a step of its full height, as acquired; else smoothly.
        marks: whether letters say where its sides are in the patient, and a bar how long some millimetres are.
    """

    caption: str
    plane: Plane
    window: tuple[float, float]
    staircase: bool = False
    marks: bool = False


def reslice_planes(volume: Volume, axis: int, centre: tuple[int, int, int] | None = None) -> tuple[Plane, Plane]:
    """Returns the two planes through ``centre`` that contain the through-plane axis.

    Args:
        volume: [x, y, z] or [x, y, z, t], of which the first volume is shown.
        axis: the array axis across the slices. ``centre`` is not used along it, so scans of one field of view with
            different slice spacings give matching planes.
        centre: voxel index; None: `find_picture_centre`.
    """
    voxels = volume.voxels[..., 0] if volume.voxels.ndim == 4 else volume.voxels
    at = centre or find_picture_centre(volume)
    # An index along the axis, which gives a view: `numpy.take` copies voxel by voxel, 0.4 s of a scan (LOG.md).
    first, second = (
        _hang(voxels[(slice(None),) * across + (at[across],)], volume.affine, across, axis)
        for across in range(3)
        if across != axis
    )
    return first, second


def find_picture_centre(volume: Volume) -> tuple[int, int, int]:
    """Returns the voxel index of the middle of what is bright.

    Bright is what lies beyond a quarter of the way from the 0.5 to the 99.5 percentile; where nothing does, the middle
    of the volume is returned.
    """
    voxels = volume.voxels[..., 0] if volume.voxels.ndim == 4 else volume.voxels
    low, high = intensity_range(voxels)
    bright = voxels > low + 0.25 * (high - low)
    if not bright.any():
        return volume.shape[0] // 2, volume.shape[1] // 2, volume.shape[2] // 2
    counts = [np.count_nonzero(bright, axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    x, y, z = (round(float(np.average(np.arange(len(count)), weights=count))) for count in counts)
    return x, y, z


def draw_side_by_side(rows: Sequence[Sequence[Picture]], title: str = "", long_side: int = LONG_SIDE) -> Image.Image:
    """Draws rows of captioned pictures on one sheet, all to one scale in millimetres, each row with its plane's name.

    Pictures that differ in physical size are centred in their cell: both grids share the acquired stack's centre.

    Args:
        rows: equally long rows.
        title: one line above everything.
        long_side: length of the longest side of the largest plane, in pixels.
    """
    # One scale for all pictures: what is larger in the patient is larger on the sheet.
    scale = long_side / max(max(_size_mm(p.plane)) for row in rows for p in row)
    cells = [[render(p, scale) for p in row] for row in rows]
    # As wide as the longest caption, or its end would lie under the next picture.
    width = max(max(image.width for row in cells for image in row), max(_caption_width(p) for row in rows for p in row))
    heights = [max(cell.height for cell in row) for row in cells]
    top = GAP + (22 if title else 0)
    columns = max(len(row) for row in cells)
    size = (MARGIN + columns * (width + GAP), top + sum(height + CAPTION + GAP for height in heights))
    sheet = Image.new("L", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, GAP - 1), title, INK, _font(15))
    for row, images, height in zip(rows, cells, heights, strict=True):
        for column, (picture, image) in enumerate(zip(row, images, strict=True)):
            left = MARGIN + column * (width + GAP)
            draw.multiline_text((left, top + 2), picture.caption, INK, _font(CAPTION_SIZE), spacing=3)
            sheet.paste(image, (left + (width - image.width) // 2, top + CAPTION + (height - image.height) // 2))
        _name_row(sheet, row[0].plane.name, top + CAPTION, height)
        top += height + CAPTION + GAP
    return sheet


def render(picture: Picture, pixels_per_mm: float) -> Image.Image:
    """Draws one picture as 8-bit grey at true aspect."""
    low, high = picture.window
    pixels = np.nan_to_num(picture.plane.pixels.astype(np.float64), nan=low, posinf=high, neginf=low)
    # Not below 1e-30, for a window without a width; rounded, as `astype` alone cuts off towards zero.
    grey = np.clip(np.rint((pixels - low) * (255 / max(high - low, 1e-30))), 0, 255).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(grey))
    height, width = (max(round(mm * pixels_per_mm), 1) for mm in _size_mm(picture.plane))
    # First every slice becomes a block of its full height, which keeps its edges sharp; then the picture gets its size
    # smoothly, which changes nothing across the slices any more.
    if picture.staircase:
        steps = (image.width, height) if picture.plane.thick_rows else (width, image.height)
        image = image.resize(steps, Image.Resampling.NEAREST)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    if picture.marks and min(image.size) >= LEAST_MARKED:
        _draw_marks(image, picture.plane.name, pixels_per_mm)
    return image


def _draw_marks(image: Image.Image, plane: str, pixels_per_mm: float) -> None:
    """Draws the letters of a plane at the middle of its sides, and a scale bar in the lower left corner."""
    draw, (width, height) = ImageDraw.Draw(image), image.size
    size = max(LETTER_SIZE, min(width, height) // LETTERS_ALONG)
    air = size // 3

    def write(place: tuple[int, int], text: str, anchor: str) -> None:
        # With a rim: a letter must be seen on fat as well as on air.
        draw.text(place, text, INK, _font(size), anchor=anchor, stroke_width=1, stroke_fill=0)

    left, right, top, bottom = LETTERS[plane]
    write((air, height // 2), left, "lm")
    write((width - air, height // 2), right, "rm")
    write((width // 2, air), top, "mt")
    write((width // 2, height - air), bottom, "mb")
    length_mm = max((mm for mm in SCALE_BARS_MM if mm * pixels_per_mm <= SCALE_BAR_SHARE * width), default=None)
    if length_mm is not None:
        lower = height - air
        draw.rectangle((air, lower - air, air + round(length_mm * pixels_per_mm), lower), fill=INK, outline=0)
        write((air, lower - 2 * air), f"{length_mm} mm", "ls")


def write_picture(image: Image.Image, path: Path) -> None:
    """Writes a PNG that is either whole or not there: a temporary name first, then the final one.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    with whole_or_not(Path(path)) as part:
        # The format is named: the temporary name has another ending.
        image.save(part, format="PNG", optimize=True)


def write_comparison_picture(
    acquired: Volume,
    cubic: Volume,
    enhanced: Volume,
    path: Path,
    name: str = "thinslice",
    long_side: int = DEMO_LONG_SIDE,
) -> None:
    """Writes a sheet with the acquired slices, cubic interpolation and the answer, in both re-sliced planes.

    Args:
        acquired: the thick scan; the slice axis, the grey window and the place shown are taken from it.
        cubic, enhanced: thin scans of the same field of view.
        path: the PNG file.
        name: what the answer is called.
        long_side: see `draw_side_by_side`.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    axis = through_plane_axis(acquired)
    window = intensity_range(acquired.voxels)
    centre = find_picture_centre(acquired)
    columns = [
        (f"acquired\n{acquired.spacing_mm[axis]:.3g} mm slices", acquired, True),
        (f"cubic interpolation\n{cubic.spacing_mm[axis]:.3g} mm slices", cubic, False),
        (f"{name}\n{enhanced.spacing_mm[axis]:.3g} mm slices", enhanced, False),
    ]
    planes = [reslice_planes(volume, axis, centre) for _, volume, _ in columns]
    rows = [
        [
            Picture(text, pair[row], window, steps, marks=True)
            for (text, _, steps), pair in zip(columns, planes, strict=True)
        ]
        for row in range(2)
    ]
    title = f"black {window[0]:.4g}, white {window[1]:.4g}, in the units of the scan"
    write_picture(draw_side_by_side(rows, title=title, long_side=long_side), path)


def _hang(pixels: np.ndarray, affine: np.ndarray, across: int, thick_axis: int) -> Plane:
    """Turns the plane left after index ``across`` was fixed as radiologists hang it: [rows, columns]."""
    axes = [axis for axis in range(3) if axis != across]
    world = patient_axes(affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    # Patient axes count from left-right by front-back to head-foot: the higher one of the two runs down the picture.
    if world[axes[0]] > world[axes[1]]:
        down, right = axes
    else:
        right, down = axes
        pixels = pixels.T
    # Affines count towards right, front and head (RAS+), pictures from the top left: head or front goes to the top, and
    # the patient's right, or front, to the left.
    if affine[world[down], down] > 0:
        pixels = pixels[::-1]
    if affine[world[right], right] > 0:
        pixels = pixels[:, ::-1]
    return Plane(
        PLANE_NAMES[world[across]], pixels, (float(spacing[down]), float(spacing[right])), thick_rows=down == thick_axis
    )


def _size_mm(plane: Plane) -> tuple[float, float]:
    """Returns height and width of the whole plane in millimetres."""
    return plane.pixels.shape[0] * plane.pixel_mm[0], plane.pixels.shape[1] * plane.pixel_mm[1]


def _caption_width(picture: Picture) -> int:
    """Returns the pixels that the longest line of a caption takes."""
    return max(int(np.ceil(_font(CAPTION_SIZE).getlength(line))) for line in picture.caption.split("\n"))


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Returns Pillow's own font, which is the same on every machine."""
    return ImageFont.load_default(size)


def _name_row(sheet: Image.Image, name: str, top: int, height: int) -> None:
    """Writes the plane's name, turned by a quarter, into the left margin beside its row."""
    box = Image.new("L", (height, MARGIN - 6), PAPER)
    ImageDraw.Draw(box).text((height // 2, (MARGIN - 6) // 2), name, DIM, _font(14), anchor="mm")
    sheet.paste(box.transpose(Image.Transpose.ROTATE_90), (3, top))
