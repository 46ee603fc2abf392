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
    stages = list(pipeline.run(network, splits, seed=0, epochs=2))
    plots.draw_run(stages, "a title", tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
