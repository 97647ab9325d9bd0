"""From a config to a run: what is found before it, and what it starts from."""

import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from commands.conftest import CONFIG, ROOT
from ml_collections import ConfigDict
from prediction import tiny_model

from jaxdet import detectors, interop, model_file
from jaxdet.commands import command_line, opening, splits, telling
from jaxdet.data import pipeline, sources
from jaxdet.types import Detector, UserError

YOLOX = CONFIG.with_name("tiny_yolox_config.py")
RECIPES = sorted(p for p in (ROOT / "configs").glob("*.py") if not p.stem.startswith("base_"))
NOTHING = Detector(*[lambda *given, **settings: None] * 3)


class NoImages(list):
    class_names = ("circle", "square")


@pytest.fixture
def traced(monkeypatch):
    """No detector is traced: what is tested does not depend on it."""
    monkeypatch.setattr(opening, "_trace", lambda config, detector: {"params": {}})


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config.model.backbone.depth=51"], "config.model: depth must be one of"),
        (["--config.model.backbone.norm=foo"], "config.model: norm must be one of"),
        (["--config.model.backbone.width=0"], "config.model: width must be at least 1, found 0"),
        (
            ["--config.model.neck.channels=-1"],
            "config.model: channels must be at least 1, found -1",
        ),
        (
            ["--config.model.roi.pool.output_size=0"],
            "model: output_size must be at least 1",
        ),
        (["--config.model.roi.head.hidden=0"], "config.model: hidden must be at least 1, found 0"),
        (["--config.model.rpn.assign.positive_iou=1.5"], "config.model: positive_iou must lie in"),
        (["--config.model.roi.suppress.max_candidates=2"], "model: max_candidates 2 < max_detecti"),
        (
            ["--config.model.dtype=float16"],
            "config.model: dtype must be one of float32, bfloat16; found 'float16'",
        ),
        (["--config.model.neck.name=none"], "the maps want the same number of channels"),
    ],
)
def test_settings_that_do_not_work_in_a_detector_are_the_users_line(configure, arguments, message):
    with pytest.raises(UserError) as error:
        opening.open_run(configure(*arguments))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config.batch_size=9"], "config.batch_size 9 does not divide among 8"),
        (["--config.eval_batch_size=9"], "config.eval_batch_size 9 does not divide among 8"),
        (["--config.data.canvas=(-64,64)"], "data.canvas wants a height and a width of at least 1"),
        (["--config.data.max_proposals=-1"], "data.max_proposals wants a whole number of at least"),
        (["--config.data.proposals=a.npz"], "set both or neither, found 'a.npz' and 0"),
        (
            ["--config.multiscale_heights=(48,)"],
            "multiscale_heights wants positive multiples",
        ),
        (["--config.data.hsv=(.1,.2,2.)"], "data.hsv wants three numbers from 0 to 1"),
        (["--config.data.mosaic=2"], "data.mosaic wants a number from 0 to 1"),
        (["--config.data.mixup=.5"], "data.mixup wants data.mosaic above 0"),
        (
            ["--config.evaluation.name=voc", "--config.evaluation.iou_threshold=50"],
            "config.evaluation: iou_threshold must lie in (0, 1], got 50",
        ),
        (
            ["--config.evaluation.name=proposals", "--config.evaluation.limits=(10,1)"],
            "config.evaluation: limits wants rising numbers from 1 up, got (10, 1)",
        ),
        (["--config.init_from=no.npz"], "config.init_from: there is no file no.npz"),
        (["--config.model.backbone.norm=frozen"], "batch_stats/backbone is frozen in config.mode"),
        (["--config.model.backbone.frozen_stages=1"], "params/backbone/stem_conv is frozen in co"),
        (["--config.model.backbone.frozen_stages=5"], "config.model: frozen_stages must be 0..4"),
        (["--config.optimizer.name=sdg"], "unknown optimizer.name 'sdg'"),
        (["--config.optimizer.frozen=('neck',"], "config.optimizer.frozen wants tuple of str"),
        (["--config.final_steps=25"], "config.final_steps wants at most num_steps 24, found 25"),
        (
            ["--config.eval_every=0"],
            "reload_best_at_milestones wants an evaluation up to step 12, found eval_every 0",
        ),
        (
            ["--config.optimizer.schedule=cosine"],
            "reload_best_at_milestones wants optimizer.schedule 'multistep' with milestones, found "
            "'cosine' with (12,)",
        ),
        (["--config.optimizer.milestones=()"], "found 'multistep' with ()"),
        (["--config.data.root="], "data.root is empty"),
        (["--config.eval_scales=(1,0)"], "config.eval_scales: scales of views want different"),
    ],
)
def test_settings_that_do_not_fit_are_found_before_data_is_made(traced, arguments, message):
    arguments = ["", f"--config={CONFIG}", "--config.data.root=nowhere", *arguments]
    with pytest.raises(UserError) as error:
        opening.open_training(command_line.read(arguments).config)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "edit, message",
    [
        ("config.optimizer.warmup_steps = 5", "at most config.num_steps, 8, found 5 + 4"),
        ("config.data.affine_boxes = 'elipse'", "wants 'corners' or 'ellipse', found 'elipse'"),
        ("config.data.canvas = (65, 64)", "config.model: height and width must be even; found 65"),
        ("config.model.loss = ConfigDict({'box_kind': 'diou'})", "box_kind must be one of iou_squ"),
    ],
)
def test_yoloxs_mistakes_are_named_before_there_is_any_data(tmp_path, edit, message):
    shutil.copy(CONFIG, tmp_path)
    file, end = tmp_path / "edited.py", "    return config"
    file.write_text(YOLOX.read_text().replace(end, f"    {edit}\n{end}"))
    arguments = ["", f"--config={file}", f"--config.batch_size={jax.device_count()}"]
    with pytest.raises(UserError) as error:
        opening.open_training(command_line.read(arguments).config)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "classes, evaluation, fits",
    [
        (("circle", "square"), "coco", False),
        (("circle", "square"), "proposals", True),
        (("circle",), "coco", True),
        ((), "voc", False),
    ],
)
def test_what_tells_no_classes_apart_is_not_judged_by_class(
    configure, monkeypatch, traced, classes, evaluation, fits
):
    monkeypatch.setattr(splits, "open_source", lambda *given: NoImages())
    config = configure("--config.detector=rpn", f"--config.evaluation.name={evaluation}")
    config.data.classes = classes
    if fits:
        assert opening.open_run(config).class_names == classes
        return
    with pytest.raises(UserError, match="'rpn' tells no classes apart: set evaluation.name"):
        opening.open_run(config)


def test_a_detector_is_made_and_traced_once(configure, monkeypatch):
    made, build = [], detectors.build
    monkeypatch.setattr(detectors, "build", lambda *g, **s: made.append(g) or build(*g, **s))
    monkeypatch.setattr(sources, "build", lambda *given, **settings: NoImages("ab"))
    run = opening.open_training(configure())
    assert len(made) == 1 and run.class_names == ("circle", "square")
    assert len(run.source) == 2
    assert run.variables["params"]["backbone"].keys() >= {"stem_conv", "layer1"}


def test_the_training_data_is_opened_once_for_its_classes_too(configure, monkeypatch, traced):
    opened = []
    monkeypatch.setattr(
        sources, "build", lambda name, **given: opened.append(given["split"]) or NoImages("ab")
    )
    run = opening.open_training(configure("--config.data.classes=()"))
    assert opened == ["train"] and run.class_names == ("circle", "square")


def test_a_mistake_in_the_optimizer_is_found_before_an_epoch_is_known(configure, monkeypatch):
    monkeypatch.setattr(opening, "open_run", None)
    with pytest.raises(UserError, match="unknown optimizer.schedule 'multistp'"):
        opening.open_training(
            configure("--config.num_steps=2 epochs", "--config.optimizer.schedule=multistp")
        )


@pytest.mark.parametrize(
    "lengths, message",
    [
        (("num_steps=2000", "final_steps=15 epochs", "optimizer.warmup_steps=5 epochs"), ""),
        (("num_steps=300 epochs", "final_steps=15 epochs", "optimizer.warmup_steps=900"), ""),
        (
            ("num_steps=10", "final_steps=15 epochs", "optimizer.warmup_steps=0"),
            "at most config.nu",
        ),
    ],
)
def test_steps_and_epochs_may_be_mixed_where_they_can_fit(configure, monkeypatch, lengths, message):
    class Opened(Exception):
        pass

    def open_run(config):
        raise Opened

    monkeypatch.setattr(opening, "open_run", open_run)
    schedule = "--config.optimizer.schedule=warmup_cosine"
    config = configure(schedule, *(f"--config.{length}" for length in lengths))
    with pytest.raises(UserError if message else Opened, match=message or None):
        opening.open_training(config)


def test_lengths_in_epochs_are_steps_once_the_data_is_read(configure, monkeypatch, traced):
    monkeypatch.setattr(sources, "build", lambda *given, **settings: NoImages(range(40)))
    config = configure(
        "--config.num_steps=6 epochs",  # Of 5 steps.
        "--config.eval_every=1 epoch",
        "--config.optimizer.milestones=('3 epochs', 20)",
    )
    run = opening.open_training(config)
    assert (run.config.num_steps, run.config.eval_every) == (30, 5)
    assert run.config.optimizer.milestones == (15, 20)
    rates = [float(run.schedule(step)) for step in (14, 15, 19, 20)]
    np.testing.assert_allclose(rates, [0.02, 0.002, 0.002, 0.0002], rtol=1e-5)


@pytest.mark.parametrize("final_steps, start", [(4, 4), (0, None), (8, 0)])
def test_mosaics_end_the_last_part_begins_and_the_rate_is_lowest_at_one_step(
    monkeypatch, traced, final_steps, start
):
    arguments = (f"--config.final_steps={final_steps}", "--config.optimizer.warmup_steps=0")
    config = command_line.read(
        ["", f"--config={YOLOX}", f"--config.batch_size={jax.device_count()}", *arguments]
    ).config
    given = {}
    monkeypatch.setattr(pipeline, "train_batches", lambda source, **k: given.update(k))
    monkeypatch.setattr(sources, "build", lambda *given, **settings: NoImages("ab"))
    run = opening.open_training(config)
    opening.train_batches(run.config, run.source, 0)
    assert given["final_start"] == opening.final_start(run.config) == start
    rates = [float(run.schedule(step)) for step in range(9)]
    rate = config.optimizer.learning_rate * config.batch_size / config.optimizer.base_batch_size
    lowest = rate * config.optimizer.final_ratio
    reached = [step for step in range(9) if rates[step] == pytest.approx(lowest, abs=1e-9)]
    assert reached[0] == 8 - final_steps


@pytest.mark.parametrize("late", ["(9,24,30)", "(9,)"])
def test_what_comes_to_nothing_is_said(traced, configure, caplog, monkeypatch, late):
    monkeypatch.setattr(sources, "build", lambda *given, **settings: NoImages("ab"))
    changes = (f"--config.optimizer.milestones={late}", "--config.optimizer.warmup_steps=99")
    opening.open_training(configure(*changes))
    said = "config.optimizer.milestones 24, 30 come to nothing: num_steps is 24"
    assert (said in caplog.text) == ("30" in late)
    assert "config.optimizer.warmup_steps 99 do not end: num_steps is 24" in caplog.text


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_has_only_known_settings_and_fits_its_detector(recipe, monkeypatch, tmp_path):
    """It is completed and its network's variables are traced, at its real size."""
    config = command_line.read(["", f"--config={recipe}"]).config
    names = config.data.classes or tuple(map(str, range(80)))
    source = NoImages()
    source.class_names = names
    monkeypatch.setattr(splits, "open_source", lambda *given: source)
    monkeypatch.setattr(opening.steps, "check_division", lambda *given, **names: None)
    monkeypatch.setattr(opening, "_trace", lambda config, detector: jax.eval_shape(
        detector.init, jax.random.key(0), opening.blank_images(config, 1)
    ))  # fmt: skip
    run = opening.open_run(config)
    assert sum(leaf.size for leaf in jax.tree.leaves(run.variables["params"])) > 800_000
    assert run.config.data.train_split != run.config.data.eval_split


@pytest.mark.parametrize("arguments", [(), ("--config.model.backbone.norm=frozen",)])
def test_a_run_may_start_from_the_weights_of_a_backbone(configure, weights, arguments):
    run = opening.open_run(configure(f"--config.init_from={weights.file}", *arguments))

    def init(key, images):  # The detector's own takes seconds to compile.
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), run.variables)

    run = run._replace(detector=run.detector._replace(init=init))
    variables, origin, _ = opening.first_variables(run)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, run.variables)
    for kind in weights.variables:
        jax.tree.map(
            np.testing.assert_array_equal,
            variables[kind]["backbone"],
            weights.variables[kind]["backbone"],
        )
    drawn = len(jax.tree.leaves(variables)) - len(weights.tensors)
    assert origin.endswith(
        f": {len(weights.tensors)} arrays loaded, {drawn} drawn at random, 1 unused"
    )


@pytest.mark.parametrize(
    "arguments, frozen",
    [
        ("--config.model.backbone.norm=frozen", "batch_stats/backbone"),
        ("--config.model.backbone.frozen_stages=1", "params/backbone/stem_conv"),
    ],
)
def test_a_backbone_that_is_frozen_must_be_whole(configure, weights, tmp_path, arguments, frozen):
    file = tmp_path / "part.npz"
    np.savez(file, **{k: v for k, v in weights.tensors.items() if k != "layer2.0.bn1.weight"})
    run = opening.open_run(configure(f"--config.init_from={file}", arguments))
    message = f"nothing for params/backbone/layer2/block0/norm1/scale, .*: {frozen} is frozen"
    with pytest.raises(UserError, match=message):
        opening.first_variables(run)


def test_a_run_may_start_from_yoloxs_weights_of_other_classes(tmp_path):
    arguments = [f"--config={YOLOX}", f"--config.batch_size={jax.device_count()}"]
    arguments += [f"--config.init_from={tmp_path / 'yolox.npz'}"]
    config = command_line.read(["", *arguments]).config
    rng = np.random.default_rng(0)

    def open_run(num_classes):
        config.data.classes = tuple(map(str, range(num_classes)))
        run = opening.open_run(config)
        drawn = jax.tree.map(lambda leaf: rng.random(leaf.shape, "f4"), run.variables)
        return run._replace(detector=run.detector._replace(init=lambda *given: drawn)), drawn

    _, theirs = open_run(80)
    np.savez(tmp_path / "yolox.npz", **interop.to_torch(theirs, names="yolox", bgr=False))
    variables, origin, _ = opening.first_variables(open_run(2)[0])
    assert "6 drawn at random, 0 unused" in origin
    head, wanted = variables["params"]["head"], theirs["params"]["head"]
    np.testing.assert_array_equal(head["boxes1"]["kernel"], wanted["boxes1"]["kernel"])
    assert head["logits1"]["kernel"].shape[-1] == 2
    # Files of YOLOX read BGR, jaxdet's images are RGB.
    stem = variables["params"]["backbone"]["stem"]["conv"]["kernel"]
    turned = theirs["params"]["backbone"]["stem"]["conv"]["kernel"].reshape(3, 3, 4, 3, -1)
    np.testing.assert_array_equal(stem, turned[:, :, :, ::-1].reshape(stem.shape))


def test_what_is_frozen_is_left_out_of_the_optimizer(configure, weights, monkeypatch):
    monkeypatch.setattr(sources, "build", lambda *given, **settings: NoImages("ab"))
    arguments = (f"--config.init_from={weights.file}", "--config.model.backbone.frozen_stages=1")
    run = opening.open_training(configure(*arguments))
    params = run.variables["params"]
    kept = jax.tree_util.tree_leaves_with_path(jax.eval_shape(run.tx.init, params))
    names = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in kept}
    assert not any("layer1/" in name or "stem_" in name for name in names)
    assert any("layer2/" in name for name in names)


def test_blank_images_have_the_slots_of_given_proposals(configure):
    assert opening.blank_images(configure(), 3).proposals is None
    config = configure("--config.data.proposals=a.npz", "--config.data.max_proposals=7")
    proposals = opening.blank_images(config, 3).proposals
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), proposals) == (
        ((3, 7, 4), np.float32),
        ((3, 7), np.float32),
        ((3, 7), bool),
    )


def test_images_and_objects_that_a_run_could_not_use_are_counted():
    right = SimpleNamespace(counts={})
    assert telling.losses_of_data(SimpleNamespace(unreadable=0, left_out=0, put_right=right)) == []
    right.counts["stretched"] = 4
    assert telling.losses_of_data(SimpleNamespace(unreadable=2, left_out=3, put_right=right)) == [
        "2 times an unreadable image gave way to the next",
        "3 times an object found no slot in data.max_boxes",
        "4 times a picture was put right: stretched",
    ]


def test_a_split_without_images_is_a_mistake(configure, monkeypatch):
    monkeypatch.setattr(sources, "build", lambda *arguments, **settings: NoImages())
    with pytest.raises(UserError, match="there is no image in the split 'test'"):
        splits.open_source(configure(), "test", ())


def test_a_split_that_names_no_class_is_a_mistake_where_the_config_names_none(
    configure, monkeypatch
):
    source = NoImages("ab")
    source.class_names = ()
    monkeypatch.setattr(sources, "build", lambda *arguments, **settings: source)
    with pytest.raises(UserError, match=r"\(train\): there is no object on any of 2 images"):
        opening.open_run(configure("--config.data.classes=()"))


def test_a_checkpoint_of_another_shape_names_the_leaf_and_stays(trained, run):
    config = (trained.workdir / "config.json").read_text()
    for command in ("train.py", "eval.py"):
        argument = f"--workdir={trained.workdir}"
        ended = run(command, argument, "--config.model.roi.head.hidden=24", "--config.num_steps=30")
        assert ended.status == 1
        assert "does not fit the config: params/box_head/" in ended.err
        assert "deltas/kernel: wanted (24, 8) float32, found (16, 8) float32" in ended.err
        assert ended.err.count("\n") == 1
    assert (trained.workdir / "config.json").read_text() == config


def test_a_run_may_start_from_a_model_of_jaxdet(tmp_path, monkeypatch):
    contents = tiny_model.draw_contents()
    model_file.write(tmp_path / model_file.NAME, contents)
    arguments = [f"--config={YOLOX}", f"--config.batch_size={jax.device_count()}"]
    config = command_line.read(["", *arguments]).config
    config.model = ConfigDict(contents.settings)
    monkeypatch.setattr(opening, "_trace", lambda config, detector: jax.eval_shape(
        detector.init, jax.random.key(0), opening.blank_images(config, 1)
    ))  # fmt: skip

    def start(*classes, source=tmp_path):
        config.data.classes, config.init_from = classes, str(source)
        run = opening.open_run(config)
        drawn = jax.tree.map(lambda leaf: np.full(leaf.shape, 9, leaf.dtype), run.variables)
        run = run._replace(detector=run.detector._replace(init=lambda *given: drawn))
        return opening.first_variables(run)

    for source in (tmp_path, tmp_path / model_file.NAME):
        found = start(*tiny_model.NAMES, source=source)
        jax.tree.map(np.testing.assert_array_equal, found.variables, contents.variables)
        assert found.origin.endswith("arrays loaded, 0 drawn at random, 0 unused")
    # As many others learn on from the weights of these, which is said.
    found = start("cat", "dog")
    jax.tree.map(np.testing.assert_array_equal, found.variables, contents.variables)
    assert found.origin.endswith(
        "; those of its classes ('circle', 'square') are taken for ('cat', 'dog')"
    )
    found = start("circle", "square", "dog")
    assert found.origin.endswith(", 6 drawn at random, 0 unused")
    head, wanted = found.variables["params"]["head"], contents.variables["params"]["head"]
    np.testing.assert_array_equal(head["boxes0"]["kernel"], wanted["boxes0"]["kernel"])
    assert (head["logits0"]["kernel"] == 9).all() and head["logits0"]["kernel"].shape[-1] == 3
    assert sum(line.endswith("starts anew") for line in found.lines) == 6
