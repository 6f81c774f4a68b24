"""Whether two scans have one contrast, by their headers."""

import json
from dataclasses import replace

import pytest

from dicom_files import enhanced, stack
from faults import catches
from thinslice.io.contrast import Contrast, compare_contrasts, contrast_beside, contrast_from_facts
from thinslice.io.dicom.contrast import contrast_of_series
from thinslice.io.dicom.series import find_study

T2 = Contrast("MR", echo_ms=100.0, repetition_ms=4000.0, sequence=frozenset({"SE"}), is_fat_suppressed=False)
GRADIENT = Contrast("MR", echo_ms=2.3, repetition_ms=180.0, flip_degrees=70.0, sequence=frozenset({"GR"}))
FLAIR = replace(T2, inversion_ms=2400.0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (T2, replace(T2, echo_ms=85.0, repetition_ms=6500.0)),
        (replace(T2, echo_ms=9.0, repetition_ms=600.0), replace(T2, echo_ms=13.0, repetition_ms=850.0)),
        (FLAIR, replace(FLAIR, inversion_ms=2200.0)),
        (T2, replace(T2, flip_degrees=150.0)),
        (T2, replace(T2, is_fat_suppressed=None)),
        (GRADIENT, replace(GRADIENT, echo_ms=2.6)),
        (Contrast("CT", kernel="B30f"), Contrast("CT", kernel="B30f")),
    ],
    ids=["more slices", "short echoes", "inversion", "refocusing", "silent on fat", "gradient echo", "CT"],
)
def test_what_differs_within_a_protocol_does_not_matter(one, other):
    match = compare_contrasts(one, other)
    assert match.is_same
    assert match.reasons == ()


@catches("io/contrast.py", "{one.is_fat_suppressed, other.is_fat_suppressed} != {True, False}", "True")
@catches("io/contrast.py", 'if "GR" in one.sequence | other.sequence', 'if "GR" in ""')
@catches("io/contrast.py", "if silent.echo_ms is not None else", "if silent.echo_ms is None else")
@pytest.mark.parametrize(
    ("one", "other", "word"),
    [
        (T2, replace(T2, echo_ms=30.0), "echo times of 100 and 30 ms"),
        (T2, replace(T2, repetition_ms=700.0), "repetition times of 4000 and 700 ms"),
        (T2, FLAIR, "an inversion time of 2400 ms and none"),
        (FLAIR, replace(FLAIR, inversion_ms=150.0), "inversion times of 2400 and 150 ms"),
        (GRADIENT, replace(GRADIENT, echo_ms=4.6), "echo times of 2.3 and 4.6 ms"),
        (GRADIENT, replace(GRADIENT, flip_degrees=20.0), "flip angles of 70 and 20 degrees"),
        (T2, replace(T2, sequence=frozenset({"GR"})), "sequences SE and GR"),
        (T2, replace(T2, is_fat_suppressed=True), "fat suppressed in one alone"),
        (replace(T2, has_agent=False), replace(T2, has_agent=True), "a contrast agent in one alone"),
        (T2, replace(T2, kinds=frozenset({"ADC"})), "images of magnitude and ADC"),
        (T2, replace(T2, prepared=frozenset({"MTC"})), "magnetisation transfer in one alone"),
        (T2, replace(T2, b_value=800.0), "b-values of 0 and 800"),
        (T2, Contrast("CT"), "MR and CT"),
    ],
)
def test_another_contrast_is_named(one, other, word):
    for match in (compare_contrasts(one, other), compare_contrasts(other, one)):
        assert match.is_same is False
        assert len(match.reasons) >= 1
    assert word in compare_contrasts(one, other).reasons


def test_another_kernel_is_noted():
    match = compare_contrasts(Contrast("CT", kernel="B30f"), Contrast("CT", kernel="B60f"))
    assert match.is_same
    assert match.notes == ("reconstructed with the kernels B30f and B60f",)


@catches("io/contrast.py", "if _says_enough(one) and _says_enough(other) else None", "if True else None")
def test_silent_headers_decide_nothing():
    assert compare_contrasts(T2, Contrast()).is_same is None
    assert compare_contrasts(Contrast(), Contrast()).is_same is None


@catches("io/contrast.py", "None if s is None else 1000 * s", "s")
def test_a_sidecar_is_read(tmp_path):
    facts = {
        "Modality": "MR", "EchoTime": 0.1, "RepetitionTime": 4, "FlipAngle": 150, "ScanningSequence": "SE",
        "SequenceVariant": "SK_SP_OSP", "ScanOptions": "FS", "ImageType": ["ORIGINAL", "PRIMARY", "M", "NORM"],
    }  # fmt: skip
    (tmp_path / "scan.json").write_text(json.dumps(facts))
    found = contrast_beside(tmp_path / "scan.nii.gz")
    assert found == replace(T2, flip_degrees=150.0, is_fat_suppressed=True, has_agent=False)


@pytest.mark.parametrize("text", ["", "[]", "7", "{", '{"EchoTime": "soon", "ImageType": null, "ScanOptions": 3}'])
def test_a_sidecar_that_says_nothing_is_silent(tmp_path, text):
    (tmp_path / "scan.json").write_text(text)
    found = contrast_beside(tmp_path / "scan.nii.gz")
    assert compare_contrasts(found, T2).is_same is None
    assert contrast_beside(tmp_path / "other.nii.gz") == Contrast()


@catches("io/contrast.py", "for file in (*inherited, *([]", "for file in (*inherited[:1], *([]")
@catches(
    "io/contrast.py",
    "(*inherited, *([] if beside is None else [beside]))",
    "(*([] if beside is None else [beside]), *inherited)",
)
def test_what_a_sidecar_does_not_say_is_inherited(tmp_path):
    """Field by field; the nearest file that speaks is believed."""
    far, near = tmp_path / "T2w.json", tmp_path / "sub-01_T2w.json"
    far.write_text('{"EchoTime": 0.01, "RepetitionTime": 4, "FlipAngle": 90}')
    near.write_text('{"EchoTime": 0.1, "FlipAngle": 120}')
    (tmp_path / "scan.json").write_text('{"FlipAngle": 150}')
    found = contrast_beside(tmp_path / "scan.nii.gz", [far, near])
    assert (found.echo_ms, found.repetition_ms, found.flip_degrees) == (100.0, 4000.0, 150.0)
    (tmp_path / "scan.json").unlink()
    assert contrast_beside(tmp_path / "scan.nii.gz", [far, near]).flip_degrees == 120.0


def test_values_of_several_kinds_are_understood():
    found = contrast_from_facts(
        {"ScanningSequence": "SE\\IR", "ImageType": "DERIVED\\PRIMARY\\W\\DIXON", "EchoTime": "98", "InversionTime": 0}
    )
    assert found.sequence == {"SE", "IR"}
    assert found.kinds == {"W"}
    assert (found.echo_ms, found.inversion_ms) == (98.0, None)


@catches("io/dicom/contrast.py", '"ContrastBolusAgent", "ConvolutionKernel"', '"ConvolutionKernel"')
def test_a_dicom_series_is_read(tmp_path):
    stack(
        tmp_path, EchoTime=100, RepetitionTime=4000, ScanningSequence="SE", ScanOptions="FS", FlipAngle=150,
        ImageType=["ORIGINAL", "PRIMARY", "M"], ContrastBolusAgent="Gadolinium",
    )  # fmt: skip
    (series,) = find_study(tmp_path).series
    expected = replace(T2, flip_degrees=150.0, is_fat_suppressed=True, has_agent=True)
    assert contrast_of_series(series) == expected


def test_an_enhanced_series_is_read(tmp_path):
    enhanced(tmp_path / "one.dcm", echoes=2)
    found = [contrast_of_series(series) for series in find_study(tmp_path).series]
    assert [each.echo_ms for each in found] == [10.0, 20.0]
    assert {each.modality for each in found} == {"MR"}
