"""Time `thinslice enhance` of two checkouts of the project in turns, on one scan.

    python benchmarks/compare_speed.py OLD NEW [--runs 11] [--models default planes-mr cubic] [--shape 320 320 36]

Both run in this environment. The first turn of each is not counted: it fills the caches of the disk. The slice profile
is told, as what is taken for it where it is not may differ. Run it where nothing else runs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from speed import make_scan


def main() -> int:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "thick.nii.gz"
        make_scan(scan, arguments.shape, (0.72, 0.72, 4.0))
        for model in arguments.models:
            seconds: dict[Path, list[tuple[float, float]]] = {arguments.old: [], arguments.new: []}
            for turn in range(arguments.runs + 1):
                # Who goes first changes, so that neither always follows the other's warm machine.
                for checkout in list(seconds)[:: 1 if turn % 2 else -1]:
                    seconds[checkout].append(run_once(checkout, scan, model))
            old, new = (np.median(found[1:], axis=0) for found in seconds.values())
            print(
                f"{model:10} median of {arguments.runs}: {old[0]:.2f} -> {new[0]:.2f} s ({new[0] / old[0] - 1:+.1%}), "
                f"processor {old[1]:.2f} -> {new[1]:.2f} s ({new[1] / old[1] - 1:+.1%})"
            )
    return 0


def run_once(checkout: Path, scan: Path, model: str) -> tuple[float, float]:
    """Wall and processor seconds of the whole process."""
    words = ["enhance", "-i", scan, "-o", scan.with_name("thin.nii.gz"), "--model", model, "--profile", "gaussian"]
    environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "thinslice", *words, "--overwrite", "-q"], env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{checkout} ended with {os.waitstatus_to_exitcode(status)}")
    return seconds, usage.ru_utime + usage.ru_stime


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--models", nargs="+", default=["default", "planes-mr", "cubic"])
    parser.add_argument("--shape", type=int, nargs=3, default=(320, 320, 36))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
