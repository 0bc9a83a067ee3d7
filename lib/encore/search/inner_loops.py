"""Compiled loops of `inner`. Import only through `inner.load_loops()`: numba is slow to import.

Arrays are contiguous; large ones are flat. Items are indexed in the order of the index, by descending norm. Vectors are
padded with zeros to a multiple of eight dimensions, `width`. The names of bounds are those of the docstring of `inner`.
"""

# numba infers the types of these functions
# mypy: ignore-errors
from __future__ import annotations

import numpy as np
from llvmlite import binding, ir
from numba import config, njit, types
from numba.extending import intrinsic

from encore.arrays.prefetch import prefetch
from encore.search.lanes import lowest
from encore.search.loops import sort_key, unpack_key

TILE = 64
"""Items that share a scale and bounds: four registers of sixteen 32-bit sums with AVX-512."""
RUN = 16
"""Tiles between two checks of which queries are finished."""
ITEM_CODE, QUERY_CODE = 127, 64
"""Largest absolute codes. AVX2 adds two products of an item's code plus 128 and a query's code in 16 bits."""
_LANES = 16
_GROUPS = TILE // _LANES
_OFFSET = 128
_LINE = 16
_AHEAD = 6
_ROUNDING = 2.0**-40
_MOST = 2.0**127
_FAR = 1 << 28

# Division by zero follows IEEE arithmetic; nothing may be reordered.
_EXACT = {"cache": True, "nogil": True, "error_model": "numpy"}
_INLINE = {**_EXACT, "forceinline": True}


# --- primitives ---------------------------------------------------------------------------------------------

INSTRUCTIONS = {
    # name: CPU features; lanes of a 32-bit vector; item groups and queries whose sums are in registers at once
    "avx512vnni": ({"avx512f", "avx512bw", "avx512vnni"}, 16, 4, 6),
    "avxvnni": ({"avx2", "avxvnni"}, 8, 1, 4),
    "avx2": ({"avx2"}, 8, 1, 4),
    "plain": (set(), 16, 1, 1),
}
"""Ways of multiplying 8-bit integers, best first. All give the same sums."""


def supported():
    """The names in INSTRUCTIONS that numba may use on this CPU, best first."""
    if config.CPU_FEATURES is not None:
        available = {name[1:] for name in config.CPU_FEATURES.split(",") if name.startswith("+")}
    else:
        available = {name for name, present in binding.get_host_cpu_features().items() if present}
    return [name for name, (features, *_) in INSTRUCTIONS.items() if features <= available]


def tile_sums_with(name):
    """The primitive `tile_sums`, using the given INSTRUCTIONS. It handles INSTRUCTIONS[name][3] queries."""
    _, lanes, groups, queries = INSTRUCTIONS[name]

    @intrinsic
    def tile_sums(typing_context, codes, at, rows, row_at, width, limits, limit_at, sums, masks):
        """tile_sums(codes, at, rows, row_at, width, limits, limit_at, sums, masks)

        For each of the queries q, whose codes are rows[row_at + q width:], and each item j of the tile at codes[at:]:
        sums[64 q + j] is the sum over c of item code times query code, and bit j of masks[q] is set if that sum is at
        least limits[limit_at + q]. Bounds of arrays are not checked.
        """

        def generate(context, builder, signature, args):
            codes, rows, limits, sums, masks = (
                context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2, 5, 7, 8)
            )
            codes, rows = builder.gep(codes, [args[1]]), builder.gep(rows, [args[3]])
            limits, width = builder.gep(limits, [args[6]]), args[4]
            found = [_I64(0)] * queries
            for first in range(0, _GROUPS, groups):
                totals = _sums(builder, name, codes, rows, width, first, groups, queries)
                for (q, part), total in totals.items():
                    low = _splat(builder, builder.load(builder.gep(limits, [_I64(q)])), lanes)
                    at = TILE * q + first * _LANES + part * lanes
                    where = builder.bitcast(builder.gep(sums, [_I64(at)]), total.type.as_pointer())
                    builder.store(total, where, align=4)
                    mask = builder.bitcast(builder.icmp_signed(">=", total, low), ir.IntType(lanes))
                    shifted = builder.shl(builder.zext(mask, _I64), _I64(at % TILE))
                    found[q] = builder.or_(found[q], shifted)
            for q, mask in enumerate(found):
                builder.store(mask, builder.gep(masks, [_I64(q)]))
            return context.get_dummy_value()

        i64 = types.int64
        return types.none(codes, i64, rows, i64, i64, limits, i64, sums, masks), generate

    return tile_sums


@intrinsic
def dot(typing_context, vectors, at, rows, row_at, width):
    """dot(vectors, at, rows, row_at, width) -> float64: the inner product of vectors[at : at + width], float32, and
    rows[row_at : row_at + width], float64 values that float32 can hold.

    Products are exact in float64. Element c goes to partial sum c % 8, in ascending order of c; then partial sum i + 4
    is added to i, i + 2 to i, and i + 1 to i.
    """

    def generate(context, builder, signature, args):
        vectors, rows = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2))
        vectors, rows = builder.gep(vectors, [args[1]]), builder.gep(rows, [args[3]])
        narrow, wide = ir.VectorType(ir.FloatType(), 8), ir.VectorType(ir.DoubleType(), 8)
        start = builder.block
        loop, end = builder.append_basic_block("dimensions"), builder.append_basic_block("total")
        builder.branch(loop)
        builder.position_at_end(loop)
        c, total = builder.phi(_I64), builder.phi(wide)
        c.add_incoming(_I64(0), start)
        total.add_incoming(ir.Constant(wide, [0.0] * 8), start)
        item = builder.load(builder.bitcast(builder.gep(vectors, [c]), narrow.as_pointer()), align=4)
        row = builder.load(builder.bitcast(builder.gep(rows, [c]), wide.as_pointer()), align=8)
        # fused or not, the sum is the same because the product is exact
        product = builder.fmul(builder.fpext(item, wide), row, flags=("contract",))
        following = builder.fadd(product, total, flags=("contract",))
        after = builder.add(c, _I64(8))
        c.add_incoming(after, loop)
        total.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", after, args[4]), loop, end)
        builder.position_at_end(end)
        for size in (4, 2, 1):
            total = following if size == 4 else total
            low, high = (_lanes(builder, total, range(at, at + size)) for at in (0, size))
            total = builder.fadd(low, high)
        return builder.extract_element(total, ir.IntType(32)(0))

    i64 = types.int64
    return types.float64(vectors, i64, rows, i64, i64), generate


_I64 = ir.IntType(64)


def _sums(builder, name, codes, rows, width, first, groups, queries):
    """Emit the loop over all dimensions; returns a vector of sums by query and part of the item groups."""
    lanes = INSTRUCTIONS[name][1]
    parts = groups * _LANES // lanes
    vector, packed = ir.VectorType(ir.IntType(32), lanes), ir.VectorType(ir.IntType(8), 4 * lanes)
    start = builder.block
    loop, end = builder.append_basic_block("dimensions"), builder.append_basic_block("sums")
    builder.branch(loop)
    builder.position_at_end(loop)
    c = builder.phi(_I64)
    c.add_incoming(_I64(0), start)
    before = {(q, part): builder.phi(vector) for q in range(queries) for part in range(parts)}
    items = []
    for part in range(parts):
        group, inside = divmod(part * lanes, _LANES)
        at = builder.mul(width, _I64((first + group) * _LANES))
        at = builder.add(at, builder.add(builder.mul(c, _I64(_LANES)), _I64(4 * inside)))
        items.append(builder.load(builder.bitcast(builder.gep(codes, [at]), packed.as_pointer()), align=4))
    after = {}
    for q in range(queries):
        at = builder.add(builder.mul(width, _I64(q)), c)
        word = builder.load(builder.bitcast(builder.gep(rows, [at]), ir.IntType(32).as_pointer()), align=4)
        query = builder.bitcast(_splat(builder, word, lanes), packed)
        for part in range(parts):
            after[q, part] = _add_products(builder, name, before[q, part], items[part], query)
    for key, total in before.items():
        total.add_incoming(ir.Constant(vector, [0] * lanes), start)
        total.add_incoming(after[key], loop)
    following = builder.add(c, _I64(4))
    c.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, width), loop, end)
    builder.position_at_end(end)
    return after


def _add_products(builder, name, total, items, query):
    """total + the four products of unsigned 8-bit codes of items and signed ones of queries, in each 32-bit lane."""
    vector, packed = total.type, items.type
    if name in ("avx512vnni", "avxvnni"):
        # LLVM upgrades this older form, with operands as 32-bit lanes, in releases that changed it
        bits = 32 * vector.count
        kind = ir.FunctionType(vector, [vector, vector, vector])
        function = _declared(builder, f"llvm.x86.avx512.vpdpbusd.{bits}", kind)
        return builder.call(function, [total, builder.bitcast(items, vector), builder.bitcast(query, vector)])
    if name == "avx2":
        pairs = ir.VectorType(ir.IntType(16), 2 * vector.count)
        products = _declared(builder, "llvm.x86.avx2.pmadd.ub.sw", ir.FunctionType(pairs, [packed, packed]))
        add_pairs = _declared(builder, "llvm.x86.avx2.pmadd.wd", ir.FunctionType(vector, [pairs, pairs]))
        ones = ir.Constant(pairs, [1] * pairs.count)
        return builder.add(total, builder.call(add_pairs, [builder.call(products, [items, query]), ones]))
    wide = ir.VectorType(ir.IntType(32), packed.count)
    products = builder.mul(builder.zext(items, wide), builder.sext(query, wide))
    for part in range(4):
        total = builder.add(total, _lanes(builder, products, range(part, packed.count, 4)))
    return total


def _declared(builder, name, kind):
    return builder.module.globals.get(name) or ir.Function(builder.module, kind, name)


def _splat(builder, value, lanes):
    undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    single = builder.insert_element(undefined, value, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    return builder.shuffle_vector(single, undefined, zeros)


def _lanes(builder, vector, chosen):
    chosen = list(chosen)
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(ir.IntType(32), len(chosen)), chosen))


INSTRUCTION = supported()[0]
QUERIES = INSTRUCTIONS[INSTRUCTION][3]
"""Queries that are multiplied with a tile at once."""
tile_sums = tile_sums_with(INSTRUCTION)


# --- build --------------------------------------------------------------------------------------------------


@njit(**_EXACT)
def norms_of(vectors, norms):
    """norms[i] = |vectors[i]|, in float64."""
    for i in range(vectors.shape[0]):
        total = 0.0
        for c in range(vectors.shape[1]):
            value = np.float64(vectors[i, c])
            total += value * value
        norms[i] = np.sqrt(total)


@njit(**_INLINE)
def rounded(value):
    """The nearest integer to a number whose absolute value is below 2**31."""
    return np.int32(np.floor(value + 0.5))


@njit(**_EXACT)
def encode(vectors, norms, order, ordered, codes, bounds):
    """Write the items in their new order: vectors to the zeroed `ordered` (V, width), codes, and bounds s, n and r.

    Codes are stored plus 128: for each group of sixteen items, four dimensions of the first, of the second and so on,
    then the next four dimensions. The last tile is filled up with zeros.
    """
    n, d = vectors.shape
    width = ordered.shape[1]
    residual = np.empty(width)
    for tile in range(bounds.shape[0]):
        first, last = tile * TILE, min(n, tile * TILE + TILE)
        largest = np.float32(0)
        for i in range(first, last):
            for c in range(d):
                value = vectors[order[i], c]
                ordered[i, c] = value
                largest = max(largest, abs(value))
        scale = np.float64(largest) / ITEM_CODE if largest > 0 else 1.0
        length, rest = 0.0, 0.0
        for i in range(first, first + TILE):
            at = (tile * _GROUPS + (i - first) // _LANES) * _LANES * width + i % _LANES * 4
            total = 0.0
            for c in range(width):
                value = np.float64(ordered[i, c]) if i < last else 0.0
                code = rounded(value / scale)
                residual[c] = value - scale * code
                codes[at + c // 4 * 4 * _LANES + c % 4] = code + _OFFSET
            for c in range(width):
                total += residual[c] * residual[c]
            rest = max(rest, np.sqrt(total))
            if i < last:
                length = max(length, norms[order[i]])
        bounds[tile, 0] = scale
        bounds[tile, 1] = length * (1 + _ROUNDING)
        bounds[tile, 2] = rest * (1 + _ROUNDING) + length * _ROUNDING


# --- search -------------------------------------------------------------------------------------------------


@njit(**_EXACT)
def prepare(queries, rows, codes, factors, shifts):
    """Write queries (q, d) in the form that the search takes.

    rows (q, width): float64; codes (q, width); factors (q, 4): t, |q|, e and m; shifts (q,): 128 times the sum of a
    query's codes, by which sums of products with stored codes exceed I.
    """
    d, width = queries.shape[1], rows.shape[1]
    for q in range(queries.shape[0]):
        largest, square = 0.0, 0.0
        for c in range(width):
            value = np.float64(queries[q, c]) if c < d else 0.0
            rows[q, c] = value
            largest = max(largest, abs(value))
            square += value * value
        scale = largest / QUERY_CODE if largest > 0 else 1.0
        rest, own, total = 0.0, 0.0, 0
        for c in range(width):
            code = rounded(rows[q, c] / scale)
            codes[q, c] = code
            total += code
            rest += (rows[q, c] - scale * code) ** 2
            own += (scale * code) ** 2
        length = np.sqrt(square)
        factors[q, 0] = scale
        factors[q, 1] = length * (1 + _ROUNDING)
        factors[q, 2] = np.sqrt(rest) * (1 + _ROUNDING) + length * _ROUNDING
        factors[q, 3] = np.sqrt(own) * (1 + _ROUNDING)
        shifts[q] = _OFFSET * total


@njit(**_INLINE)
def below(score):
    """A limit that an item must reach to be among the k best if k items have at least this score, in float64.

    Smaller scores are smaller in float32 too, so that ids do not matter.
    """
    if score < -_MOST:
        return -np.inf
    score = min(score, _MOST)
    return score - abs(score) * 2.0**-22 - 2.0**-148


@njit(**_EXACT)
def kth_smallest(values, n, k):
    """The k-th smallest of values[:n], 1 <= k <= n; reorders them so that the k smallest come first (quickselect)."""
    left, right, at = 0, n - 1, k - 1
    while left < right:
        a, b, c = values[left], values[(left + right) // 2], values[right]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = left, right
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if at <= j:
            right = j
        elif at >= i:
            left = i
        else:
            break
    return values[at]


@njit(**_EXACT)
def score(items, n, rows, row_at, width, vectors, ids, keys, first, bits, value):
    """Write the sort keys of items[:n], made of their exact scores with a query and their ids, to keys[first:].

    `bits` is a view of `value`, float32 (1,).
    """
    for i in range(n):
        # items are scattered in memory, so prefetch a few ahead
        prefetch(vectors, items[min(i + _AHEAD, n - 1)] * width, (width + _LINE - 1) // _LINE)
        # adding 0 turns -0.0 into 0.0
        value[0] = np.float32(dot(vectors, items[i] * width, rows, row_at, width)) + np.float32(0)
        keys[first + i] = sort_key(bits[0], ids[items[i]])


@njit(**_EXACT)
def cut(k, factor, shift, bounds, low, keys, n_exact, items, sums, n, values, bits, value):
    """Drop what cannot be among a query's k best; returns the new limit and the new lengths of both parts of its list.

    keys[:n_exact] have exact scores; for items[:n], `sums` minus `shift` are I, which bounds their scores.
    """
    if n_exact + n < k:
        return low, n_exact, n
    for i in range(n_exact):
        bits[0] = unpack_key(keys[i])[1]
        values[i] = -np.float64(value[0])
    for i in range(n):
        scale, length, rest = bounds[items[i] // TILE]
        values[n_exact + i] = factor[2] * length + factor[3] * rest - factor[0] * scale * (sums[i] - shift)
    low = max(low, below(-kth_smallest(values, n_exact + n, k)))
    kept = 0
    for i in range(n_exact):
        bits[0] = unpack_key(keys[i])[1]
        if np.float64(value[0]) >= low:
            keys[kept] = keys[i]
            kept += 1
    n_exact, kept = kept, 0
    for i in range(n):
        scale, length, rest = bounds[items[i] // TILE]
        if factor[0] * scale * (sums[i] - shift) + factor[2] * length + factor[3] * rest >= low:
            items[kept], sums[kept] = items[i], sums[i]
            kept += 1
    return low, n_exact, kept


@njit(**_EXACT)
def search_group(begin, size, room, index, queries, lowest_ids, offsets, out_keys, out_counts, work):
    """Search for `size` queries, a multiple of QUERIES, from query `begin` on, or for fewer at the end.

    index: vectors, codes, bounds, ids. queries: rows, codes, factors and shifts as written by `prepare`, k (q,), at
    least 1 and at most room / 2 - 2 TILE, and thresholds (q,). lowest_ids: results of queries that are zero. Writes the
    sort keys of query q, ascending, from out_keys[offsets[q]] on, and their number to out_counts[q]. Adds to `work`:
    items multiplied, items scored, lists cut.
    """
    vectors, codes, bounds, ids = index
    all_rows, all_query_codes, all_factors, all_shifts, all_k, all_thresholds = queries
    width, n_tiles = all_query_codes.shape[1], bounds.shape[0]
    flat_rows = all_rows.reshape(-1)
    here = min(size, len(all_k) - begin)
    query_codes, factors, shifts = all_query_codes[begin:], all_factors[begin:], all_shifts[begin:]
    k, thresholds = all_k[begin:], all_thresholds[begin:]
    packed, active, terms = np.zeros(size * width, np.int8), np.empty(size, np.int64), np.empty((3, size))
    limits = np.empty(size, np.int32)
    masks, sums = np.empty(QUERIES, np.int64), np.empty(QUERIES * TILE, np.int32)
    # a query's list: `keys` of items with exact scores, `found` items with the sums in `found_sums`
    low = np.empty(size)
    keys, n_exact = np.empty((size, room), np.int64), np.zeros(size, np.int64)
    found, found_sums = np.empty((size, room), np.int32), np.empty((size, room), np.int32)
    n_found = np.zeros(size, np.int64)
    values, value = np.empty(room), np.empty(1, np.float32)
    bits = value.view(np.int32)
    n_active = 0
    for q in range(here):
        low[q] = below(np.float64(thresholds[q]))
        if factors[q, 1] > 0:
            active[n_active] = q
            n_active += 1
        else:
            for i in range(k[q]):
                keys[q, i] = sort_key(0, lowest_ids[i])
            n_exact[q] = k[q]
    changed = True
    for tile in range(n_tiles):
        if tile % RUN == 0:
            n_before, n_active = n_active, unfinished(n_active, active, factors, bounds[tile, 1], low)
            if n_active == 0:
                break
            if changed or n_active < n_before:
                pack(n_active, active, factors, low, query_codes, packed, terms)
                changed = False
        set_limits(n_active, bounds[tile], terms, active, shifts, limits)
        work[0] += n_active * min(TILE, len(ids) - tile * TILE)
        # without the zeros that fill up the last tile
        items = np.int64(-1) if len(ids) - tile * TILE >= TILE else (np.int64(1) << (len(ids) - tile * TILE)) - 1
        for start in range(0, n_active, QUERIES):
            tile_sums(codes, tile * TILE * width, packed, start * width, width, limits, start, sums, masks)
            for i in range(min(QUERIES, n_active - start)):
                mask = masks[i] & items
                if mask == 0:
                    continue
                q = active[start + i]
                n = n_found[q]
                while mask != 0:
                    j = lowest(mask)
                    mask &= mask - 1
                    found[q, n], found_sums[q, n] = tile * TILE + j, sums[i * TILE + j]
                    n += 1
                if n_exact[q] + n > room - TILE:
                    work[2] += 1
                    low[q], n_exact[q], n = cut(
                        k[q], factors[q], shifts[q], bounds, low[q], keys[q], n_exact[q], found[q], found_sums[q], n,
                        values, bits, value,
                    )  # fmt: skip
                    if 4 * (n_exact[q] + n) > 3 * room:
                        work[1] += n
                        row = (begin + q) * width
                        score(found[q], n, flat_rows, row, width, vectors, ids, keys[q], n_exact[q], bits, value)
                        bits[0] = unpack_key(kth_smallest(keys[q], n_exact[q] + n, k[q]))[1]
                        low[q], n_exact[q], n = max(low[q], below(np.float64(value[0]))), k[q], 0
                    terms[0, start + i] = low[q] / factors[q, 0]
                n_found[q] = n
    for q in range(here):
        _, n, n_scored = cut(
            k[q], factors[q], shifts[q], bounds, low[q], keys[q], n_exact[q], found[q], found_sums[q], n_found[q],
            values, bits, value,
        )  # fmt: skip
        score(found[q], n_scored, flat_rows, (begin + q) * width, width, vectors, ids, keys[q], n, bits, value)
        work[1] += n_scored
        n += n_scored
        if n > k[q]:
            kth_smallest(keys[q], n, k[q])
            n = k[q]
        keys[q, :n].sort()
        for i in range(n):
            bits[0] = unpack_key(keys[q, i])[1]
            if value[0] < thresholds[q]:
                n = i
                break
        out_keys[offsets[begin + q] : offsets[begin + q] + n] = keys[q, :n]
        out_counts[begin + q] = n


@njit(**_INLINE)
def unfinished(n, active, factors, length, low):
    """Keep those of the n active queries that items of at most this norm may still reach; returns their number."""
    kept = 0
    for i in range(n):
        q = active[i]
        active[kept] = q
        kept += factors[q, 1] * length >= low[q]
    return kept


@njit(**_INLINE)
def pack(n, active, factors, low, query_codes, packed, terms):
    """Write codes and terms of `set_limits` of the n active queries without gaps."""
    width = query_codes.shape[1]
    for i in range(n):
        q = active[i]
        packed[i * width : i * width + width] = query_codes[q]
        terms[0, i] = low[q] / factors[q, 0]
        terms[1, i], terms[2, i] = factors[q, 2] / factors[q, 0], factors[q, 3] / factors[q, 0]


@njit(**_INLINE)
def set_limits(n, bound, terms, active, shifts, limits):
    """Write the least sum with which an item of a tile may reach the limit of each of the n active queries."""
    scale, length, rest = bound[0], bound[1], bound[2]
    inverse, length, rest = 1 / scale, length / scale, rest / scale
    for i in range(n):
        least = terms[0, i] * inverse - terms[1, i] * length - terms[2, i] * rest
        least = np.floor(max(-np.float64(_FAR), min(np.float64(_FAR), least))) - 1
        limits[i] = np.int32(least) + shifts[active[i]]


@njit(**_EXACT)
def unpack(keys, ids, bits):
    """The ids and the bits of the scores of sort keys."""
    for i in range(len(keys)):
        ids[i], bits[i] = unpack_key(keys[i])
