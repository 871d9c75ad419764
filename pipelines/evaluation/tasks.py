"""Scoring of shards as Ray tasks whose states merge in a tree."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray

from maskrcnn_core.evaluation.coco_json_results import ResultsLayout
from maskrcnn_core.evaluation.shards import ScoringPlan, ShardScores, merge_shards
from pipelines.cluster.connection import unwrapped_errors
from pipelines.evaluation.shards import Shard, ShardAnnotations, score

_MERGED_AT_ONCE = 8

# A compiled engine with a thread for each core of the machine in each task of one CPU would only wait for itself.
_ONE_THREAD = {"env_vars": {"RAYON_NUM_THREADS": "1"}}


def score_on_ray(plan: ScoringPlan, shards: Sequence[Shard], layout: ResultsLayout | None) -> ShardScores:
    """All shards, of which there is at least one, as tasks of one CPU each; needs a connected cluster.

    Text and annotations of the shards lie in Ray's store. States merge eight at a time as they come, so that no process
    ever holds more than the states it merges.
    """
    task = ray.remote(num_cpus=1, runtime_env=_ONE_THREAD)
    plan_there = ray.put(plan)
    score_there, merge_there = task(_score), task(_merge)
    with unwrapped_errors():
        waiting = [score_there.remote(plan_there, shard, layout) for shard in shards]
        while len(waiting) > 1:
            count = min(_MERGED_AT_ONCE, len(waiting))
            done, waiting = ray.wait(waiting, num_returns=count, fetch_local=False)
            waiting.append(merge_there.remote(*done))
        scores: ShardScores = ray.get(waiting[0])
    return scores


def kept_on_ray(piece: Any) -> Any:
    """A reference to text, or to a shard's annotations, in Ray's store."""
    return ray.put(piece.apart() if isinstance(piece, ShardAnnotations) else piece)


def _score(plan: ScoringPlan, shard: Shard, layout: ResultsLayout | None) -> ShardScores:
    annotations, *results = ray.get([shard.annotations, *shard.results])
    return score(plan, replace(shard, annotations=annotations, results=tuple(results)), layout)


def _merge(*parts: ShardScores) -> ShardScores:
    return merge_shards(parts)
