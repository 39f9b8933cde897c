"""The shipped demonstrations as a TFDS dataset, `house_assistant`."""
