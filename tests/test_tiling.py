"""Laws of the tiles, and of a model file: tiled equals whole, file equals network."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from faults import catches
from planning import plan_for
from strategies import seeds
from thinslice.compute.upsample import upsample
from thinslice.errors import ModelRefused
from thinslice.models import slab_network
from thinslice.models.conditioning import geometry_of, position_code
from thinslice.models.engine import EngineSettings
from thinslice.models.files import load_model
from thinslice.models.registry import find_model
from thinslice.models.tiling import padded, tiles
from thinslice.plan import PlanRefused
from thinslice.volume import Volume

lengths = st.integers(1, 90)


@catches(
    "models/tiling.py", "low, high = max(start - margin, 0), min(stop + margin, length)", "low, high = start, stop"
)
@given(height=lengths, width=lengths, limit=st.integers(4, 60), margin=st.integers(0, 20))
def test_tiles_cover_every_pixel_once_with_their_margins(height, width, limit, margin):
    assume(limit > 2 * margin)
    written = np.zeros((height, width), int)
    image = np.arange(height * width).reshape(height, width)
    answer = np.empty_like(image)
    for tile in tiles(height, width, limit, margin):
        written[tile.write] += 1
        piece = image[tile.read]
        assert max(piece.shape) <= limit
        answer[tile.write] = piece[tile.keep]
        for read, write, length in zip(tile.read, tile.write, (height, width), strict=True):
            assert read.start <= max(write.start - margin, 0)
            assert read.stop >= min(write.stop + margin, length)
            assert 0 <= read.start < read.stop <= length
    assert (written == 1).all()
    np.testing.assert_array_equal(answer, image)


@given(length=st.integers(21, 90), margin=st.integers(10, 20))
def test_a_tile_that_is_all_margin_is_refused(length, margin):
    with pytest.raises(ValueError, match="more than two margins"):
        list(tiles(length, length, 20, margin))


@given(height=st.integers(1, 20), width=st.integers(1, 20), multiple=st.integers(1, 8), seed=seeds)
def test_padding_repeats_the_edge_up_to_the_next_multiple(height, width, multiple, seed):
    stack = np.random.default_rng(seed).random((3, height, width))
    filled = padded(stack, multiple)
    assert all(
        0 <= new - old < multiple and new % multiple == 0
        for new, old in zip(filled.shape[1:], stack.shape[1:], strict=True)
    )
    rows, columns = (np.minimum(np.arange(n), m - 1) for n, m in zip(filled.shape[1:], stack.shape[1:], strict=True))
    np.testing.assert_array_equal(filled, stack[:, rows][:, :, columns])


CARD = {
    "name": "tiny",
    "envelope": {"factor": [1.5, 8.0], "thickness_over_spacing": [0.6, 1.3], "profiles": ["gaussian", "box"]},
}


@pytest.fixture(scope="module", params=[0, 2], ids=["shallow", "deep"])
def tiny(request, tmp_path_factory):
    """A random network, loud enough that a missing margin shows, and its model file."""
    torch = pytest.importorskip("torch", reason="torch writes the model file; it comes with thinslice[train]")
    pytest.importorskip("onnx", reason="onnx writes the model file; it comes with thinslice[train]")
    from thinslice.networks.slab import SlabNet
    from thinslice.training.export import export

    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = SlabNet(context=1, width=8, before=1, deep_width=8, deep=request.param, after=1)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith("second.weight"):
                weight.mul_(6)
            if name == "to_kernel.weight":
                weight.mul_(4)
    path = tmp_path_factory.mktemp("models") / "tiny.onnx"
    digest = export(network, CARD, path)
    return network, path, digest


GEOMETRY = geometry_of(4.0, 1.0, "gaussian")


@catches("models/slab_network.py", 'count_on(card, "reach"))', "0)")
@pytest.mark.parametrize("size", [(96, 130), (95, 131), (33, 200)])
def test_tiled_equals_whole(tiny, monkeypatch, size):
    network, path, _ = tiny
    residual = load_model(path, settings=EngineSettings(threads=1)).residual
    slices = np.random.default_rng(1).random((3, *size), dtype=np.float32)
    code = position_code(np.array([-0.375, 0.125, 0.3]))
    whole = residual(slices, GEOMETRY, code)
    assert whole.shape == (3, *size)
    monkeypatch.setattr(slab_network, "TILE_LIMIT", 2 * network.reach + 16)
    tiled = residual(slices, GEOMETRY, code)
    # Nothing but the order of float32 sums may differ; 1e-4 of the intensity range is what `tiles` is held to.
    np.testing.assert_allclose(tiled, whole, atol=1e-4)
    assert np.abs(whole).max() > 0.05  # loud enough to tell


def test_the_stated_reach_is_enough_and_not_wasteful(tiny):
    network, path, _ = tiny
    residual = load_model(path, settings=EngineSettings(threads=1)).residual
    slices = np.random.default_rng(1).random((3, 128, 128), dtype=np.float32)
    code = position_code(np.array([0.2]))
    other = slices.copy()
    other[:, 64, 64] += 1
    changed = np.argwhere(np.abs(residual(other, GEOMETRY, code) - residual(slices, GEOMETRY, code))[0] > 0)
    reach = int(np.abs(changed - 64).max())
    assert network.reach - 8 <= reach <= network.reach


@pytest.mark.parametrize(("size", "count"), [((32, 32), 1), ((40, 24), 5)])
def test_the_model_file_computes_what_the_network_computes(tiny, size, count):
    import torch

    network, path, _ = tiny
    rng = np.random.default_rng(2)
    slices = rng.random((3, *size), dtype=np.float32)
    code = position_code(rng.uniform(-0.5, 0.5, count))
    with torch.no_grad():
        wanted = network(torch.from_numpy(slices)[None], torch.from_numpy(GEOMETRY), torch.from_numpy(code))[0].numpy()
    # The bound that `export` itself states.
    np.testing.assert_allclose(load_model(path).residual(slices, GEOMETRY, code), wanted, atol=1e-4)


def test_the_model_file_carries_its_card_and_the_plan_its_hash(tiny):
    network, path, digest = tiny
    model = find_model(str(path), EngineSettings(threads=1))
    assert (model.name, model.base, model.context, model.sha256) == ("tiny", "cubic", network.context, digest)
    assert model.envelope.factor == (1.5, 8.0)
    assert path.with_suffix(".json").exists()
    volume = Volume(np.random.default_rng(0).random((37, 30, 5), dtype=np.float32), np.diag([1.0, 1.0, 4.0, 1.0]))
    plan = plan_for(volume, model=model.name, model_sha256=model.sha256, envelope=model.envelope)
    assert plan.model_sha256 == digest
    answer = upsample(volume, plan, model).volume.voxels
    assert answer.shape == (37, 30, 20)
    assert np.isfinite(answer).all()
    with pytest.raises(PlanRefused, match="factor of 9"):
        plan_for(volume, factor=9, model=model.name, envelope=model.envelope)


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_what_is_no_model_is_refused_with_a_way_out(tmp_path, content):
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelRefused, match=r"got .*need .*next: "):
        find_model(str(path))


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ModelRefused, match=r"'quintic'.*nearest, linear, cubic, lanczos"):
        find_model("quintic")
