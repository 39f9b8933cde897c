"""The quickstart's own config and weights on eight simulated devices; `make slow` fetches the weights first."""

import pytest

MESHES = {
    "one device": (),
    "fsdp 8": ("--distributed.cpu-devices", 8, "--mesh.fsdp", 8),
    "data 2 x fsdp 4": ("--distributed.cpu-devices", 8, "--mesh.data", 2, "--mesh.fsdp", 4),
    "tensor 2, heads whole": (
        *("--distributed.cpu-devices", 8, "--mesh.fsdp", 4, "--mesh.tensor", 2),
        *("--sharding.heads", "none", "--sharding.kv-heads", "none"),
    ),
}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_quickstart_runs_unchanged_on_eight_simulated_devices(process, tmp_path, rows_of):
    losses = {}
    for name, options in MESHES.items():
        workdir = tmp_path / name.replace(" ", "-")
        shared = ("--train.steps", 2, "--train.eval-every", 2, "--workdir", workdir)
        status, _, err = process("train", "configs/quickstart.py", *shared, *options, seconds=600)
        assert status == 0, err
        losses[name] = [row.get("loss", row.get("eval/loss")) for row in rows_of(workdir)]
        assert len(losses[name]) == 3
    for name, each in losses.items():
        assert each[0] == pytest.approx(losses["one device"][0], rel=1e-6), name
        # The first update's rate is 0 (warm-up), so the second loss is of the same weights.
        assert each[1] == pytest.approx(losses["one device"][1], rel=1e-6), name
        assert each[2] == pytest.approx(losses["one device"][2], rel=1e-3), name
