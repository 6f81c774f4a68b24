"""Video clips as volumes whose first axis is time. The only door to PyAV."""

from itertools import islice
from pathlib import Path

import numpy as np

from thinslice.errors import InputRefused
from thinslice.training.manifest import UNKNOWN, is_share_alike, provenance
from thinslice.training.volumes import TrainingVolume, normalise

SUFFIXES = (".avi", ".gif", ".mkv", ".mov", ".mp4", ".webm")
"""How the names of clips end: what open data sets of video come in."""

FEWEST = 8
"""Frames of a clip, at least: two slabs of four, which is what the recipes predict at once."""

MOST = 256
"""Frames that are read of a long clip, from the first on: all clips lie in memory."""


def read_clip(path: Path, most: int | None = None) -> np.ndarray:
    """Returns the frames of a video as grey images, uint8 [t, h, w], 0 black and 255 white.

    The frames come in the order in which they are shown, however far apart in time.

    Args:
        path: any file that FFmpeg decodes; of several video streams the first counts.
        most: frames that are read, from the first on; default: all.

    Raises:
        InputRefused: it is no video, cannot be decoded, or changes its size.
        OSError: it is not there or may not be read.
        ModuleNotFoundError: PyAV is not installed.
    """
    # An extra, which only recipes that learn from video need.
    import av

    frames: list[np.ndarray] = []
    try:
        with av.open(str(path), options={"protocol_whitelist": "file"}) as container:  # a playlist stays offline
            if container.streams.video:
                decoded = islice(container.decode(video=0), most)
                frames.extend(frame.to_ndarray(format="gray") for frame in decoded)
    except av.FFmpegError as error:
        # The library's error of a missing or closed file is of both kinds, and says nothing of the clip.
        if isinstance(error, OSError):
            raise
        raise _no_video(path, str(error.strerror)) from error
    if not frames:
        raise _no_video(path, "it holds no picture")
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise InputRefused(
            got=f"{path}, whose frames have {len(sizes)} sizes",
            need="one size",
            next="cut it where the size changes",
            code="clip-of-several-sizes",
        )
    return np.stack(frames)


def _no_video(path: Path, why: str) -> InputRefused:
    return InputRefused(
        got=f"{path}, which cannot be read as a video ({why})",
        need=f"a clip ({', '.join(SUFFIXES)})",
        next="remove it",
        code="not-a-clip",
    )


def holds_clips(folder: Path) -> bool:
    """Says whether a folder is one of clips: it holds some, and no NIfTI."""
    return bool(_clips_in(folder)) and not any(folder.glob("*.nii*"))


def find_clips(folder: Path) -> tuple[list[Path], list[Path]]:
    """Returns the clips of a folder by name: those to learn from, and those left out as their licence is share-alike.

    Weights are handed on, so nothing is learnt from a work that asks for its own licence in return. The licence is what
    a manifest says, see `provenance`; a clip that none names is learnt from.
    """
    known = provenance(folder)
    paths = _clips_in(folder)
    left_out = [path for path in paths if is_share_alike(known.get(path.name, UNKNOWN)["licence"])]
    return [path for path in paths if path not in left_out], left_out


def _clips_in(folder: Path) -> list[Path]:
    # Sorted: in another order the same seed would draw other batches.
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def load_clips(folder: Path) -> list[TrainingVolume]:
    """Returns every clip of a folder but the share-alike ones: time alone may play the through-plane axis.

    A clip should show one scene: across a cut nothing can be learnt. Voxels are float16, which tells 8-bit greys apart
    eight times finer than they are and takes half the memory: two bytes per pixel and frame.

    Raises:
        InputRefused: there is none, one is no video, or some are shorter than `FEWEST` frames.
        ModuleNotFoundError: PyAV is not installed.
    """
    paths, left_out = find_clips(folder)
    if not paths:
        raise InputRefused(
            got=f"{folder} without a clip to learn from ({len(left_out)} left out, whose licence is share-alike)",
            need=f"clips there ({', '.join(SUFFIXES)})",
            next="check `data`",
            code="source-without-clips",
        )
    clips, short = [], []
    for path in paths:
        frames = read_clip(path, MOST)
        if len(frames) < FEWEST:
            short.append(f"{path.name} ({len(frames)})")
        clips.append(TrainingVolume(path.name, normalise(frames).astype(np.float16), (0,), frames.size**0.5))
    if short:
        named = ", ".join(short[:3]) + (", ..." if len(short) > 3 else "")
        raise InputRefused(
            got=f"{folder} with {len(short)} clips shorter than {FEWEST} frames: {named}",
            need=f"{FEWEST} at least",
            next="remove them",
            code="clips-too-short",
        )
    return clips
