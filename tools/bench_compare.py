"""One 1024^3 multiply on a 128 x 128 array: our timed machine and modelled kernel beside SCALE-Sim and ZigZag.

The others are run where they are installed, in a virtual environment of their own: $COMPARE_VENV, or /tmp/compare
(`pip install scalesim zigzag-dse six 'numpy<2.4'`: ZigZag imports six without asking for it, SCALE-Sim 3.0.0 stops on
NumPy 2.4). One that is not there, or fails, is "not run".
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_time import seconds

SIZE, ARRAY = 1024, 128
LIMIT = 150.0  # seconds for which another tool is waited for

CHIP = f"""id = "array"
name = "One array of {ARRAY} x {ARRAY} cells"
family = "generic-npu"
kind = "npu"
clock = "1 GHz"
[cores]
count = 1
[tensor]
rows = {ARRAY}
cols = {ARRAY}
depth = 1
drain = {ARRAY}
[tensor.lanes]
int8 = 1
[tensor.macs]
int8 = {ARRAY * ARRAY}
[vector]
flop_per_s = "2 TFLOP/s"
exp_per_clock = 16
[hbm]
capacity = "16 GB"
bandwidth = "1024 GB/s"
[sram]
per_core = "6 MB"
[dma]
latency = "0.1 us"
[semaphore]
latency = "0.01 us"
"""

TIMED = f"""
import sys, time
from taygeta.compiler.context import Context
from taygeta.compiler.emit import Emitter
from taygeta.compiler.linear import linear
from taygeta.compiler.place import place
from taygeta.compiler.target import target
from taygeta.graph.meaning import Linear
from taygeta.graph.ops import Op, Slab
from taygeta.machine.timed import time_program
from taygeta.spec.catalog import chip
from taygeta.spec.mixers import Weight
t = target(chip(sys.argv[1]))
def timed():
    meaning = Linear(("w",))
    op = Op("gemm", "matmul", "gemm", (Slab((("tokens", 0), ("d_model", {SIZE})), "int8"),),
            weights=(Weight("w", (("d_model", {SIZE}), ("d_ff", {SIZE})), "gemm"),), weight_format="int8",
            contract=("d_model",), inputs=("x",), outputs=("y",), meaning=meaning)
    c = Context(Emitter(t, 1), t, 1, 1, {SIZE}, 0, {SIZE}, "bf16")
    c.emitter.phase("start", "gemm")
    c.wants = {{"x": {{"int8"}}, "y": {{"bf16"}}}}
    c.hold("x", {SIZE}, {SIZE}, role="input")
    linear(c, op, meaning)
    return time_program(place(c, "gemm", "array"), t, spans=0)
print("clocks", timed().cycles)
start = time.process_time()
for _ in range(10):
    timed()
print("cpu", start)
print("warm", (time.process_time() - start) / 10)
"""
"""Compiled by the compiler of whole models and timed; sys.argv: the chip's file."""

SCALE = f"""
import os, sys, time
os.chdir(sys.argv[1])
banks = [side + "SRAMBank" + what for side in ("Ifmap", "Filter") for what in ("Bandwidth", "Num")]
layout = "\\n".join(f"{{bank}}: {SIZE}" for bank in banks)
open("a.cfg", "w").write(f'''[general]
run_name = gemm
[architecture_presets]
ArrayHeight: {ARRAY}
ArrayWidth: {ARRAY}
IfmapSramSzkB: 2048
FilterSramSzkB: 2048
OfmapSramSzkB: 2048
IfmapOffset: 0
FilterOffset: 10000000
OfmapOffset: 20000000
Dataflow: os
Bandwidth: {SIZE}
ReadRequestBuffer: 64
WriteRequestBuffer: 64
[layout]
IfmapCustomLayout: False
IfmapSRAMBankPort: 2
FilterCustomLayout: False
FilterSRAMBankPort: 2
{{layout}}
[sparsity]
SparsitySupport: false
[run_presets]
InterfaceBandwidth: USER
UseRamulatorTrace: False
''')
open("gemm.csv", "w").write("Layer, M, N, K,\\ngemm, {SIZE}, {SIZE}, {SIZE},\\n")
open("layout.csv", "w").write("Layer,\\ngemm," + "1," * 30 + "\\n")
from scalesim.scale_sim import scalesim
s = scalesim(save_disk_space=True, verbose=False, config="a.cfg", topology="gemm.csv", layout="layout.csv",
             input_type_gemm=True)
s.run_scale(top_path=sys.argv[1])
print("clocks", s.runner.single_layer_sim_object_list[0].get_compute_report_items()[0])
print("cpu", time.process_time())
"""
"""Output stationary, 1024 words a clock of DRAM and banks, no traces written; sys.argv: a folder."""

ZIGZAG = f"""
import os, sys, time
from pathlib import Path
import zigzag
from zigzag.api import get_hardware_performance_zigzag
os.chdir(sys.argv[1])
own = (Path(zigzag.__file__).parent / "inputs/hardware/tpu_like.yaml").read_text()
for old, new in (("[32, 32]", "[{ARRAY}, {ARRAY}]"), ("bandwidth_max: 64\\n", "bandwidth_max: 8192\\n")):
    assert own.count(old) == 1
    own = own.replace(old, new)
Path("array.yaml").write_text(own)
Path("mapping.yaml").write_text('''- name: default
  spatial_mapping: {{D1: ["K, {ARRAY}"], D2: ["C, {ARRAY}"]}}
  memory_operand_links: {{O: O, W: I2, I: I1}}
''')
Path("gemm.yaml").write_text('''- id: 0
  name: gemm
  operator_type: Gemm
  equation: O[b][k]+=I[b][c]*W[c][k]
  loop_dims: [B, K, C]
  loop_sizes: [{SIZE}, {SIZE}, {SIZE}]
  operand_precision: {{W: 8, I: 8, O: 16, O_final: 8}}
  operand_source: {{W: 0, I: 0}}
''')
_, clocks, _ = get_hardware_performance_zigzag("gemm.yaml", "array.yaml", "mapping.yaml", opt="latency",
                                               dump_folder="out", loma_show_progress_bar=False)
print("clocks", clocks)
print("cpu", time.process_time())
"""
"""ZigZag's own tpu_like, weight stationary, at 128 x 128 and 1024 bytes a clock of DRAM; sys.argv: a folder."""


class Tool:
    """A process that times the multiply; what it prints is a word and a figure a line, `clocks` and `cpu` among them.

    It begins at once, and counts its own CPU seconds from its start, imports included.
    """

    def __init__(self, python: str, code: str, *words: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.says, self.complains = (open(f"{self.folder.name}/{n}", "w+") for n in ("said.txt", "complaints.txt"))  # noqa: SIM115
        self.process = subprocess.Popen(
            [python, "-c", code, *(words or (self.folder.name,))],
            stdout=self.says,
            stderr=self.complains,
            cwd=self.folder.name,
        )
        atexit.register(self.process.kill)

    def wait(self) -> None:
        """Wait for the end, for as long as a tool is given; then end it."""
        try:
            self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def figures(self) -> dict[str, str]:
        """Wait for the end; return what was said by its first word. Raises CalledProcessError."""
        self.wait()
        code = self.process.returncode
        texts = []
        for file in (self.says, self.complains):
            file.seek(0)
            texts.append(file.read())
            file.close()
        self.folder.cleanup()
        if code:
            raise subprocess.CalledProcessError(code, "a comparison", *texts)
        return dict(line.split(maxsplit=1) for line in texts[0].splitlines() if len(line.split()) > 1)


def others() -> str:
    """Return the Python of the virtual environment of the other tools, "" where there is none."""
    python = Path(os.environ.get("COMPARE_VENV", "/tmp/compare")) / "bin/python"  # noqa: S108
    return str(python) if python.exists() else ""


def start_slow() -> Tool | None:
    """Start the slowest of the other tools, to run beside the first measurements."""
    return Tool(others(), SCALE) if others() else None


def compare_rows(slow: Tool | None) -> list[str]:
    """Rows of the table of one multiply: CPU seconds, clocks, and CPU seconds over those of our own process."""
    import numpy as np

    from taygeta.cost.surface import matmul_seconds
    from taygeta.spec.catalog import chip

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "array.toml"
        path.write_text(CHIP, encoding="utf-8")
        array, shape = chip(str(path)), np.array([[float(SIZE)] * 3])
        said = [Tool(sys.executable, TIMED, str(path)).figures() for _ in range(3)]
    clocks = float(said[0]["clocks"])
    own, warm = (min(float(found[word]) for found in said) for word in ("cpu", "warm"))
    modelled = float(matmul_seconds(array, "int8", shape)[0]) * array.clock
    model = seconds(lambda: [matmul_seconds(array, "int8", shape) for _ in range(1000)], 3) / 1000
    rows = [
        ("our timed machine, a new process: compile, place, time", f"{own:.3g}", f"{clocks:,.0f}", "1"),
        ("our timed machine, warm", f"{warm:.3g}", f"{clocks:,.0f}", f"{warm / own:.1g}"),
        ("our modelled kernel, warm", f"{model:.2g}", f"{modelled:,.0f}", f"{model / own:.1g}"),
        _other("SCALE-Sim", "scalesim", slow, own),
        _other("ZigZag", "zigzag-dse", Tool(others(), ZIGZAG) if others() else None, own),
    ]
    head = [f"| one {SIZE}^3 multiply on an array of {ARRAY} x {ARRAY} | CPU seconds | clocks | x our process |"]
    return [*head, "|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]


def _other(name: str, package: str, tool: Tool | None, own: float) -> tuple[str, str, str, str]:
    """Return the row of another tool: its whole process, once."""
    if tool is None:
        return f"{name} (not installed)", "not run", "", ""
    try:
        said = tool.figures()
        ask = f"import importlib.metadata as m; print('version', m.version({package!r}))"
        version = Tool(others(), ask).figures()["version"]
        taken, clocks = float(said["cpu"]), float(said["clocks"])
    except (OSError, subprocess.SubprocessError, KeyError, ValueError) as error:
        return f"{name} (stopped: {_reason(error)})", "not run", "", ""
    return f"{name} {version}, a process", f"{taken:.3g}", f"{clocks:,.0f}", f"{taken / own:.3g}"


def _reason(error: Exception) -> str:
    """Return in a few words why another tool gave no figure."""
    if getattr(error, "returncode", 0) < 0:  # ended from outside
        return f"no answer in {LIMIT:g} s"
    lines = (getattr(error, "stderr", "") or "").strip().splitlines()
    return lines[-1].partition(":")[0][:60].replace("|", "/") if lines else type(error).__name__
