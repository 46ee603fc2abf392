"""The four stages in order, each from the one before, with figures that are those of its model."""

import json

import numpy as np
import pytest

import minimodel as mm
from minimodel import pipeline


def problem(task):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(180, 4)).astype(np.float32)
    truth = rng.normal(size=(4, 3))
    return mm.datasets.split(x, 20 + 5 * x @ truth[:, :2] if task == "regression" else (x @ truth).argmax(1), seed=0)


OPTIONS = {"seed": 0, "sparsity": 0.5, "bits": 5, "epochs": 20}


@pytest.fixture(scope="module", params=["classification", "regression"])
def finished(request):
    data = problem(request.param)
    network = mm.Network((4, 64, data.outputs))
    return request.param, data, list(pipeline.run(network, data, **OPTIONS))


def test_the_stages_come_in_order(finished):
    _, _, stages = finished
    assert [stage.name for stage in stages] == ["random_search", "gradient_descent", "prune", "quantize"]
    assert all(stage.seconds > 0 for stage in stages)


def test_the_figures_are_those_of_the_model(finished):
    task, data, stages = finished
    for stage in stages:
        test, validation = stage.model.evaluate(data.test), stage.model.evaluate(data.validation)
        assert stage.loss == float(test.loss)
        assert stage.bytes == len(stage.model.dumps())
        assert stage.nonzero == stage.model.nonzero
        if task == "classification":
            assert (stage.accuracy, stage.validation_accuracy) == (test.accuracy, validation.accuracy)
            assert stage.r2 is None
        else:
            assert stage.r2 == pytest.approx(float(test.r2)) and stage.accuracy is None


def test_training_learns_and_compression_keeps_it(finished):
    task, data, (searched, trained, pruned, quantized) = finished
    figure = (lambda stage: stage.accuracy) if task == "classification" else (lambda stage: stage.r2)
    before, after = (stage.model.evaluate(data.validation).loss for stage in (searched, trained))
    assert after < before
    assert figure(trained) > 0.8
    assert figure(quantized) > figure(trained) - 0.2
    assert figure(pruned) > figure(trained) - 0.2


def test_each_stage_makes_the_model_smaller(finished):
    _, _, (_, trained, pruned, quantized) = finished
    weights = sum(layer.weight.size for layer in trained.model.params)
    assert trained.model.masks is None
    assert sum(int((~mask).sum()) for mask in pruned.model.masks) == round(0.5 * weights)
    assert trained.nonzero > pruned.nonzero >= quantized.nonzero
    assert pruned.model.quantized is None
    assert quantized.model.bits == 5 and quantized.bytes < pruned.bytes
    for one, other in zip(pruned.model.masks, quantized.model.masks, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_summary_is_plain_json(finished):
    task, _, stages = finished
    for stage in stages:
        summary = json.loads(json.dumps(stage.summary()))
        assert set(summary) == {
            *("name", "loss", "accuracy", "r2", "validation_accuracy", "nonzero", "bytes", "seconds"),
        }
        assert (summary["accuracy"] is None) == (task == "regression")


def test_the_same_seed_gives_the_same_models_and_another_does_not():
    data = problem("classification")
    network, options = mm.Network((4, 5, 3)), {**OPTIONS, "epochs": 1}
    first, again = (list(pipeline.run(network, data, **options)) for _ in range(2))
    assert [stage.model.dumps() for stage in first] == [stage.model.dumps() for stage in again]
    other = next(pipeline.run(network, data, **{**options, "seed": 1}))
    assert other.model.dumps() != first[0].model.dumps()


def test_stages_run_only_when_they_are_asked_for():
    data, seen = problem("classification"), []
    run = pipeline.run(
        mm.Network((4, 3)), data, **{**OPTIONS, "epochs": 2}, on_progress=lambda name: seen.append(name) or print
    )
    assert seen == []
    assert next(run).name == "random_search"
    assert seen == ["random_search"]


def test_progress_is_reported_for_every_stage(capsys):
    data, seen = problem("regression"), {}

    def on_progress(name):
        return seen.setdefault(name, []).append

    list(pipeline.run(mm.Network((4, 2)), data, **{**OPTIONS, "epochs": 4}, on_progress=on_progress))
    assert list(seen) == ["random_search", "gradient_descent", "prune", "quantize"]
    for name, total in (("gradient_descent", 4), ("prune", 6), ("quantize", 2)):
        assert [(report.done, report.total) for report in seen[name]] == [(i + 1, total) for i in range(total)]
    assert (seen["random_search"][-1].done, seen["random_search"][-1].total) == (100, 100)
    for report in (report for reports in seen.values() for report in reports):
        assert np.isfinite(report.loss) and np.isfinite(report.best) and report.seconds > 0
    assert capsys.readouterr() == ("", "")


def test_true_ends_a_stage_and_the_next_goes_on_from_its_best():
    data = problem("classification")
    for stage in pipeline.run(
        mm.Network((4, 5, 3)),
        data,
        **{**OPTIONS, "epochs": 8},
        on_progress=lambda name: lambda report: report.done >= 2,
    ):
        log = stage.model.history
        if stage.name == "random_search":
            assert len(log["loss"]) < 100
            before = stage.model
        else:
            assert len(log["validation_loss"]) == 3
        if stage.name == "gradient_descent":
            start = before.evaluate(data.validation).loss
            np.testing.assert_allclose(log["validation_loss"][0], start, rtol=1e-5)


def test_without_epochs_it_searches_cuts_and_rounds():
    data = problem("classification")
    searched, trained, pruned, quantized = pipeline.run(mm.Network((4, 5, 3)), data, **{**OPTIONS, "epochs": 0})
    for one, other in zip(searched.model.params, trained.model.params, strict=True):
        np.testing.assert_array_equal(one.weight, other.weight)
    assert sum(int((~mask).sum()) for mask in pruned.model.masks) == round(0.5 * 35)
    assert quantized.model.bits == 5


def test_on_every_backend(backend):
    data = problem("classification")
    stages = list(pipeline.run(mm.Network((4, 3)), data, **{**OPTIONS, "epochs": 2}, backend=backend))
    assert [stage.name for stage in stages] == list(pipeline.STAGES)
    assert stages[-1].accuracy > 0.5


@pytest.mark.parametrize("wrong", [{"sparsity": 1.5}, {"sparsity": float("nan")}, {"bits": 0}, {"epochs": -1}])
def test_what_does_not_fit_is_refused_before_any_work(wrong):
    data, seen = problem("classification"), []
    with pytest.raises(ValueError, match=next(iter(wrong))):
        next(
            iter(
                pipeline.run(
                    mm.Network((4, 3)), data, **{**OPTIONS, **wrong}, on_progress=lambda name: seen.append(name)
                )
            )
        )
    assert seen == []
