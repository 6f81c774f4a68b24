"""Small grey video clips for the tests."""

from pathlib import Path

import av
import numpy as np

CODECS = {".mkv": "ffv1", ".avi": "rawvideo", ".gif": "gif", ".mp4": "mpeg4", ".mov": "mpeg4", ".webm": "libvpx"}
"""Of the first three what is read is what was written."""


def save_clip(path: Path, frames: np.ndarray) -> None:
    """uint8 [t, h, w] -> a video file, its kind by its suffix."""
    codec = CODECS[path.suffix.lower()]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames.shape[1:]
        stream.pix_fmt = "gray" if path.suffix in (".mkv", ".avi", ".gif") else "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="gray")))
        container.mux(stream.encode())
