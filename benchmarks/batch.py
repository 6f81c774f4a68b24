"""Scans per hour of `thinslice batch`, and where more workers stop helping.

    python benchmarks/batch.py [--scans 8] [--shape 320 320 36] [--layouts 1x2 2x1] [--rounds 3]

Every layout (workers x threads) enhances the same scans, in turns, so that a busy machine is busy for all. The share is
the network's multiply-adds over the whole command's wall time, over the best rate of plain convolutions (`speed.py`).

Then a scheduler is simulated with 1 to 256 workers. The seconds of every scan are those that were measured with the
fewest workers, drawn with replacement; the leading process and the scheduler need as long for each as processor time
was measured while the real engine hands out and takes back scans that do nothing; the file server moves as many bytes a
second as `--server-mb-s` says, one scan at a time. Needs the `test` extra.
"""

import argparse
import heapq
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from speed import SHAPES, convolution_rate, make_scan, multiply_adds

from thinslice.datasets.engine import Engine, Progress, run
from thinslice.datasets.find import Orders, find_in_folder
from thinslice.datasets.job import Job
from thinslice.models.registry import find_model
from thinslice.settings import Settings

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def main() -> int:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        scans = Path(folder) / "in"
        scans.mkdir()
        for index in range(arguments.scans):
            make_scan(scans / f"{index}.nii.gz", arguments.shape, arguments.spacing)
        work = arguments.scans * multiply_adds(scans / "0.nii.gz", find_model(arguments.model), None)
        peak = max(convolution_rate(channels, side) for channels, side in SHAPES)
        seconds: dict[str, list[float]] = {layout: [] for layout in arguments.layouts}
        for turn in range(arguments.rounds):
            for layout in arguments.layouts:
                out = Path(folder) / f"{layout}-{turn}"
                wall, each = run_layout(scans, out, layout, arguments.model)
                share = f", {100 * 2 * work / wall / peak:.0f} % of {peak / 1e9:.0f} GFLOP/s" if work else ""
                print(f"{layout}: {3600 * arguments.scans / wall:6.0f} scans per hour{share}", flush=True)
                seconds[layout] += each
        moved = bytes_moved(scans, out) / arguments.scans
    lead = seconds_of_the_engine()
    alone = seconds[min(arguments.layouts, key=lambda layout: int(layout.split("x")[0]))]
    print(f"a scan takes {statistics.median(alone):.2f} s with fewest workers, {moved / 1e6:.1f} MB are moved for it")
    print(f"the leading process and the scheduler take {1000 * lead:.2f} ms for a scan")
    listed = seconds_of_listing(arguments.listed)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{arguments.listed} scans are listed in {listed:.1f} s, with {most} MiB")
    for line in table(alone, lead, moved / (1e6 * arguments.server_mb_s)):
        print(line)
    return 0


def run_layout(scans: Path, out: Path, layout: str, model: str) -> tuple[float, list[float]]:
    """Wall seconds of the whole command, and those of every scan."""
    workers, threads = layout.split("x")
    words = ["-i", str(scans), "-o", str(out), "--model", model, "--workers", workers, "--threads", threads, "-q"]
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "thinslice", "batch", *words], check=True)
    wall = time.perf_counter() - started
    rows = [line.split("\t") for line in (out / "summary.tsv").read_text().splitlines()[1:]]
    return wall, [float(row[2]) for row in rows]


def bytes_moved(scans: Path, out: Path) -> int:
    """A scan is read twice, for its hash and its voxels; all that is in the output is written once."""
    files = [path for path in out.rglob("*") if path.is_file()]
    return 2 * sum(path.stat().st_size for path in scans.iterdir()) + sum(path.stat().st_size for path in files)


def seconds_of_the_engine(tasks: int = 500) -> float:
    """Processor time of the leading process, in which the scheduler runs too, for a scan that costs no work."""
    with tempfile.TemporaryDirectory() as folder:
        gone = Path(folder) / "gone.nii.gz"  # is named as a failure at once, by a worker that has not computed
        jobs = [
            Job(
                f"{index}",
                gone,
                Path(folder) / f"{index}.nii.gz",
                Settings(model="cubic"),
                None,
                Path(folder) / "x.png",
            )
            for index in range(tasks)
        ]
        first: list[tuple[float, int]] = []

        def tell(progress: Progress) -> None:
            if not first:  # the workers have started
                first.append((time.process_time(), progress.done))

        run(jobs, Engine(workers=2), tell)
        started, done = first[0]
        return (time.process_time() - started) / (tasks - done)


def seconds_of_listing(scans: int) -> float:
    """Until a folder of so many empty scans, a hundred in each of its folders, is a list of jobs."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in"
        for index in range(scans):
            path = source / f"{index // 100:05d}" / f"{index % 100:02d}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        started = time.perf_counter()
        find_in_folder(source, Path(folder) / "out", Orders(Settings(), None))
        return time.perf_counter() - started


def simulate(seconds: list[float], workers: int, lead: float, server: float) -> float:
    """Wall seconds until all scans are done: each is handed out, waits for a worker, computes, and is moved.

    The leading process and the file server do one scan at a time.
    """
    waiting, computed = iter(seconds), []
    lead_free = server_free = end = 0.0
    free = [0.0] * workers  # when each will ask for the next scan
    while free or computed:
        if free and (not computed or free[0] <= computed[0]):
            asked, scan = heapq.heappop(free), next(waiting, None)
            if scan is not None:
                lead_free = max(asked, lead_free) + lead
                heapq.heappush(computed, lead_free + scan)
        else:
            end = server_free = max(heapq.heappop(computed), server_free) + server
            heapq.heappush(free, end)
    return end


def table(seconds: list[float], lead: float, server: float, scans: int = 20_000) -> list[str]:
    """Scans per hour and efficiency by the number of workers."""
    drawn = random.Random(0).choices(seconds, k=scans)
    lines = ["| workers | scans per hour | efficiency |", "|---:|---:|---:|"]
    one = simulate(drawn, 1, lead, server)
    for workers in WORKERS:
        wall = simulate(drawn, workers, lead, server)
        lines.append(f"| {workers} | {3600 * scans / wall:.0f} | {100 * one / wall / workers:.0f} % |")
    return lines


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=8)
    parser.add_argument("--shape", type=int, nargs=3, default=(320, 320, 36))
    parser.add_argument("--spacing", type=float, nargs=3, default=(0.72, 0.72, 4.0))
    parser.add_argument("--layouts", nargs="+", default=["1x2", "2x1"], metavar="WORKERSxTHREADS")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="default")
    parser.add_argument("--listed", type=int, default=100_000, help="scans of a folder to be listed")
    parser.add_argument("--server-mb-s", type=float, default=500.0, help="of the file server, for all workers together")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
