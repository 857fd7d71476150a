"""Makes the API pages read docstrings as they are meant: roles are links, an example is code."""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(func|mod|class|data):`(?:attrfn\.)?([\w.]+)`")
EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        def link(role: re.Match[str]) -> str:
            home = obj if obj.is_module else obj.module
            here = "._" not in home.path and role[2] in home.members
            return f"[`{role[2]}`][{home.path if here else 'attrfn'}.{role[2]}]"

        if obj.docstring:
            text = ROLE.sub(link, obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub("Examples:", text)
