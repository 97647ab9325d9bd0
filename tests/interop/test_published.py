import jax
import jax.numpy as jnp
import pytest

import jaxdet
from jaxdet.commands.schema import DATA
from jaxdet.interop import images_for, published, settings_for
from jaxdet.model_file import Contents
from jaxdet.types import UserError


@pytest.mark.parametrize("names, detector", published.PUBLISHED)
def test_published_settings_build_a_detector_that_predicts(names, detector):
    built = jaxdet.build(detector, num_classes=3, **settings_for(names, detector))
    images = jaxdet.Images(jnp.zeros((1, 64, 96, 3), jnp.uint8), jnp.array([[60, 90]]), jnp.ones(1))
    variables = jax.eval_shape(built.init, jax.random.key(0), images)
    found = jax.eval_shape(built.predict, variables, images)
    assert found.boxes.shape[0] == 1
    assert built.bgr_weights == (True if names == "mmdetection_caffe" else None)


def test_what_is_done_to_published_settings_changes_no_later_ones():
    settings_for("mmdetection_caffe", "retinanet")["pixels"]["std"] = None
    assert settings_for("mmdetection_caffe", "faster_rcnn")["pixels"]["std"] == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("names", {names for names, _ in published.PUBLISHED})
def test_images_of_every_published_detector_fit_a_model_file_and_a_config(names):
    fields = images_for(names)
    assert fields.keys() <= set(Contents._fields) and fields.keys() <= DATA.keys()
    short, long = fields["resize"]
    assert short < long <= min(fields["canvas"])


def test_what_is_not_known_is_refused_with_what_is():
    with pytest.raises(UserError, match="images of detectron; known: mmdetection, "):
        images_for("detectron")
    with pytest.raises(UserError, match="detectron faster_rcnn; known: mmdetection faster_rcnn, "):
        settings_for("detectron", "faster_rcnn")
