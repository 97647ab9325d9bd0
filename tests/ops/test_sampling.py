import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops.assignment import IGNORE, NEGATIVE, POSITIVE
from jaxdet.ops.sampling import sample_labels


def labels_of(positives, negatives, ignored=4):
    labels = [POSITIVE] * positives + [NEGATIVE] * negatives + [IGNORE] * ignored
    return jnp.array(np.random.default_rng(0).permutation(labels), jnp.int32)


@pytest.mark.parametrize(
    "positives, negatives, expected",
    [
        (10, 50, (4, 12)),  # Plenty of both: a quarter is positive.
        (2, 50, (2, 14)),  # Few positives: negatives fill up.
        (10, 5, (4, 5)),  # Too few candidates: some samples are invalid.
        (0, 0, (0, 0)),  # Only padding.
    ],
)
def test_sample_labels_keeps_the_quota(positives, negatives, expected):
    labels = labels_of(positives, negatives, ignored=16)
    samples = jax.jit(
        lambda key, labels: sample_labels(key, labels, num_samples=16, positive_fraction=0.25)
    )(jax.random.key(0), labels)
    index, positive, valid = map(np.asarray, samples)
    assert (positive.sum(), (valid & ~positive).sum()) == expected
    assert (np.asarray(labels)[index[positive]] == POSITIVE).all()
    assert (np.asarray(labels)[index[valid & ~positive]] == NEGATIVE).all()
    assert len(set(index[valid])) == valid.sum()  # None is drawn twice.
    assert (np.diff(valid.astype(int)) <= 0).all()  # Invalid slots come last.


def test_counts_equal_the_reference(golden):
    data = golden("mmdet_random_sampler")
    draw = jax.jit(
        lambda labels, num, fraction, cap: sample_labels(
            jax.random.key(0),
            labels,
            num_samples=num,
            positive_fraction=fraction,
            max_negatives_per_positive=cap,
        ),
        static_argnums=(1, 2, 3),
    )
    size = 320  # One padded shape: the settings alone compile anew.
    for row in data["counts"]:
        case, num_objects, num, fraction, cap, add_objects, positives, negatives, _ = row.tolist()
        labels = np.sign(data[f"gt_inds/{int(case)}"])
        labels = np.concatenate([np.full(int(num_objects * add_objects), POSITIVE), labels])
        labels = np.pad(labels, (0, size - len(labels)), constant_values=IGNORE)
        samples = draw(labels.astype(np.int32), int(num), fraction, cap)
        found = int(samples.positive.sum()), int((samples.valid & ~samples.positive).sum())
        assert found == (positives, negatives), row


def test_every_positive_is_drawn_equally_often():
    labels = labels_of(8, 30)
    draw = jax.vmap(lambda key: sample_labels(key, labels, num_samples=8, positive_fraction=0.5))
    samples = draw(jax.random.split(jax.random.key(0), 2000))
    counts = np.bincount(np.asarray(samples.index)[np.asarray(samples.positive)], minlength=42)
    drawn = counts[np.asarray(labels) == POSITIVE]
    assert counts.sum() == 2000 * 4 and (abs(drawn - 1000) < 120).all()


def test_padding_does_not_change_the_draw():
    labels, settings = labels_of(10, 20), dict(num_samples=12, positive_fraction=0.25)
    padded = jnp.pad(labels, (0, 50), constant_values=IGNORE)
    key = jax.random.key(7)
    jax.tree.map(
        np.testing.assert_array_equal,
        sample_labels(key, labels, **settings),
        sample_labels(key, padded, **settings),
    )


def test_negatives_are_capped_by_the_positives():
    samples = sample_labels(
        jax.random.key(0),
        labels_of(2, 30),
        num_samples=16,
        positive_fraction=0.5,
        max_negatives_per_positive=3.0,
    )
    assert (int(samples.positive.sum()), int(samples.valid.sum())) == (2, 8)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(num_samples=99, positive_fraction=0.5), "num_samples must lie in 1..14, got 99"),
        (dict(num_samples=4, positive_fraction=1.5), "positive_fraction must lie in"),
    ],
)
def test_impossible_settings_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        sample_labels(jax.random.key(0), labels_of(5, 5), **settings)
