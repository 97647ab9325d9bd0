"""The peers of jaxdet in a benchmark: torchvision's detectors and ops, and YOLOX's own code.

`harness.py` starts it with a Python that has torch; nothing of jaxdet is imported. On a GPU
images are channels_last, bfloat16 is AMP, and cuDNN picks its kernels by trial.
"""

import itertools
import sys
from collections import OrderedDict
from contextlib import nullcontext
from functools import partial

import numpy as np
import scenes
import torch
import torchvision
import worker
from torchvision import tv_tensors
from torchvision.models.detection import FasterRCNN, RetinaNet, backbone_utils
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d
from torchvision.transforms import v2

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.backends.cudnn.benchmark = True


def train_step(**case) -> worker.Work:
    """Loss, gradient and SGD; the batch comes from the host."""
    model, images, targets = _open(**case)
    model.train()
    moving = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(moving, lr=scenes.RATE, momentum=0.9, weight_decay=1e-4)

    def start():
        with _precision(case["dtype"]):
            losses = model(images(), targets())
        total = losses["total_loss"] if "total_loss" in losses else sum(losses.values())
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()

    return worker.Work(start, _wait, _facts(case), _peak_bytes())


def predict(**case) -> worker.Work:
    """From pixels to boxes, suppression included."""
    model, images, _ = _open(**case)
    model.eval()

    def start():
        with torch.inference_mode(), _precision(case["dtype"]):
            found = model(images())
            return _suppress(found.float()) if case["model"] == "yolox" else found

    return worker.Work(start, _wait, _facts(case), _peak_bytes())


def nms(*, count: int) -> worker.Work:
    """Suppression of boxes of one class."""
    boxes, scores = (torch.from_numpy(a).to(DEVICE) for a in scenes.draw_candidates(count))
    start = partial(torchvision.ops.nms, boxes, scores, 0.5)
    return worker.Work(start, _wait, _facts({}), _peak_bytes())


def roi_align(
    *, size: tuple[int, int], regions: int, channels: int, ratio: int, gradient: bool, dtype: str
) -> worker.Work:
    """RoIAlign over the four maps of a pyramid, of one image; ratio 0 is adaptive."""
    maps, rois = scenes.draw_pyramid(tuple(size), regions, channels)
    kind = getattr(torch, dtype)
    maps = OrderedDict(
        (str(i), torch.from_numpy(m).permute(2, 0, 1)[None].to(DEVICE, kind).contiguous())
        for i, m in enumerate(maps)
    )
    rois = torch.from_numpy(rois).to(DEVICE, kind)
    pool = torchvision.ops.MultiScaleRoIAlign(list(maps), 7, ratio or -1)

    def start():
        if not gradient:
            with torch.inference_mode():
                return pool(maps, [rois], [tuple(size)])
        leaves = OrderedDict((k, m.detach().requires_grad_()) for k, m in maps.items())
        (pool(leaves, [rois], [tuple(size)]).float() ** 2).sum().backward()
        return leaves["0"].grad

    return worker.Work(start, _wait, _facts({"dtype": dtype}), _peak_bytes())


def batches(*, size, target, batch, count, threads) -> worker.Work:
    """Pictures decoded by torchvision, and by its v2 transforms resized, flipped and padded."""
    torch.set_num_threads(threads)
    files = [np.frombuffer(file, np.uint8) for file in scenes.draw_files(tuple(size))]
    files = itertools.cycle([torch.from_numpy(file.copy()) for file in files])
    canvas, (short, long) = scenes.TARGETS[target]
    change = v2.Compose(
        [v2.Resize(short, max_size=long, antialias=True), v2.RandomHorizontalFlip(0.5)]
    )
    rng = np.random.default_rng(0)
    drawn = scenes.draw_boxes(rng, (20,), tuple(size), least=24, most=min(size) / 2)

    def one(file):
        pixels = torchvision.io.decode_jpeg(file, mode=torchvision.io.ImageReadMode.RGB)
        boxes = tv_tensors.BoundingBoxes(drawn, format="XYXY", canvas_size=pixels.shape[1:])
        pixels, boxes = change(tv_tensors.Image(pixels), boxes)
        more = [0, 0, canvas[1] - pixels.shape[2], canvas[0] - pixels.shape[1]]
        return v2.functional.pad(pixels, more), boxes

    def start():
        for _ in range(count):
            torch.stack([one(file)[0] for file in itertools.islice(files, batch)])

    return worker.Work(start, lambda _: None, {"count": batch * count})


def _open(*, model, batch, size, dtype, objects=20, compiled=False, code=""):
    """The detector at this size, images on the host, and what makes the targets on the device."""
    num_classes = scenes.NUM_CLASSES[model]
    drawn = scenes.draw(batch, tuple(size), num_classes, objects=objects)
    pixels = torch.from_numpy(drawn.pixels)
    if model == "yolox":
        network, targets = _yolox(code, num_classes), partial(_yolox_targets, drawn)
    else:
        network = _torchvision(model, num_classes + 1, tuple(size))
        targets = partial(_torchvision_targets, drawn)
    network = network.to(DEVICE)
    if DEVICE.type == "cuda":
        network = network.to(memory_format=torch.channels_last)
        pixels = pixels.pin_memory()
    if compiled:
        network.backbone = torch.compile(network.backbone)
    images = partial(_images, pixels, model == "yolox")
    return network, images, targets


def _torchvision(model, num_classes, size):
    norm = FrozenBatchNorm2d
    sizes = dict(min_size=min(size), max_size=max(size))
    if model == "faster_rcnn":
        backbone = backbone_utils.resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, norm_layer=norm, trainable_layers=3
        )
        network = FasterRCNN(backbone, num_classes, **sizes)
    else:
        backbone = backbone_utils.resnet_fpn_backbone(
            backbone_name="resnet50",
            weights=None,
            norm_layer=norm,
            trainable_layers=3,
            returned_layers=[2, 3, 4],
            extra_blocks=LastLevelP6P7(256, 256),
        )
        network = RetinaNet(backbone, num_classes, **sizes)
    for name, module in network.backbone.named_modules():
        if name.endswith("bn3"):
            module.weight *= scenes.CALM
    return network


def _torchvision_targets(drawn):
    return [
        {
            "boxes": torch.from_numpy(boxes).to(DEVICE),
            "labels": torch.from_numpy(labels + 1).long().to(DEVICE),
        }
        for boxes, labels in zip(drawn.boxes, drawn.labels, strict=True)
    ]


def _yolox(code, num_classes):
    sys.path.insert(0, code)
    from yolox.models import YOLOPAFPN, YOLOX, YOLOXHead

    channels = [256, 512, 1024]
    backbone = YOLOPAFPN(0.33, 0.5, in_channels=channels)
    network = YOLOX(backbone, YOLOXHead(num_classes, 0.5, in_channels=channels))
    network.head.initialize_biases(1e-2)
    return network


def _yolox_targets(drawn):
    """Rows of (class, centre x, centre y, width, height)."""
    corners = drawn.boxes
    middles, sides = (corners[..., :2] + corners[..., 2:]) / 2, corners[..., 2:] - corners[..., :2]
    rows = np.concatenate([drawn.labels[..., None], middles, sides], axis=-1)
    return torch.from_numpy(rows.astype(np.float32)).to(DEVICE)


def _suppress(found, score=0.01, iou=0.65):
    """YOLOX's way from its outputs to boxes, by torchvision's suppression."""
    kept = []
    for rows in found:
        scores, labels = rows[:, 5:].max(dim=1)
        scores = scores * rows[:, 4]
        rows, labels, scores = (x[scores >= score] for x in (rows, labels, scores))
        half = rows[:, 2:4] / 2
        boxes = torch.cat([rows[:, :2] - half, rows[:, :2] + half], dim=1)
        kept.append(boxes[torchvision.ops.batched_nms(boxes, scores, labels, iou)])
    return kept


def _images(pixels, whole):
    """Uint8 (B, H, W, 3) of the host as the detector wants them on the device."""
    images = pixels.to(DEVICE, non_blocking=True).permute(0, 3, 1, 2)
    if whole:  # YOLOX reads 0..255, one tensor.
        return images.float().contiguous(memory_format=_layout())
    return list(images.float().div(255))


def _layout():
    return torch.channels_last if DEVICE.type == "cuda" else torch.contiguous_format


def _precision(dtype):
    if dtype == "float32":
        return nullcontext()
    return torch.autocast(DEVICE.type, getattr(torch, dtype))


def _wait(_):
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _facts(case):
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    return {
        "device": name,
        "dtype": case.get("dtype", "float32"),
        "count": case.get("batch", 1),
        "versions": versions,
    }


def _peak_bytes():
    return torch.cuda.max_memory_allocated if DEVICE.type == "cuda" else None


if __name__ == "__main__":
    worker.serve({f.__name__: f for f in (train_step, predict, nms, roi_align, batches)})
