# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
# ruff: noqa: RUF005 (Triton knows no starred tuples)
"""The Triton code of ``triton_steps.register``: one program per camera.

The names are those of ``steps.register``, ``motion`` and ``registration``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dpt_ros.engine.smoothing import registration
from dpt_ros.engine.smoothing.triton_steps_jit import (
    NUMBER,
    REFINE,
    STEPS,
    advance,
    bilinear,
    bounded,
    compare,
    constants,
    corners_at,
    flag,
    load,
    times,
)

FIT = constants(registration)


@triton.jit
def _where(condition, a, b, COUNT: tl.constexpr):
    values = ()
    for k in tl.static_range(COUNT):
        values = values + (tl.where(condition, a[k], b[k]),)
    return values


@triton.jit
def _solve(rows, N: tl.constexpr):
    # See motion.solve; rows of (matrix | side).
    for k in tl.static_range(N):
        others = ()
        for i in tl.static_range(N):
            row = ()
            for j in tl.static_range(N + 1):
                own = rows[k][j] / rows[k][k]
                row = row + (own if i == k else rows[i][j] - rows[i][k] * own,)
            others = others + (row,)
        rows = others
    solution = ()
    for i in tl.static_range(N):
        solution = solution + (rows[i][N],)
    return solution


@triton.jit
def _samples(first, count, step, columns, width, BLOCK: tl.constexpr):
    # Which samples there are of a block, their rows, columns and pixels.
    number = first + tl.arange(0, BLOCK)
    row = step // 2 + number // columns * step
    column = step // 2 + number % columns * step
    return number < count, row, column, row * width + column


@triton.jit
def _normal_equations(
    seen, rotation, shift, from_grid, affine, usual,
    height, width, step, columns, count, BLOCK: tl.constexpr,
):  # fmt: skip
    # Moments of six slopes and the error: rows of (matrix | side), see motion.refine. The sums are
    # those of the upper triangle.
    sums = (tl.zeros((BLOCK,), tl.float32),) * 27
    size = height * width
    for first in range(0, count, BLOCK):
        there, row, column, pixel = _samples(first, count, step, columns, width, BLOCK)
        inverse_depth = tl.load(seen + pixel, mask=there, other=1.0)
        flow_x = tl.load(seen + 3 * size + pixel, mask=there, other=0.0)
        flow_y = tl.load(seen + 4 * size + pixel, mask=there, other=0.0)
        inverse_depth = bounded(inverse_depth, affine, usual)
        ray = times(from_grid, (column.to(tl.float32), row.to(tl.float32), 1.0), 1)
        point = times(rotation, ray, 1)
        depth = tl.maximum(point[2] + shift[2] * inverse_depth, REFINE.value.min_depth_ratio)
        x = (point[0] + shift[0] * inverse_depth) / depth
        y = (point[1] + shift[1] * inverse_depth) / depth
        q = inverse_depth / depth
        error_x = from_grid[0] * flow_x + from_grid[1] * flow_y + from_grid[2] - x
        error_y = from_grid[3] * flow_x + from_grid[4] * flow_y + from_grid[5] - y
        length = tl.sqrt(error_x * error_x + error_y * error_y)
        robust = REFINE.value.independent / count / REFINE.value.flow_noise
        robust = robust / tl.maximum(length, REFINE.value.flow_noise)
        weight_x = robust * tl.load(seen + 6 * size + pixel, mask=there, other=0.0)
        weight_y = robust * tl.load(seen + 7 * size + pixel, mask=there, other=0.0)
        zero = tl.zeros((BLOCK,), tl.float32)
        along_x = (-x * y, 1.0 + x * x, -y, q, zero, -x * q, error_x)
        along_y = (-1.0 - y * y, x * y, x, zero, q, -y * q, error_y)
        more = ()
        for i in tl.static_range(6):
            for j in tl.static_range(i, 7):
                product = weight_x * along_x[i] * along_x[j] + weight_y * along_y[i] * along_y[j]
                more = more + (sums[i * (13 - i) // 2 + j] + product,)
        sums = more
    rows = ()
    for i in tl.static_range(6):
        row = ()
        for j in tl.static_range(7):
            own = rows[j][i] if j < i else tl.sum(sums[i * (13 - i) // 2 + j], 0)
            row = row + (own,)
        rows = rows + (row,)
    return rows


@triton.jit
def _refine(
    seen, rotation, shift, from_grid, sigma, affine, usual,
    height, width, step, columns, count, BLOCK: tl.constexpr,
):  # fmt: skip
    # See motion.refine.
    total = (sigma[0] * 0.0,) * 6
    for _ in range(REFINE.value.iterations):
        moments = _normal_equations(
            seen, rotation, shift, from_grid, affine, usual,
            height, width, step, columns, count, BLOCK,
        )  # fmt: skip
        rows = ()
        for i in tl.static_range(6):
            row = ()
            for j in tl.static_range(6):
                row = row + (moments[i][j] * sigma[i] * sigma[j] + (1.0 if i == j else 0.0),)
            rows = rows + (row + (moments[i][6] * sigma[i] - total[i],),)
        solved = _solve(rows, 6)
        more = ()
        twist = ()
        for k in tl.static_range(6):
            more = more + (total[k] + solved[k],)
            twist = twist + (solved[k] * sigma[k],)
        total = more
        a, b, c = twist[0], twist[1], twist[2]
        zero = a * 0.0
        cross = (zero, -c, b, c, zero, -a, -b, a, zero)
        square = times(cross, cross, 3)
        turn = ()
        for k in tl.static_range(9):
            turn = turn + ((1.0 if k % 4 == 0 else 0.0) + cross[k] + 0.5 * square[k],)
        rotation = times(turn, rotation, 3)
        moved = times(turn, shift, 1)
        shift = (moved[0] + twist[3], moved[1] + twist[4], moved[2] + twist[5])
    return rotation, shift


@triton.jit
def _residual(samples, count, fit, first, BLOCK: tl.constexpr):
    # Samples of register_kernel, and their relative residuals.
    number = first + tl.arange(0, BLOCK)
    there = number < count
    inverse_depth = tl.load(samples + number, mask=there, other=1.0)
    target = tl.load(samples + count + number, mask=there, other=1.0)
    usable = tl.load(samples + 2 * count + number, mask=there, other=0.0)
    residual = tl.abs((fit[0] * inverse_depth + fit[1]) / target - 1.0)
    return inverse_depth, target, usable, residual


@triton.jit
def _fit_affine(samples, count, start, usual, BLOCK: tl.constexpr):
    # See registration.fit_affine.
    slope, shift = start[0], start[1]
    for _ in range(FIT.value.iterations):
        sums = (tl.zeros((BLOCK,), tl.float32),) * 7
        for first in range(0, count, BLOCK):
            x, y, usable, residual = _residual(samples, count, (slope, shift), first, BLOCK)
            weight = usable * (FIT.value.huber / tl.maximum(residual, FIT.value.huber))
            weight = tl.where(residual < FIT.value.outlier, weight, 0.0)
            relative = weight / (y * y)
            of_x, of_y = relative * x, relative * y
            products = (weight, relative, of_x, of_y, of_x * x, of_y * y, of_x * y)
            more = ()
            for k in tl.static_range(7):
                more = more + (sums[k] + products[k],)
            sums = more
        total = tl.maximum(tl.sum(sums[1], 0), 1e-9)
        x, y = tl.sum(sums[2], 0) / total, tl.sum(sums[3], 0) / total
        scaling = usual[0] * y / tl.maximum(usual[0] * x + usual[1], 1e-6)
        ridge = FIT.value.ridge * x * (FIT.value.ridge * x)
        xx = tl.sum(sums[4], 0) / total - x * x + ridge
        yy = tl.sum(sums[5], 0) / total - y * y + ridge * scaling * scaling
        xy = tl.sum(sums[6], 0) / total - x * y + ridge * scaling
        half = (yy - FIT.value.variance_ratio * slope * slope * xx) / 2
        root = tl.sqrt(half * half + FIT.value.variance_ratio * (slope * xy) * (slope * xy))
        found = (half + root) / xy
        good = (tl.sum(sums[0], 0) >= FIT.value.min_weight) & (xy > 0)
        good = good & (found > 0.2) & (found < 5.0)
        slope, shift = tl.where(good, found, slope), tl.where(good, y - found * x, shift)
    inliers = tl.zeros((BLOCK,), tl.float32)
    all_usable = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, count, BLOCK):
        sample = _residual(samples, count, (slope, shift), first, BLOCK)
        inliers += tl.where(sample[3] < FIT.value.inlier, sample[2], 0.0)
        all_usable += sample[2]
    return slope, shift, tl.sum(inliers, 0) / tl.maximum(tl.sum(all_usable, 0), 1.0)


@triton.jit
def register_kernel(
    seen_ptr, maps_ptr, affine_ptr, age_ptr, usual_ptr, correlation_ptr, numbers_ptr,
    samples_ptr, motion_ptr, affine_row, age_row, usual_row, correlation_row, numbers_row,
    height, width, step, columns, count, LENGTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """See ``steps.register``: one camera."""
    camera, size = tl.program_id(0), height * width
    seen, maps_ptr = seen_ptr + camera * 8 * size, maps_ptr + camera * 4 * size
    samples = samples_ptr + camera * 3 * count
    affine, usual = (
        load(affine_ptr + camera * affine_row, 2),
        load(usual_ptr + camera * usual_row, 2),
    )
    exposure = tl.load(correlation_ptr + camera * correlation_row)
    correlation = tl.load(correlation_ptr + camera * correlation_row + 1)
    age = tl.load(age_ptr + camera * age_row)
    numbers = numbers_ptr + camera * numbers_row
    has_flow = flag(numbers + NUMBER.value.has_flow)
    has_odometry = flag(numbers + NUMBER.value.has_odometry)
    has_ego = flag(numbers + NUMBER.value.has_ego) & (has_flow | has_odometry)
    fresh = flag(numbers + NUMBER.value.fresh)

    known = has_ego & has_odometry
    identity = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    rotation = _where(known, load(numbers + NUMBER.value.rotation, 9), identity, 9)
    shift = _where(known, load(numbers + NUMBER.value.shift, 3), (0.0, 0.0, 0.0), 3)
    sigma = (tl.load(numbers + NUMBER.value.free_sigma),) * 6
    sigma = _where(known, load(numbers + NUMBER.value.prior_sigma, 6), sigma, 6)
    to_grid = load(numbers + NUMBER.value.to_grid, 9)
    from_grid = load(numbers + NUMBER.value.from_grid, 9)
    by_flow = _refine(
        seen, rotation, shift, from_grid, sigma, affine, usual,
        height, width, step, columns, count, BLOCK,
    )  # fmt: skip
    both = has_ego & has_flow
    rotation = _where(both, by_flow[0], rotation, 9)
    shift = _where(both, by_flow[1], shift, 3)

    turn = times(times(to_grid, rotation, 3), from_grid, 3)
    turn = _where(has_ego, turn, identity, 9)
    along = _where(has_ego, times(to_grid, shift, 1), (0.0, 0.0, 0.0), 3)
    axis = (rotation[2], rotation[5], rotation[8])
    form = (
        axis[0] * from_grid[0] + axis[1] * from_grid[3] + axis[2] * from_grid[6],
        axis[0] * from_grid[1] + axis[1] * from_grid[4] + axis[2] * from_grid[7],
        axis[0] * from_grid[2] + axis[1] * from_grid[5] + axis[2] * from_grid[8],
        -(axis[0] * shift[0] + axis[1] * shift[1] + axis[2] * shift[2]),
    )

    differing = tl.zeros((BLOCK,), tl.float32)
    refuted = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, count, BLOCK):
        there, row, column, pixel = _samples(first, count, step, columns, width, BLOCK)
        _, _, differs, worse = compare(
            seen + pixel, maps_ptr, turn, along, affine, usual, exposure,
            row, column, height, width, there,
        )  # fmt: skip
        differing += (differs & there).to(tl.float32)
        refuted += (differs & there & (worse > 2 * STEPS.value.luma_noise)).to(tl.float32)
    wrong = tl.sum(differing, 0) / count > STEPS.value.max_differing
    wrong = wrong & (tl.sum(refuted, 0) / count > STEPS.value.max_worse)
    reliable = has_ego & ~(has_flow & wrong)
    form = _where(reliable, form, (0.0, 0.0, 1.0, 0.0), 4)

    for first in range(0, count, BLOCK):
        there, row, column, pixel = _samples(first, count, step, columns, width, BLOCK)
        flow, position, differs, worse = compare(
            seen + pixel, maps_ptr, turn, along, affine, usual, exposure,
            row, column, height, width, there,
        )  # fmt: skip
        moving = differs & (worse > -STEPS.value.luma_noise) & both
        follows = moving | (has_flow & ~reliable)
        x, y = tl.where(follows, flow[0], position[0]), tl.where(follows, flow[1], position[1])
        corners, fy, fx = corners_at(x, y, height, width, 1)
        target = advance(form, x, y, bilinear(maps_ptr, corners, fy, fx, there))
        variance = bilinear(maps_ptr + size, corners, fy, fx, there)
        usable = (variance < 0.1) & (tl.load(seen + size + pixel, mask=there, other=0.0) > 0)
        usable = usable & (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
        usable = usable & ~(moving & reliable)
        inverse_depth = tl.load(seen + pixel, mask=there, other=1.0)
        number = first + tl.arange(0, BLOCK)
        tl.store(samples + number, inverse_depth, mask=there)
        tl.store(samples + count + number, tl.where(usable, target, 1.0), mask=there)
        tl.store(samples + 2 * count + number, usable.to(tl.float32), mask=there)
    tl.debug_barrier()
    slope, offset, inliers = _fit_affine(samples, count, affine, usual, BLOCK)

    valid, first = 0.0, 0
    while (valid == 0.0) & (first < size):  # the first block has some, as a rule
        pixel = first + tl.arange(0, BLOCK)
        valid = tl.sum(tl.load(seen + size + pixel, mask=pixel < size, other=0.0), 0)
        first += BLOCK
    cut = (inliers < STEPS.value.cut_inliers) & (correlation < STEPS.value.cut_correlation)
    reset_code = tl.where(valid == 0.0, 2.0, tl.where(cut, 1.0, 0.0))
    reset_code = tl.where(fresh, 0.0, reset_code)
    begin = fresh | (reset_code > 0)
    leak = tl.load(numbers + NUMBER.value.flow_leak)
    leak = tl.where(reliable, tl.load(numbers + NUMBER.value.leak), leak)
    leak = tl.maximum(leak, 1.0 / (age + 1.0))
    mixed = (slope + leak * (usual[0] - slope), offset + leak * (usual[1] - offset))
    found = turn + along + form + (has_ego, reliable, slope, offset)
    found = found + _where(begin, usual, mixed, 2) + usual
    found = found + (reset_code, inliers, tl.where(begin, 1.0, age + 1.0))
    for k in tl.static_range(LENGTH):
        tl.store(motion_ptr + camera * LENGTH + k, found[k].to(tl.float32))
