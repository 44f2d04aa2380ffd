"""Write docs/python-api.md from docstrings: python docs/make_python_api.py > docs/python-api.md."""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import dgl_runtime as dgl
from dgl_runtime import errors
from dgl_runtime.gallery import gallery
from dgl_runtime.media import video, windows

ROOT = Path(__file__).parent.parent
WIDTH = 100

DOCUMENTED: dict[str, tuple[type | object, ...]] = {
    "dgl_runtime": (
        dgl.Retriever,
        dgl.Hit,
        dgl.IndexReport,
        dgl.BrokenVideo,
        dgl.Encoder,
        dgl.ClipEmbeddings,
        dgl.SelfCheck,
    ),
    "dgl_runtime.gallery.gallery": (
        gallery.Gallery,
        gallery.Facts,
        gallery.Found,
        gallery.Known,
        gallery.FileState,
        gallery.Clip,
    ),
    "dgl_runtime.media.video": (video.read_clips,),
    "dgl_runtime.media.windows": (windows.Span,),
}

HEAD = """# Python API

`dgl_runtime` searches and embeds without torch. Below the example, this page is generated from the
docstrings by `docs/make_python_api.py`. Letters in brackets are [axes](architecture.md#words);
names that end in `_s` hold seconds. Faulty input raises a [`DglError`](#dgl_runtimeerrors), a wrong
argument a `ValueError`.

## Example

[examples/search_videos.py](../examples/search_videos.py):

```python
{example}
```
"""


def plain(text: str) -> str:
    """Markup of docstrings as markdown."""
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", text)
    return text.replace("``", "`")


def paragraph(text: str, first: str = "", then: str = "") -> str:
    """A paragraph in lines of ``WIDTH``, its code spans whole."""
    held = re.sub(r"`[^`]+`", lambda span: span[0].replace(" ", "\0"), " ".join(text.split()))
    return textwrap.fill(
        held,
        WIDTH,
        initial_indent=first,
        subsequent_indent=then,
        break_long_words=False,
        break_on_hyphens=False,
    ).replace("\0", " ")


def section(name: str, body: str) -> str:
    """A section of a docstring, such as Args: a list of what it names, or a paragraph."""
    if name == "Example":
        return f"```python\n{body}\n```"
    items = re.findall(r"^([*\w]+): (.*(?:\n .*)*)", body, re.MULTILINE)
    if name in ("Returns", "Yields") or not items:
        return paragraph(f"{name}: {body}")
    lines = [paragraph(text, f"- `{item}`: ", "  ") for item, text in items]
    return "\n".join([f"{name}:", "", *lines])


def described(docstring: str) -> str:
    """A docstring as markdown."""
    parts = re.split(r"\n\n(?=[A-Z]\w+:\n)", plain(docstring))
    told = [paragraph(text) for text in parts[0].split("\n\n")]
    for part in parts[1:]:
        name, _, body = part.partition(":\n")
        told.append(section(name, textwrap.dedent(body).strip()))
    return "\n\n".join(told)


def typed(annotation: ast.expr) -> str:
    """An annotation, without the quotation marks of a type that is named before it exists."""
    return (
        str(annotation.value) if isinstance(annotation, ast.Constant) else ast.unparse(annotation)
    )


def signature(node: ast.FunctionDef, name: str, names: dict[str, object]) -> str:
    """A function as it is called, on one line or an argument a line.

    Args:
        node: The function.
        name: What it is called by.
        names: Of its module, for defaults that are constants.
    """
    arguments = node.args
    if arguments.args and arguments.args[0].arg in ("self", "cls"):
        arguments.args.pop(0)
    for argument in [*arguments.args, *arguments.kwonlyargs]:
        argument.annotation = ast.Name(typed(argument.annotation))
    for defaults in (arguments.defaults, arguments.kw_defaults):
        for number, default in enumerate(defaults):
            if isinstance(default, ast.Name) and isinstance(names[default.id], str | int):
                defaults[number] = ast.Constant(names[default.id])
    text = re.sub(r"(?<=[\w\]])=", " = ", ast.unparse(arguments)).replace("'", '"')
    result = f" -> {typed(node.returns)}" if node.returns and node.name != "__init__" else ""
    line = f"{name}({text}){result}"
    if len(line) > WIDTH:
        inner = ",\n    ".join(re.split(r", (?=\*|\w+: )", text))
        line = f"{name}(\n    {inner},\n){result}"
    return f"```python\n{line}\n```"


def fields(node: ast.ClassDef, source: list[str]) -> Iterator[str]:
    """The fields of a dataclass, with the comment behind each."""
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and not ast.unparse(line.target).startswith("_"):
            comment = source[line.lineno - 1].partition("  # ")[2]
            about = f": {plain(comment)}" if comment else ""
            yield f"- `{ast.unparse(line)}`{about}"


def is_property(method: ast.FunctionDef) -> bool:
    """Whether a method is read like a field."""
    marks = {ast.unparse(mark) for mark in method.decorator_list}
    return not marks.isdisjoint({"property", "cached_property"})


def members(node: ast.ClassDef, source: list[str], methods: list[ast.FunctionDef]) -> str:
    """What is read of an object: its fields, unless the docstring lists them, and its properties."""
    is_told = "Attributes:" in ast.get_docstring(node)
    told = [] if is_told else list(fields(node, source))
    for method in filter(is_property, methods):
        head = f"- `{method.name}: {typed(method.returns)}`: "
        told.append(paragraph(plain(ast.get_docstring(method)), head, "  "))
    return "\n".join(told if is_told or not told else ["Attributes:", "", *told])


def with_types(text: str, node: ast.ClassDef) -> str:
    """A description whose list of attributes names their types, too."""
    for line in node.body:
        if isinstance(line, ast.AnnAssign):
            name = ast.unparse(line.target)
            text = text.replace(f"- `{name}`: ", f"- `{name}: {typed(line.annotation)}`: ")
    return text


def document_class(node: ast.ClassDef, thing: type) -> Iterator[str]:
    """A class: what it is, how it is made, what is read of it, and its methods."""
    names = vars(inspect.getmodule(thing))
    public = [
        method
        for method in node.body
        if isinstance(method, ast.FunctionDef) and ast.get_docstring(method)
        if not method.name.startswith("_") or method.name == "__init__"
    ]
    yield with_types(described(ast.get_docstring(node)), node)
    for method in public:
        if method.name == "__init__":
            yield signature(method, node.name, names)
            yield described(ast.get_docstring(method))
    if told := members(node, inspect.getsource(thing).split("\n"), public):
        yield told
    for method in public:
        if method.name != "__init__" and not is_property(method):
            yield f"### {node.name}.{method.name}"
            first = method.args.args[0].arg if method.args.args else ""
            owner = "" if first == "self" else f"{node.name}."
            yield signature(method, owner + method.name, names)
            yield described(ast.get_docstring(method))


def document_one(thing: type | object) -> Iterator[str]:
    """A class or function under its name."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(thing))).body
    yield f"## {node.name}"
    if isinstance(node, ast.ClassDef):
        yield from document_class(node, thing)
    else:
        yield signature(node, node.name, vars(inspect.getmodule(thing)))
        yield described(ast.get_docstring(node))


def document_errors() -> str:
    """The table of errors."""
    rows = [
        f"| `{name}` | `{error.__base__.__name__}` | {plain(error.__doc__)} |"
        for name, error in vars(errors).items()
        if inspect.isclass(error) and issubclass(error, errors.DglError)
    ]
    return "\n".join(["| error | is a | means |", "|---|---|---|", *rows])


def document() -> str:
    """The whole page."""
    example = (ROOT / "examples/search_videos.py").read_text(encoding="utf-8").strip()
    parts = [HEAD.format(example=example).strip()]
    for module, things in DOCUMENTED.items():
        for thing in things:
            heading, *rest = document_one(thing)
            parts += [heading, f"`from {module} import {thing.__name__}`", *rest]
    parts += ["## dgl_runtime.errors", document_errors()]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
