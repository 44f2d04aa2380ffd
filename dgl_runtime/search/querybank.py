"""Correction for hubs, clips that are near to every query: dual softmax, inverted softmax, QB-Norm.

Each takes similarities and gives new ones to rank by. Their inverse temperature beta is to be chosen
on validation (``choose_temperature``), never on the queries that are reported.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dgl_runtime.search.metrics import parts

Float32 = NDArray[np.float32]

BETAS = (1.0, 5.0, 10.0, 20.0, 50.0, 100.0)
"""The inverse temperatures to choose from, for similarities that are cosines."""


def dual_softmax(similarity: Float32, beta: float) -> Float32:
    """Weigh each similarity by how much its candidate prefers this query over all others.

    The test-time form of the dual softmax of Cheng et al., "Improving Video-Text Retrieval by
    Multi-Stream Corpus Alignment and Dual Softmax Loss", arXiv 2109.04290:
    s'(q, g) = s(q, g) * exp(beta s(q, g)) / sum over all queries k of exp(beta s(k, g)).
    It needs all queries at once, so it uses the whole test set.

    Args:
        similarity: Queries by candidates, [Q, N]; clips as queries: give the transpose.
        beta: Inverse temperature, above 0.

    Returns:
        Float32 [Q, N]; each row is to be ranked.
    """
    found: Float32 = similarity - hubness(similarity, beta)
    found *= beta  # in place: the matrix may be large
    np.exp(found, out=found)
    found *= similarity
    return found


def inverted_softmax(similarity: Float32, bank_hubness: Float32) -> Float32:
    """Correct similarities by how near each candidate is to a bank of queries.

    The inverted softmax is exp(beta s(q, g)) / sum over the bank b of exp(beta s(b, g)). This is its
    logarithm over beta, which ranks the same, is in units of the similarity and does not overflow.

    Args:
        similarity: Queries by candidates, [Q, N].
        bank_hubness: What ``hubness`` gives for the bank and the same candidates, [N].

    Returns:
        Float32 [Q, N]; each row is to be ranked.
    """
    found: Float32 = similarity - bank_hubness
    return found


def qb_norm(similarity: Float32, bank_hubness: Float32, hubs: NDArray[np.bool_]) -> Float32:
    """Querybank normalisation with the dynamic inverted softmax.

    Bogolin et al., "Cross Modal Retrieval with Querybank Normalisation", CVPR 2022: a query whose
    nearest candidate is a hub of the bank gets the inverted softmax, any other keeps its similarities.

    Args:
        similarity: Queries by candidates, [Q, N].
        bank_hubness: What ``hubness`` gives for the bank and the same candidates, [N].
        hubs: What ``activation_set`` gives for them, bool [N].

    Returns:
        Float32 [Q, N]; each row is to be ranked.
    """
    found = similarity.copy()
    for rows in parts(*found.shape):  # the matrix may be large
        is_active = hubs[found[rows].argmax(axis=1)]
        found[rows] -= is_active[:, None] * bank_hubness
    return found


def hubness(similarity: Float32, beta: float) -> Float32:
    """How near each candidate is to all queries: log(sum over them of exp(beta s)) / beta.

    Args:
        similarity: Queries (of a bank) by candidates, [Q, N], Q above 0.
        beta: Inverse temperature, above 0.

    Returns:
        Float32 [N].

    Raises:
        ValueError: There are no queries, or beta is not above 0.
    """
    if not len(similarity) or not 0 < beta < np.inf:
        raise ValueError(
            f"got {len(similarity)} queries and beta {beta}, expected one query or more and a "
            "finite beta above 0."
        )
    highest = similarity.max(axis=0).astype(np.float64)
    total = np.zeros(similarity.shape[1])
    for rows in parts(*similarity.shape):
        total += np.exp(beta * (similarity[rows] - highest)).sum(axis=0)
    found: Float32 = (highest + np.log(total) / beta).astype(np.float32)
    return found


def activation_set(similarity: Float32) -> NDArray[np.bool_]:
    """The candidates that are nearest to any query of a bank.

    Args:
        similarity: Queries of the bank by candidates, [Q, N].

    Returns:
        Bool [N].
    """
    hubs = np.zeros(similarity.shape[1], np.bool_)
    for rows in parts(*similarity.shape):
        hubs[similarity[rows].argmax(axis=1)] = True
    return hubs


def choose_temperature(
    score: Callable[[float], Sequence[float]], betas: Sequence[float] = BETAS
) -> float:
    """The beta with the highest score on validation; among equals the smallest.

    Args:
        score: Beta -> figures in order of importance, higher is better.
        betas: The betas to try, at least one.
    """
    return max(sorted(betas), key=lambda beta: tuple(score(beta)))
