"""Curves over recall and score, against numbers worked by hand."""

import numpy as np
import pytest

from jaxdet.evaluation import curves

HITS = np.array([True, False, True, False])
SCORES = np.array([0.9, 0.8, 0.4, 0.2])


def test_precision_is_the_best_at_a_recall_or_beyond():
    found = curves.precision_at_recalls(np.array([True, False, False, True, True]), 6)

    # Hits at ranks 1, 4, 5: recalls 1/6, 2/6, 3/6 with 1, 1/2, 3/5; then nothing.
    np.testing.assert_allclose(found[:17], 1)
    np.testing.assert_allclose(found[17:51], 0.6)
    np.testing.assert_allclose(found[51:], 0)


@pytest.mark.parametrize("hits, objects", [([], 3), ([False], 3), ([], 0), ([False], 0)])
def test_precision_is_zero_where_nothing_is_found(hits, objects):
    assert not curves.precision_at_recalls(np.array(hits, bool), objects).any()


def test_f1_counts_what_has_at_least_the_score():
    found = curves.f1_at_scores(SCORES, HITS, 3)

    # 2 x right / (detections + 3 objects).
    for score, expected in [(0, 4 / 7), (0.2, 4 / 7), (0.21, 4 / 6), (0.4, 4 / 6), (0.41, 2 / 5)]:
        np.testing.assert_allclose(found[round(100 * score)], expected)
    for score, expected in [(0.8, 2 / 5), (0.81, 2 / 4), (0.9, 2 / 4), (0.91, 0), (1, 0)]:
        np.testing.assert_allclose(found[round(100 * score)], expected)


def test_f1_is_zero_without_detections_and_objects():
    assert not curves.f1_at_scores(np.zeros(0), np.zeros(0, bool), 0).any()


@pytest.mark.parametrize(
    "stretches, expected",
    [([(30, 40)], 0.35), ([(30, 40), (80, 99)], 0.35), ([(50, 50)], 0.5), ([(0, 100)], 0.5)],
)
def test_the_best_score_is_in_the_middle_of_the_first_best_ones(stretches, expected):
    f1 = np.zeros(101)
    for first, last in stretches:
        f1[first : last + 1] = 0.8

    assert curves.best_score(f1) == expected


def test_reliability_compares_scores_and_shares():
    found = curves.reliability(
        np.array([0.05, 0.15, 0.2, 0.98, 1.0]), np.array([False, True, False, True, True])
    )

    assert found.counts.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0, 2]
    np.testing.assert_allclose(found.scores[[0, 1, 2, 9]], [0.05, 0.15, 0.2, 0.99])
    np.testing.assert_allclose(found.precisions[[0, 1, 2, 9]], [0, 1, 0, 1])
    assert np.isnan(found.precisions[3:9]).all()
    np.testing.assert_allclose(found.error, (0.05 + 0.85 + 0.2 + 2 * 0.01) / 5)


def test_reliability_of_nothing_is_unknown():
    found = curves.reliability(np.zeros(0), np.zeros(0, bool))

    assert found.counts.sum() == 0 and np.isnan(found.error)
