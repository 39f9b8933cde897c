"""What a run reads: where it looks for it."""

from sft_jax.config import Data, Model, RunConfig, Train
from sft_jax.storage.location import Location
from sft_jax.train.inputs import read_inputs


def test_what_is_named_twice_is_located_once(tmp_path, tiny_model, demonstrations):
    """Two splits of one dataset in a bucket, and several runs of one model, share what is copied of them."""
    named = str(demonstrations)
    data = Data(train=(named,), eval=(named,), sequence_length=128)
    config = RunConfig(str(tmp_path / "run"), Model(str(tiny_model)), data, train=Train(batch_size=2))
    asked = []

    def locate(path: str) -> Location:
        asked.append(path)
        return Location(path)

    read_inputs(config, Location(config.workdir), locate=locate)
    assert asked == [str(tiny_model), named]
