"""Trains a detector: python train.py --config=configs/quickstart.py; see `--help`."""

from jaxdet.commands import train

if __name__ == "__main__":
    train.main()
