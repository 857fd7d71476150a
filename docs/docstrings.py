"""Makes the API pages read docstrings as they are meant: roles are links, an example is code."""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(func|mod|class|data):`(?:attrfn\.)?([\w.]+)`")
EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            text = ROLE.sub(r"[`\2`][attrfn.\2]", obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub("Examples:", text)
