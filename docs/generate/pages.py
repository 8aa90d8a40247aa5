"""What mkdocs-gen-files runs: one page of the reference from each module beside this one."""

from __future__ import annotations

import sys
from pathlib import Path

import mkdocs_gen_files

sys.path.insert(0, str(Path(__file__).parents[2]))

from docs.generate import commands, configuration, queries, tables

for name, made in {
    "configuration": configuration.page,
    "tables": tables.page,
    "queries": queries.page,
    "commands": commands.page,
}.items():
    with mkdocs_gen_files.open(f"reference/{name}.md", "w") as file:
        file.write(made())
    mkdocs_gen_files.set_edit_path(f"reference/{name}.md", f"generate/{name}.py")
