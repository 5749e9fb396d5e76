"""What the comments beside parameters say (fastcore's docments), as sections of the reference. A griffe extension."""
from importlib import import_module
from inspect import unwrap

import griffe
from fastcore.docments import docments


class Docments(griffe.Extension):
    def on_function_instance(self, *, func: griffe.Function, **_) -> None:
        "Add a table of parameters and of what is returned"
        if func.name.startswith("_") or func.parent.is_class: return
        comments = docments(unwrap(getattr(import_module(func.module.path), func.name)))
        result = comments.pop("return", None)
        rows = [griffe.DocstringParameter(p.name, annotation=p.annotation, value=p.default,
                                          description=comments.get(p.name) or "")
                for p in func.parameters]
        sections = [griffe.DocstringSectionParameters(rows)] if any(comments.values()) else []
        if result:
            sections.append(griffe.DocstringSectionReturns([
                griffe.DocstringReturn("", annotation=func.returns, description=result)]))
        if not sections: return
        if func.docstring is None: func.docstring = griffe.Docstring("", parent=func)
        func.docstring.parsed.extend(sections) # after the text itself
