"""The voxels of one file; of a compressed one in a process of its own: codecs crash on damaged data, or never end."""

import json
import logging
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

logger = logging.getLogger(__name__)

CODECS = "pip install 'thinslice[dicom]'"
"""What leads to a codec for the transfer syntaxes that pydicom alone cannot unpack."""

LONGEST_SECONDS = 20.0
"""A file of one frame that takes longer to decode is damaged; a sound slice takes well under a second."""

LONGEST_SECONDS_PER_FRAME = 0.5
"""What is added to that for each further frame of a file."""

PROCESSES = 2
"""Files decoded at a time: one is decoded while another is taken over."""

SERVE = "import sys; sys.path[:] = {path}; from thinslice.io.dicom.decode import serve; serve()"
"""What such a process runs: nothing that happens to lie in the working folder is imported."""


def decode(path: Path) -> np.ndarray:
    """Returns the stored values [rows, columns], or [frames, rows, columns], of a file, decoded in this process.

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
        raise _without_codec(path, found) or damaged(path, error) from error
    return values


def _without_codec(path: Path, found: Dataset) -> InputRefused | None:
    """Returns the refusal of a file for whose compression no codec is installed."""
    syntax = uid.UID(found.file_meta.get("TransferSyntaxUID") or uid.ImplicitVRLittleEndian)
    try:
        if get_decoder(syntax).is_available:
            return None
    except NotImplementedError:
        return InputRefused(
            got=f"transfer syntax {syntax.name}, which is not known",
            need="a series of images",
            next="export the series uncompressed",
            place=path,
            code="dicom-transfer-syntax",
        )
    return InputRefused(
        got=f"voxels compressed as {syntax.name}",
        need="a codec for it",
        next=CODECS if syntax in by_gdcm.DECODER_DEPENDENCIES else "have the series exported uncompressed",
        place=path,
        code="dicom-no-codec",
    )


def decode_compressed(paths: Sequence[Path], frames: int = 1) -> Iterator[np.ndarray]:
    """Yields what `decode` gives for each file, in order, by processes of their own.

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
            yield workers[index % PROCESSES].next(path, LONGEST_SECONDS + LONGEST_SECONDS_PER_FRAME * (frames - 1))


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
        """Returns its next file's voxels; the process is killed if it takes longer."""
        assert self.process.stdout is not None
        watch = threading.Timer(seconds, self.process.kill)
        watch.start()
        try:
            line = self.process.stdout.readline()
            if not line.endswith(b"\n"):  # it died: by our watch, or since its codec crashed
                logger.debug("%s: the process that decodes has ended", path)
                raise damaged(path, ValueError("its voxels cannot be decoded"))
            facts = json.loads(line)
            if "refused" in facts:
                raise InputRefused(**facts["refused"])
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
    """Decodes the files named on standard input; writes a line of facts for each, and its voxels, to its output."""
    out = sys.stdout.buffer
    for name in json.load(sys.stdin):
        facts: dict[str, Any]
        try:
            values = np.ascontiguousarray(decode(Path(name)))
            facts, content = {"shape": values.shape, "dtype": values.dtype.str}, values.data
        except InputRefused as refusal:
            facts, content = {"refused": _fields(refusal)}, memoryview(b"")
        except (OSError, MemoryError) as error:
            facts, content = {"refused": _fields(damaged(Path(name), error))}, memoryview(b"")
        out.write(json.dumps(facts).encode() + b"\n")
        out.write(content)
        out.flush()


def _fields(refusal: InputRefused) -> dict[str, str]:
    """Returns what another process makes the same refusal of."""
    return {name: getattr(refusal, name) for name in ("got", "need", "next", "place", "code")}
