"""Laws of networks for planes: where their answers lie, and that nothing else changes them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from faults import catches
from phantoms import acquired, enlarging, sampled, shift_mm, thick_grid
from planning import plan_for
from strategies import axes, scans, seeds
from thinslice.compute.consistency import check
from thinslice.compute.labels import interpolate_labels
from thinslice.compute.planes import enlarge_slices
from thinslice.compute.reslice import reslice
from thinslice.compute.upsample import upsample
from thinslice.errors import PlanRefused
from thinslice.models import plane_networks
from thinslice.models.blas import one_blas_thread
from thinslice.models.envelope import Envelope
from thinslice.models.interpolations import interpolation
from thinslice.models.plane_networks import enlarge_depth, together
from thinslice.models.protocol import Enlarger
from thinslice.plan import Plan
from thinslice.volume import Volume

ROUNDING = 2e-5
FACTORS = st.sampled_from([2, 4])
CUBIC = interpolation("cubic")


def lopsided(base):
    """Unequal after a turn or a flip."""
    return 0.05 * np.tanh(np.roll(base, 1, axis=1) - 0.6 * np.roll(base, 2, axis=2) + 0.1)


def nothing(base):
    return np.zeros_like(base)


def thinned(volume, model=CUBIC, **wish):
    plan = plan_for(volume, model=model.name, **wish)
    return upsample(volume, plan, model), plan


@catches("plan.py", "(settings.in_plane - 1) / 2 for i in range(3)", "0.0 for i in range(3)")
@catches("plan.py", "needs_ct = model.envelope is not None and model.envelope.hounsfield", "needs_ct = True")
@given(volume=scans(), factor=FACTORS, in_plane=st.sampled_from([1, 2, 4]))
def test_the_outer_edges_are_kept_along_all_three_axes(volume, factor, in_plane):
    plan = plan_for(volume, factor=factor, in_plane=in_plane)
    assert Plan.from_json(plan.to_json()) == plan
    edges = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)], float)
    before, after = (
        (edges * [*shape, 1] - [0.5, 0.5, 0.5, 0]) @ np.array(affine).T
        for shape, affine in ((plan.shape_thick, plan.affine_thick), (plan.shape_thin, plan.affine_thin))
    )
    np.testing.assert_allclose(after, before, atol=1e-6)
    times = [factor if axis == plan.axis else in_plane for axis in range(3)]
    assert plan.shape_thin == tuple(n * k for n, k in zip(volume.shape, times, strict=True))
    np.testing.assert_allclose(np.multiply(plan.spacing_thin_mm, times), plan.spacing_thick_mm)


@given(
    volume=scans(),
    factor=FACTORS,
    in_plane=st.sampled_from([2, 3]),
    axis=axes,
    part=st.sampled_from(["in-plane", "depth"]),
)
def test_flipping_and_turning_the_input_do_the_same_to_the_output(volume, factor, in_plane, axis, part):
    model = enlarging(part, in_plane if part == "in-plane" else factor, lopsided)
    model = together([model, enlarging("depth", factor, nothing)], "both") if part == "in-plane" else model
    wish = {"factor": factor, "in_plane": in_plane if part == "in-plane" else 1}
    answer = thinned(volume, model, **wish)[0].volume
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, axis] * (volume.shape[axis] - 1)
    affine[:3, axis] *= -1
    flipped = thinned(replace(volume, voxels=np.flip(volume.voxels, axis), affine=affine), model, **wish)[0].volume
    np.testing.assert_allclose(flipped.voxels, np.flip(answer.voxels, axis), atol=ROUNDING)
    order = [1, 2, 0]
    affine = volume.affine.copy()
    affine[:3, :3] = affine[:3, order]
    turned = thinned(replace(volume, voxels=volume.voxels.transpose(order), affine=affine), model, **wish)[0].volume
    np.testing.assert_allclose(turned.voxels, answer.voxels.transpose(order), atol=ROUNDING)


@catches(
    "models/plane_networks.py",
    "wanted = slice(factor * beyond, len(matrix) - factor * beyond)",
    "wanted = slice(factor * beyond - 1, len(matrix) - factor * beyond - 1)",
)
@catches("models/plane_networks.py", "(np.arange(factor * n) - (factor - 1) / 2)", "np.arange(factor * n)")
@given(seed=seeds, axis=axes, factor=FACTORS, projection=st.booleans())
def test_a_network_for_planes_that_adds_nothing_leaves_cubic(seed, axis, factor, projection):
    voxels = np.random.default_rng(seed).random((24, 6, 5), dtype=np.float32)
    volume = Volume(np.moveaxis(voxels, 0, axis), np.diag([4.0 if i == axis else 1.0 for i in range(3)] + [1.0]))
    wish = {"factor": factor, "projection": projection}
    result = thinned(volume, enlarging("depth", factor, nothing, reach=12), **wish)[0]
    assert result.guard.suspect == 0
    answer, wanted = result.volume, thinned(volume, **wish)[0].volume
    # The network's own interpolation repeats the outermost slices, the plan's mirrors them: alike inside.
    inner = np.s_[6 * factor : -6 * factor]
    got, want = (np.moveaxis(image.voxels, axis, 0)[inner] for image in (answer, wanted))
    np.testing.assert_allclose(got, want, atol=2e-3)


def test_the_answer_lies_where_the_anatomy_is_in_all_directions():
    thick = thick_grid()
    volume = Volume(acquired(thick.shape, thick.affine, 2, 4.0).astype(np.float32), thick.affine)
    for model in (CUBIC, together([enlarging("in-plane", 2, nothing), enlarging("depth", 4, nothing)], "planes")):
        answer = thinned(volume, model, factor=4, in_plane=2)[0].volume
        assert answer.shape == (2 * thick.shape[0], 2 * thick.shape[1], 4 * thick.shape[2])
        for direction in np.eye(3):
            # As `test_upsample` for the slice axis; a half-voxel error would be 0.25 mm in-plane and 0.5 mm across.
            assert abs(shift_mm(answer.voxels, answer.affine, direction)) < 0.06
        truth = sampled(answer.shape, answer.affine)
        assert np.corrcoef(answer.voxels.ravel(), truth.ravel())[0, 1] > 0.98


@given(seed=seeds, n=st.integers(5, 30), block=st.integers(3, 12))
def test_in_blocks_equals_whole(seed, n, block):
    voxels = np.random.default_rng(seed).random((6, 7, n), dtype=np.float32)
    volume = Volume(voxels, np.diag([1.0, 1.0, 4.0, 1.0]))
    model = enlarging("depth", 2, lambda base: 0.1 * np.tanh(base), reach=12)
    with pytest.MonkeyPatch.context() as patch:
        whole = thinned(volume, model, factor=2)[0].volume.voxels
        patch.setattr(plane_networks, "LEAST_BLOCK", block)
        patch.setattr(plane_networks, "MOST_BLOCK", block)
        patch.setattr(plane_networks, "PIXELS", 300)
        blocks = thinned(volume, model, factor=2)[0].volume.voxels
    # Beyond the context a cubic spline forgets to 1e-7.
    np.testing.assert_allclose(blocks, whole, atol=1e-4)


@catches("models/plane_networks.py", "found[:, :, backwards] / np", "found / np")
@given(seed=seeds, factor=FACTORS)
def test_fused_answers_do_not_depend_on_the_orientation_of_a_slice(seed, factor):
    slices = np.random.default_rng(seed).random((3, 6, 6), dtype=np.float32)
    network = enlarging("in-plane", factor, lopsided).planes["in-plane", factor]
    whole = enlarge_slices(slices, factor, "cubic", network, fuse=True)[0]
    for turn in (lambda x: x[:, ::-1], lambda x: x[:, :, ::-1], lambda x: x.swapaxes(1, 2)):
        turned = enlarge_slices(np.ascontiguousarray(turn(slices)), factor, "cubic", network, fuse=True)[0]
        np.testing.assert_allclose(turned, turn(whole), atol=ROUNDING)
    alone = enlarge_slices(slices, factor, "cubic", network)[0]
    assert np.abs(alone - whole).max() > 1e-3
    network = enlarging("depth", factor, lopsided).planes["depth", factor]
    deep = enlarge_depth(slices, 0, factor, "cubic", network, fuse=True)
    turned = enlarge_depth(np.ascontiguousarray(slices.swapaxes(1, 2)), 0, factor, "cubic", network, fuse=True)
    np.testing.assert_allclose(turned, deep.swapaxes(1, 2), atol=ROUNDING)
    mirrored = enlarge_depth(np.ascontiguousarray(slices[:, :, ::-1]), 0, factor, "cubic", network, fuse=True)
    np.testing.assert_allclose(mirrored, deep[:, :, ::-1], atol=ROUNDING)
    assert np.abs(enlarge_depth(slices, 0, factor, "cubic", network) - deep).max() > 1e-4


@pytest.mark.parametrize("in_plane", [1, 2])
def test_the_check_of_an_enlarged_scan_sees_what_was_acquired(in_plane):
    thick = thick_grid()
    volume = Volume(acquired(thick.shape, thick.affine, 2, 4.0).astype(np.float32), thick.affine)
    answer, plan = thinned(volume, factor=4, in_plane=in_plane)
    # Cubic enlargement and bicubic shrinking are no inverses: measured 0.5 % on the phantom.
    assert check(volume, answer.volume, plan).rms_percent < (0.1 if in_plane == 1 else 1.0)
    wrong = replace(answer.volume, voxels=answer.volume.voxels + 0.2 * np.ptp(volume.voxels))
    assert check(volume, wrong, plan).rms_percent > 15


def test_labels_come_along_in_plane_too():
    drawn = (np.random.default_rng(0).random((4, 5, 6)) < 0.5).astype(np.uint8)
    volume = Volume(drawn.astype(np.float32), np.diag([1.0, 1.0, 4.0, 1.0]))
    plan = plan_for(volume, factor=3, in_plane=2)
    labels = interpolate_labels(replace(volume, voxels=drawn), plan)
    assert labels.shape == plan.shape_thin == (8, 10, 18)
    np.testing.assert_array_equal(labels.voxels[::2, 1::2, 1::3], drawn)


PLANES = Envelope(only_factors=(2, 4), in_plane=(1, 2), grids=("fov",))


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"factor": 3}, "factor of 3.*need 2 or 4.*`factor=2` or `factor=4`"),
        ({"factor": 2, "in_plane": 4}, "`in_plane=4`.*need 1 or 2"),
        ({"factor": 2, "in_plane": 0}, "`in_plane=0`.*whole number"),
        ({"factor": 2, "in_plane": 8000}, "`in_plane=8000`.*need"),
        ({"factor": 2, "grid": "centres"}, "`grid=centres`.*need fov"),
    ],
)
def test_what_a_model_for_planes_does_not_have_is_refused(wish, reason):
    volume = Volume(np.zeros((8, 8, 8), np.float32), np.diag([1.0, 1.0, 4.0, 1.0]))
    with pytest.raises(PlanRefused, match=reason) as refusal:
        plan_for(volume, model="planes", envelope=PLANES, **wish)
    assert "next:" in str(refusal.value)
    assert plan_for(volume, model="planes", envelope=PLANES, factor=4, in_plane=2).in_plane == 2


@catches("models/hounsfield.py", "np.mean(voxels < FAT_HOUNSFIELD) < FAT_SHARE", "False")
@catches("models/hounsfield.py", "FAT_SHARE = 0.001", "FAT_SHARE = 1e-9")
@pytest.mark.parametrize(
    ("low", "high", "fine"),
    [(-1024, 1260, True), (-244, 1478, True), (-1150, 3071, True), (0, 255, False), (0, 4095, False), (-4, 5, False)],
)
def test_only_hounsfield_units_are_given_to_a_model_for_them(low, high, fine):
    voxels = np.random.default_rng(0).uniform(low, high, (16, 16, 16)).astype(np.float32)
    voxels[0, 0, :2] = min(low, -60), high  # one voxel where resampling has overshot is no fat
    volume = Volume(voxels, np.diag([1.0, 1.0, 4.0, 1.0]))
    envelope = replace(PLANES, hounsfield=True)
    if fine:
        assert plan_for(volume, factor=2, envelope=envelope).factor == 2
        return
    with pytest.raises(PlanRefused, match=r"need Hounsfield units.*next:"):
        plan_for(volume, factor=2, envelope=envelope)


def test_air_and_metal_are_not_clipped_away():
    voxels = np.full((24, 24, 24), -1000, np.int16)
    voxels[6:18, 6:18, 6:18] = 3000
    volume = Volume(voxels, np.diag([1.0, 1.0, 4.0, 1.0]))
    model = together([enlarging("in-plane", 2, nothing), enlarging("depth", 2, nothing)], "planes-ct")
    answer = thinned(volume, model, factor=2, in_plane=2)[0].volume.voxels
    assert answer[0, 0, 0] == pytest.approx(-1000, abs=1)
    assert answer[24, 24, 24] == pytest.approx(3000, abs=100)


@catches("compute/planes.py", 'np.pad(slices[index], margin, mode="edge")', "np.pad(slices[index], margin)")
def test_edges_repeat_as_far_as_a_network_sees():
    """Without them a network meets the zeros of its convolutions, which no training has shown it."""
    seen = []

    def look(planes, base):
        seen.append((planes, base))
        return base

    slices = 1 + np.random.default_rng(0).random((5, 6, 7), dtype=np.float32)
    enlarge_slices(slices[:1], 2, "cubic", Enlarger(look, (4, 4)))
    planes, base = seen.pop()
    np.testing.assert_array_equal(planes, np.pad(slices[:1], ((0, 0), (4, 4), (4, 4)), mode="edge"))
    assert base.shape == (1, 28, 30)
    enlarge_depth(slices, 1, 2, "cubic", Enlarger(look, (1, 3)))
    planes = np.concatenate([planes for planes, _ in seen])
    assert planes.shape == (6, 5, 13)
    assert all(planes.min() > 0.9 for planes, _ in seen)


@catches(
    "compute/planes.py",
    "keep = make_keep_map(suspect, (height, width))",
    "keep = make_keep_map(0 * suspect, (height, width))",
)
def test_what_disagrees_with_the_slice_it_enlarges_is_not_taken():
    slices = np.random.default_rng(0).random((3, 70, 70), dtype=np.float32)
    plain, count = enlarge_slices(slices, 2, "cubic")
    assert count.cells == 0

    def wrong(planes, base):
        answer = base + np.float32(0.001)
        answer[:, 10:20, 10:20] += 1.0
        answer[:, 130:, 130:] = np.nan
        return answer

    answer, count = enlarge_slices(slices, 2, "cubic", Enlarger(wrong, (0, 0)))
    assert (count.cells, count.suspect) == (27, 6)
    assert np.isfinite(answer).all()
    for corner in (np.s_[:, :46, :46], np.s_[:, 94:, 94:]):
        np.testing.assert_array_equal(answer[corner], plain[corner])
    np.testing.assert_allclose(answer[:, :10, 130:] - plain[:, :10, 130:], 0.001, atol=1e-4)


@catches("compute/upsample.py", "_Padding(thick, plan).filled(thick)", "thick")
@catches("compute/upsample.py", "padding.put_back(thin, lines.owner_acquired)", "pass")
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("in_plane", [1, 2])
def test_padding_is_no_anatomy_and_comes_back_where_it_was(dtype, in_plane):
    x, y = np.indices((40, 40)) - 19.5
    outside = np.hypot(x, y) > 16
    voxels = np.random.default_rng(0).integers(-1000, 300, (40, 40, 8)).astype(dtype)
    air, padded = voxels.copy(), voxels.copy()
    air[outside], padded[outside] = voxels[~outside].min(), -3024
    volume = Volume(padded, np.diag([1.0, 1.0, 4.0, 1.0]))
    result, plan = thinned(volume, factor=2, in_plane=in_plane, envelope=replace(PLANES, hounsfield=True))
    assert plan.padding == -3024
    assert "padding" in " ".join(plan.notes)
    answer = result.volume.voxels
    beyond = np.repeat(np.repeat(outside, in_plane, 0), in_plane, 1)
    assert (answer[beyond] == -3024).all()
    wanted = thinned(replace(volume, voxels=air), factor=2, in_plane=in_plane)[0].volume
    np.testing.assert_allclose(answer[~beyond], wanted.voxels[~beyond], atol=0.5)
    worst = check(volume, result.volume, plan).rms_percent
    assert worst < check(replace(volume, voxels=air), wanted, replace(plan, padding=None)).rms_percent + 0.5
    back = reslice(result.volume, volume, padding=-3024, profile=plan.profile).voxels
    np.testing.assert_array_equal(back == -3024, padded == -3024)


@catches("models/hounsfield.py", "if not lowest < AIR_HOUNSFIELD:", "if False:")
def test_the_lowest_value_of_an_ordinary_scan_is_no_padding():
    for low in (-1024, 0, 300):
        voxels = np.maximum(np.random.default_rng(0).integers(low - 500, low + 1500, (9, 9, 9)), low).astype(np.int16)
        volume = Volume(voxels, np.diag([1.0, 1.0, 4.0, 1.0]))
        tomography = replace(PLANES, hounsfield=low == -1024)
        assert plan_for(volume, factor=2, envelope=tomography).padding is None
        assert plan_for(volume, factor=2).padding is None


def test_without_a_wish_the_nearest_factor_that_the_model_has_is_taken():
    for thick_mm, factor, in_plane in ((4.5, 4, 1), (2.4, 2, 1), (2.5, 4, 2), (9.0, 4, 1)):
        volume = Volume(np.zeros((8, 8, 8), np.float32), np.diag([1.0, 1.0, thick_mm, 1.0]))
        plan = plan_for(volume, model="planes", envelope=PLANES, in_plane=in_plane)
        assert plan.factor == factor
        assert "nearest" in " ".join(plan.notes)


def test_fusing_needs_a_network_and_is_done_when_asked_for():
    volume = Volume(np.zeros((8, 8, 8), np.float32), np.diag([1.0, 1.0, 4.0, 1.0]))
    with pytest.raises(PlanRefused, match=r"`fuse` for cubic.*next:"):
        plan_for(volume, model="cubic", fuse=True)
    assert not plan_for(volume, model="cubic").fuse
    for envelope in (PLANES, Envelope()):
        assert not plan_for(volume, model="network", envelope=envelope).fuse
        assert plan_for(volume, model="network", envelope=envelope, fuse=True).fuse


def test_progress_rises_to_one_also_while_slices_are_enlarged_and_deepened():
    seen = []
    volume = Volume(np.zeros((12, 14, 70, 2), np.float32), np.diag([1.0, 1.0, 4.0, 1.0]))
    model = enlarging("depth", 2, lambda base: base)
    plan = plan_for(volume, factor=2, in_plane=2)
    upsample(volume, plan, model, progress=seen.append)
    assert seen == sorted(seen)
    assert 0 < seen[0] < 0.02
    assert seen[-1] == 1.0
    assert len([share for share in seen if 0.3 < share < 0.5]) >= 1  # the depth of the first volume


@catches("models/blas.py", 'threadpool_limits(1, "blas")', 'threadpool_limits(None, "blas")')
@catches(
    "models/blas.py",
    "if self.users == 0:\n                self.limits.restore",
    "if True:\n                self.limits.restore",
)
def test_while_networks_run_their_cores_are_theirs_alone():
    """OpenBLAS' threads spin for a while after a product: with two of them the same scan took a quarter longer."""

    def threads():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    during = []
    volume = Volume(np.zeros((12, 14, 6), np.float32), np.diag([1.0, 1.0, 4.0, 1.0]))
    watching = enlarging("depth", 2, lambda base: during.extend(threads()) or base)
    with threadpool_limits(2, "blas"):
        thinned(volume, watching, factor=2)
        assert set(threads()) == {2}
        with one_blas_thread:  # another scan, which ends later
            thinned(volume, watching, factor=2)
            assert set(threads()) == {1}
        assert set(threads()) == {2}
    assert set(during) == {1}
