"""Watching a run: what every algorithm reports, how a callback ends it, and the log."""

import json
import math

import numpy as np
import pytest

import minimodel as mm
from minimodel import observe, optimizers, problem, schedules, tree
from minimodel.observe import Progress

NETWORK = mm.Network((4, 6, 3))
SCHEDULE = schedules.cosine(0.05)


def report(done=2, total=10, loss=0.5, validation_loss=0.25, learning_rate=0.1, seconds=4.0):
    return Progress(done, total, loss, validation_loss, learning_rate, seconds)


@pytest.fixture(scope="module")
def models(splits):
    return {size: mm.gradient_descent(NETWORK, splits, seed=0, epochs=1, population=size) for size in (None, 3)}


def streamed(splits):
    """The training rows as a stream."""
    return mm.stream_batches([splits.train], splits.validation, splits.test)


def watched(algorithm, model, splits, callback, **options):
    """A run of four epochs, or of forty generations, with its callback."""
    training = {"epochs": 4, "batch_size": 16, "optimizer": optimizers.adam(SCHEDULE), "callback": callback}
    if algorithm == "prune":
        return mm.prune(model, splits, seed=0, sparsity=0.5, **training | options)
    if algorithm == "quantize":
        return mm.quantize(model, splits, seed=0, bits=6, **training | options)
    if algorithm == "random_search":
        return mm.random_search(NETWORK, splits, seed=0, generations=40, population=4, callback=callback, **options)
    return mm.gradient_descent(NETWORK, splits, seed=0, population=model.population, **training | options)


# What a report holds.


def test_the_time_left_is_that_of_the_pace_so_far():
    assert report(done=2, total=10, seconds=4.0).remaining == 16
    assert report(done=0.5, total=2, seconds=3.0).remaining == 9
    assert report(done=10, total=10).remaining == 0
    assert math.isnan(report(done=0).remaining)


def test_the_best_is_that_of_validation_and_never_nan():
    assert report(loss=0.1, validation_loss=0.25).best == 0.25
    assert report(loss=0.1, validation_loss=None).best == 0.1
    assert report(validation_loss=np.array([0.5, np.nan, 0.25], np.float32)).best == 0.25
    assert report(validation_loss=np.array([np.nan, np.nan])).best == math.inf
    assert report(loss=np.float32("nan"), validation_loss=None).best == math.inf


@pytest.mark.parametrize("algorithm", ["gradient_descent", "prune", "quantize"])
def test_training_reports_every_epoch(algorithm, population, models, splits):
    """Numbers over a population are arrays, as in the history."""
    seen = []
    found = watched(algorithm, models[population], splits, seen.append)
    steps, log = len(splits.train.x) // 16, found.history
    assert [type(progress) for progress in seen] == [Progress] * 4
    assert [progress.done for progress in seen] == [1, 2, 3, 4]
    assert {progress.total for progress in seen} == {4}
    for i, progress in enumerate(seen):
        of_epoch = slice(i * steps, (i + 1) * steps)
        np.testing.assert_allclose(progress.loss, log["loss"][of_epoch].mean(axis=0), rtol=1e-6)
        np.testing.assert_array_equal(progress.validation_loss, log["validation_loss"][i + 1])
        np.testing.assert_array_equal(progress.learning_rate, log["learning_rate"][of_epoch][-1])
        assert np.shape(progress.loss) == np.shape(progress.validation_loss) == (() if population is None else (3,))
        assert progress.best == log["validation_loss"][i + 1].min()
    seconds = [progress.seconds for progress in seen]
    assert seconds[0] > 0 and seconds == sorted(seconds)
    assert seen[-1].remaining == 0


def test_gradual_pruning_reports_every_epoch(models, splits):
    seen = []
    watched("prune", models[None], splits, seen.append, schedule="gradual")
    assert [(progress.done, progress.total) for progress in seen] == [(i, 4) for i in (1, 2, 3, 4)]


def test_a_search_reports_the_best_fitness(models, splits):
    seen = []
    found = watched("random_search", None, splits, seen.append)
    done = [progress.done for progress in seen]
    assert done[-1] == 40 and done == sorted(set(done))
    for i, progress in enumerate(seen):
        assert progress.total == 40
        assert progress.loss == found.history["loss"][progress.done - 1]
        assert progress.validation_loss == found.history["validation_loss"][i + 1] == progress.best
        assert progress.learning_rate is None


def test_a_stream_reports_every_chunk(population, models, splits, monkeypatch):
    """In parts of an epoch; the validation loss is that after the last whole one."""
    monkeypatch.setattr(problem, "CHUNK", 4 * 4 * 32)  # 32 rows of four features
    seen, steps = [], len(splits.train.x) // 16
    found = watched("gradient_descent", models[population], streamed(splits), seen.append, epochs=2)
    ends = [
        end for epoch in range(2) for end in (*range(epoch * steps + 2, (epoch + 1) * steps, 2), (epoch + 1) * steps)
    ]
    np.testing.assert_allclose([progress.done for progress in seen], np.array(ends) / steps, rtol=1e-12)
    for progress, start, end in zip(seen, [0, *ends], ends, strict=False):
        np.testing.assert_allclose(progress.loss, found.history["loss"][start:end].mean(axis=0), rtol=1e-6)
        np.testing.assert_array_equal(progress.validation_loss, found.history["validation_loss"][end // steps])
        np.testing.assert_array_equal(progress.learning_rate, found.history["learning_rate"][end - 1])


def test_a_resumed_run_goes_at_its_own_pace(splits):
    """Nine more epochs like the one that took so many seconds: those before were of another run."""
    half = mm.gradient_descent(NETWORK, splits, seed=0, epochs=10)
    seen = []
    mm.gradient_descent(NETWORK, splits, seed=0, epochs=20, resume=half, callback=seen.append)
    assert [progress.done for progress in seen] == list(range(11, 21))
    assert seen[0].remaining == pytest.approx(9 * seen[0].seconds)


# True ends the run.


@pytest.mark.parametrize("algorithm", ["gradient_descent", "prune", "quantize"])
def test_true_ends_training_with_the_best_so_far(algorithm, population, models, splits):
    """Up to there it is the run that goes on."""
    whole = watched(algorithm, models[population], splits, None)
    found = watched(algorithm, models[population], splits, lambda progress: progress.done == 2)
    steps = 2 * (len(splits.train.x) // 16)
    for name, rows in (("loss", steps), ("learning_rate", steps), ("validation_loss", 3)):
        assert len(whole.history[name]) > rows
        np.testing.assert_array_equal(found.history[name], whole.history[name][:rows])
    best = found.history["validation_loss"].min(axis=0)
    np.testing.assert_allclose(found.evaluate(splits.validation).loss, best, rtol=1e-5)


def test_true_ends_a_search_with_the_best_so_far(splits):
    whole = watched("random_search", None, splits, None)
    found = watched("random_search", None, splits, lambda progress: progress.done >= 20)
    assert 20 <= len(found.history["loss"]) < 40
    np.testing.assert_array_equal(found.history["loss"], whole.history["loss"][: len(found.history["loss"])])
    np.testing.assert_allclose(found.evaluate(splits.train).loss, found.history["loss"][-1], rtol=1e-5)


def test_true_ends_a_stream_within_an_epoch(splits, monkeypatch):
    monkeypatch.setattr(problem, "CHUNK", 4 * 4 * 16)
    seen = []

    def callback(progress):
        seen.append(progress.done)
        return progress.done > 1

    found = watched(
        "gradient_descent", mm.Model(NETWORK, NETWORK.init(mm.random.key(0)), None), streamed(splits), callback
    )
    steps = len(splits.train.x) // 16
    assert len(seen) == len(found.history["loss"]) == steps + 1
    assert len(found.history["validation_loss"]) == 2
    best = found.history["validation_loss"].min()
    np.testing.assert_allclose(found.evaluate(splits.validation).loss, best, rtol=1e-5)


@pytest.mark.parametrize("answer", [None, False, 0, 1, "stop", np.False_])
def test_nothing_but_true_ends_a_run(answer, models, splits):
    found = watched("gradient_descent", models[None], splits, lambda progress: answer)
    assert len(found.history["validation_loss"]) == 5
    assert len(watched("random_search", None, splits, lambda progress: answer).history["loss"]) == 40


def test_a_callback_that_fails_is_heard(models, splits):
    def callback(progress):
        raise RuntimeError("full disk")

    for algorithm in ("gradient_descent", "random_search"):
        with pytest.raises(RuntimeError, match="full disk"):
            watched(algorithm, models[None], splits, callback)


def test_watching_changes_nothing(models, splits):
    one, other = (watched("gradient_descent", models[None], splits, callback) for callback in (None, lambda _: None))
    for ours, theirs in zip(tree.leaves(one.params), tree.leaves(other.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# The log.


def read(path):
    """Every line an object, strictly: NaN and Infinity are no JSON."""
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("algorithm", ["gradient_descent", "prune", "quantize", "random_search"])
def test_the_log_has_a_line_for_every_report(algorithm, population, models, splits, tmp_path):
    seen, write = [], observe.json_lines(tmp_path / "log.jsonl", stage=algorithm, run=7)

    def callback(progress):
        seen.append(progress)
        return write(progress)

    watched(algorithm, models[population], splits, callback)
    lines = read(tmp_path / "log.jsonl")
    assert len(lines) == len(seen) > 0
    for line, progress in zip(lines, seen, strict=True):
        assert list(line) == ["stage", "run", *Progress._fields]
        assert (line["stage"], line["run"]) == (algorithm, 7)
        for name, value in progress._asdict().items():
            assert line[name] == (None if value is None else np.asarray(value).tolist())


def test_the_log_has_null_for_what_is_not_finite(tmp_path):
    write = observe.json_lines(tmp_path / "log.jsonl")
    write(report(loss=np.array([0.5, np.nan, -np.inf], np.float32), validation_loss=np.float32("inf")))
    write(report(done=np.int64(3), loss=float("nan"), validation_loss=None, learning_rate=np.float64(0.1)))
    first, second = read(tmp_path / "log.jsonl")
    assert first["loss"] == [0.5, None, None] and first["validation_loss"] is None
    assert second["done"] == 3 and second["loss"] is None and second["learning_rate"] == 0.1


def test_the_log_of_a_run_that_diverges_is_json(tmp_path):
    rng, rates = np.random.default_rng(0), np.array([0.01, 1e30])
    x = rng.normal(size=(60, 4))
    with pytest.warns(RuntimeWarning, match="diverged"):
        mm.gradient_descent(
            mm.Network((4, 1)),
            mm.datasets.split(x, x[:, 0], seed=0),
            seed=0,
            epochs=3,
            population=2,
            optimizer=optimizers.sgd(rates),
            callback=observe.json_lines(tmp_path / "log.jsonl"),
        )
    lines = read(tmp_path / "log.jsonl")
    assert len(lines) == 3
    assert all(line["learning_rate"] == rates.tolist() for line in lines)
    assert all(line["loss"][0] is not None for line in lines) and lines[-1]["loss"][1] is None


def test_the_log_is_appended_to(tmp_path, models, splits):
    path = tmp_path / "log.jsonl"
    path.write_text('{"mine": 1}\n')
    for _ in range(2):
        watched("gradient_descent", models[None], splits, observe.json_lines(str(path)), epochs=1)
    assert [line.get("done") for line in read(path)] == [None, 1, 1]


def test_plain_values_are_what_json_holds():
    found = observe.plain(
        {
            "a": np.arange(3),
            "b": (np.float32(0.5), [np.nan, math.inf]),
            "c": np.bool_(True),
            "d": "é",
            "e": None,
            "f": 2,
        }
    )
    assert found == {"a": [0, 1, 2], "b": [0.5, [None, None]], "c": True, "d": "é", "e": None, "f": 2}
    assert type(found["c"]) is bool and type(found["a"][0]) is int
