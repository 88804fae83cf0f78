"""``--format TEMPLATE``: the part of Go's template language that people type for docker and podman.

Fields (``{{.Name}}``, ``{{.State.Pid}}``), ``{{json .}}``, ``{{index .Labels "key"}}``, ``{{len .X}}``,
``{{join .X ","}}``, ``{{upper .X}}``, ``{{lower .X}}``, text in quotes, ``{{range .X}}…{{end}}``,
``{{if .X}}…{{else}}…{{end}}``, pipes, and ``{{-``/``-}}`` which take white space away. An unknown field is an error
that lists the known ones. Follows Go's text/template.
"""

from __future__ import annotations

from knarr.base import fastjson
from knarr.base.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    # ("text", str), ("value", pipeline), or ("range" or "if", (pipeline, then, otherwise))
    Node = tuple[str, Any]


class Template:
    """A parsed template; ``render`` it with a value, as often as there are rows."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._nodes, rest, _ = _parse(_tokens(source.replace("\\t", "\t").replace("\\n", "\n")), 0, "")
        if rest is not None:
            raise UsageError(f"format has an {{{{{rest}}}}} without a beginning")

    def render(self, value: Any) -> str:
        """Return the text for ``value``; raises UsageError for a field it does not have."""
        return "".join(_render(self._nodes, value, value))

    def headings(self) -> str:
        """The template with each field in place of its value, in capitals: the heading of a ``table`` format."""
        words = []
        for kind, content in self._nodes:
            if kind == "text":
                words.append(content)
            elif kind == "value":
                names = [argument.strip(".$").replace(".", " ") for argument in content[0] if argument.startswith(".")]
                words.append(_spaced(names[0]) if names else "")
        return "".join(words)


def _spaced(name: str) -> str:
    """``CreatedSince`` -> ``CREATED SINCE``."""
    out = ""
    for position, char in enumerate(name):
        if char.isupper() and position and not name[position - 1].isupper():
            out += " "
        out += char
    return out.upper()


def _tokens(source: str) -> list[tuple[str, str]]:
    """("text" | "action", content) in order, with the trim markers applied."""
    found: list[tuple[str, str]] = []
    rest = source
    trim = False
    while rest:
        text, opened, after = rest.partition("{{")
        if trim:
            text = text.lstrip()
        trim = False
        if opened and after.startswith("- "):
            text, after = text.rstrip(), after[2:]
        if text:
            found.append(("text", text))
        if not opened:
            break
        end = _action_end(after)
        if end < 0:
            raise UsageError(f"format {source!r} has an opening {{{{ without its }}}}")
        action, rest = after[:end], after[end + 2 :]
        if action.endswith(" -"):
            action, trim = action[:-2], True
        if not action.strip():
            raise UsageError(f"format {source!r} has an empty {{{{}}}}")
        if not action.strip().startswith("/*"):
            found.append(("action", action.strip()))
    return found


def _action_end(text: str) -> int:
    """Where the closing braces are, none inside quotes counted; -1 when there are none."""
    quote = ""
    for position, char in enumerate(text):
        if quote:
            if char == quote and text[position - 1] != "\\":
                quote = ""
        elif char in "\"`'":
            quote = char
        elif text.startswith("}}", position):
            return position
    return -1


def _parse(tokens: list[tuple[str, str]], at: int, inside: str) -> tuple[list[Node], str | None, int]:
    """Nodes up to the ``end`` or ``else`` of the block we are ``inside``; which of the two, and the place after it."""
    nodes: list[Node] = []
    while at < len(tokens):
        kind, content = tokens[at]
        at += 1
        if kind == "text":
            nodes.append(("text", content))
            continue
        word, _, rest = content.partition(" ")
        if word in ("end", "else"):
            return nodes, word, at
        if word in ("range", "if"):
            then, closed, at = _parse(tokens, at, word)
            otherwise: list[Node] = []
            if closed == "else":
                otherwise, closed, at = _parse(tokens, at, word)
            if closed != "end":
                raise UsageError(f"format has a {{{{{word}}}}} without its {{{{end}}}}")
            nodes.append((word, (_pipeline(rest), then, otherwise)))
        else:
            nodes.append(("value", _pipeline(content)))
    if inside:
        return nodes, None, at
    return nodes, None, at


def _pipeline(text: str) -> list[list[str]]:
    """Commands of a pipe, each a list of words; parentheses and variables are not done."""
    commands: list[list[str]] = [[]]
    position = 0
    while position < len(text):
        char = text[position]
        if char.isspace():
            position += 1
        elif char == "|":
            commands.append([])
            position += 1
        elif char in '"`':
            end = position + 1
            while end < len(text) and (text[end] != char or (char == '"' and text[end - 1] == "\\")):
                end += 1
            if end >= len(text):
                raise UsageError(f"format has an unfinished text in {{{{{text}}}}}")
            inside = text[position + 1 : end]
            commands[-1].append('"' + (_unescape(inside) if char == '"' else inside))
            position = end + 1
        elif char in "()":
            raise UsageError(f"format {{{{{text}}}}} uses parentheses, which this subset of Go's templates lacks")
        else:
            end = position
            while end < len(text) and not text[end].isspace() and text[end] not in '|"`()':
                end += 1
            commands[-1].append(text[position:end])
            position = end
    if not all(commands):
        raise UsageError(f"format {{{{{text}}}}} has nothing to show")
    return commands


def _unescape(text: str) -> str:
    out, position = "", 0
    while position < len(text):
        if text[position] == "\\" and position + 1 < len(text):
            out += {"n": "\n", "t": "\t"}.get(text[position + 1], text[position + 1])
            position += 2
        else:
            out += text[position]
            position += 1
    return out


def _render(nodes: Sequence[Node], dot: Any, root: Any) -> list[str]:
    out: list[str] = []
    for kind, content in nodes:
        if kind == "text":
            out.append(content)
        elif kind == "value":
            out.append(_show(_evaluate(content, dot, root)))
        else:
            pipeline, then, otherwise = content
            value = _evaluate(pipeline, dot, root)
            if kind == "if":
                out += _render(then if value else otherwise, dot, root)
            elif value:
                for item in value.values() if isinstance(value, dict) else value:
                    out += _render(then, item, root)
            else:
                out += _render(otherwise, dot, root)
    return out


def _show(value: Any) -> str:
    """As Go prints it: maps as map[a:1], lists as [a b], nothing as <no value>."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{_show(value[key])}" for key in sorted(value)) + "]"
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(_show(item) for item in value) + "]"
    return str(value)


def _evaluate(pipeline: list[list[str]], dot: Any, root: Any) -> Any:
    value: Any = None
    for position, words in enumerate(pipeline):
        arguments = [] if not position else [value]
        value = _command(words, arguments, dot, root)
    return value


def _command(words: list[str], piped: list[Any], dot: Any, root: Any) -> Any:
    name = words[0]
    if name in _FUNCTIONS:
        arguments = [_operand(word, dot, root) for word in words[1:]] + piped
        least, most, function = _FUNCTIONS[name]
        if not least <= len(arguments) <= most:
            raise UsageError(f"format function {name} does not take {len(arguments)} arguments")
        try:
            return function(*arguments)
        except (TypeError, ValueError, AttributeError):
            raise UsageError(f"format function {name} does not fit its argument") from None
    if len(words) > 1 or piped:
        raise UsageError(f"format function {name!r} is not known; there is {', '.join(_FUNCTIONS)}")
    return _operand(name, dot, root)


def _operand(word: str, dot: Any, root: Any) -> Any:
    if word.startswith('"'):
        return word[1:]
    if word in ("true", "false"):
        return word == "true"
    if word.lstrip("-").isdigit() and word.isascii():
        return int(word)
    if word == "$":
        return root
    if word.startswith("$."):
        return _field(root, word[2:])
    if word == ".":
        return dot
    if word.startswith("."):
        return _field(dot, word[1:])
    known = ", ".join(_FUNCTIONS)
    raise UsageError(f"format function {word!r} is not known; there is {known}; a field is written {{{{.Name}}}}")


def _field(value: Any, path: str) -> Any:
    """Walk ``A.B``; an unknown name is an error that lists what there is, so a typing slip is seen at once."""
    walked = ""
    for name in path.split("."):
        if value is None:
            return None
        if not isinstance(value, dict):
            raise UsageError(f"format field {walked or '.'} has no fields, so not {name!r}")
        if name not in value:
            known = ", ".join(f".{key}" for key in value)
            where = f" in {walked}" if walked else ""
            raise UsageError(f"format field .{name} does not exist{where}; there is {known or 'none'}")
        value = value[name]
        walked += f".{name}"
    return value


def _json(value: Any) -> str:
    return fastjson.dumps(value).decode()


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if value is None:
            return None
        if isinstance(value, dict):
            value = value.get(key, "")
        elif isinstance(value, (list, tuple)) and isinstance(key, int) and 0 <= key < len(value):
            value = value[key]
        else:
            raise UsageError(f"format: index {key!r} is not there")
    return value


_FUNCTIONS: dict[str, tuple[int, int, Callable[..., Any]]] = {
    "json": (1, 1, _json),
    "index": (2, 9, _index),
    "len": (1, 1, len),
    "join": (2, 2, lambda value, between: between.join(map(_show, value))),
    "split": (2, 2, lambda value, between: value.split(between)),
    "upper": (1, 1, lambda value: _show(value).upper()),
    "lower": (1, 1, lambda value: _show(value).lower()),
    "println": (0, 9, lambda *values: " ".join(map(_show, values)) + "\n"),
}
