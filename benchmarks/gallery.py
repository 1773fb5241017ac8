"""What it costs to rank many images and to look at them: `jrm rank --input FOLDER --gallery`, with jrm-tiny.

    python -m benchmarks.gallery --images 10000

Draws edits of one source, 48 x 48 pixels, and runs the command in a process of its own.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measuring import device_description
from jrm_plugin.synthetic.shape_edits import draw_edit


def write_images(folder: Path, count: int) -> tuple[Path, str]:
    """`count` images in `folder`; the source beside it and the instruction."""
    rng = np.random.default_rng(0)
    edit = draw_edit(rng, heldout=True)
    folder.mkdir()
    for k in range(count):
        if k % 2 == 0:
            images = [candidate.image for candidate in draw_edit(rng, heldout=True).candidates]
        Image.fromarray(images[k % 2]).save(folder / f"{k:06}.png")
    source = folder.with_name("source.png")
    Image.fromarray(edit.source).save(source)
    return source, edit.instruction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--keep", type=Path, help="folder for the gallery; by default it is removed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, instruction = write_images(folder / "images", options.images)
        page = (options.keep or folder) / "gallery.html"
        command = [sys.executable, "-m", "jrm_plugin.cli", "rank", "--model", "jrm-tiny", "--device", "cpu"]
        command += ["--input", str(folder / "images"), "--source", str(source), "--instruction", instruction]
        start = time.monotonic()
        subprocess.run([*command, "--gallery", str(page)], check=True)
        seconds = time.monotonic() - start
        pages = [page, *page.with_name("gallery_pages").glob("*.html")]
        sizes = [path.stat().st_size / 1e6 for path in pages]
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{options.images:,} images ranked and shown in {seconds:.0f} s on {device_description()}")
    print(f"most memory of the process: {memory:.0f} MiB")
    print(f"{len(pages)} pages, {sum(sizes):.1f} MB in all, {max(sizes):.2f} MB the largest")


if __name__ == "__main__":
    main()
