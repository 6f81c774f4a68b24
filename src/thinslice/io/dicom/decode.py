"""The voxels of one file; of a compressed one in a process of its own: codecs crash on damaged data, or never end."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels.decoders import gdcm as by_gdcm
from pydicom.pixels.decoders.base import get_decoder

from thinslice.errors import InputRefused
from thinslice.io.dicom.headers import damaged, quiet, read_dataset

CODECS = "pip install 'thinslice[dicom]'"

LONGEST_S, LONGEST_PER_FRAME_S = 20.0, 0.5
"""A file that takes longer to decode than the first, and the second for each of its frames, is damaged."""

PROCESSES = 2

SERVE = "import sys; sys.path[:] = {path}; from thinslice.io.dicom.decode import serve; serve()"
"""What such a process runs: nothing that happens to lie in the working folder is imported."""


def decode(path: Path) -> np.ndarray:
    """Stored values [rows, columns], or [frames, rows, columns], in this process.

    Raises:
        InputRefused: voxels that are cut off or damaged, or compressed in a way for which no codec is installed.
    """
    found = read_dataset(path)
    try:
        with quiet():
            if "PixelData" not in found:
                raise ValueError("no PixelData")
            if "TransferSyntaxUID" not in found.file_meta:  # written without saying so: the oldest one, as ever
                found.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
            values: np.ndarray = found.pixel_array
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a codec raises whatever it likes
        raise _without_codec(path, found) or damaged(path, error) from None
    return values


def _without_codec(path: Path, found: Dataset) -> InputRefused | None:
    """The refusal of a file for whose compression no codec is installed."""
    syntax = uid.UID(found.file_meta.get("TransferSyntaxUID") or uid.ImplicitVRLittleEndian)
    try:
        if get_decoder(syntax).is_available:
            return None
    except NotImplementedError:
        return InputRefused(
            f"{path}: got transfer syntax {syntax.name}, which is not known; need a series of images; next: export the "
            "series uncompressed"
        )
    then = CODECS if syntax in by_gdcm.DECODER_DEPENDENCIES else "have the series exported uncompressed"
    return InputRefused(f"{path}: got voxels compressed as {syntax.name}; need a codec for it; next: {then}")


def decode_compressed(paths: Sequence[Path], frames: int = 1) -> Iterator[np.ndarray]:
    """`decode` of each file, in order, by processes of their own.

    Args:
        paths: the files.
        frames: how many images each of them holds, at most.

    Raises:
        InputRefused: see `decode`; a codec that crashes, or takes too long, is one for a damaged file.
    """
    if not paths:
        return
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(paths[n::PROCESSES])) for n in range(min(PROCESSES, len(paths)))]
        for index, path in enumerate(paths):
            yield workers[index % PROCESSES].next(path, LONGEST_S + LONGEST_PER_FRAME_S * (frames - 1))


class _Worker:
    """A process that decodes files one after the other."""

    def __init__(self, paths: Sequence[Path]) -> None:
        code = SERVE.format(path=repr(sys.path))
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it is found dead when it is asked
            self.process.stdin.write(json.dumps([str(path) for path in paths]).encode())
            self.process.stdin.close()

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def next(self, path: Path, seconds: float) -> np.ndarray:
        """Its next file's voxels; killed if it takes longer."""
        assert self.process.stdout is not None
        watch = threading.Timer(seconds, self.process.kill)
        watch.start()
        try:
            line = self.process.stdout.readline()
            if not line.endswith(b"\n"):
                raise damaged(path, ValueError("its voxels cannot be decoded"))
            facts = json.loads(line)
            if "refused" in facts:
                raise InputRefused(facts["refused"])
            values = np.empty(facts["shape"], facts["dtype"])
            if _fill(self.process.stdout, values) < values.nbytes:
                raise damaged(path, ValueError("its voxels cannot be decoded"))
            return values
        finally:
            watch.cancel()


def _fill(stream: IO[bytes], array: np.ndarray) -> int:
    target = memoryview(cast(Any, array.reshape(-1).view(np.uint8)))
    done = 0
    while done < len(target):
        count = stream.readinto(target[done:])  # type: ignore[attr-defined]
        if not count:
            break
        done += count
    return done


def serve() -> None:
    """Decode the files named on standard input; a line of facts for each, and its voxels, to standard output."""
    out = sys.stdout.buffer
    for name in json.load(sys.stdin):
        facts: dict[str, Any]
        try:
            values = np.ascontiguousarray(decode(Path(name)))
            facts, content = {"shape": values.shape, "dtype": values.dtype.str}, values.data
        except InputRefused as refusal:
            facts, content = {"refused": str(refusal)}, memoryview(b"")
        except (OSError, MemoryError) as error:
            facts, content = {"refused": str(damaged(Path(name), error))}, memoryview(b"")
        out.write(json.dumps(facts).encode() + b"\n")
        out.write(content)
        out.flush()
