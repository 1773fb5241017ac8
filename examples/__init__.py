"""A folder of the repository: `python -m examples.image_editor` runs an example that has several files."""
