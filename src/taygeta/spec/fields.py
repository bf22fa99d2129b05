"""Every field of a chip sheet, said once: its path, its dimension, what more of it does to speed, and what it means.

The reader, the validation, `taygeta show`, the reference page and the corners of the intervals all follow from this
table. A chip is one package: what a datasheet calls a GPU, a TPU chip, a socket. `clock` is the sustained clock at
which the peak is counted. Bandwidths of links are per direction and per chip. `bytes` of a collective is the input of
one rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from taygeta.base import units
from taygeta.base.formats import FORMATS
from taygeta.base.units import Dimension

# Compute modes of a tensor unit, widest first within a kind: the arithmetic a multiply is done in, not how operands
# are stored.
MODES = ("fp32", "tf32", "bf16", "fp8", "int8", "fp6", "fp4", "mx9", "mx6")

TENSOR_PARALLEL = ("gather", "reduce")
TOPOLOGIES = ("switch", "mesh", "ring", "torus2d", "torus3d", "pcie")


@dataclass(frozen=True)
class Field:
    """One field: more = True when a larger value never makes the chip slower, False when a smaller one, None when
    speed ignores it.
    """

    path: str
    dimension: Dimension
    meaning: str
    more: bool | None = None
    required: bool = False


def _fields() -> tuple[Field, ...]:
    u = units
    out = [
        Field("cores.count", u.COUNT, "compute cores: SMs, CUs, tiles, TensorCores, CPU cores", True, True),
        Field("clock", u.HERTZ, "sustained clock of the tensor unit", True, True),
        Field("tensor.rows", u.COUNT, "rows of the tensor unit: granule of m"),
        Field("tensor.cols", u.COUNT, "columns of the tensor unit: granule of n"),
        Field("tensor.depth", u.COUNT, "lanes of the tensor unit: granule of k"),
        Field("tensor.drain", u.COUNT, "clocks in which a finished tile of sums leaves the tensor unit"),
        Field("tensor.pipeline", u.COUNT, "clocks from a product to its sum, beyond the array's own skew"),
        Field("dma.latency", u.SECONDS, "from the issue of a transfer out of main memory to its first byte", False),
        Field("semaphore.latency", u.SECONDS, "from the last core's signal until every core has seen it", False),
        Field("vector.flop_per_s", u.FLOP_PER_S, "fp32 rate of the vector units of the whole chip", True),
        Field("vector.exp_per_clock", u.RATIO, "exponentials per clock of one core", True),
        Field("hbm.capacity", u.BYTES, "main memory: HBM, GDDR or DDR", None, True),
        Field("hbm.bandwidth", u.BYTES_PER_S, "bandwidth of the main memory", True, True),
        Field("cache.capacity", u.BYTES, "memory on the chip that all cores share: L2, MALL, CMEM, cluster SRAM", True),
        Field("cache.bandwidth", u.BYTES_PER_S, "bandwidth of that memory to all cores", True),
        Field("sram.per_core", u.BYTES, "memory of one core: L1, shared memory, scratchpad", True),
        Field("far.capacity", u.BYTES, "second tier of memory behind the first, for information"),
        Field("far.bandwidth", u.BYTES_PER_S, "bandwidth of the second tier, for information"),
        Field("link.bandwidth", u.BYTES_PER_S, "scale-up bandwidth, per direction and chip", True),
        Field("link.latency", u.SECONDS, "time of one hop of a scale-up transfer, software included", False),
        Field("link.domain", u.COUNT, "chips that the scale-up links join"),
        Field("link.bus", u.BYTES_PER_S, "what all chips together get, where they share a bus or host memory", True),
        Field("link.reduces", u.COUNT, "1 if the switch adds in flight (NVLink SHARP), else 0"),
        Field("network.bandwidth", u.BYTES_PER_S, "scale-out bandwidth, per direction and chip", True),
        Field("network.latency", u.SECONDS, "time of one hop of a scale-out transfer, software included", False),
        Field("host.bandwidth", u.BYTES_PER_S, "link to the host, per direction", True),
        Field("power.tdp", u.WATTS, "power the chip is designed or provisioned for"),
        Field("price.per_hour", u.DOLLARS_PER_HOUR, "what one chip costs to rent for an hour"),
        Field("die.area", u.RATIO, "die area in mm2, for information"),
    ]
    for mode in MODES:
        out.append(Field(f"tensor.lanes.{mode}", u.COUNT, f"products summed exactly before one rounding in {mode}"))
        out.append(Field(f"tensor.macs.{mode}", u.COUNT, f"multiply-accumulates per clock of one core in {mode}"))
        out.append(Field(f"tensor.peak.{mode}", u.FLOP_PER_S, f"dense peak of the whole chip in {mode}", True))
    return (*out, *_calibration())


# Calibration constants: (name, dimension, what more of it does, meaning). The kernels of taygeta.cost define them.
_CONSTANTS: tuple[tuple[str, Dimension, bool | None, str], ...] = (
    ("launch", units.SECONDS, False, "launch and drain of one kernel in a replayed graph"),
    ("core_port", units.BYTES_PER_CLOCK, True, "what one core loads from the shared memory in a clock"),
    ("core_port_share", units.RATIO, True, "core_port as a share of the core's part of the shared memory's bandwidth"),
    ("multicast", units.RATIO, False, "traffic factor where neighbouring cores share operand tiles: 1 none"),
    ("matmul.sustained", units.RATIO, True, "share of peak that a large multiply keeps up within the power limit"),
    ("matmul.memory_efficiency", units.RATIO, True, "share of main-memory bandwidth that a stream reaches"),
    ("matmul.tail_overlap", units.RATIO, True, "how far a persistent kernel fills its last wave"),
    ("matmul.cache_share", units.RATIO, True, "share of the shared memory that holds operands between waves"),
    ("matmul.power_coupling", units.RATIO, False, "part of the memory time that delays a power-limited tensor unit"),
    ("matmul.step_seconds", units.SECONDS, False, "latency of the main loop of a tile, for each element of k"),
    ("matmul.start_depth", units.RATIO, False, "depths of k that starting and finishing a tile cost"),
    ("matmul.split_seconds", units.SECONDS, False, "time to join partial sums when k is split over cores"),
    ("matmul.core_port", units.BYTES_PER_CLOCK, True, "what a core is fed in a multiply, shared operands counted each"),
    ("matmul.core_port_share", units.RATIO, True, "the same, as a share of its part of the shared memory's bandwidth"),
    ("matmul.usable_cache", units.RATIO, None, "share of the cache that repeated weights occupy; for benchmarks only"),
    ("quantise.passes", units.RATIO, False, "times the input is read to quantise it"),
    (
        "quantise.fixed_seconds",
        units.SECONDS,
        False,
        "launches and waits of quantising, in a benchmark of one multiply",
    ),
    ("quantise.core_bytes", units.BYTES_PER_CLOCK, True, "what one core converts in a clock, read and written"),
    ("quantise.memory_efficiency", units.RATIO, True, "share of main-memory bandwidth of quantising"),
    ("quantise.cache_share", units.RATIO, True, "share of the shared memory in which its input is still found"),
    ("vector.memory_efficiency", units.RATIO, True, "share of main-memory bandwidth of elementwise kernels"),
    ("vector.cache_efficiency", units.RATIO, True, "share of the shared memory's bandwidth of elementwise kernels"),
    ("vector.compute_efficiency", units.RATIO, True, "share of the vector rate that elementwise code reaches"),
    ("attention.decode_start", units.SECONDS, False, "what a decode call takes beyond one launch"),
    ("attention.prefill_start", units.SECONDS, False, "what a prefill call takes beyond one launch"),
    ("attention.decode_tile", units.SECONDS, False, "start, latency and drain of a decode tile"),
    ("attention.prefill_tile", units.SECONDS, False, "start, latency and drain of a prefill tile"),
    ("attention.stream_efficiency", units.RATIO, True, "share of main-memory bandwidth of a long walk over keys"),
    ("attention.tensor_efficiency", units.RATIO, True, "share of peak at which attention's multiplies run alone"),
    ("attention.overlap", units.RATIO, True, "norm that joins memory and core in decode"),
    ("attention.query_rows", units.RATIO, None, "query rows of a prefill tile"),
    ("attention.packs", units.RATIO, None, "1: short prefill tiles hold several heads, 2: all"),
    ("attention.spreads", units.RATIO, None, "1: prefill is planned: idle cores take keys, no tail; .5: tail"),
    ("attention.convert_rate", units.RATIO, True, "8-bit cached elements that a core converts in a clock"),
    ("attention.merge", units.SECONDS, False, "time to merge two halves of a context that a prefill splits"),
    ("attention.decode_merge", units.SECONDS, False, "time to merge two halves of a context that a decode splits"),
    ("attention.merge_start", units.SECONDS, False, "time of any merge of a decode beside that"),
    ("attention.convert_rows", units.RATIO, False, "query rows of a padded tile; exponentials wait for 8-bit ones"),
    ("attention.most_splits", units.RATIO, True, "parts that a context is cut into at most"),
    ("attention.sequence", units.SECONDS, False, "time for each sequence of a decode call"),
    ("attention.sparse_rows", units.RATIO, None, "fewest query heads that a sparse prefill kernel takes"),
    ("attention.row", units.SECONDS, False, "time of a decode tile for each query row beyond the narrowest tile's"),
    ("attention.usable_cache", units.RATIO, True, "share of the shared memory that repeated walks find whole"),
    ("attention.prefill_usable_cache", units.RATIO, True, "the same of prefills, which write too"),
    ("attention.prefill_block", units.RATIO, None, "keys that a prefill tile loads at a time; 0: as its rows"),
    ("attention.prefill_key", units.SECONDS, True, "time of a key of a prefill tile beside its work"),
    ("attention.stream_start", units.SECONDS, False, "time until main memory streams at full rate"),
    ("attention.core_stream", units.BYTES_PER_S, True, "bytes in flight of one core over the latency of memory"),
    ("attention.fill_keys", units.RATIO, False, "keys loaded before a tile's first multiply and after its last"),
    (
        "attention.exposed",
        units.RATIO,
        False,
        "share of reading queries and writing outputs that overlaps with nothing",
    ),
    ("attention.narrowing", units.RATIO, False, "work to make a score an 8-bit operand, in exponentials"),
    ("attention.softmax_overlap", units.RATIO, True, "norm that joins multiplies, exponentials and loads of a tile"),
    ("attention.cache_efficiency", units.RATIO, True, "share of the shared memory's bandwidth that tiles reach"),
    ("scan.chunk", units.RATIO, None, "tokens of a chunk of a recurrent mixer's prefill"),
    ("scan.decode_kernels", units.RATIO, False, "launches of a recurrent mixer's decode"),
    ("scan.prefill_kernels", units.RATIO, False, "launches of a recurrent mixer's prefill"),
    ("scan.step", units.SECONDS, False, "passing a state from chunk to chunk"),
    ("scan.token_step", units.SECONDS, False, "least time of a token in the recurrent form"),
    ("scan.stream_efficiency", units.RATIO, True, "share of main-memory bandwidth of states and activations"),
    ("scan.tensor_efficiency", units.RATIO, True, "share of peak of multiplies of a chunk's size"),
    ("scan.vector_efficiency", units.RATIO, True, "share of the vector rate of the recurrent form"),
    ("scan.stored_states", units.RATIO, None, "1: states between chunks go through memory"),
    ("experts.memory_efficiency", units.RATIO, True, "share of main-memory bandwidth of streaming expert weights"),
    ("experts.tensor_efficiency", units.RATIO, True, "share of peak of a full grouped tile"),
    ("experts.vector_share", units.RATIO, True, "share of the cores' ports of permutation and activation"),
    ("experts.overlap", units.RATIO, True, "norm that joins tensor unit, feed and memory"),
    ("experts.tile_launches", units.RATIO, False, "prologue and epilogue of a grouped tile, in launches"),
    ("experts.cache_share", units.RATIO, True, "share of the shared memory that outlasts a stream of weights"),
    ("experts.launches", units.RATIO, False, "kernels of one expert layer, in launches"),
    ("experts.per_expert", units.SECONDS, False, "offsets and descriptors of each local expert"),
    ("experts.unpack", units.RATIO, True, "narrow weights that a core widens in a clock"),
    ("experts.row_elements", units.RATIO, False, "what a permuted row costs beyond its elements, in elements"),
    ("experts.padded_rows", units.RATIO, False, "rows laid out for each local expert beyond its own"),
    ("collective.efficiency", units.RATIO, True, "share of link bandwidth that large messages sustain"),
    ("collective.start", units.RATIO, False, "launch and rendezvous of a library collective, in link latencies"),
    ("collective.blend", units.RATIO, False, "weight of the middle ground between latency and bandwidth"),
    ("collective.local_copy", units.RATIO, False, "a byte moved to oneself over one on the wire"),
    ("collective.switch_efficiency", units.RATIO, True, "share of link bandwidth of a sum made in the switch"),
    ("collective.direct_start", units.RATIO, False, "start of a one-shot kernel, in link latencies"),
    ("collective.direct_second", units.RATIO, False, "second phase of a two-shot kernel, link latencies by doubling"),
    ("collective.direct_efficiency", units.RATIO, True, "share of link bandwidth of one- and two-shot kernels"),
    ("collective.ll_share", units.RATIO, None, "share of link bandwidth that the library's tuner expects of LL"),
    ("collective.ll_start", units.RATIO, False, "launch and rendezvous under LL, in link latencies"),
    ("collective.ll_efficiency", units.RATIO, True, "share of link bandwidth under LL, half of which are flags"),
    ("collective.ll_channels", units.RATIO, False, "start of LL's second and further channels, in link latencies"),
    ("collective.ll128_start", units.RATIO, False, "launch and rendezvous under LL128, in link latencies"),
    ("collective.ll128_flight", units.BYTES, True, "bytes that a channel has under way under LL128"),
    ("collective.simple_start", units.RATIO, False, "launch and rendezvous under Simple, in link latencies"),
    ("collective.simple_step", units.RATIO, False, "a step of Simple, in link latencies"),
    ("collective.simple_efficiency", units.RATIO, True, "share of link bandwidth under Simple"),
    ("collective.switch_start", units.RATIO, False, "launch of a sum made in the switch, in link latencies"),
    ("collective.switch_fill", units.RATIO, False, "what 16 KiB of a chunk add to that start, in link latencies"),
    ("collective.switch_flight", units.BYTES, True, "bytes that a channel has under way to a switch that adds"),
    ("collective.switch_depth", units.BYTES, True, "and for each 16 KiB of a chunk"),
    ("collective.direct_flight", units.BYTES, True, "bytes that a direct kernel has under way to a peer; 0: unlimited"),
    ("collective.direct_one_shot", units.BYTES, None, "bytes over all chips below which direct kernels are one-shot"),
    ("collective.direct_limit", units.BYTES, None, "bytes above which the library's collective is called"),
    ("collective.direct_switch_start", units.RATIO, False, "start of an engine's sum in the switch, in link latencies"),
    ("collective.direct_switch_efficiency", units.RATIO, True, "share of link bandwidth of an engine's switch sum"),
    ("collective.direct_switch_limit", units.BYTES, None, "as direct_limit, where the switch adds"),
)
# Constants that a format may have of its own, as matmul.fp8.sustained: another kernel of the library.
_PER_FORMAT = (
    "matmul.sustained",
    "matmul.step_seconds",
    "matmul.split_seconds",
    "quantise.passes",
    "quantise.fixed_seconds",
    "quantise.core_bytes",
)
# Constants of expert layers that another kernel library than the chip's own has, as experts.triton.launches, or the
# chip's own for weights of a format, as experts.fp8_block.launches.
LIBRARIES = ("triton", "triton_tuned", "trtllm_gen", "deepgemm")
BLOCK = "_block"  # after the name of a library: its kernels for fp8 with scales of blocks
_PER_LIBRARY = tuple(
    f"experts.{name}"
    for name in ("tensor_efficiency", "vector_share", "launches", "per_expert", "row_elements", "padded_rows")
)
# Held-out errors: the ratio within which 80 % of measurements on silicon that was not fitted lie, minus one. Kinds of a
# kernel's rows that taygeta.validate.kinds tells apart have errors of their own, as error.attention_decode; a chip file
# that states only error.attention means it for both.
_ERRORS = {
    "step": "step",
    "first": "first token's",
    "matmul": "matmul",
    "attention": "attention",
    "experts": "experts",
    "collective": "collective",
}
MEASURED_LIBRARIES = ("trtllm", "vllm", "sglang")  # engines whose kernels were measured, as tables name them
NEAR, FAR = "near", "far"


def _by_distance(makers: Mapping[str, str]) -> dict[str, str]:
    how = {NEAR: "at most twice the roofline", FAR: "more than twice the roofline"}
    return {f"{maker}_{d}": f"{what}, {far}" for maker, what in makers.items() for d, far in how.items()}


_BY_ENGINE = {name: f"of {name}" for name in MEASURED_LIBRARIES}
_BY_LIBRARY = _by_distance({name: f"by kernels of {name}" for name in MEASURED_LIBRARIES})
ERROR_KINDS: Mapping[str, Mapping[str, str]] = {
    "step": _BY_ENGINE,
    "first": _BY_ENGINE,
    "matmul": _BY_LIBRARY,
    "attention": {"prefill": "of prompts", "decode": "of single tokens"},
    "experts": _BY_LIBRARY,
    "collective": {
        **_by_distance(
            {
                "library": "by sums and gathers of a library",
                "torch": "by sums and gathers of a library called through PyTorch",
                "direct": "by one-shot and two-shot kernels",
                "send": "by transfers between two chips, alone or all to all",
            }
        ),
        "bridge": "by transfers over a bridge of two cards",
    },
}


def _calibration() -> tuple[Field, ...]:
    out: list[Field] = []
    for name, dimension, more, meaning in _CONSTANTS:
        out.append(Field(f"calibration.{name}", dimension, meaning, more))
        if name in _PER_FORMAT:
            kernel, _, constant = name.partition(".")
            for fmt in FORMATS:
                path = f"calibration.{kernel}.{fmt}.{constant}"
                out.append(Field(path, dimension, f"{name} of {fmt}: {meaning}", more))
        if name in _PER_LIBRARY:
            for library in (*LIBRARIES, *(own + BLOCK for own in LIBRARIES), *FORMATS):
                path = f"calibration.experts.{library}.{name.partition('.')[2]}"
                out.append(Field(path, dimension, f"{name} of {library} kernels: {meaning}", more))
    for name, what in _ERRORS.items():
        out.append(Field(f"calibration.error.{name}", units.RATIO, f"held-out error of {what} predictions"))
        for kind, which in ERROR_KINDS.get(name, {}).items():
            path = f"calibration.error.{name}_{kind}"
            out.append(Field(path, units.RATIO, f"held-out error of {what} predictions {which}"))
    return tuple(out)


FIELDS: dict[str, Field] = {f.path: f for f in _fields()}

# Plain text keys of a sheet, outside the table of numbers.
TEXTS = {
    "id": "the name by which a command knows the chip",
    "name": "the product's name",
    "vendor": "who makes it",
    "family": "whose defaults it takes: a name in the catalogue of families",
    "kind": "gpu, tpu, npu or cpu",
    "status": "announced, shipping, internal",
    "year": "year of first use",
    "cores.name": "what the vendor calls a core",
    "tensor.wide_sum": "how products of bf16, fp16 and fp32 are added: tree (of fp32 adders), or aligned to a width",
    "tensor.scale_rule": "how block scales are chosen: floor, ceil, rceil or even",
    "tensor.parallel": "how programs spread multiplies over chips: gather (outputs) or reduce (partial sums)",
    "hbm.kind": "what the main memory is made of",
    "link.kind": "what the scale-up links are",
    "link.topology": f"one of {', '.join(TOPOLOGIES)}",
    "network.kind": "what the scale-out network is",
    "process": "process node",
    "software": "what programs it",
}
