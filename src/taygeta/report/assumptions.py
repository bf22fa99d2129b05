"""Which assumed numbers a prediction rests on: of the chip, and of a model that nobody has published."""

from __future__ import annotations

from dataclasses import dataclass

from taygeta.base import units
from taygeta.report.words import number
from taygeta.spec.fields import FIELDS
from taygeta.spec.model import Model
from taygeta.spec.sheet import Sheet


@dataclass(frozen=True)
class Assumption:
    """An assumed number in SI units. of: "chip" or "model"; unit: empty for counts and ratios."""

    of: str
    field: str
    low: float
    nominal: float
    high: float
    unit: str
    reason: str

    def texts(self) -> tuple[str, str]:
        """Return the nominal value and the range for people."""
        one = self.low == self.high  # estimated, by one source or by all alike
        reach = "one estimate" if one else f"{self._show(self.low)} to {self._show(self.high)}"
        return self._show(self.nominal), reach

    def _show(self, value: float) -> str:
        if self.of == "chip":
            return units.show(value, FIELDS[self.field].dimension, digits=3)
        return f"{value:,.0f}" if value == int(value) else number(value)


def assumptions(sheet: Sheet, model: Model) -> tuple[Assumption, ...]:
    """Return the assumed numbers that speed or price depends on: the chip's, then the model's."""
    chip = [
        Assumption("chip", path, e.low, e.nominal, e.high, FIELDS[path].dimension.unit, e.reason)
        for path, e in sheet.assumptions()
        if FIELDS[path].more is not None or path.startswith("price.")
    ]
    guesses = [Assumption("model", g.field, g.low, g.nominal, g.high, "", g.reason) for g in model.guesses]
    return (*chip, *guesses)
