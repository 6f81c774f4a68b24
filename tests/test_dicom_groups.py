"""Which series of a study belong together, and what is said of all others."""

import pytest
from pydicom.dataset import Dataset

from dicom_files import AXIAL, CORONAL, SAGITTAL, enhanced, oblique, stack
from faults import catches
from thinslice.io.dicom.groups import find_groups, shared_words
from thinslice.io.dicom.series import find_study

CENTRE = (5.0, -10.0, 40.0)
"""The middle of every body here, mm (LPS)."""


def body(folder, series, orientation=AXIAL, description="T2 TSE", centre=CENTRE, **more):
    """A stack around a place, in a folder of its own; its slices were acquired at times of their own."""
    import numpy as np

    count, rows, columns = more.get("count", 8), more.get("rows", 20), more.get("columns", 24)
    along_row, along_column = np.reshape(orientation, (2, 3))
    between_rows, between_columns = more.get("spacing", (0.8, 0.9))
    origin = np.array(centre) - along_row * between_columns * (columns - 1) / 2
    origin -= along_column * between_rows * (rows - 1) / 2
    origin -= np.cross(along_row, along_column) * more.get("step_mm", 4.0) * (count - 1) / 2
    change = more.pop("change", None)
    minute = more.pop("minute", series)

    def at_its_time(ds, index):
        ds.AcquisitionTime = f"10{minute % 60:02d}{index:02d}"
        if change is not None:
            change(ds, index)

    stack(
        folder / f"s{series}", series=series, orientation=orientation, description=description, origin=tuple(origin),
        change=at_its_time, **more,
    )  # fmt: skip


def groups_of(folder, **options):
    return find_groups(find_study(folder, **options))


def numbers(group):
    return [series.images[0].number for series in group.series]


def reasons(found):
    """SeriesNumber of what is left out -> why."""
    return {one.series.images[0].number: one.reason for one in found.left_out if one.series is not None}


def test_three_directions_of_one_contrast_are_a_group(tmp_path):
    body(tmp_path, 1, SAGITTAL, "T2_TSE_sag")
    body(tmp_path, 2, CORONAL, "t2_tse_cor", RepetitionTime=4000)
    body(tmp_path, 3, AXIAL, "T2 TSE tra", EchoTime=100)
    found = groups_of(tmp_path)
    (group,) = found.groups
    assert group.name == "T2 TSE"
    assert numbers(group) == [1, 2, 3]
    assert found.left_out == ()


@catches("io/dicom/groups.py", "return one.is_derived, -one.voxels, one.index", "return one.is_derived, one.index")
def test_the_stack_with_most_voxels_is_the_first(tmp_path):
    body(tmp_path, 1, SAGITTAL)
    body(tmp_path, 2, CORONAL, count=12)
    body(tmp_path, 3)
    assert numbers(groups_of(tmp_path).groups[0]) == [2, 1, 3]


def test_each_contrast_is_a_group_with_a_name_of_its_own(tmp_path):
    for offset, times in ((0, {"EchoTime": 10, "RepetitionTime": 600}), (2, {})):
        body(tmp_path, 1 + offset, SAGITTAL, "Spine", **times)
        body(tmp_path, 2 + offset, CORONAL, "Spine", **times)
    body(tmp_path, 5, description="A", EchoTime=30)
    body(tmp_path, 6, CORONAL, description="B", EchoTime=30)
    found = groups_of(tmp_path)
    assert [numbers(group) for group in found.groups] == [[1, 2], [3, 4], [5, 6]]
    assert [group.name for group in found.groups] == ["Spine", "Spine 2", "MR TE 30 TR 3000"]


@catches(
    "io/dicom/groups.py",
    "(first.patient, first.study_uid, first.modality) !=",
    "(second.patient, first.study_uid, first.modality) !=",
)
@pytest.mark.parametrize(
    "other",
    [{"PatientID": "4712"}, {"StudyInstanceUID": "1.2.3.5"}, {"FrameOfReferenceUID": "1.2.3.10"}, {"EchoTime": 30},
     {"modality": "CT"}],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_what_is_of_something_else_is_no_group(tmp_path, other):
    body(tmp_path, 1, SAGITTAL)
    body(tmp_path, 2, CORONAL, **other)
    found = groups_of(tmp_path)
    assert found.groups == ()
    assert reasons(found) == dict.fromkeys((1, 2), "the only stack of its contrast in this study")


def test_a_frame_of_reference_that_is_not_stated_parts_nothing(tmp_path):
    body(tmp_path, 1, SAGITTAL)
    body(tmp_path, 2, CORONAL, FrameOfReferenceUID="")
    assert len(groups_of(tmp_path).groups) == 1


def test_headers_that_are_silent_about_the_contrast_are_noted(tmp_path):
    def silent(ds, index):
        del ds.RepetitionTime

    body(tmp_path, 1, SAGITTAL)
    body(tmp_path, 2, CORONAL, change=silent)
    (group,) = groups_of(tmp_path).groups
    assert group.notes == ("1 T2 TSE and 2 T2 TSE: headers do not say whether they have one contrast",)


@catches("io/affines.py", "float(gaps_mm.max())", "float(gaps_mm.min())")
def test_chunks_that_touch_are_a_group_and_a_knee_on_the_other_side_is_none(tmp_path):
    for number, height_mm in enumerate((0, 14, 28), 1):
        body(tmp_path, number, SAGITTAL, centre=(0, 0, height_mm))
    body(tmp_path, 4, SAGITTAL, centre=(200, 0, 0))
    found = groups_of(tmp_path)
    assert [numbers(group) for group in found.groups] == [[1, 2, 3]]
    assert reasons(found) == {4: "touches no other stack of its contrast: 1 T2 TSE, 2 T2 TSE, 3 T2 TSE"}


def test_boxes_at_an_angle_may_be_apart_though_their_shadows_overlap(tmp_path):
    """Along no axis of the patient is there a gap between two thin slabs that lie side by side, both turned by 45."""
    turned = oblique(45)
    import numpy as np

    aside = 40 * np.cross(turned[:3], turned[3:])
    for number, centre in ((1, np.zeros(3)), (2, aside)):
        body(tmp_path, number, turned, centre=tuple(centre), rows=120, columns=120)
    assert groups_of(tmp_path).groups == ()


def test_repeats_are_a_group_and_one_acquisition_sent_twice_is_none(tmp_path):
    for number, minute in ((1, 1), (2, 2), (3, 2)):
        body(tmp_path, number, minute=minute)
    found = groups_of(tmp_path)
    assert [numbers(group) for group in found.groups] == [[1, 2]]
    assert reasons(found) == {3: "the same slices as 2 T2 TSE, reconstructed or filtered in another way"}


def test_times_that_were_taken_away_make_no_acquisition_one(tmp_path):
    for number in (1, 2):
        body(tmp_path, number, change=lambda ds, index: setattr(ds, "AcquisitionTime", "000000.00"))
    assert len(groups_of(tmp_path).groups) == 1


def test_phases_after_a_contrast_agent_are_not_averaged(tmp_path):
    body(tmp_path, 1, ContrastBolusAgent="Gd")
    body(tmp_path, 2, ContrastBolusAgent="Gd")
    body(tmp_path, 3, SAGITTAL, ContrastBolusAgent="Gd")
    body(tmp_path, 4, CORONAL, ContrastBolusAgent="Gd")
    found = groups_of(tmp_path)
    assert [numbers(group) for group in found.groups] == [[3, 4]]
    assert reasons(found)[1] == "at the same places as 2 T2 TSE: phases after a contrast agent"


def four_dimensional(ds, index, phase):
    ds.SOPInstanceUID += f".{phase}"
    ds.TemporalPositionIdentifier = phase


@catches("io/dicom/groups.py", "if of_series:", "if len(of_series) > 9:")
def test_time_points_of_one_series_are_no_stacks(tmp_path):
    for phase in (1, 2, 3):
        body(
            tmp_path, 1, named=f"P{phase}", minute=phase,
            change=lambda ds, index, phase=phase: four_dimensional(ds, index, phase),
        )  # fmt: skip
    found = groups_of(tmp_path)
    assert found.groups == ()
    assert [one.reason for one in found.left_out] == ["one of 3 images at the same places in one series: 4-D"] * 3


UNFIT = {
    "few slices": ({"count": 4}, "4 slices: fewer than 5 are no stack to combine"),
    "scout": ({"description": "3-plane scout"}, "a localizer, as its description says (3-plane)"),
    "survey": ({"ProtocolName": "WIP Survey_head"}, "a localizer, as its description says (Survey)"),
    "real part": (
        {"ImageType": ["ORIGINAL", "PRIMARY", "R", "ND"]},
        "images of phase, not of magnitude (ImageType R)",
    ),
    "map": ({"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]}, "a map that was computed from other images"),
    "reformat": (
        {"ImageType": ["DERIVED", "SECONDARY", "MPR"]},
        "resampled from other images, not acquired (ImageType DERIVED/SECONDARY/MPR)",
    ),
    "thin": ({"step_mm": 1.0, "thickness_mm": 1.0}, "thin already: slices 1 mm apart with pixels of 0.8 mm"),
}


@catches("io/dicom/groups.py", "    _is_localizer,\n", "")
@catches("io/dicom/groups.py", "    _was_resampled,\n", "")
@catches("io/dicom/groups.py", "    _shows_something_else,\n", "")
@catches("io/dicom/groups.py", "    _is_thin,\n", "")
@pytest.mark.parametrize("kind", UNFIT)
def test_what_is_no_acquired_thick_stack_is_left_out_with_its_reason(tmp_path, kind):
    options, reason = UNFIT[kind]
    body(tmp_path, 1, SAGITTAL)
    body(tmp_path, 2, CORONAL)
    for number, orientation in ((3, AXIAL), (4, oblique())):
        body(tmp_path, number, orientation, **options)
    found = groups_of(tmp_path)
    assert [numbers(group) for group in found.groups] == [[1, 2]]
    assert all(reasons(found)[number].startswith(reason) for number in (3, 4))


@pytest.mark.parametrize("words", ["T2 local coil", "allocated", "block", "surveyor", "velocity"])
def test_other_words_are_no_localizer(tmp_path, words):
    body(tmp_path, 1, SAGITTAL, words)
    body(tmp_path, 2, CORONAL, words)
    assert len(groups_of(tmp_path).groups) == 1


@pytest.mark.parametrize(
    "image_type",
    [["ORIGINAL", "PRIMARY", "MPR"], ["DERIVED", "SECONDARY", "M", "NORM", "DIS2D"], ["DERIVED", "PRIMARY", "W"]],
    ids=["GE oblique", "corrected for distortion", "water"],
)
def test_what_was_acquired_in_its_slices_is_taken_whatever_else_its_type_says(tmp_path, image_type):
    body(tmp_path, 1, SAGITTAL, ImageType=image_type)
    body(tmp_path, 2, CORONAL, ImageType=image_type)
    assert len(groups_of(tmp_path).groups) == 1


def test_a_localizer_of_whole_stacks_is_known_by_its_directions(tmp_path):
    """The reader makes three stacks of it."""
    for orientation, named in ((AXIAL, "A"), (CORONAL, "B"), (SAGITTAL, "C")):
        body(
            tmp_path, 1, orientation, "PLANES", count=6, named=named,
            change=lambda ds, index, named=named: setattr(ds, "SOPInstanceUID", f"{ds.SOPInstanceUID}.{ord(named)}"),
        )  # fmt: skip
    found = groups_of(tmp_path)
    assert [one.reason for one in found.left_out] == ["a localizer: stacks across each other in one series"] * 3


def test_stacks_along_discs_in_one_series_are_no_localizer(tmp_path):
    body(tmp_path, 1, SAGITTAL)
    for angle in (0, 20):
        body(
            tmp_path, 2, oblique(angle), named=f"D{angle}-",
            change=lambda ds, index, angle=angle: setattr(ds, "SOPInstanceUID", f"{ds.SOPInstanceUID}.{angle}"),
        )  # fmt: skip
    (group,) = groups_of(tmp_path).groups
    assert numbers(group) == [1, 2, 2]


def made_from(series):
    """Each slice says that it was made from one of another series."""

    def change(ds, index):
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = ds.SOPClassUID, f"1.2.3.4.{series}.{index + 1}"
        ds.SourceImageSequence = [item]

    return change


@catches("io/dicom/groups.py", "    _shows_what_another_holds,\n", "")
@catches("io/dicom/groups.py", "if one.made_from & {image.sop_uid", "if not {image.sop_uid")
@catches(
    "io/dicom/groups.py",
    "if one.is_ct and other.spacing_mm.max() <= limit",
    "if False and other.spacing_mm.max() <= limit",
)
def test_thick_ct_slices_are_taken_where_the_thin_ones_are_gone(tmp_path):
    reformat = {"modality": "CT", "ImageType": ["DERIVED", "SECONDARY", "MPR"]}
    body(tmp_path / "thick", 2, CORONAL, **reformat, step_mm=3.0)
    body(tmp_path / "thick", 3, SAGITTAL, **reformat, step_mm=3.0)
    (group,) = groups_of(tmp_path / "thick").groups
    assert numbers(group) == [2, 3]
    assert "resampled from thin slices that are not in this study" in group.notes[-1]
    # A thick original does not hold what they show.
    body(tmp_path / "thick", 1, modality="CT", step_mm=5.0)
    assert numbers(groups_of(tmp_path / "thick").groups[0]) == [1, 2, 3]
    # Thin ones do, and so do slices that they say they were made from.
    body(tmp_path / "thin", 2, CORONAL, **reformat, step_mm=3.0)
    body(tmp_path / "thin", 3, SAGITTAL, **reformat, step_mm=3.0)
    body(tmp_path / "thin", 1, modality="CT", step_mm=1.0, count=24)
    found = groups_of(tmp_path / "thin")
    assert found.groups == ()
    assert reasons(found)[2] == "resampled, and 1 T2 TSE of this study holds all of it in thinner slices"
    body(tmp_path / "named", 1, modality="CT", step_mm=5.0)
    body(tmp_path / "named", 2, CORONAL, **reformat, step_mm=3.0, change=made_from(1))
    assert reasons(groups_of(tmp_path / "named"))[2] == "made from 1 T2 TSE, which is in this study"


def test_another_kernel_of_one_ct_is_no_repeat(tmp_path):
    body(tmp_path, 1, modality="CT", ConvolutionKernel="B30f")
    body(tmp_path, 2, modality="CT", ConvolutionKernel="B60f")
    assert reasons(groups_of(tmp_path))[2].startswith("the same slices as 1 T2 TSE")


@catches("io/dicom/groups.py", "    _is_computed,\n", "")
def test_an_answer_never_goes_in_again(tmp_path):
    ours = Dataset()
    ours.Manufacturer = "thinslice"
    body(tmp_path, 1, SAGITTAL)
    body(tmp_path, 2, CORONAL)
    body(tmp_path, 3, ContributingEquipmentSequence=[ours])
    for options in ({}, {"computed_too": True}):
        found = groups_of(tmp_path, **options)
        assert [numbers(group) for group in found.groups] == [[1, 2]]
        (left,) = found.left_out
        assert "computed by thinslice" in left.reason


def test_what_cannot_be_read_is_named_too(tmp_path):
    body(tmp_path, 1, SAGITTAL)
    body(tmp_path, 2, CORONAL)
    body(tmp_path, 3, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    found = groups_of(tmp_path)
    assert len(found.groups) == 1
    (left,) = found.left_out
    assert (left.label, left.series) == ("3 T2 TSE", None)
    assert "a localizer" in left.reason


def test_a_file_that_is_gone_by_now_is_left_out(tmp_path):
    body(tmp_path, 1, SAGITTAL)
    body(tmp_path, 2, CORONAL)
    study = find_study(tmp_path)
    study.series[1].images[0].path.unlink()
    found = find_groups(study)
    assert found.groups == ()
    assert reasons(found)[2] == "no access (No such file or directory)"


def test_enhanced_images_are_grouped_by_their_frames(tmp_path):
    enhanced(tmp_path / "in", echoes=2)
    found = groups_of(tmp_path)
    assert [one.reason for one in found.left_out] == ["the only stack of its contrast in this study"] * 2


def test_the_names_of_files_do_not_matter(tmp_path):
    for number, orientation in ((1, SAGITTAL), (2, CORONAL), (3, AXIAL)):
        body(tmp_path / "a", number, orientation)
        body(tmp_path / "b", number, orientation, named="zz")
        # The folders in the order of the other end.
        (tmp_path / "b" / f"s{number}").rename(tmp_path / "b" / f"t{9 - number}")
    first, second = (groups_of(tmp_path / folder).groups[0] for folder in ("a", "b"))
    assert (first.name, numbers(first)) == (second.name, numbers(second))


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["T2_TSE sag 320", "t2_tse tra 320"], ["T2", "TSE"]),
        (["Sag PD FS knee", "Cor PD FS knee"], ["PD", "FS", "knee"]),
        (["T2 T2", "t2"], ["T2"]),
        (["A", "B"], []),
        (["", "B"], []),
    ],
)
def test_words_that_all_descriptions_share(texts, words):
    assert shared_words(texts) == words
