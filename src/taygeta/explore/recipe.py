"""A deployment as a person names it: kept as words, so that it can be built again with one number changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from taygeta.base import units
from taygeta.base.errors import InputError
from taygeta.frontend.catalog import model
from taygeta.graph.memory import memory
from taygeta.spec.catalog import sheet
from taygeta.spec.chip import Chip, assumption_group, build_chip
from taygeta.spec.deployment import ROUTING_SKEW, Corner, Deployment, Parallelism, deployment, divides_heads
from taygeta.spec.fields import FIELDS, TEXTS
from taygeta.spec.launch import case_of, launched
from taygeta.spec.model import Model
from taygeta.spec.sheet import Sheet


@dataclass(frozen=True)
class Recipe:
    """What a command line says of a deployment.

    model: a name, a file, or a Model as an export gives it. on: a chip, or chip:count. tp, ep None: chosen by the
    caller's search, or everything in tensor parallelism. settings: fields of chip or model with texts, such as
    {"hbm.bandwidth": "3TB/s", "num_hidden_layers": "40"}.
    """

    model: str | Model
    on: str
    tp: int | None = None
    pp: int = 1
    ep: int | None = None
    dp: int = 1
    cp: int = 1
    sequence: bool = False
    weights: str | None = None
    activations: str | None = None
    kv: str | None = None
    engine: str = "vllm"
    skew: float = ROUTING_SKEW
    settings: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def with_settings(self, settings: Mapping[str, str]) -> Recipe:
        """Return the recipe with further fields set."""
        return replace(self, settings=MappingProxyType({**self.settings, **settings}))

    @property
    def chip_name(self) -> str:
        """The chip, without the count."""
        return split_count(self.on)[0]

    @property
    def given(self) -> bool:
        """True when the parallelism is said, so that nothing is left to search."""
        return self.tp is not None or self.ep is not None or max(self.pp, self.dp, self.cp) > 1

    def sheet(self) -> Sheet:
        """Return the chip's sheet with the settings applied. Raises InputError."""
        return sheet(self.chip_name, split_settings(self.settings)[0])

    def build(self) -> Deployment:
        """Return the deployment. Raises InputError.

        Where nothing is said of parallelism: as much tensor parallelism as heads and chips divide into, and as few
        pipeline stages as make the weights fit.
        """
        model, chip, corners = self.parts()
        count = split_count(self.on)[1]
        used = self.pp * self.dp * self.cp
        tp = self._default_tp(model, count, used) if self.tp is None else self.tp
        spread = Parallelism(tp, self.pp, 1 if self.ep is None else self.ep, self.dp, self.cp, self.sequence)
        found = self.spread(model, chip, corners, count or spread.chips, spread)
        return found if self.given else _fitting(found)

    def spread(
        self, model: Model, chip: Chip, corners: tuple[Corner, ...], count: int, parallelism: Parallelism
    ) -> Deployment:
        """Return what `parts` gave, spread over so many chips, under the engine as it is launched for them.

        Raises InputError.
        """
        engine = launched(self.engine, case_of(model, chip, count, self.weights or ""))
        kv = self.kv or engine.kv_format or None
        return deployment(
            model, chip, count, engine, parallelism, self.weights, self.activations, kv, corners, self.skew
        )

    def parts(self) -> tuple[Model, Chip, tuple[Corner, ...]]:
        """Return the model, the chip, and what is assumed about them, group by group. Raises InputError."""
        for_chip, for_model = split_settings(self.settings)
        found = sheet(self.chip_name, for_chip)
        nominal, chip = self._model("nominal", for_model), build_chip(found)
        groups = sorted({assumption_group(path) for path, _ in found.assumptions()})
        corners = [Corner(g, side, nominal, build_chip(found, side, g)) for g in groups for side in ("fast", "slow")]
        if nominal.assumed:
            ends = (("fast", "low"), ("slow", "high"))
            corners += [Corner("model", side, self._model(end, for_model), chip) for side, end in ends]
        return nominal, chip, tuple(corners)

    def _model(self, corner: str, settings: Mapping[str, str]) -> Model:
        if not isinstance(self.model, Model):
            return model(self.model, corner, settings)
        if settings:
            raise InputError(
                f"{self.model.name} is given as a model of its own and has no {next(iter(settings))} to set: set it in"
                " the configuration that it comes from."
            )
        return self.model

    def _default_tp(self, found: Model, count: int | None, used: int) -> int:
        """The most of the chips that other parallelism leaves which heads and chips divide into evenly."""
        chips = max(1, (count or used) // used)
        return max(tp for tp in range(1, chips + 1) if chips % tp == 0 and divides_heads(found, tp))


def _fitting(d: Deployment) -> Deployment:
    """The deployment with as few pipeline stages as make its weights fit; as it is where none do."""
    left = d.chips // d.parallelism.chips
    for pp in (n for n in range(1, left + 1) if left % n == 0 and n <= len(d.model.layers)):
        longer = replace(d, parallelism=replace(d.parallelism, pp=pp))
        if memory(longer).fits:
            return longer
    return d


def split_count(on: str) -> tuple[str, int | None]:
    """Split "h100:8" into ("h100", 8); without a count, None. Raises InputError."""
    name, colon, count = on.rpartition(":")
    if not colon or "/" in count or "\\" in count:
        return on, None
    if not count.isdigit() or int(count) < 1:
        raise InputError(f"A chip is written NAME or NAME:COUNT such as h100:8, not {on!r}.")
    return name, int(units.parse(count, units.COUNT, "the number of chips"))


def split_settings(settings: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Split settings into the chip's and the model's: a field of a chip sheet is the chip's, else the model's."""
    chip: dict[str, str] = {}
    found: dict[str, str] = {}
    for path, text in settings.items():
        owner, _, rest = path.partition(".")
        if owner == "model":
            found[rest] = text
        elif owner == "chip" or path in FIELDS or ("." in path and path in TEXTS):
            chip[rest if owner == "chip" else path] = text
        elif "." in path and owner in {p.partition(".")[0] for p in FIELDS}:
            chip[path] = text  # a chip's field spelled wrong: the sheet names the closest
        else:
            found[path] = text
    return chip, found
