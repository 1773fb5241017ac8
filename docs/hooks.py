"""What the site takes from outside of `docs/`: the README as its first page, the changes, pictures of the benchmarks.

Links into the repository lead to the repository; links to pages of the site stay in the site.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    blob = f"{config.repo_url}/blob/main/"
    pictures = f"{config.repo_url.replace('//github.com', '//raw.githubusercontent.com')}/main/docs/"
    for page, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        text = text.replace(f"{blob}docs/", "").replace(f"{blob}CHANGELOG.md", "changelog.md").replace(pictures, "")
        files.append(File.generated(config, page, content=text))
    for picture in (ROOT / "benchmarks" / "results").glob("*.png"):
        files.append(File.generated(config, f"results/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    markdown = markdown.replace("](../benchmarks/results/", "](results/")
    return re.sub(r"\]\(\.\./(?!results/)", f"]({config.repo_url}/blob/main/", markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Docstrings name classes as [`Name`]."""
    return re.sub(r"\[(<code>[^<]+</code>)\]", r"\1", html)
