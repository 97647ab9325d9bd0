"""Where in the code the operations of a compiled program come from.

A layer of the network is named by its path, all else by the function of jaxdet; the backward
pass is told apart. A fused operation comes from where its result is made.
"""

import collections
import re
from collections.abc import Callable
from pathlib import Path

INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = .*?metadata=\{(.*)\}")
NAME = re.compile(r'op_name="([^"]*)"')
FRAME = re.compile(r"stack_frame_id=(\d+)")
LAYER = re.compile(r"(backbone|neck|rpn_head|box_head|bbox_head|head)/([\w/]+?)/")
# Where an operation is said to be from stops at what only passes it on.
PASSED = ("contracts.py", "convolution.py")


def of_operations(text: str) -> dict[str, str]:
    """Operation -> the part of the code it comes from, by the text of a compiled program."""
    frames = _frames(text)
    found = {}
    for line in text.splitlines():
        instruction = INSTRUCTION.match(line)
        if not instruction:
            continue
        op, about = instruction.groups()
        name, frame = NAME.search(about), FRAME.search(about)
        path = name.group(1) if name else ""
        layer = LAYER.search(path)
        place = "/".join(layer.groups()) if layer else frames(int(frame.group(1)) if frame else 0)
        if place or path:
            found[op] = (place or path) + (", backward" if "transpose(" in path else "")
    return found


def _frames(text: str) -> Callable[[int], str]:
    """The function of jaxdet in which a stack frame of the program lies."""
    tables = collections.defaultdict(dict)
    table = ""
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = line
        elif table and (row := re.match(r"(\d+) (.*)", line)):
            tables[table][int(row.group(1))] = row.group(2)
        elif table and line:
            break

    def numbers(row):
        return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", row)}

    def function(frame):
        while frame in tables["StackFrames"]:
            row = numbers(tables["StackFrames"][frame])
            place = numbers(tables["FileLocations"][row["file_location_id"]])
            file = tables["FileNames"][place["file_name_id"]].strip('"')
            if "/jaxdet/" in file and not file.endswith(PASSED):
                name = tables["FunctionNames"][place["function_name_id"]].strip('"')
                return f"{Path(file).stem}.{name}:{place['line']}"
            frame = row["parent_frame_id"] - 1  # They are counted from one, 1 being none.
        return ""

    return function
