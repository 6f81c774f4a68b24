"""The verbs info, reslice and view: what a scan is, back onto the acquired slices, two scans on one page."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from thinslice.cli.options import (
    DICOM,
    SCAN,
    Parser,
    add_settings,
    add_strict,
    add_threads,
    add_verb,
    path_argument,
    read_scan,
    settings_from,
    sources,
    threads_from,
)
from thinslice.cli.terminal import REFUSED, complain, say, say_lines
from thinslice.cli.words import named, reason_of, to_options
from thinslice.errors import ThinsliceError
from thinslice.io.atomic import all_or_none
from thinslice.settings import PROFILES

if TYPE_CHECKING:
    from thinslice.io.dicom.series import Study
    from thinslice.models.protocol import Model
    from thinslice.settings import Settings
    from thinslice.volume import Volume

PATIENT_AXES = ("left-right", "front-back", "head-foot")
"""What ``info`` calls the axes of patient space (RAS), in their order."""


# ---- info


def add_info(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """Adds ``thinslice info`` and its options."""
    verb = add_verb(verbs, "info", info, "say what a scan is and what enhance would do, or why it would refuse")
    verb.add_argument(
        "-i", "--input", required=True, type=path_argument, metavar="IN", help=f"{SCAN}, or a folder of them"
    )
    add_settings(verb)
    add_strict(verb)
    add_threads(verb)
    verb.add_argument("--json", action="store_true", help="as JSON: an object, or a list of them for a folder")


def info(arguments: argparse.Namespace) -> int:
    """Tells what a scan is and what would be done to it; returns exit code 2 where it would be refused."""
    from functools import partial

    from thinslice.io.outputs import find_study
    from thinslice.models.registry import models_for

    settings = settings_from(arguments)
    choose = models_for(settings.model, threads_from(arguments))
    study = find_study(arguments.input)
    if study is None:
        is_alone = not arguments.input.is_dir()
        facts = [
            _facts(str(path), partial(read_scan, path), choose, settings, is_alone) for path in sources(arguments.input)
        ]
    else:
        facts = _facts_of_study(study, choose, settings)
        for note in () if arguments.json else study.notes:
            say(f"note: {note}")
    if arguments.json:
        # A list for a folder even where it holds one scan: a program need not look at what came.
        say_lines(json.dumps(facts if arguments.input.is_dir() or len(facts) != 1 else facts[0], indent=2))
    for fact in facts:
        if not arguments.json:
            _describe(fact)
        if _is_refused(fact, facts, arguments.strict):
            # The label of a series is no path, even where a slash is in it.
            name = str(fact["source"]) if "folder" in fact else Path(str(fact["source"])).name
            complain(named(name, str(fact["refused"])))
    return REFUSED if any(_is_refused(fact, facts, arguments.strict) for fact in facts) else 0


def _is_refused(fact: dict[str, object], facts: list[dict[str, object]], is_strict: bool) -> bool:
    """Tells whether something is missing, as `enhance` does: what is no scan only where there is no other one."""
    is_alone = all(one.get("is_scan") is False for one in facts)
    return fact["refused"] is not None and (fact.get("is_scan") is not False or is_strict or is_alone)


def _facts_of_study(
    study: "Study", choose: "Callable[[Volume], Model]", settings: "Settings"
) -> list[dict[str, object]]:
    """Returns the facts of every series, and of what cannot be read as one."""
    from functools import partial

    from thinslice.io.dicom.pixels import read_series

    facts = [
        _facts(one.label, partial(read_series, one), choose, settings) | {"folder": str(one.folder)}
        for one in study.series
    ]
    return facts + [
        {"source": one.label, "sees": None, "plan": None, "refused": one.reason, "folder": str(one.folder)}
        | ({} if one.is_scan else {"is_scan": False})
        for one in study.unusable
    ]


def _facts(
    name: str,
    read: "Callable[[], Volume]",
    choose: "Callable[[Volume], Model]",
    settings: "Settings",
    is_alone: bool = True,
) -> dict[str, object]:
    """Returns what is seen in a scan (None where it cannot be read), the plan (None where refused), and the refusal.

    Among others in a folder a segmentation is none of the scans, and has neither plan nor refusal.
    """
    import dataclasses

    from thinslice.compute.label_maps import check_is_scan, describe_labels
    from thinslice.compute.ringing import settle_profile
    from thinslice.io.upright import make_upright
    from thinslice.pipeline import plan_volume

    seen: dict[str, object] | None = None
    try:
        volume = make_upright(read())
        # Kept where the plan is refused below: one sees what the refusal is about.
        seen = _seen(volume)
        reason = "" if is_alone else describe_labels(volume)
        if reason:
            notes = [*volume.notes, f"a segmentation ({reason}): enhance brings it along with its scan in the folder"]
            return {"source": name, "sees": seen | {"notes": notes}, "plan": None, "refused": None}
        suspicion = check_is_scan(volume)
        model = choose(volume)
        made = plan_volume(volume, settings, model, Path("thin"))
        # As enhance does: where a sample of the answer rings the profile is narrowed.
        plan = dataclasses.asdict(settle_profile(volume, made, model))
        plan["notes"] = [*plan["notes"], *suspicion]
    except (ThinsliceError, OSError, MemoryError) as error:
        return {"source": name, "sees": seen, "plan": None, "refused": reason_of(error)}
    return {"source": name, "sees": seen, "plan": plan, "refused": None}


def _seen(volume: "Volume") -> dict[str, object]:
    import numpy as np

    from thinslice.volume import through_plane_axis

    acquired = volume.voxels if volume.measured is None else volume.measured.voxels
    axis = through_plane_axis(volume)
    direction = np.abs(volume.affine[:3, axis]).argmax()
    return {
        "shape": list(acquired.shape),
        "spacing_mm": list(volume.spacing_mm),
        "dtype": str(acquired.dtype),
        "axis": axis,
        "direction": PATIENT_AXES[int(direction)],
        "thickness_mm": volume.thickness_mm,
        "notes": list(volume.notes),
    }


def _describe(fact: dict[str, object]) -> None:
    """Prints the facts about one file as a few aligned lines."""
    from thinslice.physics.noise import describe_noise
    from thinslice.pipeline import describe_slices
    from thinslice.plan import Plan

    say(f"scan   {fact['source']}" + (f"  ({fact['folder']})" if "folder" in fact else ""))
    seen = fact["sees"]
    if isinstance(seen, dict):
        spacing = " x ".join(f"{mm:.4g}" for mm in seen["spacing_mm"])
        say(f"sees   {' x '.join(map(str, seen['shape']))} voxels of {spacing} mm, {seen['dtype']}")
        thickness = "not stated" if seen["thickness_mm"] is None else f"{seen['thickness_mm']:g} mm"
        say(f"       slices along axis {seen['axis']} ({seen['direction']}); slice thickness: {thickness}")
    if isinstance(fact["plan"], dict):
        plan = Plan(**fact["plan"])
        slab = f"{plan.profile} profile of {plan.thickness_mm:.4g} mm"
        kept = "field of view" if plan.grid == "fov" else "outer slice centres"
        say(f"would  {describe_slices(plan)}")
        if plan.slice_noise is not None:
            say(f"       noise of the slices: {describe_noise(plan.slice_noise)}")
        say(f"       factor {plan.factor:.4g}, {slab}, same {kept}, {'' if plan.projection else 'not '}projected")
    notes = fact["plan"]["notes"] if isinstance(fact["plan"], dict) else seen["notes"] if isinstance(seen, dict) else ()
    for note in notes:
        say(f"note: {to_options(note)}")
    if fact.get("is_scan") is False:
        say(f"would  leave it out: {fact['refused']}")
    elif fact["refused"] is not None:
        say("would  refuse")


# ---- reslice


def add_reslice(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """Adds ``thinslice reslice`` and its options."""
    verb = add_verb(verbs, "reslice", reslice, "bring a thin scan or segmentation back onto the acquired slices")
    verb.add_argument("-i", "--input", required=True, type=path_argument, metavar="THIN", help="scan or segmentation")
    verb.add_argument(
        "--like", required=True, type=path_argument, metavar="THICK", help="the scan whose grid is wanted"
    )
    verb.add_argument("-o", "--output", required=True, metavar="OUT", help="file or folder")
    kind = verb.add_mutually_exclusive_group()
    kind.add_argument("--labels", action="store_true", help="THIN is a segmentation: majority instead of mean")
    kind.add_argument("--image", action="store_true", help="THIN is an image; default: seen from its voxels")
    verb.add_argument(
        "--thickness",
        type=float,
        metavar="MM",
        help="slice thickness; default: that of the plan beside THIN, else SliceThickness of the JSON beside THICK, "
        "else its slice spacing",
    )
    verb.add_argument(
        "--profile", choices=PROFILES, help="slice profile; default: that of the plan beside THIN, else a box"
    )
    verb.add_argument("--overwrite", action="store_true", help="replace OUT if it exists already")


def reslice(arguments: argparse.Namespace) -> int:
    """Brings a thin image or segmentation onto the grid of a thick scan."""
    from thinslice.compute.consistency import read_plan_beside
    from thinslice.compute.label_maps import describe_labels, may_be_labels
    from thinslice.compute.reslice import reslice as to_thick
    from thinslice.io.formats import write
    from thinslice.io.outputs import find_reslice_output

    case = find_reslice_output(arguments.input, arguments.like, arguments.output, arguments.overwrite)
    thin, like = read_scan(arguments.input), read_scan(arguments.like)
    plan = read_plan_beside(arguments.input, thin)
    thickness_mm = arguments.thickness if arguments.thickness is not None or plan is None else plan.thickness_mm
    # A box where nothing is known, as `enhance` takes it: both ways must assume the same.
    profile = arguments.profile or (plan.profile if plan is not None else "box")
    reason = "" if arguments.labels or arguments.image else describe_labels(thin)
    labels = arguments.labels or bool(reason)
    # Only the plan tells air from what the scanner did not see; padding takes no part in means.
    padding = plan.padding if plan is not None else None
    thick = to_thick(thin, like, thickness_mm=thickness_mm, profile=profile, labels=labels, padding=padding)
    with all_or_none([case.destination], arguments.overwrite) as (part,):
        write(thick, part)
    how = "segmentation, majority" if labels else "image, mean"
    say(f"{case.source.name}: {how} under a {profile} profile of {thick.thickness_mm:.4g} mm -> {case.destination}")
    for note in thick.notes:
        say(f"  note: {to_options(note)}")
    if reason:
        say(f"  note: taken for a segmentation, {reason}; --image if it is an image")
    elif not labels and not arguments.image and may_be_labels(thin):
        say("  note: taken for an image, though its voxels are few whole numbers; --labels if it is a segmentation")
    return 0


# ---- view


def add_view(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """Adds ``thinslice view`` and its options."""
    verb = add_verb(verbs, "view", view, "write a page on which two scans are compared in a browser, offline")
    verb.add_argument("acquired", type=path_argument, metavar="A", help=f"{SCAN}, {DICOM}; shown as it was acquired")
    verb.add_argument(
        "other", type=path_argument, metavar="B", help="another scan of the same patient space, on any grid"
    )
    verb.add_argument("-o", "--output", type=path_argument, metavar="OUT", help="the page; default: A-B.html, here")
    verb.add_argument("--overwrite", action="store_true", help="replace OUT if it exists already")


def view(arguments: argparse.Namespace) -> int:
    """Writes a page on which two scans are compared."""
    from thinslice.io.outputs import PAGE_ENDINGS, Output, check_outputs, unique_names
    from thinslice.reports.viewer_page import make_page_name, write_comparison_page

    acquired, other = arguments.acquired, arguments.other
    target = arguments.output or Path(make_page_name(acquired, other))
    check_outputs([Output(target, "the page", PAGE_ENDINGS)], [acquired, other], arguments.overwrite)
    names = unique_names([acquired, other])
    with all_or_none([target], arguments.overwrite) as (part,):
        write_comparison_page(part, [(names[path], read_scan(path)) for path in (acquired, other)])
    say(f"{names[acquired]} and {names[other]} -> {target} (open it in a browser)")
    return 0
