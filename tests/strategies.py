"""What the property tests draw from: scans in any orientation, and wishes one may have for them."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from thinslice.physics.acquisition import Acquisition
from thinslice.volume import Volume

seeds = st.integers(0, 2**31 - 1)
grids = st.sampled_from(["fov", "centres"])
profiles = st.sampled_from(["gaussian", "box"])
interpolations = st.sampled_from(["nearest", "linear", "cubic", "lanczos"])
axes = st.integers(0, 2)


def millimetres(low: float, high: float) -> st.SearchStrategy[float]:
    """Lengths as headers write them: three decimals."""
    return st.integers(round(1000 * low), round(1000 * high)).map(lambda thousandths: thousandths / 1000)


@st.composite
def affines(draw: DrawFn, spacing: tuple[float, float, float], *, shear: bool = True) -> np.ndarray:
    """Any orientation: a rotation or reflection, perhaps sheared as a tilted gantry does, and an origin."""
    rng = np.random.default_rng(draw(seeds))
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    if draw(st.booleans()):
        turn = np.eye(3)[rng.permutation(3)] * rng.choice([-1.0, 1.0], 3)
    if shear and draw(st.booleans()):
        turn = turn @ (np.eye(3) + np.triu(rng.uniform(-0.3, 0.3, (3, 3)), 1))
        turn = turn / np.linalg.norm(turn, axis=0)
    affine = np.eye(4)
    affine[:3, :3] = turn * np.asarray(spacing)
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    return affine


@st.composite
def scans(
    draw: DrawFn,
    n_thick: tuple[int, int] = (3, 12),
    side: tuple[int, int] = (3, 9),
    ratio: tuple[float, float] = (1.6, 6.0),
    axis: st.SearchStrategy[int] = axes,
    shear: bool = True,
) -> Volume:
    """A scan of noise whose slices lie ``ratio`` times farther apart than its in-plane voxels, float32, 0 .. 1."""
    through = draw(axis)
    in_plane = [draw(millimetres(0.4, 1.5)), draw(millimetres(0.4, 1.5))]
    thick = round(max(in_plane) * draw(st.floats(*ratio)), 4)
    spacing, shape = list(in_plane), [draw(st.integers(*side)), draw(st.integers(*side))]
    spacing.insert(through, thick)
    shape.insert(through, draw(st.integers(*n_thick)))
    voxels = np.random.default_rng(draw(seeds)).random(shape, dtype=np.float32)
    affine = draw(affines((spacing[0], spacing[1], spacing[2]), shear=shear))
    header = draw(st.none() | st.just(round(thick * 0.8, 3)))
    return Volume(voxels, affine, thickness_mm=header, notes=draw(st.sampled_from([(), ("a note", "and “more”")])))


@st.composite
def wishes(draw: DrawFn, volume: Volume, thickness: tuple[float, float] = (0.6, 1.3)) -> dict[str, object]:
    """Options of `make_plan` that suit a scan: whole and fractional factors, gaps and overlaps, both grids."""
    wish: dict[str, object] = {"grid": draw(grids), "profile": draw(profiles)}
    thick_mm = max(volume.spacing_mm)
    kind = draw(st.sampled_from(["default", "factor", "fraction", "spacing"]))
    if kind == "factor":
        wish["factor"] = float(draw(st.integers(2, 6)))
    elif kind == "fraction":
        wish["factor"] = draw(st.floats(1.8, 6.0))
    elif kind == "spacing":
        wish["spacing_mm"] = round(thick_mm / draw(st.floats(1.8, 6.0)), 3)
    if draw(st.booleans()):
        wish["thickness_mm"] = thick_mm * draw(st.floats(*thickness))
    return wish


@st.composite
def scans_and_wishes(draw: DrawFn, **limits: object) -> tuple[Volume, dict[str, object]]:
    """A scan and a wish that suits it."""
    volume = draw(scans(**limits))  # type: ignore[arg-type]
    return volume, draw(wishes(volume))


@st.composite
def acquisitions(draw: DrawFn, n_thin: tuple[int, int] = (1, 40), axis: int = 0) -> Acquisition:
    """Slices at any places within the field of view: not even, not in order, some twice, with gaps and overlaps."""
    count = draw(st.integers(*n_thin))
    places = st.floats(-0.45, count - 0.55) | st.integers(0, count - 1).map(float)
    centres_vox = np.array(draw(st.lists(places, min_size=1, max_size=9)))
    return Acquisition(centres_vox, count, draw(st.floats(0.6, 9.0)), draw(profiles), axis)
