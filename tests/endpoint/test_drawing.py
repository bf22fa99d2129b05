"""How the next token is drawn: every rule by hand, on logits of a few tokens."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taygeta.base.errors import InputError
from taygeta.endpoint.drawing import LEAST_LOGPROB, Drawing, likeliest
from taygeta.endpoint.executed import default_sampling
from taygeta.endpoint.runners import cache_bytes, longest
from taygeta.endpoint.text import Ask
from taygeta.machine.generate import Sampling

EOS = (3,)
LOGITS = np.array([2.0, 1.9, 0.0, 2.5], np.float32)


def drawn(count: int, how: Sampling | None = None, logits: np.ndarray = LOGITS, **more: Any) -> list[int]:
    drawing = Drawing(Ask(**{"prompt": (2,), "limit": 9, **more}), how or Sampling(), EOS)
    return [drawing.next(logits) for _ in range(count)]


@pytest.mark.parametrize(
    ("more", "tokens"),
    [
        ({}, [3, 3, 3]),
        ({"least": 2}, [0, 0, 3]),
        ({"bias": {3: -100.0, 2: 5.0}}, [2, 2, 2]),
        # 2.5 - 0.3 = 2.2, then 1.9; 2.0 - 0.3 = 1.7, 1.9 - 0.3 = 1.6: each loses 0.3 with each time
        ({"frequency_penalty": 0.3}, [3, 3, 0, 3, 1]),
        ({"presence_penalty": 0.55}, [3, 0, 3, 3]),  # 1.95 < 2, then 1.95 > 1.9 > 1.45, and no more is taken
        ({"repetition_penalty": 1.25}, [3, 0, 3, 3]),  # 2.5 / 1.25 = 2.0, 2.0 the lower id; then 1.6
    ],
)
def test_rules_of_the_likeliest(more: dict[str, Any], tokens: list[int]) -> None:
    assert drawn(len(tokens), **more) == tokens


def test_a_penalty_of_what_the_prompt_says() -> None:
    """The prompt's token has a logit below 0: the penalty makes it less likely, too."""
    logits = np.array([-9.0, -1.2, -1.0, -9.0], np.float32)
    assert drawn(1, logits=logits) == [2]
    assert drawn(1, logits=logits, repetition_penalty=1.5) == [1]  # -1.5


def test_what_is_unlikely_is_not_drawn() -> None:
    """At temperature 1 tokens of under 0.55 times the likeliest's probability go: ln 0.55 = -0.6, of 2.5 is 1.9."""
    warm = Sampling(1.0, seed=4)
    assert set(drawn(300, warm)) == {0, 1, 2, 3}
    assert set(drawn(300, warm, min_p=0.54)) == {0, 1, 3}
    assert set(drawn(300, warm, min_p=0.56)) == {0, 3}
    assert set(drawn(300, Sampling(2.0, seed=4), min_p=0.75)) == {0, 3}  # 0.25 and 0.3 below
    assert drawn(50, warm) == drawn(50, warm) != drawn(50, Sampling(1.0, seed=5))


def test_probabilities_by_hand() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125])).astype(np.float32)
    found = likeliest(logits, 2, 2)
    assert [i for i, _ in found] == [2, 0, 1]
    assert [math.exp(x) for _, x in found] == pytest.approx([0.125, 0.5, 0.25])
    assert likeliest(logits, 1, 0) == [(1, pytest.approx(math.log(0.25)))]
    assert likeliest(np.array([0.0, -np.inf]), 1, 0) == [(1, LEAST_LOGPROB)]


@pytest.mark.parametrize(
    ("table", "how"),
    [
        (None, Sampling(1.0)),
        ({"do_sample": False, "temperature": 0.7}, Sampling(0.0)),
        ({"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}, Sampling(0.6, 20, 0.95)),
        ({"top_p": None}, Sampling(1.0)),
    ],
)
def test_how_a_checkpoint_draws(tmp_path: Path, table: dict[str, Any] | None, how: Sampling) -> None:
    if table is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(table))
    assert default_sampling(tmp_path) == how


def test_a_wrong_generation_config(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": "hot"}')
    with pytest.raises(InputError, match="temperature must be a number, not 'hot'"):
        default_sampling(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"top_p": 2}')
    with pytest.raises(InputError, match="top-p must be above 0 and at most 1"):
        default_sampling(tmp_path)


def test_the_context_that_memory_holds(deploy: Any, dense: Any) -> None:
    """4 layers of 4 heads, a key and a value of 8 in fp32: 1,024 bytes a token."""
    d = deploy(dense)
    assert cache_bytes(d, 1) == 4 * 4 * (8 + 8) * 4 == 1024
    assert [longest(d, room) for room in (1 << 30, 100 << 10, 2048)] == [1024, 100, 2]
    with pytest.raises(InputError, match="takes 1,024 bytes a token: 2,047 hold none"):
        longest(d, 2047)
