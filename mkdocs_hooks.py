"""What mkdocs calls while it builds the site.

- The navigation is docs/index.md: its parts, and in each the pages to which it leads, in order. A new page needs a line
  there and nothing else.
- Each command has a page that its argparse parser writes (tools/site/commands.py).
- A page may lead to a file outside docs/, such as CONTRIBUTING.md. The site takes it along (tools/site/outside.py).
- A heading has the anchor that GitHub gives it.

mkdocs looks for imports of a hook beside it, so this file stands beside the folders that it needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tools.site import commands, navigation, outside

ROOT = Path(__file__).resolve().parent


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The navigation and the anchors of headings."""
    config.nav = navigation.of((ROOT / "docs" / "index.md").read_text(encoding="utf-8"), commands.pages())
    config.mdx_configs["toc"]["slugify"] = navigation.anchor
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages of the commands, and the files outside docs/ to which pages lead."""
    for path, text in commands.pages().items():
        files.append(File.generated(config, path, content=text))
    for path, source in outside.found(ROOT).items():
        content = source.read_bytes() if source.suffix != ".md" else source.read_text(encoding="utf-8")
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links out of docs/ lead to what was taken along."""
    return outside.relinked(markdown, page.file.src_uri, ROOT)
