import json
import subprocess
import sys
from pathlib import Path

from sft_jax.demonstrations import HELD_OUT, TRAIN

# In a process of its own that finds no TensorFlow: it may be installed, and loaded by other tests.
READ_BACK = """
import json, sys
from importlib.machinery import PathFinder
find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.split(".")[0] == "tensorflow" else find_spec(name, *rest)
import tensorflow_datasets as tfds
from sft_jax.demonstrations.house_assistant.house_assistant_dataset_builder import Builder
builder = Builder(data_dir=sys.argv[1])
builder.download_and_prepare()
reader = tfds.builder_from_directory(builder.data_dir)
rows = {}
for split in ("train", "test"):
    rows[split] = []
    for example in reader.as_data_source(split):
        turns = zip(example["messages"]["role"], example["messages"]["content"], strict=True)
        messages = [{"role": role.decode(), "content": content.decode()} for role, content in turns]
        rows[split].append({"id": example["id"].decode(), "kind": example["kind"].decode(), "messages": messages})
print(json.dumps({"format": reader.info.file_format.value, "name": reader.name, "rows": rows}))
"""


def test_the_dataset_gives_back_the_shipped_rows_without_tensorflow(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", READ_BACK, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["format"], found["name"]) == ("array_record", "house_assistant")
    for split, path in (("train", TRAIN), ("test", HELD_OUT)):
        assert found["rows"][split] == [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
