"""Docstrings in the style of Hugging Face as mkdocstrings reads them: types without marks, links, help of options."""

import ast
import re
from typing import Any

import griffe

OPTIONS = "SparseSoupArguments"
# Entries of sections are indented, other text is not.
ENTRY = re.compile(r"^(?P<indent> {4,})(?P<names>[\w, ]+) \((?P<type>[`\[].*?)\):", flags=re.M)
RETURNED = re.compile(r"^(?P<indent> {4,})\[?`(?P<type>[^`]+)`\]?:(?= |$)", flags=re.M)
RAISED = re.compile(r"^ {4,}\w+Error(?:, \w+Error)+:", flags=re.M)
DOCTEST = re.compile(r"(?:^ *>>> .*\n(?: *[^\s>].*(?:\n|$))*)+", flags=re.M)
LINK = re.compile(r"\[`([\w.]+)`\](?![\[(])")


class HuggingFaceDocstrings(griffe.Extension):
    """Rewrites the docstrings of a package before they are parsed as Google's."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        if pkg.name == "sms_hf":
            public = _public(pkg)
            for thing in _members(pkg):
                if thing.is_class and thing.name == OPTIONS:
                    _describe_options(thing)
                if thing.docstring:
                    thing.docstring.value = rewrite(thing.docstring.value, public)


def rewrite(text: str, public: dict[str, str]) -> str:
    """
    A docstring that the parser for Google's style and Markdown understand.

    Args:
        text (`str`): The docstring.
        public (`dict[str, str]`): Name -> its path in the reference, of what can be linked.
    """
    text = ENTRY.sub(lambda entry: f"{entry['indent']}{entry['names']} ({_plain(entry['type'])}):", text)
    text = RETURNED.sub(r"\g<indent>\g<type>:", text)
    text = RAISED.sub(lambda names: names[0].replace(", ", " | "), text)
    text = DOCTEST.sub(r"```pycon\n\g<0>\n```\n", text)
    return LINK.sub(lambda link: _link(link[1], public), text.replace("](docs/", "](../"))


def _plain(kind: str) -> str:
    """A type as Python would write it; its default stands in the signature."""
    kind = re.sub(r", \*optional\*.*", ", optional", kind)
    kind = re.sub(r"\]\([^)]*\)", "]", kind)
    return re.sub(r"\[`([\w.]+)`\]|`|\*", r"\1", kind).replace(" or ", " | ")


def _link(name: str, public: dict[str, str]) -> str:
    return f"[`{name}`][{public[name]}]" if name in public else f"`{name}`"


def _public(package: griffe.Module) -> dict[str, str]:
    """Name -> path: what the package itself exports, else the room that does."""
    rooms = [module for name, module in package.modules.items() if module.exports and name != "demo"]
    paths = {str(name): f"{room.path}.{name}" for room in rooms for name in room.exports or ()}
    return paths | {str(name): f"{package.path}.{name}" for name in package.exports or ()}


def _members(thing: Any) -> list[Any]:
    """All that is defined below, aliases left out."""
    own = [member for member in thing.members.values() if not member.is_alias]
    return [thing, *(below for member in own for below in _members(member))] if own or thing.members else [thing]


def _describe_options(options: griffe.Class) -> None:
    """The help of a dataclass's field, which the command line shows, becomes its docstring; and its default its value."""
    for attribute in options.attributes.values():
        call = ast.parse(str(attribute.value), mode="eval").body if attribute.value is not None else None
        if not isinstance(call, ast.Call):
            continue
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        metadata = given.get("metadata")
        if isinstance(metadata, ast.Dict):
            entries = {
                ast.literal_eval(key): value for key, value in zip(metadata.keys, metadata.values, strict=True) if key
            }
            attribute.docstring = griffe.Docstring(ast.literal_eval(entries["help"]), parent=attribute)
        if "default" in given:
            attribute.value = ast.unparse(given["default"])
