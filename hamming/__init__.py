"""Binary codes and tie-exact Hamming ranking: packing, distances, histograms, metrics.

Copy this folder and use it alone: it needs numpy 2 and torch, and Pillow or matplotlib for
`hamming.pictures` and `hamming.figures`.

K-bit codes have only K + 1 distances, so a Hamming ranking is mostly ties and any sort breaks them
by accident. Here a metric is the expectation over all orders of the tied items (or the best, the
worst, the stable order), in float64 from two small integer tables per query.

    import numpy as np
    import hamming

    rng = np.random.default_rng(0)
    centres = rng.standard_normal((10, 32))                 # ten classes, codes of 32 bits
    database_labels, query_labels = np.arange(1000) % 10, np.arange(50) % 10
    database = centres[database_labels] + rng.standard_normal((1000, 32))
    query = centres[query_labels] + rng.standard_normal((50, 32))

    database = hamming.pack_codes(database)                 # floats (N, K): bit = value >= 0
    query = hamming.pack_codes(query)                       # floats (Q, K)
    results = hamming.evaluate(query, database, query_labels, database_labels, hash_bit=32, R=100)
    print(*(f"{results[name]:.4f}" for name in ("map", "map_min", "map_max")))
    # 0.7876 0.7259 0.8644: whoever breaks ties by accident gets something between the last two

    indices, distances = hamming.nearest(query, database, hash_bit=32, k=5)

A database larger than memory, or on several machines: tables of its parts add up.

    first = hamming.distance_histograms(query, database[:600], query_labels, database_labels[:600],
                                        hash_bit=32)
    rest = hamming.distance_histograms(query, database[600:], query_labels, database_labels[600:],
                                       hash_bit=32)
    print(f"{hamming.expected_ap(first + rest, R=100).mean():.4f}")
    # 0.7876
    assert hamming.summarise(first + rest, R=100) == results

Q queries, N database items, K = `hash_bit`. Codes are packed: uint8 (N, ceil(K/8)),
`numpy.packbits` order; `as_codes` makes them from anyone's. Labels are integers (N,), or 0/1 (N, C)
where an item may have several; items that share at least one label are relevant to each other. AP@R
divides by the hits within the top R, as published in this field; `strict` divides by min(R, number
relevant). A query that finds nothing relevant scores 0, and counts in the mean. Arrays may be numpy
or torch; none is written into; a bad one raises CodeError.

    codes, labels        packing; checks of codes and of labels
    histograms           distance_histograms (distances, threads: how it counts)
    metrics              of histograms (ties: the sums behind them)
    ranking              nearest items; metrics of a stable sort and of explicit rankings
    vectors              metrics of real vectors, to hold codes against
    evaluation           all metrics at once
    files                codes from .npz and .npy
    figures, pictures    what it looks like; imported by name (names, fonts: what they draw with)

Sources: McSherry & Najork, "Computing information retrieval performance measures efficiently in the
presence of tied scores", ECIR 2008; He et al., "Hashing as tie-aware learning to rank", CVPR 2018.
"""

import numpy as np

if not hasattr(np, "bitwise_count"):
    raise ImportError(f"hamming needs numpy 2.0 or newer, this is {np.__version__}")

from .checks import CodeError
from .codes import MAX_BITS, as_codes, check_codes, constant_bits, pack_codes, unpack_codes
from .evaluation import TIES, evaluate, summarise
from .files import load_npz, read_codes, write_similarity
from .histograms import Histograms, distance_histograms
from .labels import check_label_type, check_labels, smallest_class
from .metrics import (
    best_ap,
    chance_ap,
    expected_ap,
    precision_at,
    precision_curve,
    precision_recall,
    precision_within_radius,
    recall_at,
    worst_ap,
)
from .ranking import nearest, nearest_and_ties, ranked_ap, stable_metrics
from .vectors import float_ap, float_map

__all__ = [
    "MAX_BITS",
    "TIES",
    "CodeError",
    "Histograms",
    "as_codes",
    "best_ap",
    "chance_ap",
    "check_codes",
    "check_label_type",
    "check_labels",
    "constant_bits",
    "distance_histograms",
    "evaluate",
    "expected_ap",
    "float_ap",
    "float_map",
    "load_npz",
    "nearest",
    "nearest_and_ties",
    "pack_codes",
    "precision_at",
    "precision_curve",
    "precision_recall",
    "precision_within_radius",
    "ranked_ap",
    "read_codes",
    "recall_at",
    "smallest_class",
    "stable_metrics",
    "summarise",
    "unpack_codes",
    "worst_ap",
    "write_similarity",
]
