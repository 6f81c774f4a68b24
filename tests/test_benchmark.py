import json
from dataclasses import replace

import numpy as np
import pytest

from faults import catches
from model_files import with_card
from planning import plan_for
from test_metrics import anatomy
from thinslice.compute.upsample import upsample
from thinslice.errors import InputRefused, ModelRefused, OutputRefused, PlanRefused
from thinslice.evaluation import benchmark
from thinslice.evaluation.benchmark import evaluate, simulate, take_middle
from thinslice.evaluation.conditions import Condition, make_conditions, make_mismatch_conditions
from thinslice.evaluation.results import Score, Skip, make_mismatch_table, make_table, write_line
from thinslice.models.envelope import Envelope
from thinslice.models.interpolations import interpolation
from thinslice.models.registry import identify
from thinslice.physics.profile import sd_over_fwhm
from thinslice.volume import Volume

AFFINE = np.array([[0, 0, -1.1, 30], [0.9, 0, 0, -40], [0, 1.0, 0, 12], [0, 0, 0, 1.0]])


def thin_volume(shape=(26, 32, 30), seed=0, affine=AFFINE) -> Volume:
    """Smooth noise with a dark border."""
    rng = np.random.default_rng(seed)
    voxels = rng.normal(size=shape)
    for axis in range(3):
        voxels = voxels + np.roll(voxels, 1, axis) + np.roll(voxels, 2, axis)
    voxels = 500 + 30 * voxels
    voxels[:3] = voxels[-3:] = 5
    return Volume(voxels.astype(np.float32), affine)


@pytest.fixture
def scans(monkeypatch, tmp_path):
    """A folder of names, and the scans that a reader finds behind them."""
    store: dict[str, Volume] = {}

    def read(path):
        if path.name not in store:
            raise InputRefused(f"got {path.name}, which is damaged")
        return store[path.name]

    monkeypatch.setattr(benchmark, "read", read)
    return store


def lines(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("factor", [2, 2.5, 3, 3.7, 4])
@pytest.mark.parametrize(("ratio", "profile"), [(1.0, "gaussian"), (0.75, "gaussian"), (1.25, "box")])
def test_the_plan_of_a_simulated_scan_gives_the_truths_grid_and_the_simulations_matrix(axis, factor, ratio, profile):
    volume = thin_volume()
    truth, thick = simulate(volume, axis, factor, ratio, profile)
    plan = plan_for(thick, factor=truth.shape[axis] / thick.shape[axis], profile=profile)
    assert plan.axis == axis
    assert plan.shape_thin == truth.shape
    assert plan.shape_thick == thick.shape
    np.testing.assert_allclose(plan.affine_thin, truth.affine, atol=1e-9)
    assert plan.thickness_over_spacing == pytest.approx(ratio)
    again = plan.acquisition().forward(truth.voxels)
    np.testing.assert_allclose(again, thick.voxels, rtol=1e-5)
    assert truth.shape[axis] > volume.shape[axis] - factor


def test_the_truth_is_the_middle_of_the_scan_and_stays_in_place():
    volume = thin_volume()
    truth, thick = simulate(volume, 2, 4)
    assert (truth.shape[2], thick.shape[2]) == (28, 7)
    np.testing.assert_array_equal(truth.voxels, volume.voxels[:, :, 1:29])
    np.testing.assert_allclose(truth.affine @ [3, 4, 5, 1], volume.affine @ [3, 4, 6, 1])
    np.testing.assert_allclose(thick.affine @ [3, 4, 2, 1], truth.affine @ [3, 4, 9.5, 1])
    assert thick.thickness_mm == pytest.approx(4.4)


@pytest.mark.parametrize("factor", [8, 1, 0.5, 0, -2])
def test_a_factor_that_leaves_too_few_slices_or_none_to_compute_is_refused(factor):
    with pytest.raises(PlanRefused, match="next: ask for a factor"):
        simulate(thin_volume(), 2, factor)


def test_results_table_and_picture(scans, tmp_path):
    scans["a.nii.gz"], scans["b.nii"] = thin_volume(seed=1), thin_volume(seed=2)
    shares = []
    found = evaluate(
        [tmp_path / "a.nii.gz", tmp_path / "b.nii", tmp_path / "broken.nii"],
        ["linear"],
        make_conditions((4, 2.5)),
        tmp_path / "out",
        progress=lambda share, text: shares.append(share),
    )
    assert len(found.scores) == 2 * 2 * 2 * 2  # cases, conditions, linear and cubic, projection or not
    assert found.skips == (Skip("broken", "got broken.nii, which is damaged"),)
    assert len(lines(tmp_path / "out")) == 17
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b.png", "results.jsonl", "table.md"]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert (tmp_path / "out" / "table.md").read_text() == found.table
    assert "broken: got broken.nii" in found.table
    first = found.scores[0]
    assert (first.case, first.axis, first.model, first.projection) == ("a", 2, "linear", True)


def test_a_score_is_that_of_what_a_user_gets(scans, tmp_path):
    volume = scans["a.nii"] = thin_volume()
    found = evaluate([tmp_path / "a.nii"], ["cubic"], out=tmp_path / "out")
    truth, thick = simulate(volume, 2, 4.0)
    by_projection = {score.projection: score for score in found.scores}
    for projection in (True, False):
        plan = plan_for(thick, factor=4.0, projection=projection)
        answer = upsample(thick, plan, interpolation("cubic")).volume.voxels
        mask = benchmark.foreground(truth.voxels)
        span = benchmark.data_range(truth.voxels)
        assert by_projection[projection].psnr_db == benchmark.psnr(answer, truth.voxels, span, mask)
    assert by_projection[True].reslice_rms < by_projection[False].reslice_rms / 3
    assert by_projection[True].psnr_db > by_projection[False].psnr_db


def test_every_axis_in_turn(scans, tmp_path):
    scans["a.nii"] = thin_volume()
    found = evaluate([tmp_path / "a.nii"], ["cubic"], make_conditions((3,)), tmp_path / "out", axes="all")
    assert sorted({score.axis for score in found.scores}) == [0, 1, 2]
    assert "|  3 |" in found.table or "| 3 |" in found.table


@pytest.mark.parametrize(
    ("volume", "reason"),
    [
        (thin_volume((26, 32, 15)), "at least 16"),
        (thin_volume(affine=np.diag([1, 1, 1.3, 1])), "near-isotropic"),
        (Volume(np.full((20, 20, 20), 7.0), np.eye(4)), "same value everywhere"),
        (Volume(np.full((20, 20, 20), np.nan), np.eye(4)), "not finite"),
        (Volume(np.zeros((20, 20, 20, 2)), np.eye(4)), "3-D"),
    ],
)
def test_unusable_scans_are_named_and_skipped_and_refused_if_there_is_nothing_else(scans, tmp_path, volume, reason):
    scans["good.nii"], scans["bad.nii"] = thin_volume(), volume
    found = evaluate([tmp_path / "bad.nii", tmp_path / "good.nii"], ["cubic"], out=tmp_path / "out")
    assert [skip.case for skip in found.skips] == ["bad"]
    assert reason in found.skips[0].reason
    assert lines(tmp_path / "out")[0]["kind"] == "skip"
    with pytest.raises(InputRefused, match=reason):
        evaluate([tmp_path / "bad.nii"], ["cubic"], out=tmp_path / "out2")
    assert not (tmp_path / "out2").exists()
    before = (tmp_path / "out" / "results.jsonl").read_text()
    with pytest.raises(InputRefused, match=reason):
        evaluate([tmp_path / "bad.nii"], ["cubic"], out=tmp_path / "out")
    assert (tmp_path / "out" / "results.jsonl").read_text() == before


def test_a_condition_too_coarse_for_a_scan_is_skipped_with_the_others_scored(scans, tmp_path):
    scans["a.nii"] = thin_volume()
    found = evaluate([tmp_path / "a.nii"], ["cubic"], make_conditions((8, 2)), tmp_path / "out")
    assert [skip.condition for skip in found.skips] == [Condition(8)]
    assert {score.condition for score in found.scores} == {Condition(2)}
    assert (tmp_path / "out" / "a.png").exists()


def test_wrong_wishes_are_refused_before_anything_is_computed(scans, tmp_path):
    scans["a.nii"] = thin_volume()
    with pytest.raises(ModelRefused, match="no_such"):
        evaluate([tmp_path / "a.nii"], ["no_such"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputRefused, match="at least one"):
        evaluate([], ["cubic"], out=tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputRefused, match="need a folder"):
        evaluate([tmp_path / "a.nii"], ["cubic"], out=tmp_path / "file")


def test_equal_names_in_two_folders_stay_apart(scans, tmp_path):
    scans["a.nii"] = thin_volume()
    found = evaluate([tmp_path / "x" / "a.nii", tmp_path / "y" / "a.nii"], ["cubic"], out=tmp_path / "out")
    assert sorted({score.case for score in found.scores}) == ["x-a", "y-a"]


def score(case="a", model="cubic", projection=True, psnr_db=20.0) -> Score:
    return Score(case, 2, Condition(), 4.0, model, None, projection, psnr_db, 0.8, 12.0, 5.0, 1.0, 0.1, 0.0, 0.01)


def test_gain_is_over_cubic_with_projection_of_the_same_case_and_shows_the_smallest():
    table = make_table(
        [
            score("a"),
            score("a", projection=False, psnr_db=10),
            score("a", "net", psnr_db=23),
            score("b", psnr_db=30),
            score("b", "net", psnr_db=29.5),
        ]
    )
    row = next(line for line in table.splitlines() if "net" in line)
    cells = ["2", "26.25", "0.8000", "+1.25 (-0.50)", "+13.00 (+13.00)", "12.0 (5.0)"]
    assert [cell.strip() for cell in row.split("|")][4:10] == cells


def test_the_table_names_every_skipped_case_once():
    skips = [Skip("a", "no", 2, Condition(8)), Skip("a", "no", 1, Condition(8)), Skip("b", "bad", model="net")]
    table = make_table([score()], skips)
    assert "- a, axis 2, x8 gaussian, touching: no (and 1 more, see results.jsonl)\n- b, net: bad\n" in table


def test_a_model_outside_its_envelope_is_skipped_and_the_reference_still_scored(scans, tmp_path, monkeypatch):
    narrow = replace(interpolation("linear"), name="net", envelope=Envelope((2, 3), (0.9, 1.1)))
    monkeypatch.setattr(
        benchmark, "find_model", lambda name, settings: narrow if name == "net" else interpolation(name)
    )
    scans["a.nii"] = thin_volume()
    found = evaluate([tmp_path / "a.nii"], ["net"], make_conditions((4, 2)), tmp_path / "out")
    assert [(skip.model, skip.condition.factor) for skip in found.skips] == [("net", 4)]
    assert {(s.model, s.condition.factor) for s in found.scores} == {("cubic", 4), ("net", 2), ("cubic", 2)}


@catches("evaluation/benchmark.py", "(model.sha256 is not None and model.name in INTERPOLATIONS)", "False")
def test_a_network_that_is_called_cubic_is_not_taken_for_the_reference(scans, tmp_path):
    file = str(with_card(tmp_path / "mine.onnx", name="cubic"))
    scans["a.nii"] = thin_volume()
    found = evaluate([tmp_path / "a.nii"], [file], make_conditions((2,)), tmp_path / "out")
    hashes = {score.model: score.model_sha256 for score in found.scores}
    assert hashes == {file: identify(file), "cubic": None}


def test_an_infinite_psnr_is_null_in_the_results_and_never_a_number(tmp_path):
    with (tmp_path / "results.jsonl").open("w") as file:
        write_line(file, score(psnr_db=float("inf")))
    (record,) = lines(tmp_path)
    assert record["psnr_db"] is None
    assert record["identical"] is True
    assert " inf |" in make_table([score(psnr_db=float("inf"))])


@catches("evaluation/benchmark.py", "fuse and model.sha256 is not None", "False")
def test_networks_are_asked_in_several_orientations_where_that_is_wished(scans, tmp_path):
    scans["a.nii"] = thin_volume(affine=np.eye(4))
    found = {
        fuse: evaluate([tmp_path / "a.nii"], ["default", "cubic"], out=tmp_path / str(fuse), fuse=fuse)
        for fuse in (True, False)
    }
    for fuse, evaluation in found.items():
        assert {score.model: score.fuse for score in evaluation.scores} == {"default": fuse, "cubic": False}
        assert ("default, fused" in evaluation.table) == fuse
        assert [line["fuse"] for line in lines(tmp_path / str(fuse))] == [score.fuse for score in evaluation.scores]
    one, two = (found[fuse].scores[0].psnr_db for fuse in (False, True))
    assert one != two


# ---- what is stated of the slices, what disturbs them, what users measure


@catches(
    "evaluation/benchmark.py", "None if stated is None else stated[1] * thick.spacing_mm[axis]", "thick.thickness_mm"
)
def test_the_slices_are_the_same_whatever_is_stated_of_them(scans, tmp_path):
    volume = scans["a.nii"] = thin_volume()
    conditions = make_conditions(profiles=("box",), thickness_ratios=(0.75,), stated=("true", "none", "wrong"))
    found = evaluate([tmp_path / "a.nii"], ["cubic"], conditions, tmp_path / "out")
    _, thick = simulate(volume, 2, 4.0, 0.75, "box")
    by_stated = {(s.condition.stated, s.projection): s for s in found.scores}
    # What is not projected does not depend on the profile; what is, does.
    plain = [by_stated[one, False].psnr_db for one in ("true", "none", "wrong")]
    assert len(set(plain)) == 1
    assert len({by_stated[one, True].psnr_db for one in ("true", "none", "wrong")}) == 3
    assert by_stated["true", True].assumed == ("box", pytest.approx(0.75))
    assert by_stated["wrong", True].assumed == ("gaussian", pytest.approx(1.0))
    # As for a scan whose file is silent.
    silent = plan_for(replace(thick, thickness_mm=None), factor=4.0, profile=None)
    assert by_stated["none", True].assumed == (silent.profile, pytest.approx(silent.thickness_over_spacing))
    assert [line["assumed"][0] for line in lines(tmp_path / "out")][:2] == ["box", "box"]


def test_disturbed_slices_are_what_the_program_gets_and_the_truth_stays(scans, tmp_path):
    scans["a.nii"] = thin_volume()
    conditions = make_conditions(noise_percent=(0, 10), brightness_percent=(0, 20), shift_px=(0, 1))
    found = evaluate([tmp_path / "a.nii"], ["cubic"], conditions, tmp_path / "out")
    plain = {s.condition: s.psnr_db for s in found.scores if not s.projection}
    assert len(set(plain.values())) == 8
    assert all(plain[one] < plain[Condition()] for one in conditions[1:])
    assert len({s.stripes_truth for s in found.scores}) == 1


def test_rician_noise_below_zero_costs_that_condition_alone(scans, tmp_path):
    volume = thin_volume()
    scans["a.nii"] = replace(volume, voxels=volume.voxels - 1000)
    conditions = make_conditions(noise_percent=(0, 3), noise_kind="rician")
    found = evaluate([tmp_path / "a.nii"], ["cubic"], conditions, tmp_path / "out")
    assert [skip.condition.noise_percent for skip in found.skips] == [3]
    assert "below zero" in found.skips[0].reason


def test_the_middle_of_a_scan_stays_in_its_place():
    volume = thin_volume()
    part = take_middle(volume, 27)
    assert part.shape == (26, 27, 27)
    np.testing.assert_array_equal(part.voxels, volume.voxels[:, 2:29, 1:28])
    np.testing.assert_allclose(part.affine @ [3, 4, 5, 1], volume.affine @ [3, 6, 6, 1])


def test_a_crop_is_evaluated_as_a_scan_of_that_size(scans, tmp_path):
    scans["a.nii"], scans["b.nii"] = thin_volume(), take_middle(thin_volume(), 27)
    found = evaluate([tmp_path / "a.nii", tmp_path / "b.nii"], ["cubic"], out=tmp_path / "out", crop=27)
    one, two = (next(s for s in found.scores if s.case == case) for case in "ab")
    assert one.psnr_db == two.psnr_db
    with pytest.raises(InputRefused, match="at least 16"):
        evaluate([tmp_path / "a.nii"], ["cubic"], out=tmp_path / "out", crop=15)


@catches("evaluation/benchmark.py", 'out / "results.jsonl.part"', 'out / "results.jsonl"')
def test_what_an_earlier_evaluation_found_stays_until_the_new_one_is_done(scans, tmp_path):
    scans["a.nii"], scans["b.nii"] = thin_volume(), thin_volume(seed=1)
    out = tmp_path / "out"
    evaluate([tmp_path / "a.nii"], ["cubic"], make_conditions((2,)), out)
    before = {name: (out / name).read_text() for name in ("results.jsonl", "table.md")}

    def stop(share, text):
        if text.startswith("b"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate([tmp_path / "a.nii", tmp_path / "b.nii"], ["cubic"], make_conditions((3,)), out, progress=stop)
    assert {name: (out / name).read_text() for name in before} == before
    kept = [json.loads(line) for line in (out / "results.jsonl.part").read_text().splitlines()]
    assert [(line["case"], line["factor"]) for line in kept] == [("a", 3), ("a", 3)]
    evaluate([tmp_path / "a.nii"], ["cubic"], make_conditions((3,)), out)
    assert not (out / "results.jsonl.part").exists()
    assert {line["factor"] for line in lines(out)} == {3}


def test_what_users_measure_is_measured_where_it_is_asked_for(scans, tmp_path):
    scans["a.nii"] = thin_volume(shape=(26, 32, 48), affine=np.eye(4))
    found = evaluate([tmp_path / "a.nii"], ["cubic"], make_conditions((2,)), tmp_path / "out", downstream=True)
    assert {score.model for score in found.scores} == {"cubic", "linear", "nearest"}
    assert all(score.downstream is not None for score in found.scores)
    record = lines(tmp_path / "out")[0]["downstream"]
    assert len(record["volume_errors_percent"]) == len(record["dice"]) == 3
    assert record["edge_mm"] > record["edge_mm_truth"] > 0
    assert "Dice of smallest" in found.table
    plain = evaluate([tmp_path / "a.nii"], ["cubic"], make_conditions((2,)), tmp_path / "plain")
    assert {score.model for score in plain.scores} == {"cubic"}
    assert lines(tmp_path / "plain")[0]["downstream"] is None
    assert "Dice" not in plain.table
    # A scan that is the same in all slices has no edge across them: no number, and strict JSON all the same.
    scans["a.nii"] = Volume(thin_volume().voxels[:, :, :1].repeat(30, axis=2), np.eye(4))
    found = evaluate([tmp_path / "a.nii"], ["cubic"], make_conditions((2,)), tmp_path / "same", downstream=True)
    assert lines(tmp_path / "same")[0]["downstream"]["edge_mm"] is None
    assert "nan (nan) |" in found.table


def test_networks_may_be_left_out_without_projection_and_interpolations_stay(scans, tmp_path):
    scans["a.nii"] = thin_volume(affine=np.eye(4))
    found = evaluate([tmp_path / "a.nii"], ["default"], make_conditions((2,)), tmp_path / "out", projected_only=True)
    assert [(s.model, s.projection) for s in found.scores] == [("default", True), ("cubic", True), ("cubic", False)]


@catches("evaluation/results.py", "if score.projection:\n            # The", "if True:\n            # The")
def test_the_matrix_has_the_gain_over_plain_cubic_of_every_pair():
    scores = []
    for number, condition in enumerate(make_mismatch_conditions()):
        for case, more in (("a", 0.5), ("b", 1.5)):
            plain = replace(score(case, projection=False, psnr_db=20.0), condition=condition)
            ours = replace(score(case, "net", psnr_db=20.0 + number + more), condition=condition)
            scores += [plain, ours, replace(ours, projection=False, psnr_db=1.0)]
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in make_mismatch_table(scores).splitlines()]
    rows = {row[0]: row[1:] for row in table if row}
    assert rows["net, x4"][:2] == ["told gaussian:0.75", "told gaussian:1"]
    assert rows["net, x4"][-2:] == ["told nothing", "told the truth"]
    assert rows["gaussian:0.75"][:-1] == [f"+{n + 1}.00 (+{n + 0.5:.2f})" for n in range(6)]
    assert rows["box:1"][-2:] == ["+30.00 (+29.50)", "+29.00 (+28.50)"]
    assert rows["all"][-1] == "+15.00 (+0.50)"
    assert rows["all"][0] == "+13.00 (+0.50)"


def test_a_matrix_is_part_of_the_table_where_profiles_are_stated_by_name(scans, tmp_path):
    scans["a.nii"] = thin_volume()
    found = evaluate([tmp_path / "a.nii"], ["cubic"], make_mismatch_conditions((3,)), tmp_path / "out")
    assert "told box:0.75 |" in found.table
    off = [
        abs(
            sd_over_fwhm(s.assumed[0]) * s.assumed[1]
            - sd_over_fwhm(s.condition.profile) * s.condition.thickness_over_spacing
        )
        for s in found.scores
        if s.condition.stated == "none"
    ]
    assert f"off by {np.mean(off):.3f} slice spacings on average, {max(off):.3f} at most" in found.table
    assert (tmp_path / "out" / "table.md").read_text() == found.table
    assert "told box" not in evaluate([tmp_path / "a.nii"], ["cubic"], out=tmp_path / "out").table


@catches(
    "evaluation/benchmark.py",
    "make_even(np.moveaxis(one.thick.voxels, axis, 0), plan.alternation)",
    "(np.moveaxis(one.thick.voxels, axis, 0))",
)
def test_the_re_slice_error_is_that_of_the_slices_as_they_were_computed_with(scans, tmp_path):
    """A difference from slice to slice that the program takes out is no disagreement, as in the report of a scan."""
    scans["a.nii"] = Volume(anatomy((64, 64, 96)), np.eye(4))
    found = evaluate([tmp_path / "a.nii"], ["cubic"], make_conditions(brightness_percent=(0, 10)), tmp_path / "out")
    errors = [score.reslice_rms for score in found.scores if score.projection]
    assert errors[1] < 2 * errors[0]
