import jax
import pytest

import jaxdet
from jaxdet import model_file
from jaxdet.interop import published, resize_rule_for, settings_for
from jaxdet.types import RESIZE_RULES, UserError


@pytest.mark.parametrize("names, detector", published.PUBLISHED)
def test_published_settings_build_a_detector_that_predicts(names, detector):
    built = jaxdet.build(detector, num_classes=3, **settings_for(names, detector))
    images = model_file.blank_images(1, (64, 96), 9 if detector == "fast_rcnn" else 0)
    variables = jax.eval_shape(built.init, jax.random.key(0), images)
    found = jax.eval_shape(built.predict, variables, images)
    assert found.boxes.shape[0] == 1
    assert built.bgr_weights == (True if names == "mmdetection_caffe" else None)


def test_what_is_done_to_published_settings_changes_no_later_ones():
    settings_for("mmdetection_caffe", "retinanet")["pixels"]["std"] = None
    assert settings_for("mmdetection_caffe", "faster_rcnn")["pixels"]["std"] == (1.0, 1.0, 1.0)


def test_torchvision_alone_resizes_as_it_does():
    found = {names: resize_rule_for(names) for names, _ in published.PUBLISHED}
    assert {names for names, rule in found.items() if rule != "rounded"} == {"torchvision"}
    assert set(found.values()) <= RESIZE_RULES.keys()


def test_what_is_not_known_is_refused_with_what_is():
    with pytest.raises(UserError, match="detectron's images; known: mmdetection, "):
        resize_rule_for("detectron")
    with pytest.raises(UserError, match="detectron faster_rcnn; known: mmdetection faster_rcnn, "):
        settings_for("detectron", "faster_rcnn")
