"""One offline HTML page: what was synthesised, beside the scan that it came from."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from thinslice.io.atomic import whole_or_not
from thinslice.physics.intensity import intensity_range
from thinslice.reports.picture import Picture, draw_side_by_side, find_picture_centre, reslice_planes
from thinslice.volume import Volume

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ background: #111; color: #ddd; font: 16px/1.5 sans-serif; }}
body {{ margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }}
img {{ max-width: 100%; }}
td {{ padding: 0 1rem 0 0; vertical-align: top; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{words}</p>
<table>
{facts}
</table>
{pictures}
</body>
</html>
"""


@dataclass(frozen=True)
class Comparison:
    """A scan and what was synthesised from it, over the same field of view; slices lie along ``axis``."""

    name: str
    scan: Volume
    synthesised: Volume
    axis: int


def write_page(
    title: str, words: str, facts: Sequence[tuple[str, str]], shown: Sequence[Comparison], path: Path
) -> None:
    """Writes the page, whole or not at all. It needs no server and asks for nothing."""
    rows = "\n".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts)
    pictures = "\n".join(
        f'<h2>{escape(one.name)}</h2>\n<img alt="{escape(one.name)}: acquired on the left, synthesised on the right" '
        f'src="data:image/png;base64,{_picture(one)}">'
        for one in shown
    )
    text = _PAGE.format(title=escape(title), words=escape(words), facts=rows, pictures=pictures)
    with whole_or_not(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _picture(one: Comparison) -> str:
    """Returns both, in the two planes across the slices, as a PNG in base64."""
    columns = ((one.scan, "acquired", True), (one.synthesised, "synthesised, not acquired", False))
    window, centre = intensity_range(one.scan.voxels), find_picture_centre(one.scan)
    planes = [reslice_planes(volume, one.axis, centre) for volume, _, _ in columns]
    rows = [
        [
            Picture(f"{text}\n{volume.spacing_mm[one.axis]:.3g} mm slices", pair[row], window, steps)
            for (volume, text, steps), pair in zip(columns, planes, strict=True)
        ]
        for row in range(2)
    ]
    stream = io.BytesIO()
    draw_side_by_side(rows).save(stream, format="PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()
