from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Bool, Float, Real, Shaped

from jaxdet.ops import boxes as box_ops
from jaxdet.ops.contracts import check_at_least, check_fractions, check_shapes

NAN = float("nan")


@check_shapes
def paired(
    boxes: Float[Array, "N 4"],
    valid: Bool[Array, " N"],
    size: Real[Array, "2"] | None = None,
    *,
    scores: Float[Array, "N K"] | None = None,
    factor: float = 1.0,
):
    """Returns what it was given."""
    return boxes, valid, size, scores, factor


@check_shapes
def broadcast(a: Real[Array, "*#S 4"], b: Real[Array, "*#S 4"]):
    return a + b


@check_shapes
def levels(
    maps: Sequence[Float[Array, "_h _w C"]],
    tables: tuple[Float[Array, "C C"], ...] = (),
    anchors: Shaped[Array | np.ndarray, "N 4"] | None = None,
):
    return len(maps), len(tables), anchors is None


def test_right_shapes_pass_and_the_result_comes_back():
    boxes, valid = jnp.zeros((3, 4)), jnp.ones(3, bool)
    found = paired(boxes, valid, scores=jnp.zeros((3, 7)), factor=2.0)
    assert found[0] is boxes and found[1] is valid and found[4] == 2.0
    assert broadcast(jnp.zeros((3, 1, 4)), jnp.zeros((5, 4))).shape == (3, 5, 4)
    maps = [jnp.zeros((4, 6, 2)), jnp.zeros((2, 3, 2))]
    assert levels(maps, (jnp.zeros((2, 2)),), np.zeros((9, 4))) == (2, 1, False)
    assert levels([]) == (0, 0, True)


def test_name_and_docstring_stay():
    assert paired.__name__ == "paired" and paired.__doc__ == "Returns what it was given."


def test_types_of_numbers_are_not_checked():
    paired(np.zeros((3, 4), int), np.zeros(3, bool))
    paired(jnp.zeros((3, 4), jnp.bfloat16), jnp.zeros(3, bool), size=np.zeros(2, np.int64))


@pytest.mark.parametrize("kind", [np.float32, np.uint8, np.int32])
def test_masks_of_numbers_raise_while_tracing(kind):
    message = rf"paired: valid wants booleans, found {np.dtype(kind)}; as in valid != 0"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(paired, jnp.zeros((3, 4)), jnp.ones(3, kind))
    with pytest.raises(ValueError, match=message):
        paired(np.zeros((3, 4)), np.ones(3, kind))


def test_masks_that_may_be_none_are_masks():
    @check_shapes
    def masked(crowd: Bool[Array | np.ndarray, " N"] | None = None):
        return crowd

    assert masked() is None and masked(np.ones(2, bool)).all()
    with pytest.raises(ValueError, match="masked: crowd wants booleans, found int8"):
        masked(np.ones(2, np.int8))


@pytest.mark.parametrize(
    "arguments, settings, message",
    [
        (((3, 5), (3,)), {}, r"paired: boxes wants the shape \(N, 4\), found \(3, 5\)"),
        (((4,), (3,)), {}, r"boxes wants the shape \(N, 4\), found \(4,\)"),
        # A letter stands for one number, and the message says where it came from.
        (
            ((3, 4), (2,)),
            {},
            r"valid wants the shape \(N\), found \(2,\); before it boxes \(3, 4\)",
        ),
        (((3, 4), (3,), (3,)), {}, r"size wants the shape \(2\), found \(3,\)"),
        (((3, 4), (3,)), dict(scores=(2, 7)), r"scores wants the shape \(N, K\), found \(2, 7\)"),
    ],
)
def test_wrong_shapes_raise_while_tracing(arguments, settings, message):
    kinds = (float, bool, float)
    arguments = [jnp.zeros(shape, kind) for shape, kind in zip(arguments, kinds, strict=False)]
    settings = {name: jnp.zeros(shape) for name, shape in settings.items()}
    for transform in (lambda f: lambda *a, **k: jax.eval_shape(f, *a, **k), jax.jit):
        with pytest.raises(ValueError, match=message):
            transform(paired)(*arguments, **settings)


def test_axes_that_do_not_broadcast_raise():
    with pytest.raises(ValueError, match=r"b wants the shape .*, found \(2, 5, 4\)"):
        broadcast(jnp.zeros((3, 1, 4)), jnp.zeros((2, 5, 4)))


def test_every_array_of_a_sequence_is_checked():
    maps = [jnp.zeros((4, 6, 2)), jnp.zeros((2, 3, 9))]
    with pytest.raises(ValueError, match=r"maps wants the shape .*, found \(2, 3, 9\)"):
        levels(maps)
    with pytest.raises(ValueError, match=r"tables wants the shape \(C, C\), found \(2, 9\)"):
        levels(maps[:1], (jnp.zeros((2, 2)), jnp.zeros((2, 9))))
    with pytest.raises(ValueError, match=r"anchors wants the shape \(N, 4\), found \(9,\)"):
        levels(maps[:1], anchors=np.zeros(9))


def test_what_is_no_array_is_named_by_its_type():
    with pytest.raises(ValueError, match=r"boxes wants the shape \(N, 4\), found list"):
        paired([[0, 0, 1, 1]], jnp.ones(1, bool))


def test_missing_and_unknown_arguments_are_type_errors():
    with pytest.raises(TypeError, match="valid"):
        paired(jnp.zeros((3, 4)))
    with pytest.raises(TypeError, match="color"):
        paired(jnp.zeros((3, 4)), jnp.ones(3), color=1)


def test_letters_of_one_call_do_not_bind_the_next():
    for count in (3, 5):
        paired(jnp.zeros((count, 4)), jnp.ones(count, bool))


def test_batches_are_seen_without_their_axis_under_vmap():
    assert jax.vmap(paired, in_axes=(0, None))(jnp.zeros((2, 3, 4)), jnp.ones(3, bool))[0].ndim == 3
    with pytest.raises(ValueError, match=r"boxes wants the shape \(N, 4\), found \(4,\)"):
        jax.vmap(paired, in_axes=(0, None))(jnp.zeros((3, 4)), jnp.ones(3))


def test_an_op_raises_before_its_annotations_are_checked_otherwise():
    # Not the error of the tests' type checker, which users do not have.
    with pytest.raises(ValueError, match="pairwise_iou: a wants the shape"):
        box_ops.pairwise_iou(jnp.zeros((2, 5)), jnp.zeros((2, 4)))


def test_fractions_lie_between_0_and_1():
    check_fractions(low=0, high=1.0, half=0.5, unset=None)
    for value in (-0.1, 1.1, NAN):
        with pytest.raises(ValueError, match=rf"second must lie in \[0, 1\], got {value}"):
            check_fractions(first=0.5, second=value)


def test_values_reach_the_lowest():
    check_at_least(2, same=2, more=2.5)
    for value in (1, -3.0, NAN):
        with pytest.raises(ValueError, match=f"second must be at least 2, got {value}"):
            check_at_least(2, first=3, second=value)
