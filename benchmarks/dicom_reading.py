"""How long a CT series of 300 slices takes to read. Run ``python benchmarks/dicom_reading.py [--slices 300]``.

The series is made with the tests' own writer: 512 x 512 voxels of 12 bits, smooth with noise.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from dicom_files import COMPRESSED, PLAIN, blobs, stack
from thinslice.io.dicom.pixels import read_series
from thinslice.io.dicom.series import find_study

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--slices", type=int, default=300)
count = parser.parse_args().slices

print("| transfer syntax | find, s | read, s |\n|---|--:|--:|")
values = blobs(count, 512, 512, 4000)
for name, syntax in {**PLAIN, **COMPRESSED}.items():
    with tempfile.TemporaryDirectory() as folder:
        stack(folder, modality="CT", count=count, rows=512, columns=512, values=values, syntax=syntax)
        started = time.perf_counter()
        study = find_study(Path(folder))
        found = time.perf_counter()
        read_series(study.series[0])
        print(f"| {name} | {found - started:.1f} | {time.perf_counter() - found:.1f} |", flush=True)
