"""Times prediction, from pixels on the host to boxes, alone or beside torch's.

    python benchmarks/predict.py [MODEL ...] [--size=320x480] [--batch=1] [--beside=torch]

Models, images and peers are those of `train_step.py`. Random weights give few confident
boxes; jaxdet's suppression has a fixed size and does not profit from that.
"""

import detectors

if __name__ == "__main__":
    detectors.main("predict", __doc__)
