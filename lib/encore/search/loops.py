"""Compiled loops of `tree`. Import only through `tree.load_loops()`: numba is slow to import.

Arrays are contiguous; large ones are flat. Items are indexed in tree order. Their d dimensions are padded with zeros to
`even(d)` in leaves and, with three more elements, to `even(d + 3)` in caps, see `tree.Tree`.
"""

# numba infers the types of these functions
# mypy: ignore-errors
from __future__ import annotations

import numpy as np
from numba import njit

from encore.arrays.prefetch import prefetch
from encore.search.lanes import dots, hits_of_two, lowest, reached, scores

LEAF = 16
NODE = 256
_SAMPLE = 256
_POWER_ROUNDS = 6
_CAP_ROUNDS = 128
_BUCKETS = 256
_FINE_BUCKETS = 1024
_SAMPLED_NODES = 1024
_RANK_BUCKETS = 1024
_INSERTED = 24
_TOGETHER = 512
_ALONE = 16
_AHEAD = 4
_LEAVES = 64
_TILE = 8
_MIN_NORM, _MAX_NORM = 2.0**-100, 2.0**100

# Division by zero follows IEEE arithmetic. Only sums whose rounding error is covered by a margin may be reordered.
_EXACT = {"cache": True, "nogil": True, "error_model": "numpy"}
_LOOSE = {**_EXACT, "fastmath": True}
# for functions called once per leaf: passing an array takes seven words
_INLINE = {**_EXACT, "forceinline": True}


# --- build --------------------------------------------------------------------------------------------------


@njit(**_LOOSE)
def direction(rows, start, stop, mean, axis, turned):
    """Write the approximate principal axis of rows[start:stop] to `axis` (d,), by power iteration."""
    d = rows.shape[1]
    step = max(1, (stop - start) // _SAMPLE)
    mean[:] = 0
    n = 0
    for i in range(start, stop, step):
        for c in range(d):
            mean[c] += rows[i, c]
        n += 1
    for c in range(d):
        mean[c] /= n
    # start from the row farthest from the mean, which is hardly ever orthogonal to the principal axis
    farthest, at = np.float32(-1), start
    for i in range(start, stop, step):
        total = np.float32(0)
        for c in range(d):
            total += (rows[i, c] - mean[c]) ** 2
        if total > farthest:
            farthest, at = total, i
    for c in range(d):
        axis[c] = rows[at, c] - mean[c]
    for _ in range(_POWER_ROUNDS):
        turned[:] = 0
        for i in range(start, stop, step):
            along = np.float32(0)
            for c in range(d):
                along += (rows[i, c] - mean[c]) * axis[c]
            for c in range(d):
                turned[c] += along * (rows[i, c] - mean[c])
        length = np.float32(0)
        for c in range(d):
            length += turned[c] * turned[c]
        if length <= np.float32(1e-30):
            return
        length = np.sqrt(length)
        for c in range(d):
            axis[c] = turned[c] / length


@njit(**_EXACT)
def swap(values, rows, order, i, j):
    """Swap elements i and j of all three arrays."""
    values[i], values[j] = values[j], values[i]
    order[i], order[j] = order[j], order[i]
    for c in range(rows.shape[1]):
        rows[i, c], rows[j, c] = rows[j, c], rows[i, c]


@njit(**_EXACT)
def select(values, rows, order, start, stop, middle):
    """Partition so that no element of values[start:middle] is above one of values[middle:stop] (quickselect)."""
    left, right = start, stop - 1
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
                swap(values, rows, order, i, j)
                i += 1
                j -= 1
        if middle <= j:
            right = j
        elif middle >= i:
            left = i
        else:
            return


@njit(**_EXACT)
def split(rows, order, large, small):
    """Reorder rows (n, d) and `order` (n,) in place, so that rows close in space are close in the array.

    Ranges are split recursively near the median along their principal axis: at a multiple of `large` while they are
    longer than that, then at a multiple of `small`.
    """
    n, d = rows.shape
    values = np.empty(n, np.float32)
    mean, axis, turned = np.empty(d, np.float32), np.empty(d, np.float32), np.empty(d, np.float32)
    todo = np.empty((128, 2), np.int64)
    todo[0, 0], todo[0, 1] = 0, n
    waiting = 1
    while waiting > 0:
        waiting -= 1
        start, stop = todo[waiting, 0], todo[waiting, 1]
        size = large if stop - start > large else small
        if stop - start <= size:
            continue
        cells = (stop - start + size - 1) // size
        middle = start + (cells + 1) // 2 * size
        direction(rows, start, stop, mean, axis, turned)
        project(rows, start, stop, axis, values)
        select(values, rows, order, start, stop, middle)
        todo[waiting, 0], todo[waiting, 1] = start, middle
        todo[waiting + 1, 0], todo[waiting + 1, 1] = middle, stop
        waiting += 2


@njit(**_LOOSE)
def project(rows, start, stop, axis, values):
    """values[i] = rows[i] . axis, for i from start to stop - 1."""
    for i in range(start, stop):
        total = np.float32(0)
        for c in range(rows.shape[1]):
            total += rows[i, c] * axis[c]
        values[i] = total


@njit(**_EXACT)
def fill(vectors, norms, order, width, leaves):
    """Write items to the flat, zeroed `leaves`: for each leaf of LEAF items, `width` rows of coordinates and one of
    1 / norm.

    1 / norm is replaced by 0 for a zero vector, and by NaN for a norm outside the bounds given in `tree`.
    """
    for i in range(len(order)):
        at = i // LEAF * LEAF * (width + 1) + i % LEAF
        for c in range(vectors.shape[1]):
            leaves[at + c * LEAF] = vectors[order[i], c]
        norm = norms[order[i]]
        # if float32 may overflow or lose digits, the score becomes NaN, and only float64 decides
        usual = norm == 0 or (norm >= _MIN_NORM and norm <= _MAX_NORM)
        leaves[at + width * LEAF] = np.float32(np.nan if not usual else 1 / norm if norm > 0 else 0.0)


@njit(**_EXACT)
def centre_of(leaves, width, start, stop, centre, sums):
    """Write the approximate centre of the smallest ball around the normalised items start to stop - 1 to `centre`.

    Badoiu and Clarkson 2003: the centre repeatedly moves towards the farthest item, by ever smaller steps. Items whose
    factor is not positive are ignored; returns the number of the others.
    """
    centre[:] = 0
    n = 0
    for i in range(start, stop):
        if factor_of(leaves, width, i) > 0:
            n += 1
            move(leaves, width, i, np.float32(n), centre)
    if n == 0:
        return 0
    for step in range(2, _CAP_ROUNDS + 2):
        least, farthest = np.float32(4), -1
        for first in range(start, stop, LEAF):
            scores(leaves, first * (width + 1), centre, 0, width, sums, 0)
            for lane in range(min(LEAF, stop - first)):
                # all have length 1, so the farthest has the smallest dot product
                if sums[lane] < least and factor_of(leaves, width, first + lane) > 0:
                    least, farthest = sums[lane], first + lane
        move(leaves, width, farthest, np.float32(step), centre)
    return n


@njit(**_EXACT)
def factor_of(leaves, width, item):
    """1 / norm of an item: see `fill`."""
    return leaves[item // LEAF * LEAF * (width + 1) + width * LEAF + item % LEAF]


@njit(**_EXACT)
def move(leaves, width, item, step, centre):
    """Move the centre 1 / step of the way towards a normalised item."""
    at = item // LEAF * LEAF * (width + 1) + item % LEAF
    inverse = leaves[at + width * LEAF]
    for c in range(width):
        centre[c] += (leaves[at + c * LEAF] * inverse - centre[c]) / step


@njit(**_EXACT)
def cap_of(leaves, norms, width, start, stop, centre, sums):
    """The cap around items start to stop - 1: writes its unit centre to `centre`, returns cos b and sin b.

    b is at least the angle between the centre, rounded to float32, and each non-zero item. A cap of a right angle or
    more is returned as (-1, 4), which no bound rules out; an empty one as (1, 0).
    """
    n = centre_of(leaves, width, start, stop, centre, sums)
    length = 0.0
    for c in range(width):
        length += np.float64(centre[c]) ** 2
    if n == 0 and norms[start:stop].sum() == 0:
        return np.float32(1), np.float32(0)
    if length < 1e-12:
        centre[:] = 0
        return np.float32(-1), np.float32(4)
    own = 0.0
    for c in range(width):
        centre[c] = np.float32(centre[c] / np.sqrt(length))
        own += np.float64(centre[c]) ** 2
    least = 1.0
    for i in range(start, stop):
        if norms[i] > 0:
            at = i // LEAF * LEAF * (width + 1) + i % LEAF
            dot = 0.0
            for c in range(width):
                dot += np.float64(leaves[at + c * LEAF]) * np.float64(centre[c])
            least = min(least, dot / (norms[i] * np.sqrt(own)))
    # rounded down by more than float32 rounding
    cosine = np.float32(least - 1.2e-7)
    if cosine <= 0:
        return np.float32(-1), np.float32(4)
    return cosine, np.float32(np.sqrt(1 - np.float64(cosine) ** 2))


@njit(**_EXACT)
def enclose(leaves, norms, width, d, leaf_caps, node_caps):
    """Write the caps of all leaves and nodes to zeroed arrays, each as centre, cos b, sin b, 1.

    `leaf_caps` (flat) holds the sixteen leaf caps of a node dimension by dimension; `node_caps` (nodes, even(d + 3))
    has one row per node.
    """
    n = norms.shape[0]
    cap_width = node_caps.shape[1]
    centre, sums = np.empty(width, np.float32), np.empty(LEAF, np.float32)
    for node in range(node_caps.shape[0]):
        first = node * NODE
        cosine, sine = cap_of(leaves, norms, width, first, min(first + NODE, n), centre, sums)
        for c in range(d):
            node_caps[node, c] = centre[c]
        node_caps[node, d], node_caps[node, d + 1], node_caps[node, d + 2] = cosine, sine, 1
        for leaf in range(LEAF):
            start = first + leaf * LEAF
            cosine, sine = cap_of(leaves, norms, width, min(start, n), min(start + LEAF, n), centre, sums)
            at = node * LEAF * cap_width + leaf
            for c in range(d):
                leaf_caps[at + c * LEAF] = centre[c]
            at += d * LEAF
            leaf_caps[at], leaf_caps[at + LEAF], leaf_caps[at + 2 * LEAF] = cosine, sine, 1


# --- bound --------------------------------------------------------------------------------------------------


@njit(**_EXACT)
def aim(query, cosine, sine, constant, d, cap_width, rows, columns):
    """Write the query's factors of cos b, sin b and 1 after its vector, in both layouts: see `bound`."""
    at = query * cap_width + d
    rows[at], rows[at + 1], rows[at + 2] = cosine, sine, constant
    at = query // LEAF * LEAF * cap_width + query % LEAF + d * LEAF
    columns[at], columns[at + LEAF], columns[at + 2 * LEAF] = cosine, sine, constant


@njit(**_EXACT)
def bound(query, low, margin, slack, d, cap_width, rows, columns):
    """Set the query's factors so that it reaches all caps that may contain an item with a >= low: see `tree`.

    With t = low - margin, the bound is the dot product of (q, -t, sqrt(1 - t^2), slack) and (centre, cos b, sin b, 1).
    For t <= 0 it must not rule out anything.
    """
    t = np.float64(low) - margin
    if t > 0:
        aim(query, -t, np.sqrt(max(0.0, 1 - t * t)), slack, d, cap_width, rows, columns)
    else:
        aim(query, 0.0, 0.0, 4.0, d, cap_width, rows, columns)


# --- seed ---------------------------------------------------------------------------------------------------


@njit(**_INLINE)
def count_up(cosine, histogram):
    """Add a cosine to its histogram bucket."""
    bucket = int((cosine + np.float32(1)) * np.float32(_BUCKETS / 2))
    histogram[max(0, min(_BUCKETS - 1, bucket))] += 1


@njit(**_EXACT)
def cut_off(histogram, n):
    """The lower edge, as a cosine, of the highest bucket reached by at least n counted values; -4 if there is none."""
    bucket, above = _BUCKETS, 0
    while above < n and bucket > 0:
        bucket -= 1
        above += histogram[bucket]
    return np.float32(bucket) * np.float32(2 / _BUCKETS) - np.float32(1) if bucket > 0 else np.float32(-4)


@njit(**_INLINE)
def reached_nodes(query, n_nodes, cap_width, node_lanes, rows, masks, nodes, most):
    """Write at most `most` of the nodes that a query reaches to `nodes`; returns their number."""
    n_groups = len(node_lanes) // (LEAF * cap_width)
    for group in range(n_groups):
        masks[group] = reached(node_lanes, group * LEAF * cap_width, rows, query * cap_width, cap_width)
    n = 0
    for group in range(n_groups):
        mask = masks[group]
        while mask != 0 and n < most:
            nodes[n] = lowest(mask) * n_groups + group
            mask &= mask - 1
            # skip the zeros that fill up the last lanes
            n += nodes[n] < n_nodes
    return n


@njit(**_EXACT)
def aim_at_leaves(
    query, n_seeds, d, n_nodes, cap_width, node_lanes, leaf_caps, rows, columns, masks, histogram, sums, nodes
):
    """Make a query reach about n_seeds leaves, those with the nearest centres in the nodes with the nearest centres.

    Writes these nodes to `nodes`; returns their number.
    """
    n_groups = len(node_lanes) // (LEAF * cap_width)
    at = query * cap_width
    # nodes: the threshold is estimated from a sample, which the lanes of a group are
    histogram[:] = 0
    step = max(1, n_nodes // _SAMPLED_NODES)
    aim(query, 0.0, 0.0, 0.0, d, cap_width, rows, columns)
    for group in range(0, n_groups, step):
        dots(node_lanes, group * LEAF * cap_width, rows, at, cap_width, sums, 0)
        for lane in range(LEAF):
            if lane * n_groups + group < n_nodes:
                count_up(sums[lane], histogram)
    aim(query, 0.0, 0.0, -cut_off(histogram, n_seeds // 4 // step + 1), d, cap_width, rows, columns)
    n = reached_nodes(query, n_nodes, cap_width, node_lanes, rows, masks, nodes, n_seeds)
    aim(query, 0.0, 0.0, 0.0, d, cap_width, rows, columns)
    histogram[:] = 0
    for i in range(n):
        # a node has sixteen caps of cap_width numbers, and a cache line sixteen numbers
        prefetch(leaf_caps, nodes[min(i + _AHEAD, n - 1)] * LEAF * cap_width, cap_width)
        dots(leaf_caps, nodes[i] * LEAF * cap_width, rows, at, cap_width, sums, 0)
        for lane in range(LEAF):
            count_up(sums[lane], histogram)
    aim(query, 0.0, 0.0, -cut_off(histogram, n_seeds), d, cap_width, rows, columns)
    return n


@njit(**_INLINE)
def reached_leaves(query, n_nodes, cap_width, leaf_caps, rows, nodes, found):
    """Write the leaves of some nodes that a query reaches to `found`, as far as it is long; returns their number."""
    n = 0
    for i in range(n_nodes):
        # a node has sixteen caps of cap_width numbers, and a cache line sixteen numbers
        prefetch(leaf_caps, nodes[min(i + _AHEAD, n_nodes - 1)] * LEAF * cap_width, cap_width)
        mask = reached(leaf_caps, nodes[i] * LEAF * cap_width, rows, query * cap_width, cap_width)
        while mask != 0 and n < len(found):
            found[n] = nodes[i] * LEAF + lowest(mask)
            mask &= mask - 1
            n += 1
    return n


@njit(**_EXACT)
def score_seeds(query, width, cap_width, leaves, leaf_caps, rows, nodes, n_nodes, approx, leaf_of):
    """Write approximate scores of all items in the seed leaves, sixteen per leaf, to `approx`; returns their count."""
    n = reached_leaves(query, n_nodes, cap_width, leaf_caps, rows, nodes, leaf_of)
    for i in range(n):
        # leaves are scattered in memory, so prefetch a few ahead
        prefetch(leaves, leaf_of[min(i + _AHEAD, n - 1)] * LEAF * (width + 1), width + 1)
        at = leaf_of[i] * LEAF * (width + 1)
        scores(leaves, at, rows, query * cap_width, width, approx, i * LEAF)
    return n * LEAF


@njit(**_EXACT)
def kth_of(approx, n, k, counts, buckets):
    """A lower bound on the k-th largest of approx[:n], close to it; -4 if fewer than k are above 0."""
    counts[:] = 0
    for i in range(n):
        buckets[i] = np.int32((approx[i] if approx[i] > 0 else np.float32(0)) * np.float32(_FINE_BUCKETS - 1))
    for i in range(n):
        counts[buckets[i]] += 1
    bucket, above = _FINE_BUCKETS, 0
    while above < k and bucket > 1:
        bucket -= 1
        above += counts[bucket]
    if above < k:
        return np.float32(-4)
    # the product was rounded, so subtract a little to be safe
    return np.float32(bucket - 0.01) / np.float32(_FINE_BUCKETS - 1)


# --- rank ---------------------------------------------------------------------------------------------------


@njit(**_INLINE)
def exact(n, items, of_query, width, vectors, lengths, leaves, dots_, squares, result):
    """The scores of n (item, query) pairs as defined in `kernel`: float64, from left to right, not fused."""
    for i in range(n):
        at = items[i] // LEAF * LEAF * (width + 1) + items[i] % LEAF
        query = of_query[i]
        dot, square = 0.0, 0.0
        for c in range(vectors.shape[1]):
            x = np.float64(leaves[at + c * LEAF])
            dot += np.float64(vectors[query, c]) * x
            square += x * x
        dots_[i], squares[i] = dot, square
    for i in range(n):
        length = lengths[of_query[i]] * np.sqrt(squares[i])
        # adding 0 turns -0.0 into 0.0
        result[i] = (np.float32(dots_[i] / length) if length > 0 else np.float32(0)) + np.float32(0)


@njit(**_INLINE)
def sort_key(bits, identity):
    """A sort key that ascends as the score with these bits descends, then as the id ascends."""
    # the bits of negative floats ascend as the floats descend
    ascending = np.int64(bits) if bits >= 0 else np.int64(bits) ^ 0x7FFFFFFF
    return (~ascending << 32) | (np.int64(identity) + 0x80000000)


@njit(**_INLINE)
def unpack_key(number):
    """The id and the bits of the score that a `sort_key` was made from."""
    ascending = ~(number >> 32)
    bits = ascending if ascending >= 0 else ascending ^ 0x7FFFFFFF
    return np.int32((number & 0xFFFFFFFF) - 0x80000000), np.int32(bits)


@njit(**_EXACT)
def sort(numbers, n, result, starts):
    """Sort numbers[:n] into result[:n]: distribute them to buckets of equal width, then sort each bucket."""
    if n == 0:
        return
    low, high = numbers[0], numbers[0]
    for i in range(n):
        low, high = min(low, numbers[i]), max(high, numbers[i])
    shift = 0
    while ((high >> shift) - (low >> shift)) >= _RANK_BUCKETS:
        shift += 1
    base = low >> shift
    starts[:] = 0
    for i in range(n):
        starts[(numbers[i] >> shift) - base + 1] += 1
    for bucket in range(_RANK_BUCKETS):
        starts[bucket + 1] += starts[bucket]
    for i in range(n):
        bucket = (numbers[i] >> shift) - base
        result[starts[bucket]] = numbers[i]
        starts[bucket] += 1
    # now starts[b] is the end of bucket b
    begin = 0
    for bucket in range(_RANK_BUCKETS):
        end = starts[bucket]
        if end - begin > _INSERTED:
            result[begin:end].sort()
        else:
            for i in range(begin + 1, end):
                number, j = result[i], i
                while j > begin and result[j - 1] > number:
                    result[j] = result[j - 1]
                    j -= 1
                result[j] = number
        begin = end


# --- scan ---------------------------------------------------------------------------------------------------


@njit(**_INLINE)
def reaching(node, start, stop, cap_width, columns, flat, active, masks):
    """Write the queries from start to stop - 1 that reach the node's cap to `active`; returns their number.

    Here and below, all sums are computed before any branch depends on them: a mispredicted branch that waits for a sum
    costs more than the sum.
    """
    n = 0
    for block in range(start, stop, LEAF):
        masks[n] = reached(columns, block * cap_width, flat, node * cap_width, cap_width)
        n += 1
    masks[n - 1] &= (1 << (stop - start - (n - 1) * LEAF)) - 1
    found = 0
    for i in range(n):
        mask = masks[i]
        while mask != 0:
            active[found] = start + i * LEAF + lowest(mask)
            mask &= mask - 1
            found += 1
    return found


@njit(**_INLINE)
def leaf_masks(node, n, cap_width, rows, leaf_caps, active, masks):
    """Write the leaves of the node that each of the n active queries reaches to `masks`, one bit per leaf."""
    at = node * LEAF * cap_width
    for i in range(n):
        masks[i] = reached(leaf_caps, at, rows, active[i] * cap_width, cap_width)


@njit(**_INLINE)
def visitors_of(leaf, n, active, masks, visitors):
    """Write the active queries whose bit is set for this leaf to `visitors`; returns their number."""
    found = 0
    for i in range(n):
        visitors[found] = active[i]
        found += (masks[i] >> leaf) & 1
    return found


@njit(**_INLINE)
def hits_of(leaf, n, width, cap_width, rows, leaves, low, visitors, hits):
    """For each of n visitors of a leaf, write a mask of the items that reach the visitor's `low` to `hits`."""
    at = leaf * LEAF * (width + 1)
    visitors[n] = visitors[max(0, n - 1)]
    for i in range(0, n, 2):
        first, second = visitors[i], visitors[i + 1]
        both = hits_of_two(leaves, at, rows, first * cap_width, second * cap_width, width, low[first], low[second])
        hits[i], hits[i + 1] = both & 0xFFFF, both >> 16


@njit(**_INLINE)
def list_hits(leaf, n, n_items, visitors, hits, chosen, items, of_query, found):
    """Append the items and queries of a leaf's hits to two lists of length `found`; returns the new length."""
    some = 0
    for i in range(n):
        chosen[some] = i
        some += hits[i] != 0
    for j in range(some):
        query, mask = visitors[chosen[j]], hits[chosen[j]]
        while mask != 0:
            items[found], of_query[found] = leaf * LEAF + lowest(mask), query
            mask &= mask - 1
            # skip the zero padding of the last leaf
            found += items[found] < n_items
    return found


@njit(**_EXACT)
def cut(query, k, d, cap_width, limits, lists, sorting):
    """Cut a query's list to its k best, and raise its limit; overwrites results[0]."""
    _, error, slack = limits
    numbers, counts, low, rows, columns = lists
    results, sorted_numbers, starts = sorting
    sort(numbers[query], counts[query], sorted_numbers, starts)
    numbers[query, :k] = sorted_numbers[:k]
    results.view(np.int32)[0] = unpack_key(numbers[query, k - 1])[1]
    counts[query], low[query] = k, max(low[query], results[0] - error)
    bound(query, low[query], error, slack, d, cap_width, rows, columns)


@njit(**_EXACT)
def scan_together(here, limits, tree, own, lists, visits, pairs, sorting, work):
    """Visit the nodes with all queries of a group, so that each node and leaf is read once."""
    room = limits[0]
    leaves, leaf_caps, node_caps, _, ids = tree
    units, vectors, lengths, n_results = own
    numbers, counts, low, rows, columns = lists
    active, masks = visits
    visitors, hits, chosen, items, of_query, dots_, squares = pairs
    results = sorting[0]
    width, cap_width, d, n_items = units.shape[1], node_caps.shape[1], vectors.shape[1], len(ids)
    flat, bits = node_caps.reshape(-1), results.view(np.int32)
    n_nodes = len(node_caps)
    for tile in range(0, n_nodes, _TILE):
        for start in range(0, here, _TOGETHER):
            stop = min(here, start + _TOGETHER)
            for node in range(tile, min(tile + _TILE, n_nodes)):
                n = reaching(node, start, stop, cap_width, columns, flat, active, masks)
                leaf_masks(node, n, cap_width, rows, leaf_caps, active, masks)
                work[1] += n
                found = 0
                for leaf in range(node * LEAF, node * LEAF + LEAF):
                    n_visitors = visitors_of(leaf % LEAF, n, active, masks, visitors)
                    work[0] += n_visitors
                    hits_of(leaf, n_visitors, width, cap_width, rows, leaves, low, visitors, hits)
                    found = list_hits(leaf, n_visitors, n_items, visitors, hits, chosen, items, of_query, found)
                exact(found, items, of_query, width, vectors, lengths, leaves, dots_, squares, results)
                for i in range(found):
                    query = of_query[i]
                    numbers[query, counts[query]] = sort_key(bits[i], ids[items[i]])
                    counts[query] += 1
                    if counts[query] > room - NODE:
                        cut(query, n_results[query], d, cap_width, limits, lists, sorting)
                        work[3] += 1


@njit(**_EXACT)
def scan_alone(here, limits, tree, own, lists, visits, pairs, sorting, work):
    """Visit the leaves of one query after the other.

    Few queries share hardly any leaf, and would wait for memory most of the time: a query's leaves are listed first,
    so that each can be prefetched while those before it are scored.
    """
    room = limits[0]
    leaves, leaf_caps, node_caps, node_lanes, ids = tree
    units, vectors, lengths, n_results = own
    numbers, counts, low, rows, _ = lists
    masks, nodes, visited = visits
    visitors, hits, chosen, items, of_query, dots_, squares = pairs
    results = sorting[0]
    width, cap_width, d, n_items = units.shape[1], node_caps.shape[1], vectors.shape[1], len(ids)
    n_nodes, bits = len(node_caps), results.view(np.int32)
    for query in range(here):
        n = reached_nodes(query, n_nodes, cap_width, node_lanes, rows, masks, nodes, n_nodes)
        n_leaves = reached_leaves(query, n, cap_width, leaf_caps, rows, nodes, visited)
        work[0] += n_leaves
        work[1] += n
        visitors[0] = query
        for start in range(0, n_leaves, _LEAVES):
            found = 0
            for i in range(start, min(start + _LEAVES, n_leaves)):
                prefetch(leaves, visited[min(i + _AHEAD, n_leaves - 1)] * LEAF * (width + 1), width + 1)
                hits_of(visited[i], 1, width, cap_width, rows, leaves, low, visitors, hits)
                found = list_hits(visited[i], 1, n_items, visitors, hits, chosen, items, of_query, found)
            exact(found, items, of_query, width, vectors, lengths, leaves, dots_, squares, results)
            for i in range(found):
                numbers[query, counts[query]] = sort_key(bits[i], ids[items[i]])
                counts[query] += 1
                if counts[query] > room - NODE:
                    cut(query, n_results[query], d, cap_width, limits, lists, sorting)
                    work[3] += 1


@njit(**_EXACT)
def search_groups(first, last, size, room, n_seeds, error, slack, tree, queries, offsets, out_ids, out_scores, work):
    """Search for the queries of groups first to last - 1, of `size` queries each.

    tree: see Tree.flat. queries: order (q,) and, in that order, units (q, width), vectors (q, d), norms (q,) and
    k (q,), at least 1 and at most `room` - 2 NODE. Writes results to out_ids and out_scores from offsets[order[query]]
    on. Adds to `work`: leaves scored, nodes bounded, nodes compared, lists cut.
    """
    leaves, leaf_caps, node_caps, node_lanes, _ = tree
    order, all_units, all_vectors, all_lengths, all_n_results = queries
    d, width = all_vectors.shape[1], all_units.shape[1]
    n_nodes, cap_width = node_caps.shape
    rows, columns = np.zeros(size * cap_width, np.float32), np.zeros(size * cap_width, np.float32)
    numbers, counts, low = np.empty((size, room), np.int64), np.zeros(size, np.int64), np.empty(size, np.float32)
    histogram, fine, sums = np.empty(_BUCKETS, np.int32), np.empty(_FINE_BUCKETS, np.int32), np.empty(LEAF, np.float32)
    approx, leaf_of = np.empty(2 * n_seeds * LEAF, np.float32), np.empty(2 * n_seeds, np.int64)
    buckets = np.empty(2 * n_seeds * LEAF, np.int32)
    active_and_masks = np.empty(_TOGETHER, np.int64), np.empty(_TOGETHER, np.int64)
    # one node more, which a lane without a node may be written to
    node_masks, nodes = np.empty(len(node_lanes) // (LEAF * cap_width), np.int64), np.empty(n_nodes + 1, np.int32)
    nodes_and_leaves = node_masks, nodes, np.empty(n_nodes * LEAF, np.int32)
    # as many as a node's items and all queries, which is more than _LEAVES leaves and one query
    n_pairs = min(size, _TOGETHER) * NODE
    pairs = (
        np.empty(_TOGETHER + 1, np.int64),
        np.empty(_TOGETHER + 1, np.int64),
        np.empty(_TOGETHER, np.int64),
        np.empty(n_pairs + 1, np.int64),
        np.empty(n_pairs + 1, np.int64),
        np.empty(n_pairs, np.float64),
        np.empty(n_pairs, np.float64),
    )
    sorted_numbers, starts, out_bits = (
        np.empty(room, np.int64),
        np.empty(_RANK_BUCKETS + 1, np.int64),
        out_scores.view(np.int32),
    )
    sorting = np.empty(n_pairs, np.float32), sorted_numbers, starts
    limits, lists = (room, error, slack), (numbers, counts, low, rows, columns)
    for group in range(first, last):
        begin = group * size
        here = min(size, len(order) - begin)
        units, vectors = all_units[begin : begin + here], all_vectors[begin : begin + here]
        lengths, n_results = all_lengths[begin : begin + here], all_n_results[begin : begin + here]
        own = (units, vectors, lengths, n_results)
        for query in range(here):
            for c in range(d):
                rows[query * cap_width + c] = units[query, c]
                columns[query // LEAF * LEAF * cap_width + c * LEAF + query % LEAF] = units[query, c]
            counts[query] = 0
        for query in range(here):
            n = aim_at_leaves(
                query, n_seeds, d, n_nodes, cap_width, node_lanes, leaf_caps, rows, columns, node_masks, histogram,
                sums, nodes,
            )  # fmt: skip
            n = score_seeds(query, width, cap_width, leaves, leaf_caps, rows, nodes, n, approx, leaf_of)
            low[query] = kth_of(approx, n, n_results[query], fine, buckets) - 2 * error
            bound(query, low[query], error, slack, d, cap_width, rows, columns)
            work[0] += n // LEAF
        work[2] += n_nodes * here
        if here <= _ALONE:
            scan_alone(here, limits, tree, own, lists, nodes_and_leaves, pairs, sorting, work)
        else:
            scan_together(here, limits, tree, own, lists, active_and_masks, pairs, sorting, work)
        for query in range(here):
            sort(numbers[query], counts[query], sorted_numbers, starts)
            start = offsets[order[begin + query]]
            for i in range(n_results[query]):
                out_ids[start + i], out_bits[start + i] = unpack_key(sorted_numbers[i])
