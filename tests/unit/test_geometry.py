"""Blocks, tiles, windows and noise, on grids small enough to write out."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emdiffuse.restoration.device_noise import device_noise
from emdiffuse.restoration.geometry import TILE_MULTIPLE, BlockGrid, TileAxis, owned
from emdiffuse.restoration.noise import circle, logarithm, noise_field
from emdiffuse.restoration.slice_grid import SliceGrid

factors = st.one_of(
    st.integers(2, 12).map(Fraction), st.fractions(2, 12, max_denominator=8).filter(lambda f: f >= 2)
)


thicknesses = st.sampled_from([Fraction(0), Fraction(1, 2), Fraction(7, 10), Fraction(1)])


@st.composite
def tile_axes(draw):
    halo = draw(st.integers(0, 24))
    blend = 2 * draw(st.integers(4, 12))
    least = -(-(2 * halo + 3 * blend) // TILE_MULTIPLE)
    size = TILE_MULTIPLE * draw(st.integers(max(least, 2), max(least, 2) + 8))
    return TileAxis(draw(st.integers(1, 900)), size, halo, blend)


@st.composite
def block_grids(draw):
    z = SliceGrid(draw(st.integers(2, 12)), draw(factors), thickness=draw(thicknesses))
    return BlockGrid(
        z, draw(tile_axes()), draw(tile_axes()), tuple(draw(st.integers(1, 5)) for _ in range(3))
    )


def test_slices_of_an_integer_factor():
    grid = SliceGrid(3, Fraction(3))  # real slices at 0, 3 and 6
    assert grid.length == 7
    assert [list(grid.generated(gap)) for gap in range(grid.gaps)] == [[1, 2], [4, 5]]
    assert [grid.real(z) for z in range(7)] == [0, None, None, 1, None, None, 2]
    np.testing.assert_allclose(grid.positions(1), [1 / 3, 2 / 3])


def test_slices_of_a_fractional_factor():
    grid = SliceGrid(3, Fraction(5, 2))  # real slices at 0, 2.5 and 5
    assert grid.length == 6
    assert [list(grid.generated(gap)) for gap in range(grid.gaps)] == [[1, 2], [3, 4]]
    assert [grid.real(z) for z in range(6)] == [0, None, None, None, None, 2]
    np.testing.assert_allclose(grid.positions(0), [0.4, 0.8])


def test_thick_slices_lie_at_the_centre_of_what_they_integrate():
    grid = SliceGrid(3, Fraction(4), thickness=Fraction(1))  # centres at 1.5, 5.5 and 9.5
    assert grid.length == 12 and grid.thick and grid.real(0) is None
    assert [list(grid.generated(gap)) for gap in range(2)] == [list(range(6)), list(range(6, 12))]
    np.testing.assert_allclose(grid.positions(0), (np.arange(6) - 1.5) / 4)
    np.testing.assert_allclose(grid.positions(1), (np.arange(6, 12) - 5.5) / 4)
    first, weights = grid.integrated(1)
    assert first == 4 and weights.tolist() == [0.25] * 4

    half = SliceGrid(3, Fraction(6), thickness=Fraction(1, 2))  # 0 to 2, 6 to 8, 12 to 14
    assert half.length == 15 and half.thickness_of(0) == Fraction(1, 2)
    assert [list(half.generated(gap)) for gap in range(2)] == [list(range(7)), list(range(7, 15))]
    assert half.positions(0)[[0, 1, 4]] == pytest.approx([-1 / 6, 0, 0.5])

    uneven = SliceGrid(4, Fraction(9, 4), thickness=Fraction(1))
    assert uneven.length == 9 and uneven.integrated(1)[0] == 2
    np.testing.assert_allclose(uneven.integrated(1)[1], np.array([0.75, 1, 0.5]) / 2.25)


def test_a_slice_no_thicker_than_an_output_slice_is_one():
    grid, thin = SliceGrid(3, Fraction(4), thickness=Fraction(1, 4)), SliceGrid(3, Fraction(4))
    assert not grid.thick and grid.length == thin.length and grid.thickness_of(0) == 0
    assert [grid.generated(gap) for gap in range(2)] == [thin.generated(gap) for gap in range(2)]


@settings(deadline=None)
@given(st.integers(2, 30), factors, thicknesses)
def test_every_output_slice_is_real_or_generated_once(slices, factor, thickness):
    grid = SliceGrid(slices, factor, thickness=thickness)
    for gap in range(grid.gaps):
        assert all(grid.gap_of(z) == gap for z in grid.generated(gap))
        assert all(-0.5 < t < 1.5 for t in grid.positions(gap))
    if grid.thick:
        whole = np.zeros(grid.length)
        for real in range(slices):
            first, weights = grid.integrated(real)
            assert weights.sum() == pytest.approx(1) and first + len(weights) <= grid.length
            whole[first : first + len(weights)] += weights * float(grid.window)
        whole = whole[: grid.integrated(slices - 1)[0]]  # the last may be cut off, and counts for all of it
        assert whole.max() < 1 + 1e-9 and (thickness < 1 or whole[:-1].min(initial=1) > 1 - 1e-9)
    made = [z for gap in range(grid.gaps) for z in grid.generated(gap)]
    real = [z for z in range(grid.length) if grid.real(z) is not None]
    assert sorted(made + real) == list(range(grid.length))


def test_missing_slices_widen_a_gap():
    grid = SliceGrid(6, Fraction(2), (0, 2, 3))  # slice 0 has one neighbour alone: its copy of slice 1 stays
    assert list(grid.good) == [0, 1, 4, 5] and grid.gaps == 3 and grid.length == 11
    assert [list(grid.generated(gap)) for gap in range(3)] == [[1], [3, 4, 5, 6, 7], [9]]
    assert [grid.real(z) for z in range(11)] == [0, None, 1, None, None, None, None, None, 4, None, 5]
    assert [grid.width(gap) for gap in range(3)] == [2, 6, 2]
    assert grid.around(1) == [0, 1, 4, 5] and grid.around(0) == [0, 0, 1, 4]
    np.testing.assert_allclose(grid.positions(1), np.arange(1, 6) / 6)


@given(st.integers(2, 20), factors | st.just(Fraction(1)), st.sets(st.integers(0, 19), max_size=19))
def test_missing_slices_are_generated_and_all_others_are_as_before(slices, factor, missing):
    grid = SliceGrid(slices, factor, tuple(sorted(missing)))
    whole = SliceGrid(slices, factor)
    made = [z for gap in range(grid.gaps) for z in grid.generated(gap)]
    real = {z: grid.real(z) for z in range(grid.length) if grid.real(z) is not None}
    assert sorted(made + list(real)) == list(range(grid.length)) == list(range(whole.length))
    assert all(whole.real(z) == index for z, index in real.items())
    sound = [z for z in range(slices) if z not in missing]
    if sound:
        assert not any(sound[0] < index < sound[-1] for index in set(real.values()) & missing)
    for gap in range(grid.gaps):
        assert all(grid.gap_of(z) == gap for z in grid.generated(gap))
        assert all(0 < t < 1 for t in grid.positions(gap))


def test_the_blocks_of_a_hundred_terabytes_are_arithmetic():
    """100,000 x 100,000 x 10,000 voxels: no list of blocks is built, and a shard finds its blocks at once."""
    axis = TileAxis(100_000, 256, 24, 16)
    grid = BlockGrid(SliceGrid(1667, Fraction(6)), axis, axis, (4, 2, 2))
    assert grid.volume == (9997, 100_000, 100_000) and len(grid) == 417 * 261 * 261
    tracemalloc.start()
    assert grid.chunk == (24, 408, 408)
    blocks = list(grid.overlapping((5000, 50_176, 99_328), (5064, 50_688, 99_840)))
    last = grid[len(grid) - 1]
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert last.end == (9996, 100_000, 100_000)
    assert 4 * 2 * 2 <= len(blocks) <= 4 * 3 * 3


def test_tiles_written_out():
    axis = TileAxis(length=100, size=64, halo=8, blend=8)
    assert axis.starts == (0, 16, 48)  # the last tile reaches 12 voxels past the end
    assert axis.seams == (40, 64)
    assert (
        axis.support(0, 1) == (0, 44) and axis.support(1, 2) == (36, 68) and axis.support(2, 3) == (60, 100)
    )


def test_a_short_volume_has_one_tile():
    axis = TileAxis(length=20, size=128, halo=16, blend=16)
    assert axis.starts == (0,) and axis.tile == 32
    np.testing.assert_array_equal(axis.window(0), np.ones(20))


@given(tile_axes())
def test_windows_add_up_to_one_and_stay_off_the_halo(axis):
    total = np.zeros(axis.length)
    for i, start in enumerate(axis.starts):
        assert start % TILE_MULTIPLE == 0
        begin, end = axis.support(i, i + 1)
        assert begin == 0 or begin - start >= axis.halo
        assert end == axis.length or start + axis.tile - end >= axis.halo
        window = axis.window(i)
        assert window.shape == (end - begin,) and window.min() >= 0
        total[begin:end] += window
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert axis.starts[-1] + axis.tile - axis.length < TILE_MULTIPLE


@given(block_grids())
@settings(max_examples=60, deadline=None)
def test_blocks_share_the_tiles_out(grid):
    tiles = [
        (g, r, c)
        for i in range(len(grid))
        for g in grid[i].gaps
        for r in grid[i].rows
        for c in grid[i].columns
    ]
    assert len(tiles) == len(set(tiles)) == grid.z.gaps * len(grid.y.starts) * len(grid.x.starts)
    for i in range(len(grid)):
        block = grid[i]
        assert all(0 < size <= most for size, most in zip(block.shape, grid.chunk, strict=True))
        made = [z for gap in block.gaps for z in grid.z.generated(gap)]
        assert all(block.begin[0] <= z < block.end[0] for z in made)


@given(block_grids(), st.data())
@settings(max_examples=60, deadline=None)
def test_overlapping_finds_just_the_blocks_that_meet_a_box(grid, data):
    begin = tuple(data.draw(st.integers(0, n - 1)) for n in grid.volume)
    end = tuple(data.draw(st.integers(b + 1, n)) for b, n in zip(begin, grid.volume, strict=True))
    meets = [
        grid[i].index
        for i in range(len(grid))
        if all(b < e and a > s for b, e, a, s in zip(grid[i].begin, end, grid[i].end, begin, strict=True))
    ]
    assert [block.index for block in grid.overlapping(begin, end)] == meets


@given(st.integers(0, 40), st.integers(1, 9))
def test_owned_shares_everything_out_once(count, workers):
    shares = [list(owned(count, worker, workers)) for worker in range(1, workers + 1)]
    assert sorted(n for share in shares for n in share) == list(range(count))
    with pytest.raises(ValueError, match="does not exist"):
        owned(count, workers + 1, workers)


boxes = st.tuples(
    *[st.tuples(st.integers(-70, 150), st.integers(1, 80)) for _ in range(2)], st.integers(0, 5)
)


@given(boxes)
@settings(max_examples=30, deadline=None)
def test_noise_depends_on_the_global_position_alone(box):
    (y, height), (x, width), z = box
    whole = noise_field(7, 1, 2, (z - 1, y - 3, x - 5), (3, height + 10, width + 10))
    part = noise_field(7, 1, 2, (z, y, x), (1, height, width))
    np.testing.assert_array_equal(part[0], whole[1, 3 : 3 + height, 5 : 5 + width])


@given(boxes, st.integers(0, 2**80), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_noise_drawn_by_a_device_has_the_same_bits(box, seed, step):
    (y, height), (x, width), z = box
    origins, shape = [(z, y, x), (z - 7, x, y)], (2, height, width)
    drawn = device_noise(seed, 2**31 + 3, step, origins, shape, "cpu").numpy()
    expected = np.stack([noise_field(seed, 2**31 + 3, step, origin, shape) for origin in origins])
    np.testing.assert_array_equal(drawn.view(np.uint32), expected.view(np.uint32))


def test_normal_values_are_right_to_the_last_bits():
    bits = np.random.default_rng(0).random(10_000, np.float32) + np.float32(2**-32)
    values = logarithm(*(part.astype(np.float32) for part in np.frexp(bits)), np.where)
    np.testing.assert_allclose(values, np.log(bits.astype(np.float64)), rtol=3e-7, atol=1e-12)
    angles = np.linspace(-np.pi / 4, np.pi / 4, 10_001, dtype=np.float32)
    exact = np.cos(angles.astype(np.float64)), np.sin(angles.astype(np.float64))
    np.testing.assert_allclose(circle(angles), exact, atol=1.2e-7)


def test_noise_is_standard_normal_and_differs():
    fields = [noise_field(seed, sample, step, (0, 0, 0), (4, 256, 256)).ravel() for seed, sample, step in
              [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]]  # fmt: skip
    for field in fields:
        assert field.dtype == np.float32
        assert abs(field.mean()) < 0.01 and abs(field.std() - 1) < 0.01
        assert abs((field**4).mean() - 3) < 0.1
    correlation = np.corrcoef(fields)
    assert np.abs(correlation - np.eye(4)).max() < 0.01
    neighbours = fields[0].reshape(4, 256, 256)
    assert abs((neighbours[:, :, 1:] * neighbours[:, :, :-1]).mean()) < 0.01
    assert abs((neighbours[1:] * neighbours[:-1]).mean()) < 0.01


def test_noise_values_never_change():
    """These values define a seed: a restored volume is reproducible only if they never change."""
    np.testing.assert_allclose(
        noise_field(1, 0, 0, (0, 0, 0), (1, 1, 3))[0, 0], [0.4104653, -0.9528295, -0.0843054], rtol=1e-5
    )
