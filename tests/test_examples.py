"""The examples run and do what they say; what they print is what is tested."""

import importlib.util
import pathlib
import re

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def run_main(name, monkeypatch, capsys, *arguments):
    """What `python examples/<name>.py <arguments>` prints."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr("sys.argv", [f"{name}.py", *arguments])
    module.main()
    return capsys.readouterr().out


def test_use_ops_learns_to_find_the_objects(monkeypatch, capsys):
    printed = run_main("use_ops", monkeypatch, capsys, "--steps", "150")

    losses = [float(loss) for loss in re.findall(r"step +\d+  loss (\S+)", printed)]
    overlaps = [float(iou) for iou in re.findall(r"IoU (\d\S+)$", printed, re.MULTILINE)]
    found, total = map(int, re.search(r"(\d+) of (\d+) objects found", printed).groups())
    assert len(losses) == 4 and losses[-1] < 0.1 * losses[0]
    assert found >= 0.7 * total > 0
    assert sorted(overlaps)[len(overlaps) // 2] > 0.7
