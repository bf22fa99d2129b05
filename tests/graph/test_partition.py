"""Partition: shards add up to the whole, and collectives follow from contracted shards."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taygeta.base.errors import InputError
from taygeta.graph.ops import AttentionShape, ExpertShape
from taygeta.graph.partition import expected_ranks, stages
from taygeta.spec.deployment import Parallelism


def names(d, kind):
    return [(op.name, op.ranks, repeats) for graph in stages(d) for op, repeats in graph.ops() if op.kind == kind]


def test_tensor_parallelism_sums_twice_a_layer(deploy, dense):
    assert names(deploy(dense, 4), "all_reduce") == [("all-reduce", 4, 1), ("all-reduce", 4, 4), ("all-reduce", 4, 4)]
    assert names(deploy(dense, 4), "all_gather") == [("gather logits", 4, 1)]
    assert names(deploy(dense, 1), "all_reduce") == []


def test_sequence_parallelism_scatters_and_gathers(deploy, dense):
    d = deploy(dense, 4, sequence=True)
    assert names(d, "all_reduce") == []
    assert len(names(d, "reduce_scatter")) == 3
    norm = stages(d)[0].blocks[1].ops[0]
    assert norm.reads[0].row_elements == 64 // 4


def test_shared_and_routed_experts_share_one_sum(deploy, moe):
    layer = stages(deploy(moe, 4, ep=4))[0].blocks[1]
    kinds = [op.kind for op in layer.ops]
    assert kinds.count("all_reduce") == 2  # after attention, after all experts
    assert kinds.count("all_to_all") == 0  # every rank holds every token


def test_attention_data_parallelism_dispatches_and_combines(deploy, moe):
    layer = stages(deploy(moe, 4, tp=1, dp=4, ep=4))[0].blocks[1]
    sends = [op for op in layer.ops if op.kind == "all_to_all"]
    assert [op.name for op in sends] == ["dispatch", "combine"]
    assert sends[0].factor == pytest.approx(4 * (1 - 0.75**2))  # ranks that hold one of two experts
    assert sends[0].reads[0].row_bytes == 64 * 2


def test_expected_ranks_by_enumeration():
    hits = sum(len({a, b}) for a in range(4) for b in range(4)) / 16
    assert expected_ranks(2, 4) == pytest.approx(hits)


def test_experts_are_spread_over_ranks_and_split(deploy, moe):
    d = deploy(moe, 4, ep=2)
    op = next(op for op, _ in stages(d)[0].ops() if op.kind == "experts")
    assert isinstance(op.detail, ExpertShape)
    assert (op.detail.ep, op.detail.tp) == (2, 2)
    assert op.weight_elements() == 8 * 3 * 64 * 32 // 4


def test_kv_heads_are_repeated_beyond_their_number(deploy, dense):
    op = next(op for op, _ in stages(deploy(dense, 8))[0].ops() if op.kind == "attention")
    assert isinstance(op.detail, AttentionShape)
    assert (op.detail.heads, op.detail.kv_heads) == (1, 1)


def test_context_parallelism_merges_and_gathers(deploy, dense):
    found = names(deploy(dense, 4, tp=2, cp=2), "all_gather")
    assert ("gather context", 2, 4) in found
    assert ("merge context", 2, 4) in found


def test_pipeline_sends_between_stages(deploy, dense):
    graphs = stages(deploy(dense, 2, tp=1, pp=2))
    assert [block.name for block in graphs[0].blocks] == ["embedding", "layer kind 1", "pipeline"]
    assert [block.name for block in graphs[1].blocks] == ["layer kind 1", "head"]
    assert graphs[0].blocks[1].repeats == graphs[1].blocks[0].repeats == 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(tp=st.sampled_from([1, 2, 4]), pp=st.sampled_from([1, 2, 4]), tokens=st.integers(1, 500))
def test_shards_add_up(deploy, dense, tp, pp, tokens):
    def total(d):
        ranks = d.parallelism.tp
        found = [(op, r) for graph in stages(d) for op, r in graph.ops()]
        flop = sum(op.matmul_flop(tokens) * r for op, r in found if op.kind == "matmul") * ranks
        divided = sum(op.weight_elements() * r for op, r in found if op.kind == "matmul") * ranks
        moved = sum(s.row_bytes * r for op, r in found for s in op.writes if op.kind == "attention") * ranks
        return flop, divided, moved

    whole, shared = total(deploy(dense, 1)), total(deploy(dense, tp * pp, tp=tp, pp=pp))
    assert shared == whole


@pytest.mark.parametrize(
    ("spread", "chips", "message"),
    [
        ({"tp": 3}, 3, "tp=3 does not divide the 8 heads of dense: use tp=2 with 4 chips."),
        ({"tp": 3}, 8, "tp=3 does not divide the 8 heads of dense: use tp=2."),
        ({"tp": 3, "pp": 2}, 4, "tp=3 does not divide the 8 heads of dense: use tp=2."),
        ({"tp": 2}, 3, "tp=2 needs 2 chips for each replica, and 3 chips are no multiple of that: use 4 chips."),
        ({"tp": 1, "ep": 2}, 2, "ep=2 needs a mixture of experts, and dense has none: use ep=1."),
        ({"tp": 1, "pp": 8}, 8, "pp=8 is more than the 4 layers of dense."),
        ({"tp": 0}, 1, "tp must be 1 or more, not 0."),
    ],
)
def test_refusals_say_what_would_work(deploy, dense, spread, chips, message):
    with pytest.raises(InputError) as error:
        deploy(dense, chips, **spread)
    assert str(error.value) == message


def test_expert_refusals(deploy, moe):
    with pytest.raises(InputError) as error:
        deploy(moe, 4, tp=4, ep=3)
    assert str(error.value) == "ep=3 does not divide the 4 chips of a stage (tp=4 ep=3): use ep=4."


def test_parallelism_reads_well():
    assert str(Parallelism(tp=4, ep=8, dp=2, pp=2, sequence=True)) == "tp=4 dp=2 ep=8 pp=2 sequence"
    assert str(Parallelism()) == "tp=1"
