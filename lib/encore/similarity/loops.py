"""The loops of `tree`, compiled by numba. Import it through `compiled.loops()` only: numba is slow to import.

Arrays are contiguous, big ones flat. "Place" is the place of an item in the order of the tree. d dimensions
are padded with zeros to `even(d)` in leaves and to `even(d + 2)` in caps, see `lanes.above`.
"""

# numba gives the functions here their types
# mypy: ignore-errors
from __future__ import annotations

import numpy as np
from numba import njit

from encore.similarity.lanes import dots, hits_of_two, lowest, reached, scores

LEAF = 16
NODE = 256
_SAMPLE = 256
_POWER_ROUNDS = 6
_CAP_ROUNDS = 32
_BUCKETS = 256
_FINE_BUCKETS = 1024
_SAMPLED_NODES = 1024
_RANK_BUCKETS = 1024
_INSERTED = 24
_TOGETHER = 256
_TILE = 16
_NO_NODE = 2**31 - 1
_LEAST_NORM, _MOST_NORM = 2.0**-100, 2.0**100

# Divisions by zero are as in IEEE arithmetic. Only sums whose rounding a margin covers may be reordered.
_EXACT = {"cache": True, "nogil": True, "error_model": "numpy"}
_LOOSE = {**_EXACT, "fastmath": True}


# --- build --------------------------------------------------------------------------------------------------


@njit(**_LOOSE)
def direction(rows, start, stop, mean, axis, turned):
    """The direction in which rows[start:stop] vary most, roughly, into `axis` (d,), by power iterations."""
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
    # the row farthest from the mean is hardly ever at a right angle to what is looked for
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
    """Exchange elements i and j of all three."""
    values[i], values[j] = values[j], values[i]
    order[i], order[j] = order[j], order[i]
    for c in range(rows.shape[1]):
        rows[i, c], rows[j, c] = rows[j, c], rows[i, c]


@njit(**_EXACT)
def select(values, rows, order, start, stop, middle):
    """Exchange elements until none of values[start:middle] is above one of values[middle:stop] (quickselect)."""
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
    """Reorder rows (n, d), in place, and `order` (n,) along, so that neighbours in space are neighbours there.

    Halves are split again at the median along their principal axis, at multiples of `large` as long as there
    is one inside, then at multiples of `small`.
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
    """Write items to `leaves`, flat, zeroed: LEAF items a leaf, `width` rows of one dimension and one of 1 / norm.

    Instead of 1 / norm there is 0 for a zero vector, and NaN for a norm that is out of the bounds of `tree`.
    """
    for i in range(len(order)):
        at = i // LEAF * LEAF * (width + 1) + i % LEAF
        for c in range(vectors.shape[1]):
            leaves[at + c * LEAF] = vectors[order[i], c]
        norm = norms[order[i]]
        # where float32 may overflow or lose digits, the sum becomes NaN, and only float64 decides
        usual = norm == 0 or (norm >= _LEAST_NORM and norm <= _MOST_NORM)
        leaves[at + width * LEAF] = np.float32(np.nan if not usual else 1 / norm if norm > 0 else 0.0)


@njit(**_EXACT)
def centre_of(leaves, width, start, stop, centre, sums):
    """The centre of the least ball around items start..stop - 1 at unit length, nearly: Badoiu and Clarkson 2003.

    Step by step `centre` moves towards the farthest of them, by less and less. Items without a factor do not
    count. The result is the number of others.
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
                # all have length 1: the farthest is the one with the least dot product
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
    """Move the centre by 1 / step of the way to an item at unit length."""
    at = item // LEAF * LEAF * (width + 1) + item % LEAF
    inverse = leaves[at + width * LEAF]
    for c in range(width):
        centre[c] += (leaves[at + c * LEAF] * inverse - centre[c]) / step


@njit(**_EXACT)
def cap_of(leaves, norms, width, start, stop, centre, sums):
    """The cap around items start..stop - 1: the unit centre into `centre`; the result is cos b and sin b.

    b is at least the angle between the centre, as rounded to float32, and each item, zero vectors left out. A
    cap of a right angle or more comes back as (-1, 4), which no bound rules out; of nothing, as (1, 0).
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
    # less, by more than float32 rounds
    cosine = np.float32(least - 1.2e-7)
    if cosine <= 0:
        return np.float32(-1), np.float32(4)
    return cosine, np.float32(np.sqrt(1 - np.float64(cosine) ** 2))


@njit(**_EXACT)
def enclose(leaves, norms, width, d, leaf_caps, node_caps):
    """Caps of all leaves and nodes, in zeroed arrays: a node's sixteen leaf caps dimension by dimension in
    `leaf_caps` (flat), each node's own in a row of `node_caps` (nodes, even(d + 3)): centre, cos b, sin b, 1."""
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
    """Write the factors of cos b, sin b and 1 beside the query's vector, in both layouts: see `bound`."""
    at = query * cap_width + d
    rows[at], rows[at + 1], rows[at + 2] = cosine, sine, constant
    at = query // LEAF * LEAF * cap_width + query % LEAF + d * LEAF
    columns[at], columns[at + LEAF], columns[at + 2 * LEAF] = cosine, sine, constant


@njit(**_EXACT)
def bound(query, low, margin, slack, d, cap_width, rows, columns):
    """Aim at the caps that may hold an item with a >= low: see `tree`.

    With t = low - margin, (q, -t, sqrt(1 - t^2), slack) makes one dot product with (centre, cos b, sin b, 1) the
    bound. Up to t = 0 it must not rule out anything.
    """
    t = np.float64(low) - margin
    if t > 0:
        aim(query, -t, np.sqrt(max(0.0, 1 - t * t)), slack, d, cap_width, rows, columns)
    else:
        aim(query, 0.0, 0.0, 4.0, d, cap_width, rows, columns)


# --- seed ---------------------------------------------------------------------------------------------------


@njit(**_EXACT)
def count_up(cosine, histogram):
    """Count a cosine in its bucket."""
    bucket = int((cosine + np.float32(1)) * np.float32(_BUCKETS / 2))
    histogram[max(0, min(_BUCKETS - 1, bucket))] += 1


@njit(**_EXACT)
def cut_off(histogram, n):
    """The lower edge, as a cosine, of the highest bucket that n of those counted reach; -4 if there is none."""
    bucket, above = _BUCKETS, 0
    while above < n and bucket > 0:
        bucket -= 1
        above += histogram[bucket]
    return np.float32(bucket) * np.float32(2 / _BUCKETS) - np.float32(1) if bucket > 0 else np.float32(-4)


@njit(**_EXACT)
def aim_at_nodes(start, stop, n_seeds, d, node_caps, rows, columns, histograms, sums):
    """Aim queries start..stop - 1 at about n_seeds nodes each, of the nearest centres, as a sample of nodes tells."""
    n_nodes, cap_width = node_caps.shape
    flat = node_caps.reshape(-1)
    step = max(1, n_nodes // _SAMPLED_NODES)
    histograms[start:stop] = 0
    for query in range(start, stop):
        aim(query, 0.0, 0.0, 0.0, d, cap_width, rows, columns)
    for node in range(0, n_nodes, step):
        for block in range(start, stop, LEAF):
            dots(columns, block * cap_width, flat, node * cap_width, cap_width, sums, 0)
            for lane in range(min(LEAF, stop - block)):
                count_up(sums[lane], histograms[block + lane])
    for query in range(start, stop):
        aim(query, 0.0, 0.0, -cut_off(histograms[query], n_seeds // step + 1), d, cap_width, rows, columns)


@njit(**_EXACT)
def aim_at_leaves(start, stop, n_seeds, d, node_caps, leaf_caps, rows, columns, histograms, sums, seeds, n_nodes):
    """Aim queries start..stop - 1 at about n_seeds leaves each, of the nearest centres in the nodes aimed at.

    The nodes are written to seeds[query, :n_nodes[query], 0], ascending.
    """
    cap_width = node_caps.shape[1]
    flat = node_caps.reshape(-1)
    histograms[start:stop] = 0
    n_nodes[start:stop] = 0
    for query in range(start, stop):
        # the constant for nodes is in `columns`; that for leaves is not known yet
        rows[query * cap_width + d + 2] = 0
    for node in range(node_caps.shape[0]):
        for block in range(start, stop, LEAF):
            found = reached(columns, block * cap_width, flat, node * cap_width, cap_width)
            found &= (1 << min(LEAF, stop - block)) - 1
            while found != 0:
                query = block + lowest(found)
                found &= found - 1
                if n_nodes[query] < seeds.shape[1] - 1:
                    seeds[query, n_nodes[query], 0] = node
                    n_nodes[query] += 1
                    at = node * LEAF * cap_width
                    dots(leaf_caps, at, rows, query * cap_width, cap_width, sums, 0)
                    for lane in range(LEAF):
                        count_up(sums[lane], histograms[query])
    for query in range(start, stop):
        seeds[query, n_nodes[query], 0] = _NO_NODE
        rows[query * cap_width + d + 2] = -cut_off(histograms[query], n_seeds)


@njit(**_EXACT)
def score_seeds(query, width, cap_width, leaves, leaf_caps, rows, seeds, n_nodes, approx, leaf_of):
    """Approximate scores of all items of the leaves aimed at, sixteen a leaf, and the leaves' numbers.

    Which of a node's leaves they are is written to seeds[query, :, 1], a bit each. Returns their number.
    """
    for i in range(n_nodes):
        at = seeds[query, i, 0] * LEAF * cap_width
        seeds[query, i, 1] = reached(leaf_caps, at, rows, query * cap_width, cap_width)
    n = 0
    for i in range(n_nodes):
        mask = np.int64(seeds[query, i, 1])
        while mask != 0 and n < len(leaf_of):
            leaf_of[n] = seeds[query, i, 0] * LEAF + lowest(mask)
            mask &= mask - 1
            n += 1
        # leaves for which there was no room are left to the scan
        seeds[query, i, 1] &= ~mask
    for i in range(n):
        at = leaf_of[i] * LEAF * (width + 1)
        scores(leaves, at, rows, query * cap_width, width, approx, i * LEAF)
    return n


@njit(**_EXACT)
def at_least(approx, n, low, chosen):
    """The numbers i < n of approx[i] >= low, and of NaN, ascending, into `chosen`; returns how many."""
    found = 0
    for i in range(n):
        chosen[found] = i
        found += not approx[i] < low
    return found


@njit(**_EXACT)
def kth_of(approx, n, k, counts, buckets):
    """A number that at least k of approx[:n] reach, near the k-th largest; -4 if there are less than k above 0."""
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
    # the product was rounded: one bucket lower is safe
    return np.float32(bucket - 0.01) / np.float32(_FINE_BUCKETS - 1)


# --- rank ---------------------------------------------------------------------------------------------------


@njit(**_EXACT)
def rank(query, length, item, width, vectors, leaves, ids, score, bits):
    """A number that ascends as score descends, then as id ascends.

    The score is the one that `kernel` defines: float64, from left to right, not fused. `score` and `bits` are
    one element of memory, seen as float32 and int32.
    """
    at = item // LEAF * LEAF * (width + 1) + item % LEAF
    dot, square = 0.0, 0.0
    for c in range(vectors.shape[1]):
        x = np.float64(leaves[at + c * LEAF])
        dot += np.float64(vectors[query, c]) * x
        square += x * x
    length *= np.sqrt(square)
    # added to 0, -0.0 becomes 0.0
    score[0] = (np.float32(dot / length) if length > 0 else np.float32(0)) + np.float32(0)
    # the bits of a negative number ascend as it descends
    ascending = np.int64(bits[0]) if bits[0] >= 0 else np.int64(bits[0]) ^ 0x7FFFFFFF
    return (~ascending << 32) | (np.int64(ids[item]) + 0x80000000)


@njit(**_EXACT)
def read(number):
    """Id, and bits of the score, that `rank` made a number of."""
    ascending = ~(number >> 32)
    bits = ascending if ascending >= 0 else ascending ^ 0x7FFFFFFF
    return np.int32((number & 0xFFFFFFFF) - 0x80000000), np.int32(bits)


@njit(**_EXACT)
def sort(numbers, n, result, starts):
    """numbers[:n], ascending, into result[:n]: dealt to buckets of equal width, which are nearly in order then."""
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


@njit(**_EXACT)
def keep_best(numbers, n, k, sorted_numbers, starts, score, bits):
    """Keep the k least of numbers[:n], in order; returns the score of the last."""
    sort(numbers, n, sorted_numbers, starts)
    numbers[:k] = sorted_numbers[:k]
    bits[0] = read(numbers[k - 1])[1]
    return score[0]


# --- scan ---------------------------------------------------------------------------------------------------


@njit(**_EXACT)
def reaching(node, start, stop, cap_width, columns, flat, active, masks):
    """Which of the queries start..stop - 1 reach the node's cap, into `active`; returns their number.

    Here and below all sums come first and all decisions after them: a branch that waits for a sum and is then
    mispredicted costs more than the sum.
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


@njit(**_EXACT)
def advance(query, seeds, next_seed):
    """Step to the query's next node with seeds: next_seed[query] is the node, its leaves' bits and the step."""
    at = next_seed[query, 2] + 1
    next_seed[query, 0], next_seed[query, 1], next_seed[query, 2] = seeds[query, at, 0], seeds[query, at, 1], at


@njit(**_EXACT)
def leaves_reached(node, n, cap_width, rows, leaf_caps, seeds, next_seed, active, masks, visitors, n_visitors):
    """For each leaf of a node, which of the n active queries reach its cap, into visitors[leaf]; returns how many.

    Seeds were scored before and do not count. The lists are filled up to an even number with -1.
    """
    at = node * LEAF * cap_width
    for i in range(n):
        masks[i] = reached(leaf_caps, at, rows, active[i] * cap_width, cap_width)
    n_visitors[:] = 0
    for i in range(n):
        query, mask = active[i], masks[i]
        # the pointer passes seeds in nodes that were not reached after all
        while next_seed[query, 0] < node:
            advance(query, seeds, next_seed)
        if next_seed[query, 0] == node:
            mask &= ~next_seed[query, 1]
        while mask != 0:
            leaf = lowest(mask)
            mask &= mask - 1
            visitors[leaf, n_visitors[leaf]] = query
            n_visitors[leaf] += 1
    total = 0
    for leaf in range(LEAF):
        total += n_visitors[leaf]
    return total


@njit(**_EXACT)
def hits_of(node, width, cap_width, rows, leaves, low, visitors, n_visitors, pairs, masks):
    """Leaf, query and the bits of the items that reach the query's `low`, where there are any; returns how many."""
    found = 0
    for leaf in range(LEAF):
        at = (node * LEAF + leaf) * LEAF * (width + 1)
        n = n_visitors[leaf]
        if n % 2 == 1:
            visitors[leaf, n] = visitors[leaf, n - 1]
        for i in range(0, n, 2):
            first, second = visitors[leaf, i], visitors[leaf, i + 1]
            mask = hits_of_two(leaves, at, rows, first * cap_width, second * cap_width, width, low[first], low[second])
            pairs[found, 0], pairs[found, 1], masks[found] = leaf, first, mask & 0xFFFF
            found += (mask & 0xFFFF) != 0
            pairs[found, 0], pairs[found, 1], masks[found] = leaf, second, mask >> 16
            found += ((mask >> 16) != 0) & (i + 1 < n)
    return found


@njit(**_EXACT)
def search_groups(first, last, size, room, n_seeds, error, slack, tree, queries, offsets, out_ids, out_scores, work):
    """Search for the queries of groups first..last - 1, of `size` each.

    tree: leaves, leaf_caps, node_caps, ids. queries: order (q,), units (q, width) in that order, vectors
    (q, d), norms (q,), wanted (q,), at least 1 and at most `room` - NODE. Writes to out_ids and out_scores from
    offsets[query] on. Adds to work: items scored, leaves bounded, nodes bounded, lists cut.
    """
    leaves, leaf_caps, node_caps, ids = tree
    order, units, vectors, lengths, wanted = queries
    n_items, d = len(ids), vectors.shape[1]
    n_nodes, cap_width = node_caps.shape
    width = units.shape[1]
    flat = node_caps.reshape(-1)
    rows, columns = np.zeros(size * cap_width, np.float32), np.zeros(size * cap_width, np.float32)
    numbers, counts, low = np.empty((size, room), np.int64), np.zeros(size, np.int64), np.empty(size, np.float32)
    sums = np.empty(LEAF, np.float32)
    histograms, fine = np.empty((size, _BUCKETS), np.int32), np.empty(_FINE_BUCKETS, np.int32)
    seeds, n_seed_nodes = np.empty((size, n_seeds + 1, 2), np.int32), np.zeros(size, np.int64)
    approx, leaf_of = np.empty(2 * n_seeds * LEAF, np.float32), np.empty(2 * n_seeds, np.int64)
    chosen = np.empty(2 * n_seeds * LEAF, np.int32)
    sorted_numbers, starts = np.empty(room, np.int64), np.empty(_RANK_BUCKETS + 1, np.int64)
    active, masks = np.empty(_TOGETHER, np.int64), np.empty(_TOGETHER * LEAF + 2, np.int64)
    visitors, n_visitors = np.empty((LEAF, _TOGETHER + 1), np.int64), np.empty(LEAF, np.int64)
    pairs, next_seed = np.empty((_TOGETHER * LEAF + 2, 2), np.int64), np.empty((size, 3), np.int64)
    score = np.empty(1, np.float32)
    bits = score.view(np.int32)
    out_bits = out_scores.view(np.int32)
    for group in range(first, last):
        begin = group * size
        here = min(size, len(order) - begin)
        for query in range(here):
            for c in range(d):
                unit = units[begin + query, c]
                rows[query * cap_width + c] = unit
                columns[query // LEAF * LEAF * cap_width + c * LEAF + query % LEAF] = unit
            counts[query], low[query] = 0, -4
        for start in range(0, here, _TOGETHER):
            stop = min(here, start + _TOGETHER)
            aim_at_nodes(start, stop, n_seeds // 4, d, node_caps, rows, columns, histograms, sums)
            aim_at_leaves(
                start, stop, n_seeds, d, node_caps, leaf_caps, rows, columns, histograms, sums, seeds, n_seed_nodes
            )
        for query in range(here):
            row = order[begin + query]
            k = wanted[row]
            n = score_seeds(
                query, width, cap_width, leaves, leaf_caps, rows, seeds, n_seed_nodes[query], approx, leaf_of
            )
            work[0] += n
            low[query] = max(np.float32(-3), kth_of(approx, n * LEAF, k, fine, chosen) - 2 * error)
            for i in range(at_least(approx, n * LEAF, low[query], chosen)):
                item = leaf_of[chosen[i] // LEAF] * LEAF + chosen[i] % LEAF
                if item < n_items:
                    numbers[query, counts[query]] = rank(
                        row, lengths[row], item, width, vectors, leaves, ids, score, bits
                    )
                    counts[query] += 1
                if counts[query] > room - NODE:
                    last = keep_best(numbers[query], counts[query], k, sorted_numbers, starts, score, bits)
                    counts[query], low[query] = k, max(low[query], last - error)
                    work[3] += 1
            bound(query, low[query], error, slack, d, cap_width, rows, columns)
            next_seed[query, 2] = -1
            advance(query, seeds, next_seed)
        work[2] += n_nodes * here
        for tile in range(0, n_nodes, _TILE):
            for start in range(0, here, _TOGETHER):
                stop = min(here, start + _TOGETHER)
                for node in range(tile, min(tile + _TILE, n_nodes)):
                    n = reaching(node, start, stop, cap_width, columns, flat, active, masks)
                    work[1] += n
                    work[0] += leaves_reached(
                        node, n, cap_width, rows, leaf_caps, seeds, next_seed, active, masks, visitors, n_visitors
                    )
                    n = hits_of(node, width, cap_width, rows, leaves, low, visitors, n_visitors, pairs, masks)
                    for i in range(n):
                        leaf, query, hits = node * LEAF + pairs[i, 0], pairs[i, 1], masks[i]
                        row = order[begin + query]
                        while hits != 0:
                            item = leaf * LEAF + lowest(hits)
                            hits &= hits - 1
                            if item < n_items:
                                numbers[query, counts[query]] = rank(
                                    row, lengths[row], item, width, vectors, leaves, ids, score, bits
                                )
                                counts[query] += 1
                        if counts[query] > room - NODE:
                            k = wanted[row]
                            last = keep_best(numbers[query], counts[query], k, sorted_numbers, starts, score, bits)
                            counts[query], low[query] = k, max(low[query], last - error)
                            bound(query, low[query], error, slack, d, cap_width, rows, columns)
                            work[3] += 1
        for query in range(here):
            row = order[begin + query]
            sort(numbers[query], counts[query], sorted_numbers, starts)
            for i in range(wanted[row]):
                out_ids[offsets[row] + i], out_bits[offsets[row] + i] = read(sorted_numbers[i])
