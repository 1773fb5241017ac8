"""The pool of scorers on a real Ray cluster: batched, replaced when dead, and gone when nobody needs it.

That several processes share it, and that calls survive a replica's death, is tested where verl's workers use it.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

ray = pytest.importorskip("ray")

from jrm_plugin import JRMError, Sample  # noqa: E402
from jrm_plugin.integrations.ray import ScorerPool, ScorerSettings  # noqa: E402
from jrm_plugin.integrations.ray.scorer_pool import NAMESPACE  # noqa: E402

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def make_pool():
    pools = []

    def make(**settings) -> ScorerPool:
        pools.append(ScorerPool(ScorerSettings(**{"model_path": "jrm-tiny", "device": "cpu"} | settings)))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def score_each(pool: ScorerPool, samples: list[Sample]) -> list:
    """Every sample in a call of its own, all at once."""

    async def calls():
        return await asyncio.gather(*(pool.score([sample]) for sample in samples))

    return [scores[0] for scores in asyncio.run(calls())]


def assert_equal(scores, expected) -> None:
    for score, other in zip(scores, expected, strict=True):
        assert score.mu == pytest.approx(other.mu, abs=1e-5) and score.sigma == pytest.approx(other.sigma, abs=1e-5)


def replicas(pool: ScorerPool) -> set[str]:
    """Names of this pool's actors that are alive."""
    there = ray.util.list_named_actors(all_namespaces=True)
    return {one["name"] for one in there if one["namespace"] == NAMESPACE and one["name"].startswith(pool._name)}


def eventually(condition, seconds: float = 150) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


def test_concurrent_calls_are_scored_together_and_as_alone(make_pool, tiny, group_of):
    """Groups come in turns, and one sample has a broken image."""
    groups = [group_of(seed, 6) for seed in range(3)]
    samples = [sample for turn in zip(*groups, strict=True) for sample in turn]
    pool = make_pool(max_batch=6, batch_window=0.5)
    assert asyncio.run(pool.dimensions()) == tiny.dimensions
    assert_equal(score_each(pool, samples), tiny.score(samples))
    (done,) = asyncio.run(pool.statistics())
    assert (done.calls, done.samples) == (18, 18)
    # with room for six at once, calls of one prompt are taken together, and its source is encoded once
    assert (done.batches, done.image_misses) == (3, 3 * 7)

    bad = Sample.edit(samples[0].prompt_images[0], samples[0].prompt_text, samples[0].response_images[0][:200])
    scores = score_each(pool, [samples[0], bad, samples[3]])
    assert isinstance(scores[1], JRMError)
    assert_equal(scores[::2], tiny.score([samples[0], samples[3]]))


def test_a_model_that_cannot_be_loaded_is_an_error_for_all_who_call(make_pool, group_of):
    pool = make_pool(model_path="/no/such/folder")
    for _ in range(2):
        with pytest.raises(JRMError, match="there is no model folder /no/such/folder"):
            asyncio.run(pool.score(group_of(0, 1)))


def test_the_replicas_end_when_the_last_process_leaves(make_pool, group_of):
    one, other = (make_pool(max_in_flight=2, batch_window=0.2) for _ in range(2))
    asyncio.run(one.dimensions())
    score_each(other, group_of(1, 6))
    assert asyncio.run(other.statistics())[0].batches >= 3  # a process has no more calls open than it may
    assert len(replicas(one)) == 1 and replicas(one) == replicas(other)
    one.close()
    assert asyncio.run(other.dimensions())
    other.close()
    assert eventually(lambda: not replicas(other))


def test_the_replicas_outlive_their_maker_but_not_their_lease(make_pool):
    """Their maker dies at once, one that dies is made anew, and without a sign of life they end themselves."""
    settings = ScorerSettings("jrm-tiny", device="cpu", lease=3.0)

    @ray.remote(num_cpus=0, max_retries=0)
    def make_and_die(settings):
        asyncio.run(ScorerPool(settings).dimensions())
        os._exit(1)

    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(make_and_die.remote(settings))
    names = ray.util.list_named_actors(all_namespaces=True)
    pool = make_pool(lease=3.0)
    assert pool._name in {one["name"].rpartition("-")[0] for one in names}  # it is there without its maker
    dead = pool._members[0]
    os.kill(asyncio.run(pool.statistics())[0].pid, signal.SIGKILL)  # it is replaced though nobody calls
    assert eventually(lambda: pool._members[0] is not dead)
    assert asyncio.run(pool.dimensions())
    pool._closed.set()  # as if this process had died too
    assert eventually(lambda: not replicas(pool))


CLUSTERS = """
import time
import ray
from jrm_plugin.integrations.ray import ScorerSettings, shared_pool

settings = ScorerSettings("jrm-tiny", device="cpu", lease=1.0)
local = {"address": "local", "num_cpus": 1, "include_dashboard": False, "log_to_driver": False}
ray.init(**local)
pool = shared_pool(settings)
assert pool is shared_pool(settings)
ray.shutdown()
time.sleep(1)  # four heartbeats
assert not ray.is_initialized()
ray.init(**local)
assert pool is not shared_pool(settings) is shared_pool(settings)
"""


def test_a_pool_ends_with_its_cluster(tmp_path):
    """No thread of it starts a cluster after `ray.shutdown()`, and on the next one there is a new pool."""
    finished = subprocess.run([sys.executable, "-c", CLUSTERS], cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "Traceback" not in finished.stderr


def test_gpus_that_the_cluster_has_not(make_pool):
    with pytest.raises(JRMError, match="ask for 2 replicas with 0.5 GPUs each, and the Ray cluster has 0"):
        make_pool(num_gpus=0.5, replicas=2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_path": None}, "have no model_path; give the folder"),
        ({"replicas": 0}, "replicas in the scorer settings must be a whole number of at least 1, not 0"),
        ({"max_batch": 2.5}, "max_batch in the scorer settings must be a whole number"),
        ({"num_gpus": -1}, "num_gpus in the scorer settings must be a number of at least 0"),
        ({"batch_window": "20ms"}, "batch_window in the scorer settings must be a number"),
        ({"lease": float("nan")}, "lease in the scorer settings must be a number"),
        ({"max_in_flight": True}, "max_in_flight in the scorer settings must be a whole number"),
    ],
)
def test_wrong_settings(settings, said):
    with pytest.raises(JRMError, match=said):
        ScorerSettings(**{"model_path": "jrm-tiny"} | settings)
