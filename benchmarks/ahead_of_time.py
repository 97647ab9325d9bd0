"""Compiles steps and predictions for a chip that is not at hand, and says what its compiler says.

    python benchmarks/ahead_of_time.py MODEL ... --target=h100|v5e
        [--size=800x1344] [--batch=2] [--dtype=bfloat16] [--predict]

Prints temporary and peak memory, what `jaxdet summary` estimates of a step's, and, by what the
compiled program holds, how many sorts, gathers, scatters, float32 convolutions and loops there
are; for a TPU its estimated cycles by part of the code as well, the body of a loop that counts up
as often as it runs. Nothing runs: cycles are estimates, memory and counts are facts.

The compilers come with JAX's plugins, of the version of the installed JAX: for TPUs
`pip install "jax[tpu]==VERSION"`; for GPUs, without the gigabytes of libraries that only a
real one needs, `pip install --no-deps jax-cuda13-plugin==VERSION jax-cuda13-pjrt==VERSION`.
"""

import argparse
import collections
import os
import re
import sys

# Before JAX is imported: this process has a CPU alone, and a TPU's compiler looks for no TPU.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "-1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
# Which kernels are fastest only the chip can say; Triton's have no sizes without that.
os.environ["XLA_FLAGS"] = (
    "--xla_gpu_autotune_level=0 --xla_gpu_shard_autotuning=false"
    f" --xla_gpu_enable_triton_gemm=false {os.environ.get('XLA_FLAGS', '')}"
)

import time
from pathlib import Path

import detectors
import jax
import numpy as np
import places
import side_jaxdet
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdet.commands import costs, memory, opening

# What XLA has to know of a GPU: its own fields, of the vendor's data sheet.
H100 = """gpu_device_info {
threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
cuda_compute_capability { major: 9 minor: 0 }
registers_per_core_limit: 65536 registers_per_block_limit: 65536 }
platform_name: "CUDA" dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 12 minor: 9 patch: 0 } device_description_str: "GPU" """
TARGETS = {
    "h100": {"platform": "cuda", "target_config": H100, "topology": "1x1x1"},
    "v5e": {"platform": "tpu", "topology_name": "v5e:2x2"},
    "v5p": {"platform": "tpu", "topology_name": "v5p:2x2x1"},
    "v6e": {"platform": "tpu", "topology_name": "v6e:2x2"},
}
# What is counted, by the text of an instruction.
COUNTED = {
    "sorts": re.compile(r" sort\(|TopK|__cub\$"),
    "gathers": re.compile(r" gather\("),
    "scatters": re.compile(r" scatter\("),
    "float32 convolutions": re.compile(r"= \(?f32\[[\d,]*\]\S* convolution\(|= \(f32.*cudnn\$conv"),
    "loops": re.compile(r" while\("),
}
CYCLES = re.compile(r'"?estimated_cycles"?:"?(\d+)')


def main() -> None:
    """Reads the flags, compiles, and prints a row for each model."""
    flags = _read()
    sharding = _sharding(flags.target)
    head = "compile s | arguments GB | temporary GB | peak GB | estimated GB"
    print(f"| model | {head} | {' | '.join(COUNTED)}")
    for model in flags.models or detectors.MODELS:
        case = {"model": model, "batch": flags.batch, "size": flags.size, "dtype": flags.dtype}
        case["settings"] = flags.settings
        began = time.perf_counter()
        compiled = _compile(case, flags.predict, sharding)
        seconds = time.perf_counter() - began
        analysis, text = compiled.memory_analysis(), compiled.as_text()
        if flags.hlo:
            Path(flags.hlo).write_text(text)
        numbers = [analysis.argument_size_in_bytes, analysis.temp_size_in_bytes]
        numbers += [analysis.peak_memory_in_bytes, 0 if flags.predict else _estimate(case)]
        row = [model, f"{seconds:.0f}", *(f"{n / 1e9:.2f}" for n in numbers)]
        row += [str(sum(bool(p.search(t)) for t in text.splitlines())) for p in COUNTED.values()]
        print("| " + " | ".join(row), flush=True)
        _print_cycles(text, flags.top)


def _sharding(target):
    """The whole of one chip of the target."""
    described = dict(TARGETS[target])
    if described["platform"] == "cuda":
        _know_cuda()
    try:
        topology = topologies.get_topology_desc(**described)
    except Exception as error:  # Each plugin raises its own.
        line = str(error).splitlines()[0]
        sys.exit(f"no compiler for {target} is installed, see --help: {line}")
    mesh = Mesh(np.array(topology.devices[:1]), ("one",))
    return NamedSharding(mesh, PartitionSpec())


def _know_cuda():
    """Lets JAX take the word "cuda" where no GPU is seen."""
    from jax._src import xla_bridge

    known = xla_bridge.canonicalize_platform
    xla_bridge.canonicalize_platform = lambda name: name if name == "cuda" else known(name)


def _compile(case, predict, sharding):
    run = side_jaxdet.open_run(**case)
    size = run.config.batch_size
    if predict:
        function = run.detector.predict
        arguments = (run.variables, opening.blank_images(run.config, size))
    else:
        function = costs.one_device_step(run, run.config.accumulate)
        arguments = (costs.first_state(run), opening.blank_batch(run.config, size))
    there = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), arguments
    )
    donated = () if predict else (0,)
    whole = jax.jit(function, out_shardings=sharding, donate_argnums=donated)
    return whole.lower(*there).compile()


def _estimate(case):
    """Bytes of a step without compiling it, as `jaxdet summary` has them."""
    subject = side_jaxdet.subject_of(side_jaxdet.open_run(**case), training=True)
    sizes = memory.known_bytes(subject, "step")
    kept = memory.kept_for_backward(subject, subject.batch_size)
    return memory.total(sizes) + sum(each.bytes for each in kept)


def _print_cycles(text, top):
    """Where a TPU's compiler expects the time, by the part of the code."""
    found, runs = places.of_operations(text), places.runs_of_computations(text)
    by_place = collections.Counter()
    for computation, line in places.instructions(text):
        instruction = places.INSTRUCTION.match(line)
        cycles = CYCLES.search(line)
        if cycles:
            place = found.get(instruction.group(1), "?") if instruction else "?"
            by_place[place] += int(cycles.group(1)) * runs[computation]
    total = sum(by_place.values())
    if total:
        print(f"{total / 1e6:9.2f} M cycles in all")
    for place, cycles in by_place.most_common(top if total else 0):
        print(f"{cycles / 1e6:9.2f} M cycles {cycles / total:6.1%}  {place}")


def _read():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help=f"of {', '.join(detectors.MODELS)}")
    add("--target", choices=TARGETS, default="h100")
    detectors.add_size_flags(parser, size=(800, 1344), dtype="bfloat16")
    add("--predict", action="store_true", help="prediction, not the training step")
    add("--hlo", metavar="FILE", help="write the compiled program (of the last model)")
    add("--top", type=int, default=25, metavar="N", help="rows of estimated cycles (25)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
