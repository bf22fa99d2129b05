"""Texts that end an answer: nothing of one is shown, wherever tokens cut it."""

from __future__ import annotations

from collections.abc import Sequence


class Stops:
    """Watches a text for the first of several stops. least: tokens at the beginning that are not watched."""

    def __init__(self, stops: Sequence[str], least: int = 0) -> None:
        self.stops, self.least = tuple(stops), least
        self.found = False
        self._held = ""
        self._tokens = 0

    def feed(self, text: str) -> str:
        """Take the text of a token; return what may be shown now."""
        if not self.stops:
            return text
        self._tokens += 1
        if self._tokens <= self.least:
            return text
        text = self._held + text
        places = [place for place in (text.find(stop) for stop in self.stops) if place >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        keep = max(_overlap(text, stop) for stop in self.stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """Return what was held back, when no token follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return how many of the last signs of a text begin a stop."""
    for count in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-count:]):
            return count
    return 0
