"""Times the training step of detectors, alone or beside torch's.

    python benchmarks/train_step.py [MODEL ...] [--size=320x480] [--batch=2] [--beside=torch]

The step of `train.py` on one device, by the recipe for COCO: batch from the host, loss,
gradient, optimizer. The peers are torchvision's `fasterrcnn_resnet50_fpn` and
`retinanet_resnet50_fpn` with frozen norms and three trained stages, and YOLOX-S from its own
code. Images are noise, with 20 objects each; weights are random.
"""

import detectors

if __name__ == "__main__":
    detectors.main("train_step", __doc__)
