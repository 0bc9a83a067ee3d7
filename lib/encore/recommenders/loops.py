"""Compiled loops of the models that count in which playlists tracks occur.

Import only through `interactions.load_loops`: numba is slow to import, and importing this module compiles it.

Each query is computed by one thread, in a fixed order: its seeds by id, their playlists by pid, the tracks of each in
playlist order. So a row does not depend on the other queries, on block sizes or on threads. Accumulators are as large
as the catalogue or the number of playlists, never as large as both multiplied, and are reused from query to query; the
largest are made once for each thread, because for a single query the system would take longer to clear them than the
loop to run.

Arguments that all loops share: `seeds` and `seed_offsets`, the queries' seeds; `own`, for each query the row of its own
playlist or -1; `offsets`, `tracks`, `track_offsets`, `rows` and `places`, the arrays of Interactions; `scores`,
`touched`, `weighted` and `counts`, the workspace, with `scores` and `counts` all 0 before and after; `room`, the
offsets of the queries' results in `out_ids` and `out_scores`; `lengths`, to which the numbers of results are written.
Weights that depend on a count are tables by count. An own playlist is left out of all counts.
"""

# numba infers the types of these functions
# mypy: ignore-errors
from __future__ import annotations

import numpy as np
from numba import njit, types

from encore.arrays.prefetch import LINE_BYTES, prefetch

_COMPILED = {"cache": True, "nogil": True}
_DROPPED_BITS = 16
_LISTS_AHEAD, _SCORES_AHEAD, _TOUCHED_AHEAD = 8, 2, 16
BUCKETS = 1 << (32 - _DROPPED_BITS - 1)


def _array(element, *, is_result=False):
    return types.Array(element, 1, "C", readonly=not is_result)


# one signature for arrays in memory and for mapped ones, which are read-only
_I16, _I32, _I64, _F32 = map(_array, (types.int16, types.int32, types.int64, types.float32))
_N = types.int64
_QUERIES = (_I32, _I64, _I32)
_LISTS = (_I64, _I32, _I64)
_RESULTS = (_I64, *(_array(element, is_result=True) for element in (types.int32, types.float32, types.int64)))
_WORK = tuple(_array(element, is_result=True) for element in (types.float32, types.int32, types.float32, types.int32))


# --- parts ----------------------------------------------------------------------------------------------------


@njit(**_COMPILED)
def known_tracks(seeds, n_tracks):
    """The distinct seeds that are tracks, ascending."""
    distinct = np.unique(seeds)
    return distinct[np.searchsorted(distinct, 0) : np.searchsorted(distinct, n_tracks)]


@njit(**_COMPILED)
def place_of(sorted_values, start, stop, value):
    """The place from `start` on of a value in ascending distinct values [start, stop), or `stop` if it is not there."""
    low, high = start, stop
    while low < high:
        middle = (low + high) >> 1
        if sorted_values[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low if low < stop and sorted_values[low] == value else stop


@njit(**_COMPILED)
def sampled(i, taken, n, start, hole):
    """The place of sample `i` of `taken` evenly spaced ones among n entries from `start` on, `hole` not counted."""
    at = start + (i if taken == n else i * n // taken)
    return at + 1 if at >= hole else at


@njit(**_COMPILED)
def add(scores, touched, n_touched, track, score):
    """Add to the score of a track, which is touched if it was 0; returns how many tracks are touched now.

    There is no branch, which the processor could not predict; so `touched` needs room for one more than there can be.
    """
    before = scores[track]
    scores[track] = before + score
    touched[n_touched] = track
    return n_touched + (before == 0)


@njit(**_COMPILED)
def spread(scores, touched, n_touched, first, stop, tracks, score):
    """Add to the scores of tracks [first, stop) of the lists; returns how many tracks are touched now."""
    for j in range(first, stop):
        n_touched = add(scores, touched, n_touched, tracks[j], score)
    return n_touched


@njit(**_COMPILED)
def take(scores, touched, n_touched, own, offsets, tracks, track_offsets, track_weight, weighted):
    """Move the touched scores to `weighted`, multiplied by the weight of the track's count without the own playlist.

    All scores are 0 afterwards.
    """
    if own >= 0:
        for j in range(offsets[own], offsets[own + 1]):
            track = tracks[j]
            # negative: weighted already
            scores[track] *= -track_weight[track_offsets[track + 1] - track_offsets[track] - 1]
    for t in range(n_touched):
        # tracks are scattered in memory, so prefetch some ahead
        ahead = touched[min(t + _TOUCHED_AHEAD, n_touched - 1)]
        prefetch(scores, ahead, 1)
        prefetch(track_offsets, ahead, 1)
        track = touched[t]
        score = scores[track]
        scores[track] = 0
        weight = track_weight[track_offsets[track + 1] - track_offsets[track]]
        weighted[t] = score * weight if score > 0 else -score


@njit(**_COMPILED)
def select(scores, ids, n_ids, n, counts, out_ids, out_scores):
    """Write the n ids with the highest positive scores, best first, ties by id; returns how many there are.

    scores[t] is the score of ids[t]. Positive float32 numbers have the order of their bits. Upper bits are counted in
    `counts`, all zero before and after, to find a bound that few more than n scores reach; then one sort of 64-bit keys
    decides by score and id.
    """
    bits = scores.view(np.uint32)
    bottom, top = BUCKETS, 0
    for t in range(n_ids):
        if scores[t] > 0:
            bucket = np.int64(bits[t] >> np.uint32(_DROPPED_BITS))
            counts[bucket] += 1
            bottom, top = min(bottom, bucket), max(top, bucket)
    bound, reaching = top + 1, 0
    while bound > bottom and reaching < n:
        bound -= 1
        reaching += counts[bound]
    counts[bottom : top + 1] = 0
    keys = np.empty(reaching, np.uint64)
    lowest = np.uint32(bound) << np.uint32(_DROPPED_BITS)
    found = 0
    for t in range(n_ids):
        if scores[t] > 0 and bits[t] >= lowest and found < reaching:
            keys[found] = (np.uint64(np.uint32(0xFFFFFFFF) - bits[t]) << np.uint64(32)) | np.uint64(ids[t])
            found += 1
    if reaching > 2 * n:
        keys = np.partition(keys, n)[:n]
    keys.sort()
    kept, out_bits = min(n, len(keys)), out_scores.view(np.uint32)
    for t in range(kept):
        out_ids[t] = np.int64(keys[t] & np.uint64(0xFFFFFFFF))
        out_bits[t] = np.uint32(0xFFFFFFFF) - np.uint32(keys[t] >> np.uint64(32))
    return kept


# --- loops over queries -----------------------------------------------------------------------------------------


@njit(types.void(*_QUERIES, *_LISTS, _I32, _I16, _F32, _F32, _F32, _N, *_WORK, *_RESULTS), **_COMPILED)
def adjacency(
    seeds,
    seed_offsets,
    own,
    offsets,
    tracks,
    track_offsets,
    rows,
    places,
    seed_weight,
    track_weight,
    closeness,
    postings,
    scores,
    touched,
    weighted,
    counts,
    room,
    out_ids,
    out_scores,
    lengths,
):
    """Positional co-occurrence; see recommenders.adjacency. `closeness[d]`: the weight of a track at distance d."""
    n_tracks, reach = len(track_offsets) - 1, len(closeness) - 1
    width = 2 * reach + 1
    n_lines = 4 * width // LINE_BYTES + 2
    most = min(postings, len(rows))
    origins, firsts, stops = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    window = np.empty(width, np.float32)
    for q in range(len(lengths)):
        n_touched = 0
        for seed in known_tracks(seeds[seed_offsets[q] : seed_offsets[q + 1]], n_tracks):
            start, stop = track_offsets[seed], track_offsets[seed + 1]
            hole = place_of(rows, start, stop, own[q])
            n = stop - start - (hole < stop)
            taken = min(n, postings)
            if taken == 0:
                continue
            # a sample of the playlists stands for all of them
            weight = seed_weight[n] * np.float32(n / taken)
            for d in range(width):
                window[d] = weight * closeness[abs(d - reach)]
            # playlists are scattered in memory, and so are scores: prefetch where each playlist begins, then its
            # tracks, then their scores
            for i in range(taken):
                at = sampled(i, taken, n, start, hole)
                firsts[i], origins[i] = rows[at], places[at] - reach
                prefetch(offsets, firsts[i], 1)
            for i in range(taken):
                first, end = offsets[firsts[i]], offsets[firsts[i] + 1]
                origins[i] += first
                firsts[i], stops[i] = max(first, origins[i]), min(end, origins[i] + width)
            for i in range(taken):
                prefetch(tracks, firsts[min(i + _LISTS_AHEAD, taken - 1)], n_lines)
                soon = min(i + _SCORES_AHEAD, taken - 1)
                for j in range(firsts[soon], stops[soon]):
                    prefetch(scores, tracks[j], 1)
                for j in range(firsts[i], stops[i]):
                    n_touched = add(scores, touched, n_touched, tracks[j], window[j - origins[i]])
        take(scores, touched, n_touched, own[q], offsets, tracks, track_offsets, track_weight, weighted)
        a, b = room[q], room[q + 1]
        lengths[q] = select(weighted, touched, n_touched, b - a, counts, out_ids[a:b], out_scores[a:b])


@njit(types.void(*_QUERIES, *_LISTS, _I32, _F32, _F32, _F32, _N, _N, _N, *_WORK, *_RESULTS), **_COMPILED)
def neighbours(
    seeds,
    seed_offsets,
    own,
    offsets,
    tracks,
    track_offsets,
    rows,
    seed_weight,
    length_weight,
    track_weight,
    n_neighbours,
    power,
    postings,
    scores,
    touched,
    weighted,
    counts,
    room,
    out_ids,
    out_scores,
    lengths,
):
    """Tracks of similar playlists; see recommenders.playlist_knn and item_knn. n_neighbours 0: all playlists."""
    n_tracks, n_rows = len(track_offsets) - 1, len(offsets) - 1
    similar, reached = np.zeros(n_rows, np.float32), np.empty(n_rows + 1, np.int32)
    weights, best = np.empty(n_rows, np.float32), np.empty(n_neighbours, np.int32)
    best_weights = np.empty(n_neighbours, np.float32)
    for q in range(len(lengths)):
        n_reached = 0
        for seed in known_tracks(seeds[seed_offsets[q] : seed_offsets[q + 1]], n_tracks):
            start, stop = track_offsets[seed], track_offsets[seed + 1]
            hole = place_of(rows, start, stop, own[q])
            n = stop - start - (hole < stop)
            taken = min(n, postings)
            if taken == 0:
                continue
            weight = seed_weight[n] * np.float32(n / taken)
            for i in range(taken):
                row = rows[sampled(i, taken, n, start, hole)]
                n_reached = add(similar, reached, n_reached, row, weight)
        for r in range(n_reached):
            row = reached[r]
            weights[r] = similar[row] * length_weight[offsets[row + 1] - offsets[row]]
            similar[row] = 0
        n_touched = 0
        found = n_reached
        if n_neighbours:
            found = select(weights, reached, n_reached, n_neighbours, counts, best, best_weights)
        for r in range(found):
            row, similarity = (best[r], best_weights[r]) if n_neighbours else (reached[r], weights[r])
            weight = similarity
            for _ in range(1, power):
                weight *= similarity
            n_touched = spread(scores, touched, n_touched, offsets[row], offsets[row + 1], tracks, weight)
        take(scores, touched, n_touched, own[q], offsets, tracks, track_offsets, track_weight, weighted)
        a, b = room[q], room[q + 1]
        lengths[q] = select(weighted, touched, n_touched, b - a, counts, out_ids[a:b], out_scores[a:b])


@njit(types.void(*_QUERIES, *_LISTS, _I32, _I64, _I32, _I64, _F32, _F32, _F32, *_WORK, *_RESULTS), **_COMPILED)
def by_artist(
    seeds,
    seed_offsets,
    own,
    offsets,
    tracks,
    track_offsets,
    artist_of,
    artist_offsets,
    artist_tracks,
    artist_rows,
    seeds_weight,
    rows_weight,
    track_weight,
    scores,
    touched,
    weighted,
    counts,
    room,
    out_ids,
    out_scores,
    lengths,
):
    """Tracks by the artists of the seeds; see recommenders.artist."""
    n_tracks, n_artists = len(track_offsets) - 1, len(artist_rows)
    n_seeds, n_own = np.zeros(n_artists, np.int32), np.zeros(n_artists, np.int32)
    weight, found = np.zeros(n_artists, np.float32), np.empty(n_artists, np.int32)
    for q in range(len(lengths)):
        n_found = n_touched = 0
        for seed in known_tracks(seeds[seed_offsets[q] : seed_offsets[q + 1]], n_tracks):
            artist = artist_of[seed]
            if artist >= 0:
                if n_seeds[artist] == 0:
                    found[n_found] = artist
                    n_found += 1
                n_seeds[artist] += 1
        first, stop = (offsets[own[q]], offsets[own[q] + 1]) if own[q] >= 0 else (0, 0)
        for j in range(first, stop):
            if artist_of[tracks[j]] >= 0:
                n_own[artist_of[tracks[j]]] += 1
        for f in range(n_found):
            artist = found[f]
            n = min(np.int64(n_seeds[artist]), len(seeds_weight) - 1)
            weight[artist] = seeds_weight[n] * rows_weight[artist_rows[artist] - n_own[artist]]
        for j in range(first, stop):
            track = tracks[j]
            if artist_of[track] >= 0 and n_seeds[artist_of[track]]:
                score = weight[artist_of[track]] * track_weight[track_offsets[track + 1] - track_offsets[track] - 1]
                # not 0, so that the track is not scored again with the own playlist counted
                scores[track] = score if score > 0 else -1
                touched[n_touched] = track
                n_touched += 1
        a, b = room[q], room[q + 1]
        for f in range(n_found):
            artist = found[f]
            # tracks of the own playlist are scored already, and may have been before others
            most = min(artist_offsets[artist] + b - a + n_own[artist], artist_offsets[artist + 1])
            for i in range(artist_offsets[artist], most):
                track = artist_tracks[i]
                if scores[track] == 0:
                    scores[track] = weight[artist] * track_weight[track_offsets[track + 1] - track_offsets[track]]
                    touched[n_touched] = track
                    n_touched += 1
        for t in range(n_touched):
            weighted[t] = scores[touched[t]]
            scores[touched[t]] = 0
        lengths[q] = select(weighted, touched, n_touched, b - a, counts, out_ids[a:b], out_scores[a:b])
        for f in range(n_found):
            n_seeds[found[f]] = 0
        for j in range(first, stop):
            if artist_of[tracks[j]] >= 0:
                n_own[artist_of[tracks[j]]] = 0


@njit(
    types.void(_I32, _F32, _I64, _I32, *_LISTS, _I64, _I32, _F32, _I64, _I32, _F32, _F32, _N, _N, *_WORK, *_RESULTS),
    **_COMPILED,
)
def by_title(
    grams,
    gram_weights,
    query_offsets,
    own,
    offsets,
    tracks,
    track_offsets,
    posting_offsets,
    posting_titles,
    posting_weights,
    title_offsets,
    title_rows,
    length_weight,
    track_weight,
    n_neighbours,
    power,
    scores,
    touched,
    weighted,
    counts,
    room,
    out_ids,
    out_scores,
    lengths,
):
    """Tracks of playlists with similar titles; see recommenders.title."""
    n_titles = len(title_offsets) - 1
    similar, reached = np.zeros(n_titles, np.float32), np.empty(n_titles + 1, np.int32)
    similarities = np.empty(n_titles, np.float32)
    # one more, as the best title may have no other playlist than the own one
    best, weights = np.empty(n_neighbours + 1, np.int32), np.empty(n_neighbours + 1, np.float32)
    for q in range(len(lengths)):
        n_reached = 0
        for g in range(query_offsets[q], query_offsets[q + 1]):
            for p in range(posting_offsets[grams[g]], posting_offsets[grams[g] + 1]):
                weight = gram_weights[g] * posting_weights[p]
                n_reached = add(similar, reached, n_reached, posting_titles[p], weight)
        for r in range(n_reached):
            similarities[r] = similar[reached[r]]
            similar[reached[r]] = 0
        found = select(similarities, reached, n_reached, n_neighbours + 1, counts, best, weights)
        n_touched, left = 0, n_neighbours
        for t in range(found):
            start, stop = title_offsets[best[t]], title_offsets[best[t] + 1]
            hole = place_of(title_rows, start, stop, own[q])
            n = stop - start - (hole < stop)
            taken = min(n, left)
            if taken == 0:
                continue
            similarity = np.float32(n / taken)
            for _ in range(power):
                similarity *= weights[t]
            for i in range(taken):
                row = title_rows[sampled(i, taken, n, start, hole)]
                weight = similarity * length_weight[offsets[row + 1] - offsets[row]]
                n_touched = spread(scores, touched, n_touched, offsets[row], offsets[row + 1], tracks, weight)
            left -= taken
            if left == 0:
                break
        take(scores, touched, n_touched, own[q], offsets, tracks, track_offsets, track_weight, weighted)
        a, b = room[q], room[q + 1]
        lengths[q] = select(weighted, touched, n_touched, b - a, counts, out_ids[a:b], out_scores[a:b])
