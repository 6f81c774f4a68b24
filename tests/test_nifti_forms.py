"""sform and qform: the one that is of use is used, and what is written keeps what both said, in any viewer."""

import itertools

import nibabel
import numpy as np
import pytest

import thinslice
from faults import catches
from make_scans import make_affine, make_voxels, save_scan
from thinslice.compute.reslice import reslice
from thinslice.errors import InputRefused, PlanRefused
from thinslice.io import formats
from thinslice.io.nifti import read
from thinslice.settings import Settings

SHAPE = (12, 10, 6)
SCANNER = make_affine((0.7, 0.8, 4.0), (5.0, -8.0, 20.0))
"""What the qform says."""

TURNED = make_affine((0.7, 0.8, 4.0), (5.0, 3.0, 22.0), origin_mm=(-60, -20, 30))
"""What the sform says after the scan was aligned with another one."""

LARGER = make_affine((0.9, 0.9, 5.0), (0.0, 0.0, 10.0), origin_mm=(9, -20, 30))
"""What it says after it was brought to an atlas, which made it larger."""


def rows(form):
    return {f"srow_{name}": row for name, row in zip("xyz", form, strict=False)}


def save_both(path, sform=TURNED, codes=(2, 1), voxels=None, **fields):
    """A file with the scanner's qform and another sform."""
    voxels = make_voxels(SHAPE) if voxels is None else voxels
    return save_scan(path, voxels, SCANNER, sform_code=codes[0], qform_code=codes[1], **rows(sform), **fields)


def forms(path):
    header = nibabel.load(path).header
    return header.get_sform(), header.get_qform(), int(header["sform_code"]), int(header["qform_code"])


def edges(form, shape):
    """The eight outer corners of a grid, half a voxel beyond the centres."""
    low, high = np.full(3, -0.5), np.array(shape[:3]) - 0.5
    index = np.array(list(itertools.product(*zip(low, high, strict=True))))
    return index @ form[:3, :3].T + form[:3, 3]


def assert_overlays(scan, answer, atol=5e-3):
    """Both forms put the outer edges of the answer where they put those of the scan, and so does ITK."""
    sizes = [nibabel.load(path).shape for path in (scan, answer)]
    for was, found in zip(forms(scan)[:2], forms(answer)[:2], strict=True):
        np.testing.assert_allclose(edges(found, sizes[1]), edges(was, sizes[0]), atol=atol)
    itk = pytest.importorskip("SimpleITK")
    corners = []
    for path, size in zip((scan, answer), sizes, strict=True):
        image = itk.ReadImage(str(path))
        ends = itertools.product(*((-0.5, n - 0.5) for n in size[:3]))
        corners.append([image.TransformContinuousIndexToPhysicalPoint(end) for end in ends])
    np.testing.assert_allclose(corners[1], corners[0], atol=atol)


# Not the larger one with code 1: ITK then takes directions from the sform and lengths from pixdim.
@pytest.mark.parametrize(
    ("sform", "codes"),
    [(TURNED, (1, 1)), (TURNED, (2, 1)), (TURNED, (4, 1)), (TURNED, (1, 2)), (LARGER, (3, 2)), (LARGER, (4, 1))],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@catches("io/nifti_forms.py", "forms.qform @ np.linalg.inv(forms.sform) @ affine", "affine")
def test_an_answer_overlays_its_scan_by_either_form(tmp_path, sform, codes, suffix):
    scan = save_both(tmp_path / f"scan{suffix}", sform, codes)
    drawn = save_both(tmp_path / f"drawn{suffix}", sform, codes, (make_voxels(SHAPE) > 0).astype("u1"))
    done = thinslice.enhance(scan, model="cubic", factor=4, labels=drawn)
    done.save(tmp_path / f"thin{suffix}", labels_out=tmp_path / f"labels{suffix}")
    for answer in ("thin", "labels"):
        assert_overlays(scan, tmp_path / f"{answer}{suffix}")
        assert forms(tmp_path / f"{answer}{suffix}")[2:] == codes
    assert any("what is written keeps both" in note for note in done.report.notes)
    nibabel.save(done.to_nibabel(), tmp_path / "image.nii")
    assert_overlays(scan, tmp_path / "image.nii")
    # And back: a thin scan made thick again lies where it was.
    thin = read(tmp_path / f"thin{suffix}")
    formats.write(reslice(thin, read(scan), thickness_mm=4.0), tmp_path / f"thick{suffix}")
    assert_overlays(scan, tmp_path / f"thick{suffix}")
    assert forms(tmp_path / f"thick{suffix}")[2:] == codes


def test_slices_that_are_enlarged_keep_both_forms(tmp_path):
    scan = save_both(tmp_path / "scan.nii")
    thinslice.enhance(scan, model="cubic", factor=2, in_plane=2, grid="fov").save(tmp_path / "thin.nii")
    assert_overlays(scan, tmp_path / "thin.nii")


@pytest.mark.parametrize("sform", [TURNED, LARGER], ids=["turned", "larger"])
def test_what_several_stacks_agree_with_keeps_both_forms_of_the_first(tmp_path, sform):
    body = np.kron(np.random.default_rng(0).random((6, 6, 6)), np.ones((4, 4, 4))) * 100
    stored = np.float32(body.reshape(24, 24, 6, 4).mean(axis=3))
    scan = save_both(tmp_path / "a.nii", sform, voxels=stored)
    other = save_both(tmp_path / "b.nii", sform, voxels=np.roll(stored, 1, axis=0))
    done = thinslice.combine([scan, other], model="cubic", registration=False)
    done.save(tmp_path / "joined.nii")
    to_qform = forms(scan)[1] @ np.linalg.inv(forms(scan)[0])
    found = forms(tmp_path / "joined.nii")
    np.testing.assert_allclose(found[1], to_qform @ found[0], atol=5e-3)
    assert found[2:] == (2, 1)


def test_a_qform_that_would_be_sheared_is_not_written_and_that_is_told(tmp_path):
    """An sform that stretches one axis: on a grid that is turned against it the qform has no right angles left."""
    stretched = np.diag([1.0, 1.5, 1.0, 1.0]) @ SCANNER
    volume = read(save_both(tmp_path / "a.nii", stretched))
    turned = formats.as_stored(
        thinslice.Volume(volume.voxels, make_affine((1, 1, 1), (0, 0, 30)), header=volume.header), tmp_path / "b.nii"
    )
    assert any("only the sform is written" in note for note in turned.notes)
    formats.write(turned, tmp_path / "b.nii")
    sform, _, *codes = forms(tmp_path / "b.nii")
    np.testing.assert_allclose(sform, turned.affine, atol=1e-5)
    assert codes == [2, 0]


def test_a_qform_beside_a_sheared_sform_is_not_that_of_the_straightened_slices(tmp_path):
    """As of a tilted gantry: a converter writes what a quaternion can say, and the slices are where the sform says."""
    sheared = SCANNER @ (np.eye(4) + np.pad([[0.3]], ((1, 2), (2, 1))))
    scan = save_both(tmp_path / "scan.nii", sheared)
    done = thinslice.enhance(scan, model="cubic", factor=4)
    done.save(tmp_path / "thin.nii")
    sform, qform, *codes = forms(tmp_path / "thin.nii")
    np.testing.assert_allclose(sform, done.affine, atol=1e-5)
    np.testing.assert_allclose(qform, done.affine, atol=1e-4)
    assert codes == [2, 0]
    assert any("only the sform is written" in note for note in done.report.notes)
    # The upright grid holds all of the scan, and its slices are where they were.
    index = edges(np.linalg.inv(sform) @ sheared, SHAPE)
    assert (index > -0.51).all()
    assert (index < np.array(done.array.shape) - 0.49).all()


def test_a_scan_on_its_own_grid_comes_back_with_its_forms(tmp_path):
    scan = save_both(tmp_path / "a.nii", codes=(4, 1))
    formats.write(read(scan), tmp_path / "b.nii")
    assert_overlays(scan, tmp_path / "b.nii", atol=1e-4)
    assert forms(tmp_path / "b.nii")[2:] == (4, 1)


# ---- one of the two is of no use

ZERO = rows(np.zeros((4, 4)))
FLAT = rows(np.array([[0.7, 0, 0.7, 0], [0, 0.8, 0, 0], [0, 0, 0, 1.0], [0, 0, 0, 1]]))
USELESS_SFORMS = {
    "zero": (ZERO, "columns of 0 x 0 x 0"),
    "one column zero": (rows(np.diag([0.7, 0.8, 0, 1])), "columns of 0.7 x 0.8 x 0"),
    "NaN": ({"srow_y": [np.nan] * 4}, "not finite"),
    "infinite origin": ({"srow_x": [0.7, 0, 0, np.inf]}, "not finite"),
    "one plane": (FLAT, "one plane"),
}
PIXDIM = [1, 0.7, 0.8, 4, 1, 1, 1, 1]
USELESS_QFORMS = {
    "no rotation": ({"quatern_b": 3.0}, "is not a rotation"),
    "NaN": ({"quatern_c": np.nan}, "is not a rotation"),
    "origin NaN": ({"qoffset_x": np.nan}, "origin"),
    "pixdim zero": ({"pixdim": [1, 0.7, 0.8, 0, 1, 1, 1, 1]}, "pixdim of 0.7 x 0.8 x 0"),
    "pixdim NaN": ({"pixdim": [1, np.nan, 0.8, 4, 1, 1, 1, 1]}, "pixdim of nan x 0.8 x 4"),
    "pixdim infinite": ({"pixdim": [1, 0.7, np.inf, 4, 1, 1, 1, 1]}, "pixdim of 0.7 x inf x 4"),
}


@pytest.mark.parametrize("fault", USELESS_SFORMS)
@pytest.mark.parametrize("codes", [(1, 1), (2, 1), (1, 4)])
def test_the_qform_is_used_where_the_sform_is_of_no_use(tmp_path, fault, codes):
    fields, word = USELESS_SFORMS[fault]
    path = save_scan(
        tmp_path / "a.nii", make_voxels(SHAPE), SCANNER, sform_code=codes[0], qform_code=codes[1], **fields
    )
    volume = read(path)
    np.testing.assert_allclose(volume.affine, SCANNER, atol=1e-4)
    assert len(volume.notes) == 1
    assert word in volume.notes[0]
    assert volume.notes[0].endswith("the qform is used")
    done = thinslice.enhance(path, model="cubic", factor=4)
    done.save(tmp_path / "thin.nii")
    assert volume.notes[0] in done.report.notes
    _, qform, *found = forms(tmp_path / "thin.nii")
    np.testing.assert_allclose(edges(qform, done.array.shape), edges(SCANNER, SHAPE), atol=1e-3)
    # What was of no use claims nothing now.
    assert found == [0, codes[1]]


@pytest.mark.parametrize("fault", USELESS_QFORMS)
@pytest.mark.parametrize("codes", [(1, 1), (2, 1), (4, 3)])
def test_the_sform_is_used_where_the_qform_is_of_no_use(tmp_path, fault, codes):
    fields, word = USELESS_QFORMS[fault]
    volume = read(save_both(tmp_path / "a.nii", codes=codes, **fields))
    np.testing.assert_allclose(volume.affine, TURNED, rtol=1e-6, atol=1e-5)
    assert len(volume.notes) == 1
    assert word in volume.notes[0]
    assert volume.notes[0].endswith("the sform is used")
    formats.write(volume, tmp_path / "b.nii")
    sform, qform, *found = forms(tmp_path / "b.nii")
    np.testing.assert_allclose(sform, TURNED, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(qform, TURNED, atol=1e-3)
    assert found == [codes[0], 0]


@pytest.mark.parametrize("sform_fault", USELESS_SFORMS)
@pytest.mark.parametrize("qform_fault", USELESS_QFORMS)
def test_two_forms_of_no_use_are_refused(tmp_path, sform_fault, qform_fault):
    fields = USELESS_SFORMS[sform_fault][0] | USELESS_QFORMS[qform_fault][0]
    path = save_scan(tmp_path / "a.nii", make_voxels(SHAPE), SCANNER, **fields)
    with pytest.raises(InputRefused):
        read(path)


def test_a_pixdim_of_no_use_beside_an_sform_alone_is_told(tmp_path):
    volume = read(save_both(tmp_path / "a.nii", codes=(2, 0), pixdim=[1, 0.7, 0.8, 0, 1, 1, 1, 1]))
    np.testing.assert_allclose(volume.affine, TURNED, rtol=1e-6, atol=1e-5)
    assert volume.notes == ("pixdim says 0.7 x 0.8 x 0, which is no spacing, and is ignored; the sform is used",)


@pytest.mark.parametrize("codes", [(1, 1), (0, 1), (1, 0), (0, 0)])
@catches("io/nifti_forms.py", "pixdim = np.abs(stored) if", "pixdim = stored if")
def test_a_negative_spacing_is_its_size(tmp_path, codes):
    fields = {"pixdim": [1, -0.7, 0.8, -4, 1, 1, 1, 1], "sform_code": codes[0], "qform_code": codes[1]}
    volume = read(save_scan(tmp_path / "a.nii", make_voxels(SHAPE), SCANNER, **fields))
    np.testing.assert_allclose(volume.spacing_mm, (0.7, 0.8, 4.0), rtol=1e-6)
    if codes != (0, 0):
        np.testing.assert_allclose(volume.affine, SCANNER, atol=1e-3)
    assert "pixdim says -0.7 x 0.8 x -4: taken for 0.7 x 0.8 x 4" in volume.notes[0]


@pytest.mark.parametrize("longer", [1e-7, 1e-6, 1e-3, 4e-3])
def test_a_quaternion_a_rounding_over_unit_length_is_half_a_turn(tmp_path, longer):
    half = np.array([0.6, 0.8, 0.0]) * (1 + longer)
    parts = {f"quatern_{name}": value for name, value in zip("bcd", half, strict=True)}
    volume = read(save_scan(tmp_path / "a.nii", make_voxels(SHAPE), sform_code=0, **parts))
    turn = 2 * np.outer([0.6, 0.8, 0.0], [0.6, 0.8, 0.0]) - np.eye(3)
    np.testing.assert_allclose(volume.affine[:3, :3], turn @ np.diag([0.7, 0.8, 4.0]), atol=1e-3)
    assert [("half a turn" in note) for note in volume.notes] == ([True] if longer > 1e-5 else [])


def test_forms_that_pixdim_contradicts_are_named_where_the_scan_is_refused(tmp_path):
    """Unit columns in the sform, pixdim and qform right: as some programs write them."""
    path = save_scan(tmp_path / "a.nii", make_voxels(SHAPE), make_affine((1, 1, 4)), **rows(np.eye(4)))
    with pytest.raises(PlanRefused, match=r"already isotropic, though the header also says 1 x 1 x 4 mm") as caught:
        thinslice.enhance(path, settings=Settings(model="cubic"))
    assert "sform_code 0" in caught.value.next
    # The advice works.
    path = save_scan(tmp_path / "b.nii", make_voxels(SHAPE), make_affine((1, 1, 4)), sform_code=0)
    assert thinslice.enhance(path, model="cubic").array.shape == (12, 10, 24)


def test_an_image_of_nibabel_is_read_as_its_file_is(tmp_path):
    path = save_scan(tmp_path / "a.nii", make_voxels(SHAPE), SCANNER, **USELESS_SFORMS["NaN"][0])
    done = thinslice.enhance(nibabel.load(path), model="cubic", factor=4)
    np.testing.assert_allclose(done.acquired.affine, SCANNER, atol=1e-4)
    assert any("the qform is used" in note for note in done.report.notes)
