"""Planted faults: the suite must catch every one of them. Run ``python tests/faults.py [name ...]``.

A fault is one small change of the source, of the kind that is easily made and hard to see. The source and the tests
are copied to a temporary folder, each fault is planted there in turn, and the tests named with it are run.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

MOST_SECONDS = 300
"""A fault after which the tests do not end has not been caught."""


@dataclass(frozen=True)
class Fault:
    """``old`` becomes ``new`` in ``file``; ``tests`` must then fail, by the law named in ``law``."""

    name: str
    file: str
    old: str
    new: str
    law: str
    tests: tuple[str, ...]


PLAN, UP, PROFILE, GUARD = ("test_plan.py",), ("test_upsample.py",), ("test_profile.py",), ("test_guard.py",)
DEGRADE, TILE, TRAIN, INTER = ("test_degrade.py",), ("test_tile.py",), ("test_training.py",), ("test_interpolate.py",)

PLANES, CLIPS = ("test_enlarge.py",), ("test_clips.py",)
TARGETS, ADAPT = ("test_targets.py",), ("test_adapt.py",)

FAULTS = [
    # grids and places
    Fault(
        "half-voxel shift on the fov grid",
        "plan.py",
        "(real_factor - 1) / 2 if",
        "real_factor / 2 if",
        "edges kept",
        PLAN,
    ),
    Fault(
        "fov treated as centres",
        "plan.py",
        "first_centre = (real_factor - 1) / 2 if",
        "first_centre = 0.0 if",
        "edges kept",
        PLAN,
    ),
    Fault(
        "centres treated as fov",
        "plan.py",
        'if grid == "fov" else 0.0',
        'if grid == "fov" else 0.5',
        "centres kept",
        PLAN,
    ),
    Fault(
        "one slice too many on the centre grid",
        "plan.py",
        "realised = (n_thin - 1) / (n_thick - 1)",
        "realised = n_thin / n_thick",
        "centres kept",
        PLAN,
    ),
    Fault(
        "origin not moved",
        "plan.py",
        "thin[:3, 3] -= thin[:3, :3] @ first",
        "pass",
        "edges kept",
        PLAN,
    ),
    Fault("origin moved the wrong way", "plan.py", "thin[:3, 3] -=", "thin[:3, 3] +=", "edges kept", PLAN),
    Fault("affine not scaled", "plan.py", "thin[:3, :3] /= finer", "pass", "directions kept", PLAN),
    Fault(
        "wished factor used, not the realised one",
        "plan.py",
        "finer_affine(volume.affine, finer, first)",
        "finer_affine(volume.affine, [k if k != real_factor else thick_mm / target_mm for k in finer], first)",
        "edges kept",
        PLAN,
    ),
    Fault(
        "positions half a thin voxel away",
        "plan.py",
        "(np.arange(self.n_thin) - self.first_centre)",
        "(np.arange(self.n_thin) + 0.5 - self.first_centre)",
        "positions and affines say the same",
        PLAN,
    ),
    Fault("wrong axis", "plan.py", "(1 - 1e-4))[-1])", "(1 - 1e-4))[-1] * 0 + 2)", "axis found", PLAN),
    Fault(
        "finest in-plane spacing as the target",
        "plan.py",
        "target = max(in_plane_mm)",
        "target = min(in_plane_mm)",
        "default is the coarser",
        PLAN,
    ),
    Fault(
        "answer keeps the thick affine",
        "upsample.py",
        "affine = np.array(plan.affine_thin)",
        "affine = np.array(plan.affine_thick)",
        "scipy's",
        UP,
    ),
    Fault(
        "slices turned back onto the wrong axis",
        "upsample.py",
        "thick = np.moveaxis(series[..., t], plan.axis, 0)",
        "thick = np.swapaxes(series[..., t], plan.axis, 0)",
        "axes are only names",
        UP,
    ),
    Fault(
        "network shown the file's direction of storage",
        "upsample.py",
        "1 if affine[nearest[a], a] > 0 else -1",
        "1",
        "flipping the input flips the output",
        UP,
    ),
    Fault(
        "network shown the file's order of storage",
        "upsample.py",
        "turned if nearest[stored[1]] < nearest[stored[2]] else turned.swapaxes(1, 2)",
        "turned",
        "axes are only names",
        UP,
    ),
    # the profile
    Fault(
        "FWHM used as sigma",
        "profile.py",
        "-4.0 * np.log(2.0) * (distance / fwhm) ** 2",
        "-0.5 * (distance / fwhm) ** 2",
        "FWHM is the thickness",
        PROFILE,
    ),
    Fault(
        "spacing used as thickness",
        "plan.py",
        "fwhm = self.thickness_over_spacing * self.factor\n        return profile",
        "fwhm = self.factor\n        return profile",
        "matrix sees the thickness",
        PLAN,
    ),
    Fault(
        "box twice as wide",
        "profile.py",
        "np.minimum(distance + 0.5, fwhm / 2)",
        "np.minimum(distance + 0.5, fwhm)",
        "FWHM is the thickness",
        PROFILE,
    ),
    Fault(
        "profile not centred",
        "profile.py",
        "[None, :] - thick_centres[:, None]",
        "[None, :] - thick_centres[:, None] - 0.5",
        "centred",
        PROFILE,
    ),
    Fault("rows not normalised", "profile.py", "= weights / total", "= weights", "rows sum to one", PROFILE),
    Fault(
        "Gaussian cut short",
        "profile.py",
        "GAUSSIAN_REACH_FWHM = 2.0",
        "GAUSSIAN_REACH_FWHM = 0.6",
        "known variance",
        PROFILE,
    ),
    Fault(
        "box planned, Gaussian used",
        "plan.py",
        "thin.start, fwhm, self.profile)",
        "thin.start, fwhm)",
        "profile changes the matrix",
        PLAN,
    ),
    # the projection
    Fault(
        "transpose is not the adjoint",
        "degrade.py",
        "along_first_axis(matrix.T, thick)",
        "along_first_axis(matrix.T / matrix.sum(axis=0)[:, None].clip(1e-9), thick)",
        "adjoint",
        PROFILE,
    ),
    Fault(
        "projection has the wrong sign",
        "degrade.py",
        "thin + along_first_axis(repair",
        "thin - along_first_axis(repair",
        "gives back what was acquired",
        DEGRADE,
    ),
    Fault(
        "projection's noise not scaled",
        "degrade.py",
        "return float(noise * np.median((matrix @ smooth_spread(matrix, factor)).sum(axis=1)))",
        "return float(noise)",
        "regularised least squares",
        DEGRADE,
    ),
    Fault(
        "a correction that is not smooth",
        "degrade.py",
        "smoothed: np.ndarray = covariance @ matrix.T",
        "smoothed: np.ndarray = np.eye(len(covariance)) @ matrix.T",
        "a flat correction comes back flat",
        DEGRADE,
    ),
    Fault(
        "the correction does not mirror at the ends",
        "degrade.py",
        "for d in distances)",
        "for d in distances[:1])",
        "smallest change",
        DEGRADE,
    ),
    Fault(
        "the correction's smoothness in thin voxels",
        "degrade.py",
        "(d / CORRELATION_LENGTH)",
        "(d * factor / CORRELATION_LENGTH)",
        "a flat correction comes back flat",
        DEGRADE,
    ),
    Fault("projection skipped", "upsample.py", "if self.plan.projection:", "if False:", "reslicing", UP),
    Fault(
        "projection has the wrong sign in the chunks",
        "upsample.py",
        "to_thin[:, whole - spline_low] += correct",
        "to_thin[:, whole - spline_low] -= correct",
        "reslicing",
        UP,
    ),
    Fault(
        "the network's residual is not projected",
        "upsample.py",
        "return to_thin, keep",
        "return to_thin, np.eye(window.stop - window.start)[inside]",
        "the projection is that of degrade",
        UP,
    ),
    Fault(
        "chunks do not look beyond themselves",
        "upsample.py",
        "PROJECTION_HALO = 20",
        "PROJECTION_HALO = 1",
        "chunked equals whole",
        UP,
    ),
    Fault(
        "noise not scaled in the chunks",
        "upsample.py",
        "self.damping = damping_of(self.acquire(middle, middle + 2 * PROJECTION_HALO)[1], plan.factor, plan.noise)",
        "self.damping = plan.noise",
        "the projection is that of degrade",
        UP,
    ),
    Fault(
        "the outermost slices of the centres grid decide the damping",
        "degrade.py",
        "noise * np.median(",
        "noise * np.max(",
        "damping in units of a flat image",
        DEGRADE,
    ),
    # intensities
    Fault(
        "inverse intensity dropped",
        "upsample.py",
        "answer += np.float32(self.low)",
        "pass",
        "scale and offset",
        UP,
    ),
    Fault(
        "scale is the maximum",
        "upsample.py",
        "shown[0], shown[1] - shown[0]\n        self.geometry",
        "shown[0], shown[1]\n        self.geometry",
        "scale and offset",
        UP,
    ),
    Fault(
        "whole numbers cut, not rounded",
        "upsample.py",
        "np.rint(values, out=values)",
        "np.trunc(values, out=values)",
        "rounded and clipped",
        UP,
    ),
    Fault(
        "whole numbers wrap around",
        "upsample.py",
        "np.clip(values, info.min, top, out=values)",
        "values = values.astype(np.int64)",
        "rounded and clipped",
        UP,
    ),
    Fault(
        "one intensity range for a series",
        "upsample.py",
        "shown = intensity_range(thick)",
        "shown = 0.0, float(np.abs(thick).max() or 1)",
        "scale and offset",
        UP,
    ),
    # the network
    Fault(
        "a neighbour is not heard",
        "upsample.py",
        "for near in (slab - 1, slab, slab + 1):",
        "for near in (slab, slab + 1):",
        "straight lines",
        UP,
    ),
    Fault(
        "a slice is asked only inside its slab",
        "upsample.py",
        "(slab - 1 + 1e-9, slab + 1 - 1e-9)",
        "(slab - 0.5, slab + 0.5)",
        "straight lines",
        UP,
    ),
    Fault(
        "the shares of two slices do not sum to one",
        "networks/slab.py",
        "torch.cos(0.25 * torch.pi * position[:, :1]) ** 2",
        "torch.cos(0.25 * torch.pi * position[:, :1])",
        "sum to the whole",
        TRAIN,
    ),
    Fault(
        "training hears each slice only inside its slab",
        "training/losses.py",
        "np.flatnonzero(np.abs(offset) < 1)",
        "np.flatnonzero(np.abs(offset) < 0.5)",
        "up to its neighbours",
        TRAIN,
    ),
    Fault(
        "new blocks speak from the beginning",
        "networks/slab.py",
        "torch.zeros_like(weight) if name.startswith",
        "weight if name.startswith",
        "a deeper network begins with what the shallower one computes",
        ("test_recipes.py",),
    ),
    Fault(
        "context runs backwards",
        "upsample.py",
        "around = self.slices(slab - self.model.context, slab + self.model.context + 1)",
        "around = self.slices(slab - self.model.context, slab + self.model.context + 1)[::-1]",
        "straight lines",
        UP,
    ),
    Fault(
        "position has the wrong sign",
        "upsample.py",
        "position_code(offset)",
        "position_code(-offset)",
        "straight lines",
        UP,
    ),
    Fault(
        "position in thin voxels",
        "upsample.py",
        "position_code(offset)",
        "position_code(offset * self.plan.factor)",
        "straight lines",
        UP,
    ),
    Fault(
        "slices beyond the end wrap around",
        "upsample.py",
        "index = np.clip(np.arange(low, high), 0, self.plan.n_thick - 1)",
        "index = np.arange(low, high) % self.plan.n_thick",
        "shown in order",
        UP,
    ),
    Fault(
        "the network is not asked",
        "upsample.py",
        "answer += along_first_axis(keep, np.concatenate([r[band] for r in residuals]))",
        "pass",
        "knows the truth",
        UP,
    ),
    Fault(
        "tiles without margin",
        "tile.py",
        "low, high = max(start - margin, 0), min(stop + margin, length)",
        "low, high = start, stop",
        "tiled equals whole",
        TILE,
    ),
    Fault(
        "model's reach ignored",
        "runtime.py",
        'int(card["multiple"]), int(card["reach"])',
        'int(card["multiple"]), 0',
        "tiled equals whole",
        TILE,
    ),
    # networks for planes
    Fault(
        "enlarged slices start at the old origin",
        "plan.py",
        "(in_plane - 1) / 2 for i in range(3)",
        "0.0 for i in range(3)",
        "edges kept along all axes",
        PLANES,
    ),
    Fault(
        "planes are cut off at a block's edge",
        "enlarge.py",
        "wanted = slice(factor * beyond, len(matrix) - factor * beyond)",
        "wanted = slice(factor * beyond - 1, len(matrix) - factor * beyond - 1)",
        "blocks equal whole",
        PLANES,
    ),
    Fault(
        "a plane enlarges about its first pixel",
        "enlarge.py",
        "(np.arange(factor * n) - (factor - 1) / 2) / factor",
        "np.arange(factor * n) / factor",
        "lies where the anatomy is",
        PLANES,
    ),
    Fault(
        "the mirror image of a slab is asked for the same places",
        "upsample.py",
        "position_code(-offset)",
        "position_code(offset)",
        "a fused answer does not tell a scan from its mirror image",
        UP,
    ),
    Fault(
        "the answer to the mirror image is added as it comes",
        "upsample.py",
        ")[:, ::-1, ::-1]",
        ")",
        "a fused answer does not tell a scan from its mirror image",
        UP,
    ),
    Fault(
        "mirrored planes are added as they come",
        "enlarge.py",
        "said[:, :, backwards] / np",
        "said / np",
        "fused answers do not depend on the orientation",
        PLANES,
    ),
    Fault(
        "any scan passes for computed tomography",
        "plan.py",
        "np.mean(voxels < FAT_HOUNSFIELD) < FAT_SHARE",
        "False",
        "only Hounsfield units",
        PLANES,
    ),
    Fault(
        "any unit passes for Hounsfield units",
        "plan.py",
        "np.mean(voxels < DARKEST_HOUNSFIELD) > DARKEST_SHARE",
        "False",
        "values that are not Hounsfield units are one line",
        ("test_embedded_planes.py",),
    ),
    Fault(
        "a window passes for Hounsfield units",
        "plan.py",
        "lowest > WINDOW_HOUNSFIELD and np.mean(voxels == lowest) > WINDOW_SHARE",
        "False",
        "values that are not Hounsfield units are one line",
        ("test_embedded_planes.py",),
    ),
    Fault(
        "one dark voxel passes for fat",
        "plan.py",
        "FAT_HOUNSFIELD, FAT_SHARE = -50.0, 0.001",
        "FAT_HOUNSFIELD, FAT_SHARE = -50.0, 1e-9",
        "only Hounsfield units",
        PLANES,
    ),
    Fault(
        "planes end in zeros",
        "enlarge.py",
        'np.pad(slices[index], margin, mode="edge")',
        "np.pad(slices[index], margin)",
        "edges repeat",
        PLANES,
    ),
    Fault(
        "the guard does not look at enlarged slices",
        "enlarge.py",
        "keep = keep_map(suspect, (height, width))",
        "keep = keep_map(0 * suspect, (height, width))",
        "what disagrees is not taken",
        PLANES,
    ),
    Fault(
        "BLAS threads stay awake",
        "runtime.py",
        'threadpool_limits(1, "blas")',
        'threadpool_limits(None, "blas")',
        "while networks run their cores are theirs alone",
        PLANES,
    ),
    Fault(
        "BLAS stays on one core",
        "runtime.py",
        "if self.users == 0:\n                self.limits.restore",
        "if True:\n                self.limits.restore",
        "while networks run their cores are theirs alone",
        PLANES,
    ),
    Fault(
        "every scan has padding",
        "plan.py",
        "if envelope is not None and envelope.hounsfield:\n        padding",
        "if True:\n        padding",
        "an ordinary scan is no padding",
        PLANES,
    ),
    Fault(
        "missing voxels of tomography are water",
        "nifti.py",
        "and not AIR[0] <= low <= AIR[1] else",
        "else",
        "missing voxels of tomography are air",
        ("test_embedded_planes.py",),
    ),
    Fault(
        "a network's unused input is lost",
        "training/export.py",
        "for name in exported.inputs.keys() - traced:",
        "for name in ():",
        "a network that makes the image anew can be used like any other",
        ("test_recipes.py",),
    ),
    Fault(
        "padding is anatomy",
        "upsample.py",
        "thick = padding.filled(thick)",
        "pass",
        "padding is no anatomy",
        PLANES,
    ),
    Fault(
        "padding is anatomy on the way back",
        "reslice.py",
        "np.where(beyond, thin[~beyond].min(), thin)",
        "thin",
        "padding takes no part in what a slice sees",
        ("test_reslice.py",),
    ),
    Fault(
        "padding does not come back",
        "upsample.py",
        "padding.put_back(thin, lines.owner)",
        "pass",
        "padding comes back where it was",
        PLANES,
    ),
    Fault(
        "every lowest value is padding",
        "plan.py",
        "if not lowest < AIR_HOUNSFIELD or",
        "if",
        "the lowest value of an ordinary scan is no padding",
        PLANES,
    ),
    Fault(
        "the finer grid of the answer starts at the old origin",
        "reslice.py",
        "[(k - 1) / 2 for k in finer]",
        "[0.0 for k in finer]",
        "enlarged slices come back",
        ("test_reslice.py",),
    ),
    Fault(
        "all networks start from the first one's file",
        "training/recipes.py",
        'start / f"{stage.model}.onnx" for stage in stages if',
        'start / f"{stages[0].model}.onnx" for stage in stages if',
        "every network goes on from its own file",
        ("test_recipes.py",),
    ),
    Fault(
        "a resumed run takes the recipe's length",
        "training/recipes.py",
        "*(_length_of(out, minutes, steps) if resume else (minutes, steps))",
        "minutes, steps",
        "a resumed run keeps its length",
        ("test_recipes.py",),
    ),
    Fault(
        "pictures shrink without anti-aliasing",
        "profile.py",
        "- centres[:, None]) / factor\n    near",
        "- centres[:, None])\n    near",
        "that of a picture library",
        PROFILE,
    ),
    Fault(
        "the shuffle mixes rows and columns",
        "networks/planes.py",
        "permute(0, 3, 1, 4, 2)",
        "permute(0, 3, 2, 4, 1)",
        "the shuffle keeps places",
        ("test_planes.py",),
    ),
    Fault(
        "the intermediate answer has no loss",
        "training/losses.py",
        "errors[0] + intermediate * errors[1] if intermediate else errors[0]",
        "errors[0]",
        "counts both answers",
        ("test_planes.py",),
    ),
    Fault(
        "the margin of a plane is scored",
        "training/planes.py",
        "slice(scale[0] * self.margin, -scale[0] * self.margin)",
        "slice(None)",
        "inside the margin only",
        ("test_planes.py",),
    ),
    Fault(
        "in-plane patches lie across thick slices",
        "training/corpus.py",
        "transpose = across != min({0, 1, 2} - {axis})",
        "transpose = across == min({0, 1, 2} - {axis})",
        "lie in its slices",
        ("test_planes.py",),
    ),
    # the guard
    Fault("guard never triggers", "upsample.py", "if cells.any():", "if False:", "falls back", GUARD),
    Fault("NaN passes the guard", "guard.py", "> 0\n        suspect", "> 2\n        suspect", "single NaN", GUARD),
    Fault(
        "guard compares with nothing",
        "guard.py",
        "np.maximum(MARGIN * accepted, DISAGREEMENT)",
        "np.inf",
        "falls back",
        GUARD,
    ),
    Fault(
        "guard forgets what interpolation misses",
        "upsample.py",
        "missed[0, slab - spline_low] -= 1.0",
        "missed[:] = 0.0",
        "good answer is left alone",
        GUARD,
    ),
    Fault(
        "guard throws everything away", "upsample.py", "* keep_map(cells, own.shape[1:])", "* 0.0", "only there", GUARD
    ),
    Fault(
        "guard forgets the neighbours",
        "upsample.py",
        "max(slab - self.plan_reach, 0), min(slab + self.plan_reach + 1, self.plan.n_thick)",
        "slab, slab + 1",
        "null space is not flagged",
        GUARD,
    ),
    # the baselines
    Fault("linear for cubic", "interpolate.py", '"cubic": cubic_matrix', '"cubic": linear_matrix', "scipy's", UP),
    Fault(
        "spline without its prefilter",
        "interpolate.py",
        "reach=2) @ np.linalg.inv(knots)",
        "reach=2)",
        "equals scipy",
        INTER,
    ),
    Fault(
        "mirror includes the edge twice",
        "interpolate.py",
        "period = max(2 * (n_thick - 1), 1)",
        "period = max(2 * n_thick - 1, 1)",
        "equals scipy",
        INTER,
    ),
    Fault(
        "nearest rounds down",
        "interpolate.py",
        "np.floor(np.asarray(position) + 0.5)",
        "np.floor(np.asarray(position))",
        "closest slice",
        INTER,
    ),
    # files, models and names
    Fault(
        "the report is about the answer, not about the file",
        "cli.py",
        "thin = as_stored(answer.volume)",
        "thin = answer.volume",
        "about what is in the file",
        ("test_cli.py",),
    ),
    Fault(
        "an answer may replace the segmentation",
        "cli.py",
        "for path in (case.source, source)}",
        "for path in (case.source,)}",
        "never replaces the segmentation",
        ("test_cli.py",),
    ),
    Fault(
        "labels may replace another scan's answer",
        "cli.py",
        "if target is not None and os.path.realpath(target[1]) in taken:",
        "if False:",
        "never replace the answer to another",
        ("test_cli.py",),
    ),
    Fault(
        "numbers far from zero lose their last digits",
        "upsample.py",
        "if voxels.dtype in WIDE:",
        "if False:",
        "far larger than the signal",
        UP,
    ),
    Fault(
        "a segmentation is averaged",
        "reslice.py",
        "np.mean(near[drawn] == far[drawn]) > REGIONS",
        "False",
        "sees what is a segmentation",
        ("test_cli.py",),
    ),
    Fault(
        "the weights are not those of this network",
        "upsample.py",
        "+= said[low - first : high - first]",
        "+= 2 * said[low - first : high - first]",
        "the embedded weights beat projected cubic",
        ("test_runtime.py",),
    ),
    Fault(
        "a model of another contract is taken",
        "runtime.py",
        'if card.get("contract") != CONTRACT:',
        "if False:",
        "earlier contract",
        ("test_runtime.py",),
    ),
    # the training
    Fault(
        "training cuts half a slice away",
        "training/corpus.py",
        "position = (inner - geometry.thick_centres[0]) / geometry.factor",
        "position = (inner + 0.5 - geometry.thick_centres[0]) / geometry.factor",
        "ramp",
        TRAIN,
    ),
    Fault(
        "training blurs by the spacing",
        "training/corpus.py",
        "acquire = profile_matrix(geometry.thick_centres - low, len(wide), fwhm, geometry.profile)",
        "acquire = profile_matrix(geometry.thick_centres - low, len(wide), geometry.factor, geometry.profile)",
        "matrix times thin",
        TRAIN,
    ),
    Fault(
        "training positions have the wrong sign",
        "training/losses.py",
        "offset = (positions - geometry.thick_centres[context + slab]) / geometry.factor",
        "offset = (geometry.thick_centres[context + slab] - positions) / geometry.factor",
        "training and inference",
        TRAIN,
    ),
    Fault(
        "a resumed training starts at its first batch",
        "training/fit.py",
        'step, spent, stop = state["step"], state["seconds"]',
        'step, spent, stop = 0, state["seconds"]',
        "killed and resumed",
        TRAIN,
    ),
    Fault(
        "a resumed training forgets the average",
        "training/fit.py",
        'average.load_state_dict(state["average"])',
        "pass",
        "killed and resumed",
        TRAIN,
    ),
    Fault(
        "the seed is ignored",
        "training/corpus.py",
        "rng = np.random.default_rng([seed, step])",
        "rng = np.random.default_rng(step)",
        "other seeds",
        TRAIN,
    ),
    Fault(
        "the default recipe draws one number more",
        "training/corpus.py",
        "if ranges.kept and rng.random() < ranges.kept:",
        "if rng.random() < ranges.kept:",
        "draws what it has always drawn",
        TRAIN,
    ),
    # video
    Fault(
        "every frame kept is the neighbour of the right one",
        "training/corpus.py",
        "acquire = profile_matrix(geometry.thick_centres - low,",
        "acquire = profile_matrix(geometry.thick_centres - low + 1,",
        "kept as it is",
        CLIPS,
    ),
    Fault(
        "the frames kept are means of two",
        "training/corpus.py",
        "thickness, phase = 1 / factor, float(rng.integers(int(factor)))",
        "thickness, phase = 1 / factor, (factor - 1) / 2",
        "kept as it is",
        CLIPS,
    ),
    Fault(
        "two frames are kept as one",
        "training/corpus.py",
        "thickness, phase = 1 / factor, float",
        "thickness, phase = 2 / factor, float",
        "kept as it is",
        CLIPS,
    ),
    Fault(
        "a frame to be predicted is shown beyond the end of a clip",
        "training/corpus.py",
        'if geometry.ends == "slices":',
        "if False:",
        "kept frame repeats",
        CLIPS,
    ),
    Fault(
        "clips are made thick along a picture's axis",
        "training/clips.py",
        "(0,), frames.size**0.5",
        "(0, 1, 2), frames.size**0.5",
        "time alone",
        CLIPS,
    ),
    Fault(
        "long clips are read from anywhere",
        "training/clips.py",
        "islice(container.decode(video=0), most)",
        "islice(container.decode(video=0), 1, None)",
        "read as it was written",
        CLIPS,
    ),
    Fault(
        "share-alike clips slip in",
        "training/manifest.py",
        "return _SHARE_ALIKE.search(licence) is not None",
        "return False",
        "left out",
        CLIPS,
    ),
    Fault(
        "a data set's name is taken for a licence",
        "training/manifest.py",
        "sa(?!-?[a-z])",
        "sa|[ ;]sa",
        "not taken for share-alike",
        CLIPS,
    ),
    Fault(
        "the manifest beside the clips is not read",
        "training/manifest.py",
        '_rows(folder / "manifest.csv").items()}',
        "{}.items()}",
        "whichever manifest",
        CLIPS,
    ),
    Fault(
        "the stage after the first forgets its weights",
        "training/recipes.py",
        "network.load_state_dict(trained[stage.start].state_dict())",
        "pass",
        "starts from the averaged weights",
        ("test_recipes.py",),
    ),
    Fault(
        "clips that were left out are credited",
        "training/recipes.py",
        "for path in find_clips(folder)[0]:",
        "for path in sum(find_clips(folder), []):",
        "card names the clips",
        ("test_recipes.py",),
    ),
    Fault(
        "a stage that nothing comes of is trained",
        "training/recipes.py",
        "return [stage for stage in stages if stage in used]",
        "return list(stages)",
        "only the last one is trained",
        ("test_recipes.py",),
    ),
    Fault(
        "a new source goes to every stage",
        "training/recipes.py",
        "{name: 1.0}) if fit else stage",
        "{name: 1.0})",
        "a new source is a folder name",
        ("test_recipes.py",),
    ),
    Fault(
        "models are scored in one orientation whatever is wished",
        "bench.py",
        "fuse and model.sha256 is not None",
        "False",
        "asked in several orientations where that is wished",
        ("test_bench.py",),
    ),
    # adapting to thick scans
    Fault(
        "what is held out is learnt from",
        "training/targets.py",
        "for part in (learnt, held_out)\n    ]",
        "for part in ((crop[0], crop[1]), held_out)\n    ]",
        "nothing held out is learnt from",
        TARGETS,
    ),
    Fault(
        "what is held out is learnt from by lessons across the slices",
        "training/targets.py",
        "(2,), 1.0) for p in (learnt, held_out))",
        "(2,), 1.0) for p in (slice(None), held_out))",
        "nothing held out is learnt from",
        TARGETS,
    ),
    Fault(
        "air alone may be held out",
        "training/targets.py",
        "HELD_OUT * shown.sum()",
        "HELD_OUT * 0",
        "what is held out shows something",
        TARGETS,
    ),
    Fault(
        "too little is left to learn from",
        "training/targets.py",
        "min(LEAST_HELD_OUT, n // 3, most)",
        "min(LEAST_HELD_OUT, n // 3)",
        "so does what is learnt from",
        TARGETS,
    ),
    Fault(
        "the slice direction is learnt from where it judges",
        "training/targets.py",
        "target.unseen_acquired if unseen else target.acquired",
        "target.unseen_acquired",
        "lessons of the slice direction come from what is not held out",
        TARGETS,
    ),
    Fault(
        "the slice direction judges where it was learnt from",
        "training/adapt.py",
        "*about, unseen=True)",
        "*about, unseen=False)",
        "what is held out is never learnt from",
        ADAPT,
    ),
    Fault(
        "the end that shows less is held out",
        "training/targets.py",
        "    if last:\n",
        "    if not last:\n",
        "the end that shows its share in fewer pixels",
        TARGETS,
    ),
    Fault(
        "one scan pays for the others",
        "training/adapt.py",
        ' and look["worst"] <= 1]',
        "]",
        "what harms one of the scans is not kept",
        ADAPT,
    ),
    Fault(
        "lessons are cut from what is held out",
        "training/targets.py",
        "return batch_at(step, seed, targets, patches, size, slabs, context)",
        "return batch_at(step, seed, targets, patches, size, slabs, context, True)",
        "no lesson shows what is held out",
        TARGETS,
    ),
    Fault(
        "pixels that are not square are turned",
        "training/targets.py",
        "square = max(spacing_mm) <= SQUARE * min(spacing_mm)",
        "square = True",
        "along the coarser side",
        TARGETS,
    ),
    Fault(
        "any file is taken for a card",
        "training/answers.py",
        "if card.exists() and not _is_card(card):",
        "if False:",
        "the file beside a scan is not a card",
        ADAPT,
    ),
    Fault(
        "a copy of a scan is learnt from too",
        "training/adapt.py",
        "if scan.fingerprint in found:",
        "if False:",
        "the same scan is learnt from once",
        ADAPT,
    ),
    Fault(
        "two runs meet in one folder",
        "training/unfinished.py",
        "fcntl.flock(self.held, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "two runs do not meet",
        ADAPT,
    ),
    Fault(
        "what ended early is trained on",
        "training/fit.py",
        'state.get("stop", False)',
        "False",
        "what ended early is not trained on",
        ADAPT,
    ),
    Fault(
        "only the first scan has the whole time",
        "training/adapt.py",
        "            begun = monotonic()\n",
        "",
        "every scan has the whole time",
        ADAPT,
    ),
    Fault(
        "a model from another start is the answer",
        "training/adapt.py",
        'job.wish.keys() - {"minutes", "steps"}',
        '{"scans"}',
        "a model under another wish is not the answer",
        ADAPT,
    ),
    Fault(
        "what a run is resumed with is what is said now",
        "training/recipes.py",
        "asked[key] = known.get(key, asked[key])",
        "pass",
        "a resumed run learns from what it was begun with",
        ("test_recipes.py",),
    ),
    Fault(
        "thin slices of one part are computed from the other too",
        "training/targets.py",
        "_thin_of(part, scan, plan, model)[..., depth]",
        "_thin_of((slice(None), slice(None)), scan, plan, model)[part][..., depth]",
        "thin slices of either part come from it alone",
        TARGETS,
    ),
    Fault(
        "no lesson lies across the slices",
        "training/targets.py",
        "random() < THICKER",
        "random() < 0",
        "a quarter of the lessons",
        TARGETS,
    ),
    Fault(
        "the loss is watched on what is learnt from",
        "training/targets.py",
        "(target.unseen, target.unseen_places) if unseen else",
        "(target.unseen, target.unseen_places) if not unseen else",
        "lessons from one part, looks from the other",
        TARGETS,
    ),
    Fault(
        "all places have the same chance",
        "training/targets.py",
        "return Places(volume, axis, middle, chance / chance.sum())",
        "return Places(volume, axis, middle, np.full(len(chance), 1 / len(chance)))",
        "places like the slices get most of the chance",
        TARGETS,
    ),
    Fault(
        "what is unlike the slices is drawn more",
        "training/targets.py",
        "share_wanted / np.maximum(share_own, 1e-9)",
        "share_own / np.maximum(share_wanted, 1e-9)",
        "places like the slices get most of the chance",
        TARGETS,
    ),
    Fault(
        "a patch that is turned over comes from the other end",
        "training/targets.py",
        "depth = shape[0] - 1 - int(middle[0]) if look.flips[0] else int(middle[0])",
        "depth = int(middle[0])",
        "a patch lies around its place",
        TARGETS,
    ),
    Fault(
        "a transposed patch is looked for at its mirror image",
        "training/targets.py",
        "lines, columns = (middle[2], middle[1]) if look.transpose",
        "lines, columns = (middle[1], middle[2]) if look.transpose",
        "a patch lies around its place",
        TARGETS,
    ),
    Fault(
        "slices are turned with the border they then get",
        "training/targets.py",
        "voxels[_inside(thin.shape[:2], angle)]",
        "voxels",
        "nothing from beyond the image",
        TARGETS,
    ),
    Fault(
        "the starting model's own answer is taken for the truth",
        "training/targets.py",
        "wanted = (0, 1) if square",
        "wanted = (0, 1, 2) if square",
        "made thick along the slices only",
        TARGETS,
    ),
    Fault(
        "adapted whatever the held-out loss says",
        "training/adapt.py",
        'adapted = best["score"] < 1 - LEAST_GAIN',
        "adapted = True",
        "the start is kept where the loss does not fall",
        ADAPT,
    ),
    Fault(
        "adapted where the held-out loss rises",
        "training/adapt.py",
        'look["held_out"] < self.looks[0]["held_out"] and',
        'look["held_out"] >= self.looks[0]["held_out"] and',
        "the start is kept where the loss does not fall",
        ADAPT,
    ),
    Fault(
        "the last look is kept, not the best",
        "training/adapt.py",
        "torch.load(watch.weights_of(best), weights_only=True)",
        'state["average"]',
        "the best look is kept",
        ADAPT,
    ),
    Fault(
        "the slice direction does not count",
        "training/adapt.py",
        "score = sum(means[kind] / first[kind] for kind in means) / len(means)",
        'score = means["held_out"] / first["held_out"]',
        "what harms the slice direction is not kept",
        ADAPT,
    ),
    Fault(
        "the slice direction vouches for an answer by itself",
        "training/adapt.py",
        'if look["held_out"] < self.looks[0]["held_out"] and',
        "if",
        "the slice direction alone is not enough",
        ADAPT,
    ),
    Fault(
        "weights go the other share of the way",
        "training/adapt.py",
        "torch.lerp(self.start[name], weight, share)",
        "torch.lerp(weight, self.start[name], share)",
        "the best share of the way is kept",
        ADAPT,
    ),
    Fault(
        "it ends before it could get better",
        "training/adapt.py",
        "since >= PATIENCE and self._share_done(step)",
        "since >= PATIENCE or self._share_done(step)",
        "ends early when nothing gets better",
        ADAPT,
    ),
    Fault(
        "a model is there before anything is known of it",
        "training/adapt.py",
        "    watch = _Watch(",
        "    answer.parent.mkdir(exist_ok=True)\n    answer.write_bytes(start.read_bytes())\n    watch = _Watch(",
        "killed, it leaves no model",
        ADAPT,
    ),
    Fault(
        "the work on other scans is gone on with",
        "training/unfinished.py",
        "if all(begun.get(key) == value for key, value in wish.items()):",
        "if begun:",
        "unfinished work of another command is not gone on with",
        ADAPT,
    ),
    Fault(
        "the work on other scans is thrown away unasked",
        "training/unfinished.py",
        "        if overwrite:\n            return None\n",
        "        return None\n",
        "nor lost",
        ADAPT,
    ),
    Fault(
        "that an answer is finished is not noted",
        "training/unfinished.py",
        'keep(self.folder / ".finished.json",',
        "(lambda *_: None)(self.folder,",
        "killed when the model was written it is finished",
        ADAPT,
    ),
    Fault(
        "what replaces models begins finished ones anew",
        "training/adapt.py",
        "if resume and (not overwrite or made) else None",
        "if resume and not overwrite else None",
        "per scan the same command goes on",
        ADAPT,
    ),
    Fault(
        "looks take longer the more scans there are",
        "training/adapt.py",
        "min(max(WATCHED, 2 * len(targets)), MOST_WATCHED)",
        "max(WATCHED, 2 * len(targets))",
        "a look takes only so long",
        ADAPT,
    ),
    Fault(
        "scans are prepared however late it is",
        "training/adapt.py",
        "monotonic() > late",
        "monotonic() < 0",
        "scans whose turn comes late",
        ADAPT,
    ),
    Fault(
        "the clock does not end an adaptation",
        "training/adapt.py",
        "return replace(SCHEDULE, minutes=max(minutes - spent_seconds / 60, 0.1 * minutes))",
        "return SCHEDULE",
        "the clock ends it",
        ADAPT,
    ),
    Fault(
        "what is continued begins anew",
        "training/adapt.py",
        "        resume=True,\n",
        "        resume=False,\n",
        "continued equals undisturbed",
        ADAPT,
    ),
    Fault(
        "the same command is refused where some models are there",
        "training/adapt.py",
        "resume = resume or unfinished.folder.exists()",
        "pass",
        "the same command goes on",
        ADAPT,
    ),
    Fault(
        "resuming replaces a model of other scans",
        "training/adapt.py",
        "if earlier is None and job.answer.exists() and not overwrite:",
        "if earlier is None and job.answer.exists() and not (overwrite or resume):",
        "not replaced by resuming",
        ADAPT,
    ),
    Fault(
        "a scan that is left out is said to be learnt from",
        "training/adapt.py",
        "[scan for scan, _ in learnt]",
        "list(group)",
        "named and left out",
        ADAPT,
    ),
    Fault(
        "a scan is enhanced with the model of another",
        "weights.py",
        "return own[known]",
        "return models[0]",
        "each scan has its own",
        ADAPT,
    ),
    Fault(
        "a scan is known by its voxels alone",
        "volume.py",
        "found.update((np.round(np.asarray(volume.affine, np.float64), 3) + 0.0).tobytes())",
        "pass",
        "another place is another scan",
        ("test_volume.py",),
    ),
    Fault(
        "a training goes on though its watcher ends it",
        "training/fit.py",
        "stop = watch is not None and watch(step, average)",
        "stop = watch is not None and watch(step, average) and False",
        "a watcher can end it",
        TRAIN,
    ),
    Fault(
        "batches side by side count for less",
        "training/fit.py",
        "torch.stack(parts).sum(dim=0)",
        "torch.stack(parts).mean(dim=0)",
        "the gradient of the mean loss",
        TRAIN,
    ),
    # what is said
    Fault(
        "percentiles of whole numbers are not interpolated",
        "plan.py",
        "[np.floor(rank), np.ceil(rank)]",
        "[np.floor(rank), np.floor(rank)]",
        "percentiles are numpy's",
        PLAN,
    ),
    Fault(
        "the plan forgets to make tuples",
        "plan.py",
        "{name: _to_tuples(value) for name, value",
        "{name: value for name, value",
        "survives JSON",
        PLAN,
    ),
    Fault(
        "isotropic scans are accepted",
        "plan.py",
        "if thick_mm / target < ISOTROPIC_BELOW:",
        "if thick_mm / target < 0.5:",
        "isotropic refused",
        PLAN,
    ),
    Fault(
        "the advice does not think of whole slices",
        "plan.py",
        "most = min(np.floor((factors[1] + TOLERANCE) * spans)",
        "most = min(np.ceil((factors[1] + TOLERANCE) * spans)",
        "advice accepted",
        PLAN,
    ),
    Fault(
        "a slice between two new ones is planned",
        "plan.py",
        "    _check_matrix(plan)\n",
        "",
        "a plan can be carried out",
        PLAN,
    ),
    Fault(
        "the envelope's lower end is forgotten",
        "plan.py",
        "if not low - TOLERANCE <= ratio <= high + TOLERANCE:",
        "if not ratio <= high + TOLERANCE:",
        "envelope",
        PLAN,
    ),
]


IN_THE_COPY = """

from pathlib import Path

import thinslice

assert Path(thinslice.__file__).parents[2] == Path(__file__).resolve().parents[1], thinslice.__file__


def pytest_collection_modifyitems(items):
    items[:] = [item for item in items if item.get_closest_marker("xfail") is None]
"""
"""Added to the copy's ``conftest.py``."""


def run(fault: Fault | None, copy: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """The tests, in the copy, with a fault planted there."""
    target = copy / "src" / "thinslice" / fault.file if fault else None
    sound = target.read_text() if target else ""
    if fault and target:
        assert sound.count(fault.old) == 1, f"{fault.file}: {fault.old!r} is there {sound.count(fault.old)} times"
        target.write_text(sound.replace(fault.old, fault.new))
    environment = os.environ | {
        "PYTHONPATH": str(copy / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "THINSLICE_HYPOTHESIS": "faults",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider"]
    try:
        return subprocess.run(
            command + [f"tests/{name}" for name in tests],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=MOST_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", "")
    finally:
        if target:
            target.write_text(sound)


def copied(folder: Path) -> Path:
    """Source, tests and settings in a folder, checked to be what Python imports there.

    Tests that are expected to fail are left out: one that passes for once is no fault caught.
    """
    ignore = shutil.ignore_patterns("__pycache__", ".hypothesis")
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)
    with (folder / "tests" / "conftest.py").open("a") as conftest:
        conftest.write(IN_THE_COPY)
    return folder


def main(names: list[str]) -> int:
    """Plant every fault (or those whose name contains a word given), report, and return how many survived."""
    chosen = [fault for fault in FAULTS if not names or any(name in fault.name for name in names)]
    survived = []
    with tempfile.TemporaryDirectory() as temporary:
        copy = copied(Path(temporary).resolve())
        for test in sorted({test for fault in chosen for test in fault.tests}):
            sound = run(None, copy, (test,))
            if sound.returncode != 0:
                print(sound.stdout[-2000:], sound.stderr[-2000:])
                print(f"{test} fails without any fault; nothing can be told")
                return 1
        for fault in chosen:
            started = time.monotonic()
            result = run(fault, copy, fault.tests)
            caught = result.returncode == 1
            by = next(
                (line.split("::")[1].split(" ")[0] for line in result.stdout.splitlines() if "FAILED" in line), "?"
            )
            by = by if caught else f"exit {result.returncode}"
            print(
                f"{'caught  ' if caught else 'SURVIVED'}  {time.monotonic() - started:4.0f} s  {fault.name}  ({by})",
                flush=True,
            )
            if not caught:
                survived.append(fault.name)
    print(f"{len(chosen) - len(survived)} of {len(chosen)} faults caught")
    return len(survived)


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
