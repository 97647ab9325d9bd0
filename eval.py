"""Evaluates a run: python eval.py --workdir=runs/quickstart; see `--help`."""

from jaxdet.commands import evaluate

if __name__ == "__main__":
    evaluate.main()
