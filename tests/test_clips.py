"""Laws of learning from video: frames are slices, time is the axis made thick, and licences are heeded."""

import sys
import wave
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import seeds
from thinslice.errors import InputRefused
from thinslice.training.batches import AcquisitionRanges, Draw, batch_at, draw_geometry, draw_patch, render
from thinslice.training.clips import FEWEST, MOST, find_clips, holds_clips, load_clips, read_clip
from thinslice.training.manifest import is_share_alike, provenance
from thinslice.training.volumes import TrainingVolume

pytest.importorskip("av", reason="clips are read with PyAV, which comes with thinslice[video]")

from faults import catches
from make_clips import CODECS, save_clip

KEPT = AcquisitionRanges(factor=(2.0, 4.0), whole=(2, 3, 4), fractional=False, kept=1.0, ends="slices")
AVERAGED = replace(KEPT, kept=0.0)
SLABS, AROUND, SIZE, FRAMES = 2, 4, 8, 16
PLAIN = Draw(0, 0, False, (False, False, False), (0, 0, 0), 1.0, 0.0, 0.0, 0)


def noise(frames=FRAMES, height=20, width=24, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width), dtype=np.uint8)


def numbered(frames=FRAMES):
    """A clip whose frames say their number."""
    ramp = np.arange(frames, dtype=np.float16)[:, None, None]
    return [TrainingVolume("numbered", np.ascontiguousarray(np.broadcast_to(ramp, (frames, SIZE, SIZE))), (0,), 1.0)]


def drawn(seed, ranges, corpus, flip=None):
    """A geometry and a patch without noise, gain or offset."""
    rng = np.random.default_rng(seed)
    geometry = draw_geometry(rng, ranges, SLABS, AROUND)
    draw = draw_patch(rng, corpus, ranges, geometry, SIZE)
    flips = draw.flips if flip is None else (flip, False, False)
    return geometry, replace(draw, gain=1.0, offset=0.0, noise=0.0, flips=flips)


# ---- reading


@catches("training/clips.py", "islice(container.decode(video=0), most)", "islice(container.decode(video=0), 1, None)")
@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".gif"])
def test_a_clip_is_read_as_it_was_written(tmp_path, suffix):
    frames = noise(9, 18, 46)
    save_clip(tmp_path / f"clip{suffix}", frames)
    read = read_clip(tmp_path / f"clip{suffix}")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, frames)
    np.testing.assert_array_equal(read_clip(tmp_path / f"clip{suffix}", most=4), frames[:4])


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm"])
def test_a_compressed_clip_is_read_in_order(tmp_path, suffix):
    frames = np.zeros((16, 32, 64), np.uint8)
    for t in range(16):
        frames[t, :, 4 * t : 4 * t + 4] = 255
    save_clip(tmp_path / f"clip{suffix}", frames)
    read = read_clip(tmp_path / f"clip{suffix}").astype(float)
    assert read.shape == frames.shape
    columns = (read.mean(axis=1) * np.arange(64)).sum(axis=1) / read.mean(axis=1).sum(axis=1)
    np.testing.assert_allclose(columns, 4 * np.arange(16) + 1.5, atol=2)


def sound(path):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(8000))


@pytest.mark.parametrize(
    "write",
    [lambda p: p.write_text("no video\n" * 50), lambda p: p.write_bytes(b""), sound],
    ids=["text", "0", "sound"],
)
def test_a_file_that_is_no_video_is_refused_by_name(tmp_path, write):
    write(tmp_path / "odd.mp4")
    for reader, source in ((read_clip, tmp_path / "odd.mp4"), (load_clips, tmp_path)):
        with pytest.raises(InputRefused, match=r"got .*odd\.mp4, which cannot be read as a video.*need.*next:"):
            reader(source)


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_clip(tmp_path / "none.mp4")


def test_without_its_package_the_name_of_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError) as missing:
        read_clip(tmp_path / "clip.mkv")
    assert missing.value.name == "av"


# ---- folders


@catches("training/clips.py", "(0,), frames.size**0.5", "(0, 1, 2), frames.size**0.5")
@pytest.mark.parametrize("suffix", sorted(CODECS))
def test_every_kind_of_clip_becomes_a_volume_of_frames(tmp_path, suffix):
    save_clip(tmp_path / f"clip{suffix}", noise(10, 32, 48))
    (thin,) = load_clips(tmp_path)
    assert thin.name == f"clip{suffix}"
    assert thin.voxels.shape == (10, 32, 48)
    assert thin.axes == (0,)
    low, high = np.percentile(thin.voxels.astype(float), [0.5, 99.5])
    assert (low, high) == (pytest.approx(0, abs=0.01), pytest.approx(1, abs=0.01))


def test_clips_of_any_length_and_size_are_taken(tmp_path):
    save_clip(tmp_path / "SMALL.MKV".lower(), noise(FEWEST, 6, 5))
    save_clip(tmp_path / "long.mkv", noise(MOST + 3, 8, 8))
    save_clip(tmp_path / ".hidden.mkv", noise(2, 8, 8))
    (tmp_path / "notes.txt").write_text("no clip")
    corpus = load_clips(tmp_path)
    assert [thin.voxels.shape for thin in corpus] == [(MOST, 8, 8), (FEWEST, 6, 5)]
    batch = batch_at(0, 0, corpus, KEPT, 4, 16, SLABS, AROUND)
    assert batch.truth.shape[2:] == (16, 16)
    assert np.isfinite(batch.truth).all()


def test_greys_are_told_apart_in_half_the_memory(tmp_path):
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(FEWEST, 0)
    save_clip(tmp_path / "greys.mkv", frames)
    voxels = load_clips(tmp_path)[0].voxels
    assert voxels.itemsize == 2
    slope, offset = np.polyfit(frames.ravel().astype(float), voxels.ravel().astype(float), 1)
    np.testing.assert_allclose((voxels.astype(float) - offset) / slope, frames, atol=1 / 8)


@pytest.mark.parametrize(
    ("frames", "reason"), [(None, "without a clip to learn from"), (5, r"shorter .* clip\.mkv \(5\)")]
)
def test_a_folder_without_enough_is_refused(tmp_path, frames, reason):
    if frames:
        save_clip(tmp_path / "clip.mkv", noise(frames))
    with pytest.raises(InputRefused, match=f"{reason}.*need.*next:"):
        load_clips(tmp_path)


def test_a_folder_of_clips_is_told_by_what_it_holds(tmp_path):
    assert not holds_clips(tmp_path)
    (tmp_path / "manifest.csv").write_text("file,licence\n")
    assert not holds_clips(tmp_path)
    (tmp_path / "CLIP.MP4").touch()
    assert holds_clips(tmp_path)
    (tmp_path / "scan.nii.gz").touch()  # then the clip is an ornament
    assert not holds_clips(tmp_path)


# ---- licences


@catches("training/manifest.py", "return _SHARE_ALIKE.search(licence) is not None", "return False")
@pytest.mark.parametrize(
    "licence",
    [
        "CC BY-SA 4.0",
        "free (Debian main; CC BY-SA for examples)",
        "CC-BY-SA-3.0",
        "cc by sa",
        "CC BY-NC-SA 4.0",
        "CC BY_SA",
        "CC-SA-1.0",
        "Creative Commons Attribution-ShareAlike",
        "attribution, share-alike",
    ],
)
def test_share_alike_licences_are_told(licence):
    assert is_share_alike(licence)


@catches("training/manifest.py", "sa(?!-?[a-z])", "sa|[ ;]sa")
@pytest.mark.parametrize(
    "licence",
    ["repo Apache-2.0; SA-V videos CC BY 4.0 (read)", "CC BY 4.0", "CC BY SA-V", "by Sara Sand", "MIT", "unknown", ""],
)
def test_other_licences_are_not_taken_for_share_alike(licence):
    assert not is_share_alike(licence)


@pytest.fixture
def licensed(tmp_path):
    """Three clips in the folder ``video``, of which nothing is known yet."""
    folder = tmp_path / "video"
    folder.mkdir()
    for name in ("a", "b", "c"):
        save_clip(folder / f"{name}.mkv", noise(FEWEST, 8, 8))
    return folder


@catches("training/manifest.py", '_rows(folder / "manifest.csv").items()}', "{}.items()}")
@pytest.mark.parametrize(("place", "named"), [(".", "video/b.mkv"), (".", "b.mkv"), ("..", "video/b.mkv")])
def test_share_alike_clips_are_left_out_whichever_manifest_says_so(licensed, place, named):
    assert len(load_clips(licensed)) == 3
    rows = f'file,source,origin,licence\nvideo/a.mkv,a,A,"x, BSD"\n{named},b,B,"free, CC BY-SA"\n'
    (licensed / place / "manifest.csv").write_text(rows)
    chosen, left_out = find_clips(licensed)
    assert ([p.name for p in chosen], [p.name for p in left_out]) == (["a.mkv", "c.mkv"], ["b.mkv"])
    assert [thin.name for thin in load_clips(licensed)] == ["a.mkv", "c.mkv"]
    assert provenance(licensed)["a.mkv"] == {"licence": "x, BSD", "source": "A"}


def test_a_licence_in_either_manifest_counts(licensed):
    (licensed / "manifest.csv").write_text("file,licence,source\nb.mkv,MIT,here\n")
    (licensed.parent / "manifest.csv").write_text(
        "file,licence,source\nvideo/b.mkv,CC BY-SA,there\nother/a.mkv,CC BY-SA,there\na.mkv,CC BY-SA,there\n"
    )
    assert [path.name for path in find_clips(licensed)[1]] == ["b.mkv"]
    assert provenance(licensed) == {"b.mkv": {"licence": "MIT; CC BY-SA", "source": "here"}}


def test_a_folder_of_share_alike_clips_alone_is_refused(licensed):
    rows = "".join(f"{name}.mkv,CC BY-SA 4.0\n" for name in "abc")
    (licensed / "manifest.csv").write_text("file,licence\n" + rows)
    with pytest.raises(InputRefused, match=r"3 left out, whose licence is share-alike.*next:"):
        load_clips(licensed)


def test_a_manifest_that_tells_no_licence_is_refused(licensed):
    (licensed / "manifest.csv").write_text("name,source\na.mkv,A\n")
    with pytest.raises(InputRefused, match=r"without a column file and licence.*next:"):
        load_clips(licensed)


# ---- made thick


@catches(
    "training/batches.py",
    "acquisition = Acquisition(geometry.thick_centres - low,",
    "acquisition = Acquisition(geometry.thick_centres - low + 1,",
)
@catches(
    "training/batches.py",
    "thickness, phase = 1 / factor, float(rng.integers(int(factor)))",
    "thickness, phase = 1 / factor, (factor - 1) / 2",
)
@catches("training/batches.py", "thickness, phase = 1 / factor, float", "thickness, phase = 2 / factor, float")
@given(seed=seeds, flip=st.booleans())
def test_every_nth_frame_is_kept_as_it_is(seed, flip):
    corpus = [
        TrainingVolume("noise", np.random.default_rng(seed).random((60, SIZE, SIZE)).astype(np.float16), (0,), 1.0)
    ]
    geometry, draw = drawn(seed, KEPT, corpus, flip)
    batch = render(corpus, geometry, [replace(draw, transpose=False, corner=(20, 0, 0))], SIZE, AROUND)
    frames = corpus[0].voxels[::-1] if flip else corpus[0].voxels
    centres = geometry.thick_centres.astype(int)
    np.testing.assert_array_equal(centres, geometry.thick_centres)
    np.testing.assert_array_equal(batch.thick[0], frames[20 + centres].astype(np.float32))
    inner = np.concatenate(geometry.thin_positions)
    np.testing.assert_array_equal(batch.truth[0], frames[20 + inner].astype(np.float32))
    own = centres[AROUND:-AROUND]
    np.testing.assert_array_equal(batch.matrix, inner[None, :] == own[:, None])
    # Cubic interpolation goes through the frames that were kept.
    np.testing.assert_allclose(batch.cubic[0][np.isin(inner, own)], frames[20 + own].astype(np.float32), atol=1e-5)


@given(seed=seeds, ranges=st.sampled_from([KEPT, AVERAGED]))
def test_the_projection_in_the_loss_stays_valid(seed, ranges):
    batch = batch_at(seed, 0, numbered(), ranges, 1, SIZE, SLABS, AROUND)
    # Damped by 0.003 of the largest eigenvalue; a correction of one may overshoot between slices, by little.
    np.testing.assert_allclose(batch.matrix @ batch.correction, np.eye(SLABS), atol=0.01)
    assert np.abs(batch.correction).max() < 2


@given(seed=seeds, ranges=st.sampled_from([KEPT, AVERAGED]))
def test_what_is_predicted_lies_inside_a_clip_of_sixteen_frames(seed, ranges):
    corpus = numbered()
    geometry, draw = drawn(seed, ranges, corpus)
    assert geometry.factor in (2, 3, 4)
    batch = render(corpus, geometry, [draw], SIZE, AROUND)
    np.testing.assert_array_equal(np.abs(np.diff(batch.truth[0, :, 0, 0])), 1)


@catches("training/batches.py", 'if geometry.ends == "slices":', "if False:")
@given(seed=seeds)
def test_beyond_the_ends_of_a_clip_its_outermost_kept_frame_repeats(seed):
    corpus = numbered()
    geometry, draw = drawn(seed, KEPT, corpus, flip=False)
    shown = render(corpus, geometry, [draw], SIZE, AROUND).thick[0, :, 0, 0]
    place = geometry.thick_centres + draw.corner[0]
    inside = place[(place >= 0) & (place <= FRAMES - 1)]
    np.testing.assert_array_equal(shown, np.clip(place, inside[0], inside[-1]))


@given(seed=seeds)
def test_beyond_the_ends_an_averaged_slice_repeats_with_its_noise(seed):
    corpus = [
        TrainingVolume("noise", np.random.default_rng(seed).random((FRAMES, SIZE, SIZE)).astype(np.float16), (0,), 1.0)
    ]
    geometry, draw = drawn(seed, AVERAGED, corpus)
    shown = render(corpus, geometry, [replace(draw, noise=0.1)], SIZE, AROUND).thick[0]
    place = geometry.thick_centres + draw.corner[0]
    inside = (place > -0.5) & (place < FRAMES - 0.5)
    for slab in range(len(place) - 1):
        assert np.array_equal(shown[slab], shown[slab + 1]) == (not inside[slab : slab + 2].all())


def test_the_share_kept_is_what_was_asked_for():
    half = replace(KEPT, kept=0.5)
    geometries = [draw_geometry(np.random.default_rng(seed), half, SLABS, AROUND) for seed in range(300)]
    picks = [g.profile == "box" and g.thickness_over_spacing == 1 / g.factor for g in geometries]
    assert 0.4 < np.mean(picks) < 0.6
    assert {g.profile for g, pick in zip(geometries, picks, strict=True) if not pick} == {"gaussian", "box"}
    assert {g.factor for g in geometries} == {2, 3, 4}
    phases = {(g.factor, g.thick_centres[0] % g.factor) for g, pick in zip(geometries, picks, strict=True) if pick}
    assert len(phases) == 2 + 3 + 4


@given(seed=seeds, ranges=st.sampled_from([KEPT, AVERAGED]))
def test_a_moving_bar_passes_every_column_when_it_does_in_the_clip(seed, ranges):
    time, column = np.arange(90.0)[:, None], np.arange(SIZE)[None, :]
    bar = np.exp(-0.5 * ((time - 45 - 0.8 * column) / 3.0) ** 2)
    corpus = [TrainingVolume("bar", bar[:, None, :].repeat(SIZE, 1).astype(np.float16), (0,), 1.0)]
    ranges = replace(ranges, thickness_over_spacing=(0.9, 1.1))
    factor = draw_geometry(np.random.default_rng(seed), ranges, 1, 0).factor
    geometry = draw_geometry(np.random.default_rng(seed), ranges, int(80 / factor), AROUND)
    batch = render(corpus, geometry, [replace(PLAIN, corner=(4, 0, 0))], SIZE, AROUND)
    centres = geometry.thick_centres + 4
    for name, when in (("thick", centres), ("cubic", np.concatenate(geometry.thin_positions) + 4)):
        seen = getattr(batch, name)[0].mean(axis=1)
        passes = (seen * when[:, None]).sum(axis=0) / seen.sum(axis=0)
        np.testing.assert_allclose(passes, 45 + 0.8 * np.arange(SIZE), atol=0.12, err_msg=name)


def test_time_alone_is_made_thick(tmp_path):
    """A still picture, however sharp, is its own thick slice."""
    save_clip(tmp_path / "still.mkv", noise(1, 24, 24).repeat(FRAMES, 0))
    corpus = load_clips(tmp_path)
    for step in range(12):
        batch = batch_at(step, 0, corpus, replace(KEPT, kept=0.5, noisy=0.0), 2, 12, SLABS, AROUND)
        np.testing.assert_allclose(batch.thick, batch.truth[:, :1].repeat(batch.thick.shape[1], 1), atol=1e-5)
        np.testing.assert_allclose(batch.cubic, batch.truth, atol=1e-5)


def test_a_batch_of_clips_is_a_function_of_seed_and_step_alone():
    corpus = numbered()
    one, again, other = (
        batch_at(step, 0, corpus, replace(KEPT, kept=0.5), 2, SIZE, SLABS, AROUND) for step in (5, 5, 6)
    )
    np.testing.assert_array_equal(one.thick, again.thick)
    assert one.thick.shape != other.thick.shape or np.abs(one.thick - other.thick).max() > 0
