"""What a data set says of its files: the licence and the source in the ``manifest.csv`` that lies with them."""

import csv
import os
import re
from pathlib import Path

from thinslice.errors import InputRefused
from thinslice.files import MOST_TEXT_BYTES, check_is_regular

UNKNOWN = {"licence": "unknown", "source": "unknown"}
"""Of a file that no manifest names."""

# Words that mean share-alike, but not "SA" as the beginning of a longer name, as in SA-V or SA-1B.
_SHARE_ALIKE = re.compile(r"(?:\bcc|by|\bnc)[-_ ]?sa(?!-?[a-z])|share[-_ ]?alike", re.IGNORECASE)


def provenance(folder: Path) -> dict[str, dict[str, str]]:
    """Returns, by the name of a file, its licence and source, for the files of a folder that a manifest names.

    Rows are looked for in ``folder/manifest.csv``, which may leave the folder out of the names, and in ``manifest.csv``
    of the folder above, which may not (``iso_train/a.nii.gz``). Where both name a file the source is the former's, and
    the licence is both, if they differ. The columns ``file`` and ``licence`` are needed. The source is in the column
    ``origin`` where there is one, else in ``source``.

    Raises:
        InputRefused: a manifest lacks one of the two columns.
    """
    return {name: {key: row[key] for key in UNKNOWN} for name, row in _known(folder).items()}


def _known(folder: Path) -> dict[str, dict[str, str]]:
    own = {name.rpartition("/")[2]: row for name, row in _rows(folder / "manifest.csv").items()}
    for name, row in _rows(folder.parent / "manifest.csv").items():
        place, _, file = name.rpartition("/")
        if place == folder.name:
            licences = dict.fromkeys((own.get(file, row)["licence"], row["licence"]))
            own[file] = own.get(file, row) | {"licence": "; ".join(licences)}
    return own


def person_of(path: Path) -> str:
    """Returns whose scan a file is: a manifest's ``subject``, else the nearest BIDS ``sub-``, else a person of its own.

    Raises:
        InputRefused: see `provenance`.
    """
    path = Path(os.path.abspath(path))  # a relative name may lack the folder that names the person
    labels = [found.group() for part in reversed(path.parts) if (found := re.match(r"sub-[A-Za-z0-9]+", part))]
    return _known(path.parent).get(path.name, {}).get("subject") or (labels[0] if labels else str(path))


def contrasts(folder: Path) -> dict[str, str]:
    """Returns, by the name of a file, the first word of a manifest's ``contrast``: T1 for "T1 MPRAGE", or nothing.

    Raises:
        InputRefused: see `provenance`.
    """
    return {name: row["contrast"].partition(" ")[0] for name, row in _known(folder).items()}


def _rows(manifest: Path) -> dict[str, dict[str, str]]:
    if not manifest.exists():
        return {}
    check_is_regular(manifest, MOST_TEXT_BYTES)
    with manifest.open(newline="", encoding="utf-8-sig") as lines:
        table = csv.DictReader(lines)
        missing = {"file", "licence"} - set(table.fieldnames or ())
        if missing:
            raise InputRefused(
                got=f"{manifest} without a column {' and '.join(sorted(missing))}",
                need="file,licence,source",
                next="complete its first line",
                code="manifest-without-column",
            )
        return {
            row["file"] or "": {
                "licence": row["licence"] or UNKNOWN["licence"],
                "source": row.get("origin") or row.get("source") or UNKNOWN["source"],
                "subject": row.get("subject") or "",
                "contrast": row.get("contrast") or "",
            }
            for row in table
        }


def is_share_alike(licence: str) -> bool:
    """Says whether a licence asks that what is made from the work bears the same licence, as far as its text tells.

    Example:
        >>> is_share_alike("CC BY-SA 4.0")
        True
        >>> is_share_alike("SA-V videos CC BY 4.0")  # SA-V is a data set's name
        False
    """
    return _SHARE_ALIKE.search(licence) is not None
