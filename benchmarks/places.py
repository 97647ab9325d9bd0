"""Where in the code the operations of a compiled program come from.

A layer of the network is named by its path, all else by the function of jaxdet; the backward
pass is told apart. A fused operation comes from where its result is made.
"""

import collections
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.-]+) \(.*\{$")
LOOP = re.compile(r" while\(.*condition=%([\w.-]+), body=%([\w.-]+)")
LIMIT = re.compile(r" = [su]32\[\]\S* constant\((\d+)\)")
COUNTS_UP = re.compile(r"ROOT .* compare\(.*direction=LT")
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


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """The lines of a compiled program, each with the name of the computation that it is in."""
    computation = ""
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            computation = header.group(1)
        elif computation:
            yield computation, line


def runs_of_computations(text: str) -> Mapping[str, int]:
    """How often each computation runs: the body of a loop that counts up as often as it does.

    All else counts once, the bodies of other loops as well.
    """
    loops, limits, counting = {}, {}, set()
    for computation, line in instructions(text):
        if loop := LOOP.search(line):
            condition, body = loop.groups()
            loops[body] = computation, condition
        elif limit := LIMIT.search(line):
            limits[computation] = int(limit.group(1))
        elif COUNTS_UP.search(line):
            counting.add(computation)

    def runs(computation):
        if computation not in loops:
            return 1
        outer, condition = loops[computation]
        return runs(outer) * (limits.get(condition, 1) if condition in counting else 1)

    return collections.defaultdict(lambda: 1, {body: runs(body) for body in loops})


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
