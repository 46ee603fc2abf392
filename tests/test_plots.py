import pytest

import minimodel as mm
from minimodel import pipeline


@pytest.mark.parametrize("regression", [False, True])
def test_a_run_is_drawn_to_a_picture(tmp_path, splits, regression):
    pytest.importorskip("matplotlib")
    from minimodel import plots

    if regression:
        splits = mm.datasets.split(splits.train.x, splits.train.x[:, :1] * 2.0, seed=0, task="regression")
    network = mm.Network((4, 4, splits.outputs))
    stages = list(pipeline.run(network, splits, seed=0, sparsity=0.5, epochs=2))
    plots.draw_run(stages, "a title", tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("regression", [False, True])
def test_a_trade_off_is_drawn_to_a_picture(tmp_path, splits, regression):
    """Also where one of the points keeps nothing, and of a single seed."""
    pytest.importorskip("matplotlib")
    from minimodel import plots
    from minimodel.trade_offs import point

    if regression:
        splits = mm.datasets.split(splits.train.x, splits.train.x[:, :1] * 2.0, seed=0, task="regression")
    model = mm.gradient_descent(mm.Network((4, 4, splits.outputs)), splits, seed=0, epochs=2)
    for seeds in (1, 2):
        points = mm.trade_off(model, splits, sparsities=[0.2, 1.0], seeds=seeds, seed=0, epochs=1)
        plots.draw_trade_off(points, point(model, splits), "a title", tmp_path / "found.png")
        assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
