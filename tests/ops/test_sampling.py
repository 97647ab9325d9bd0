import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdet.ops import box_coder, sampling
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.assignment import (
    IGNORE,
    NEGATIVE,
    POSITIVE,
    Assignment,
    append_ground_truth,
    assign_by_iou,
)
from jaxdet.ops.sampling import Samples, pad_labels, sample_labels, take_all

SIZE = 40  # One padded shape for random labels.
SWAP = [1, 0, 3, 2]  # Between the yxyx of simple-faster-rcnn and xyxy.


@functools.cache
def jitted(**settings):
    return jax.jit(functools.partial(sample_labels, **settings))


def draw_all(labels, settings):
    """Samples of each image under each setting; most of a draw's compilation is common to them."""

    def draw(labels):
        return [sample_labels(jax.random.key(0), labels, **setting) for setting in settings]

    drawn = jax.device_get(jax.jit(jax.vmap(draw))(np.stack(labels)))
    return [
        [Samples(*(part[image] for part in samples)) for samples in drawn]
        for image in range(len(labels))
    ]


def counts_of(samples):
    positive, valid = np.asarray(samples.positive), np.asarray(samples.valid)
    return positive.sum(), (valid & ~positive).sum()


def padded(labels, size):
    return np.pad(labels, (0, max(size - len(labels), 0)), constant_values=IGNORE).astype(np.int32)


def exact(table):
    """The decimals that single precision was given: 0.02, not 0.0199999996."""
    return [[float(str(value)) for value in row] for row in table]


def labels_of(positives, negatives, ignored=4):
    labels = [POSITIVE] * positives + [NEGATIVE] * negatives + [IGNORE] * ignored
    return jnp.array(np.random.default_rng(0).permutation(labels), jnp.int32)


@pytest.mark.parametrize(
    "positives, negatives, expected",
    [
        (10, 50, (4, 12)),  # Plenty of both: a quarter is positive.
        (2, 50, (2, 14)),  # Few positives: negatives fill up.
        (10, 5, (4, 5)),  # Too few candidates: some samples are invalid.
        (10, 0, (4, 0)),  # No negatives: the quota stays.
        (0, 0, (0, 0)),  # Only padding.
    ],
)
def test_sample_labels_keeps_the_quota(positives, negatives, expected):
    labels = padded(labels_of(positives, negatives, ignored=16), 76)
    samples = jitted(num_samples=16, positive_fraction=0.25)(jax.random.key(0), labels)
    assert counts_of(samples) == expected


@pytest.mark.parametrize(
    "settings",
    [
        dict(num_samples=16, positive_fraction=0.25),
        dict(num_samples=9, positive_fraction=1.0, max_negatives_per_positive=1.3),
        dict(num_samples=SIZE, positive_fraction=0.0, max_negatives_per_positive=0.0),
    ],
)
@given(st.integers(0, 2**32 - 1), st.integers(0, 20), st.integers(0, 20))
def test_samples_are_as_many_and_as_different_as_plain_counting_says(
    settings, seed, positives, negatives
):
    labels = np.random.default_rng(seed).permutation(
        padded([POSITIVE] * positives + [NEGATIVE] * negatives, SIZE)
    )
    samples = jitted(**settings)(jax.random.key(seed), labels)
    index, positive, valid = map(np.asarray, samples)
    drawn = min(positives, int(settings["num_samples"] * settings["positive_fraction"]))
    rest = min(negatives, settings["num_samples"] - drawn)
    cap = settings.get("max_negatives_per_positive", -1)
    rest = min(rest, int(cap * max(drawn, 1))) if cap >= 0 else rest
    assert positive.tolist() == [True] * drawn + [False] * (len(positive) - drawn)
    assert valid.tolist() == [True] * (drawn + rest) + [False] * (len(valid) - drawn - rest)
    assert (labels[index[positive]] == POSITIVE).all()
    assert (labels[index[valid & ~positive]] == NEGATIVE).all()
    assert len(set(index[valid])) == drawn + rest  # None is drawn twice.
    assert not index[~valid].any()


def test_counts_equal_the_reference(golden):
    data = golden("mmdet_random_sampler")
    rows = data["counts"].tolist()
    images = sorted({(row[0], row[1] * row[5]) for row in rows})  # Case, objects added to it.
    settings = sorted({tuple(row[2:5]) for row in rows})
    found = [np.sign(data[f"gt_inds/{int(case)}"]) for case, _ in images]
    labels = [
        np.append(verdicts, np.full(int(added), POSITIVE))
        for verdicts, (_, added) in zip(found, images, strict=True)
    ]
    size = int(max(*map(len, labels), *(num for num, _, _ in settings)))

    drawn = draw_all(
        [padded(row, size) for row in labels],
        [
            dict(num_samples=int(num), positive_fraction=fraction, max_negatives_per_positive=cap)
            for num, fraction, cap in settings
        ],
    )
    for row in rows:
        image = images.index((row[0], row[1] * row[5]))
        samples = drawn[image][settings.index(tuple(row[2:5]))]
        assert counts_of(samples) == tuple(row[6:8]), row
        if (labels[image] == POSITIVE).sum() <= int(row[2] * row[3]):
            # All positives are taken, the objects among them.
            added = samples.index[samples.positive] >= len(found[image])
            assert added.sum() == row[8], row


@pytest.mark.parametrize("case", ["det_add_gt0", "det_add_gt1"])
def test_samples_with_nothing_to_choose_equal_the_reference(golden, case):
    data = {key.split("/")[1]: value for key, value in golden("mmdet_random_sampler").items()
            if key.startswith(f"{case}/")}  # fmt: skip
    num, num_boxes, num_objects = int(data["num"]), len(data["boxes"]), len(data["gts"])
    given_to = padded(data["assigned_gt_inds_before"], num)
    candidates = np.full((len(given_to), 4), np.nan, np.float32)
    candidates[:num_boxes] = data["boxes"]
    assignment = Assignment(
        np.sign(given_to).astype(np.int32),
        np.maximum(given_to - 1, 0).astype(np.int32),
        np.zeros(len(given_to), np.float32),
    )
    candidates, assignment = jax.jit(append_ground_truth)(
        candidates,
        assignment,
        np.pad(data["gts"], ((0, 2), (0, 0)), constant_values=np.nan),
        np.arange(num_objects + 2) < num_objects * (case == "det_add_gt1"),
    )
    samples = jitted(num_samples=num, positive_fraction=float(data["pos_fraction"]))(
        jax.random.key(0), assignment.labels
    )
    # The reference puts the objects first, jaxdet last.
    index, positive, valid = map(np.asarray, samples)
    is_object = index >= len(given_to)
    first = num_objects if case == "det_add_gt1" else 0
    place = np.where(is_object, index - len(given_to), index + first)
    order = np.argsort(place)
    taken, dropped = order[positive[order]], order[(valid & ~positive)[order]]
    np.testing.assert_array_equal(place[taken], data["pos_inds"])
    np.testing.assert_array_equal(place[dropped], data["neg_inds"])
    np.testing.assert_array_equal(is_object[taken], data["pos_is_gt"])
    np.testing.assert_array_equal(candidates[index[taken]], data["pos_bboxes"])
    np.testing.assert_array_equal(candidates[index[dropped]], data["neg_bboxes"])
    objects = np.asarray(assignment.index)[index[taken]]
    np.testing.assert_array_equal(objects, data["pos_assigned_gt_inds"])
    np.testing.assert_array_equal(data["gts"][objects], data["pos_gt_bboxes"])
    np.testing.assert_array_equal(data["gt_labels"][objects], data["pos_gt_labels"])


def test_anchor_counts_equal_simple_faster_rcnn(golden):
    data = golden("sfrcnn_targets")
    labels, table = data["anchor/label_full"], exact(data["anchor/counts"])
    settings = [dict(num_samples=int(row[0]), positive_fraction=row[1]) for row in table]
    for row, samples in zip(table, draw_all([labels], settings)[0], strict=True):
        positives, negatives = counts_of(samples)
        assert [positives, negatives, len(labels) - positives - negatives] == row[2:], row


@functools.cache
def region_assigner(low):
    settings = dict(positive_iou=0.5, negative_iou=(low, 0.5), match_low_quality=False)

    def assign(rois, boxes):
        real, valid = jnp.ones(len(rois), bool), jnp.ones(len(boxes), bool)
        assignment = assign_by_iou(rois, real, boxes, valid, ~valid, **settings)
        return append_ground_truth(rois, assignment, boxes, valid)

    return jax.jit(assign)


def test_region_targets_equal_simple_faster_rcnn(golden):
    data = golden("sfrcnn_targets")
    objects = data["prop/gts"][:, SWAP]
    candidates, assignment = region_assigner(0.0)(data["prop/rois"][:, SWAP], objects)
    samples = jax.jit(take_all)(assignment.labels)
    valid = np.asarray(samples.valid)
    rois, positive = np.asarray(candidates)[valid], np.asarray(samples.positive)[valid]
    # The reference has deltas for background too, of the object that it overlaps most.
    best = np.asarray(jax.jit(box_ops.pairwise_iou)(rois, objects)).argmax(axis=1)
    np.testing.assert_array_equal(np.asarray(assignment.index)[valid][positive], best[positive])
    labels = np.where(positive, data["prop/gt_labels"][best] + 1, 0)
    encode = functools.partial(
        box_coder.encode,
        means=tuple(data["prop/loc_mean"].tolist()),
        stds=tuple(data["prop/loc_std"].tolist()),
    )
    deltas = jax.jit(encode)(rois, objects[best])
    expected = data["prop/sample_roi_sorted"][:, SWAP]
    ours, theirs = np.lexsort(rois.T), np.lexsort(expected.T)
    np.testing.assert_array_equal(rois[ours], expected[theirs])
    np.testing.assert_array_equal(labels[ours], data["prop/gt_roi_label_sorted"][theirs])
    np.testing.assert_allclose(
        np.asarray(deltas)[ours],
        data["prop/gt_roi_loc_sorted"][theirs][:, SWAP],
        rtol=1e-5,
        atol=1e-5,
    )


def test_region_counts_equal_simple_faster_rcnn(golden):
    data = golden("sfrcnn_targets")
    table = exact(data["prop/counts"])
    size = int(max(row[0] for row in table))
    regions = data["prop/rois"][:, SWAP], data["prop/gts"][:, SWAP]
    labels = [padded(region_assigner(row[2])(*regions)[1].labels, size) for row in table]
    quotas = [round(row[0] * row[1]) for row in table]  # Half to even.
    settings = [
        dict(num_samples=int(row[0]), positive_fraction=min((quota + 0.5) / row[0], 1.0))
        for row, quota in zip(table, quotas, strict=True)
    ]
    drawn = draw_all(labels, settings)
    for i, row in enumerate(table):
        positives, negatives = counts_of(drawn[i][i])
        assert [positives, negatives, positives + negatives] == row[3:], row


def test_every_candidate_is_drawn_equally_often():
    labels = labels_of(8, 32)
    draw = jax.vmap(jitted(num_samples=8, positive_fraction=0.5), in_axes=(0, None))
    samples = jax.jit(draw)(jax.random.split(jax.random.key(0), 2000), labels)
    counts = np.bincount(np.asarray(samples.index).ravel(), minlength=44)
    assert counts.sum() == 2000 * 8
    assert (abs(counts[np.asarray(labels) == POSITIVE] - 1000) < 120).all()
    assert (abs(counts[np.asarray(labels) == NEGATIVE] - 250) < 75).all()


@pytest.mark.parametrize("size", [SIZE, 90])
@given(st.integers(0, 2**32 - 1), st.integers(12, SIZE))
def test_padding_anywhere_does_not_change_the_draw(size, seed, num_real):
    rng = np.random.default_rng(seed)
    labels = rng.choice([POSITIVE, NEGATIVE], num_real)
    places = np.sort(rng.permutation(size)[:num_real])
    scattered = np.full(size, IGNORE, np.int32)
    scattered[places] = labels
    draw = jitted(num_samples=12, positive_fraction=0.25)
    together = draw(jax.random.key(seed), padded(labels, SIZE))
    apart = draw(jax.random.key(seed), scattered)
    np.testing.assert_array_equal(together.valid, apart.valid)
    np.testing.assert_array_equal(together.positive, apart.positive)
    valid = np.asarray(apart.valid)
    np.testing.assert_array_equal(
        places[np.asarray(together.index)[valid]], np.asarray(apart.index)[valid]
    )


@pytest.mark.parametrize("count", [1, 511, 512, 513, 1300])
def test_numbers_are_drawn_in_the_order_of_the_usable(count):
    usable = np.random.default_rng(count).random(count) < 0.5
    numbers = np.asarray(jax.random.uniform(jax.random.key(0), (count,)))
    found = np.asarray(sampling._random_order(jax.random.key(0), jnp.asarray(usable)))
    np.testing.assert_array_equal(found[usable], numbers[: usable.sum()])


def test_the_work_of_a_draw_grows_with_the_candidates_not_with_their_square():
    def flops(count):
        labels = jax.ShapeDtypeStruct((count,), np.int32)
        draw = functools.partial(sample_labels, num_samples=256, positive_fraction=0.5)
        return jax.jit(draw).lower(jax.random.key(0), labels).cost_analysis()["flops"]

    assert flops(80_000) < 8.5 * flops(10_000)


def test_the_draw_depends_on_the_key():
    draw, labels = jitted(num_samples=12, positive_fraction=0.25), padded(labels_of(9, 20), SIZE)
    draws = {tuple(draw(jax.random.key(seed), labels).index.tolist()) for seed in range(20)}
    assert len(draws) == 20


def test_negatives_are_capped_by_the_positives():
    half = dict(num_samples=16, positive_fraction=0.5)
    caps = {3.0: 6, 0.0: 0, 0.29 * 50: 14, 1e9: 14}
    settings = [half | dict(max_negatives_per_positive=cap) for cap in caps]
    drawn = draw_all([labels_of(2, 30)], settings)[0]
    for samples, negatives in zip(drawn, caps.values(), strict=True):
        assert counts_of(samples) == (2, negatives)


def test_caps_round_down_as_the_reference_does():
    # 0.29 * 100 is 28.999... in double precision, and 29 in single.
    draw = jitted(num_samples=200, positive_fraction=0.5, max_negatives_per_positive=0.29)
    assert counts_of(draw(jax.random.key(0), labels_of(100, 100))) == (100, 28)


def test_take_all_keeps_every_candidate_in_its_place():
    labels = jnp.array([NEGATIVE, IGNORE, POSITIVE, NEGATIVE, IGNORE])
    for samples in (take_all(labels), jax.jit(take_all)(labels)):
        assert samples.index.tolist() == [0, 1, 2, 3, 4]
        assert samples.positive.tolist() == [False, False, True, False, False]
        assert samples.valid.tolist() == [True, False, True, True, False]
    batch = jax.vmap(take_all)(jnp.stack([labels, -jnp.abs(labels)]))
    assert not batch.positive[1].any() and batch.index.shape == (2, 5)


def test_labels_are_padded_up_to_a_count_and_never_cut():
    labels = np.int32([POSITIVE, NEGATIVE])
    to_four = jax.jit(lambda labels: pad_labels(labels, 4))(labels)
    assert to_four.tolist() == [POSITIVE, NEGATIVE, IGNORE, IGNORE]
    uncut = jax.jit(jax.vmap(lambda row: pad_labels(row, 1)))(labels[None])
    assert uncut.tolist() == [labels.tolist()]
    samples = jitted(num_samples=4, positive_fraction=0.25)(jax.random.key(0), to_four)
    assert samples.valid.tolist() == [True, True, False, False]
    with pytest.raises(ValueError, match=r"labels wants the shape \(N\), found \(2, 7\)"):
        jax.eval_shape(lambda row: pad_labels(row, 4), jnp.zeros((2, 7), int))


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(num_samples=99), "num_samples must lie in 1..14, got 99"),
        (dict(num_samples=0), "num_samples must lie in 1..14, got 0"),
        (dict(positive_fraction=1.5), r"positive_fraction must lie in \[0, 1\], got 1.5"),
        (dict(positive_fraction=float("nan")), "positive_fraction must lie in"),
        (dict(max_negatives_per_positive=float("nan")), "max_negatives_per_positive must be a num"),
    ],
)
def test_impossible_settings_raise_while_tracing(settings, message):
    settings = dict(num_samples=4, positive_fraction=0.5) | settings
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            functools.partial(sample_labels, **settings), jax.random.key(0), labels_of(5, 5)
        )


def test_wrong_shapes_raise_while_tracing():
    draw = functools.partial(sample_labels, num_samples=4, positive_fraction=0.5)
    with pytest.raises(ValueError, match=r"labels wants the shape \(N\), found \(2, 7\)"):
        jax.eval_shape(draw, jax.random.key(0), jnp.zeros((2, 7), int))
    with pytest.raises(ValueError, match=r"key wants the shape \(\), found \(3,\)"):
        jax.eval_shape(draw, jax.random.split(jax.random.key(0), 3), jnp.zeros(7, int))
    with pytest.raises(ValueError, match=r"labels wants the shape \(N\), found \(2, 7\)"):
        jax.eval_shape(take_all, jnp.zeros((2, 7), int))
