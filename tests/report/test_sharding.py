"""What the page of a layout tells its script is what the plan says."""

import json
import re
from dataclasses import replace

import pytest

from sft_jax.config import Mesh, Model, RunConfig, Train
from sft_jax.data.pack.batches import Batch
from sft_jax.plan.sharding import Placed, abstract_mesh, named_devices, place_all, shards_of
from sft_jax.report.sharding import part_of, sharding_page
from tests.plan.conftest import SMALL

SIZES = {"data": 2, "fsdp": 4, "tensor": 2}


@pytest.fixture(scope="module")
def placed() -> list[Placed]:
    architecture = replace(SMALL, vocab=512)
    shapes = Batch(*((1, 16, 128),) * 6)  # type: ignore[arg-type]
    config = RunConfig(model=Model(path="none"), mesh=Mesh(**SIZES), train=Train(steps=3))
    return place_all(config, architecture, shapes, abstract_mesh(config, 16), "cpu")


def _data(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found is not None
    return json.loads(found[1])


def _part(divided: list, shard: int) -> str:
    """As templates/sharding.js has it."""
    words = []
    for axis, parts, size in reversed(divided):
        shard, which = divmod(shard, parts)
        words.append(f"{axis} {which * size}..{(which + 1) * size - 1}")
    return ", ".join(reversed(words)) or "the whole array"


def test_every_shard_of_every_array_is_on_its_devices_and_has_its_part(placed):
    data = _data(sharding_page("layout", placed, SIZES, ["a note"], 1))
    assert data["first"] == 1 and [each["name"] for each in data["arrays"]] == [each.name for each in placed]
    assert data["grid"][0] * data["grid"][1] == 16 and data["grid"][1] % SIZES["tensor"] == 0
    for each, drawn in zip(placed, data["arrays"], strict=True):
        layout, shards = data["layouts"][drawn["layout"]], shards_of(each, SIZES)
        assert layout["grid"][0] * layout["grid"][1] == len(shards)
        for shard in shards:
            assert _part(drawn["divided"], shard.number) == part_of(each, shard)
            assert layout["devices"][shard.number] == named_devices(shard.devices, SIZES)
            assert [layout["holds"][device] for device in shard.devices] == [shard.number] * len(shard.devices)


def test_arrays_that_are_divided_alike_share_a_layout_so_that_the_page_stays_small(placed):
    data = _data(sharding_page("layout", placed, SIZES, []))
    assert len(data["layouts"]) < len(data["arrays"]) / 3


def test_names_are_escaped(placed):
    page = sharding_page("</script><b>", [replace(placed[0], name="</script><b>")], SIZES, ["<i>"])
    assert "<b>" not in page and "<i>" not in page and _data(page)["arrays"][0]["name"] == "</script><b>"
