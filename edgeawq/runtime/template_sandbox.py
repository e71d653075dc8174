"""Jinja for chat templates: Hugging Face's dialect in a sandbox with bounds on steps, time and text.

Dialect: `transformers` 4.x/5.x `chat_template_utils` (trim_blocks, lstrip_blocks, loop controls, `raise_exception`,
`strftime_now`, a `tojson` that escapes no HTML, and the `{% generation %}` block that marks the assistant's text).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils

from edgeawq.errors import GenerationError

MAX_SOURCE_CHARS = 256 << 10  # the longest public chat templates have about 20 000
MAX_TEXT_CHARS = 16 << 20
MAX_STEPS = 1_000_000  # loop rounds and macro calls of one rendering
MAX_RENDER_S = 5.0

_CHOOSE_ANOTHER = "pack the bundle with another chat template, or use --raw"


class TemplateLimitError(jinja2.TemplateRuntimeError):
    """A template passed one of the bounds above."""


class CompiledTemplate:
    """A chat template that is ready to render."""

    def __init__(self, template: jinja2.Template, budget: _Budget) -> None:
        self._template = template
        self._budget = budget

    def render(self, variables: Mapping[str, object]) -> str:
        """Text of the template with `variables`; GenerationError when it fails or passes a bound."""
        self._budget.start()
        parts: list[str] = []
        n_chars = 0
        try:
            for part in self._template.generate(variables):
                parts.append(part)
                n_chars += len(part)
                self._budget.check_text(n_chars)
                self._budget.step()
        except _RefusedError as error:
            raise GenerationError(
                f"the model's chat template refuses this conversation: {error}",
                remedy="change the messages (some models take no system prompt), or use --raw",
            ) from error
        except TemplateLimitError as error:
            raise GenerationError(f"the model's chat template {error}", remedy=_CHOOSE_ANOTHER) from error
        except Exception as error:  # a template is a program: anything can go wrong in it, and none of it is ours
            reason = str(error) or type(error).__name__
            raise GenerationError(f"the model's chat template fails: {reason}", remedy=_CHOOSE_ANOTHER) from error
        return "".join(parts)


def compile_template(source: str) -> CompiledTemplate:
    """Compile a chat template; GenerationError when it is too long or no valid Jinja."""
    if len(source) > MAX_SOURCE_CHARS:
        raise GenerationError(
            f"the model's chat template has {len(source)} characters, more than the limit of {MAX_SOURCE_CHARS}",
            remedy=_CHOOSE_ANOTHER,
        )
    budget = _Budget()
    environment = _ChatEnvironment(budget)
    try:
        tree = environment.parse(source)
        _insert_steps(tree)
        template = environment.from_string(tree)
    except jinja2.TemplateSyntaxError as error:
        raise GenerationError(
            f"the model's chat template is not valid Jinja: line {error.lineno}: {error.message}",
            remedy=_CHOOSE_ANOTHER,
        ) from error
    except (RecursionError, SyntaxError, MemoryError) as error:
        raise GenerationError("the model's chat template is nested too deeply", remedy=_CHOOSE_ANOTHER) from error
    return CompiledTemplate(template, budget)


class _RefusedError(jinja2.TemplateError):
    """The template called raise_exception."""


class _Budget:
    """Counts what one rendering may still do."""

    def __init__(self) -> None:
        self._n_steps = 0
        self._deadline = 0.0

    def start(self) -> None:
        self._n_steps = 0
        self._deadline = time.monotonic() + MAX_RENDER_S

    def step(self) -> str:
        self._n_steps += 1
        if self._n_steps > MAX_STEPS:
            raise TemplateLimitError(f"takes more than {MAX_STEPS} steps")
        if self._n_steps % 64 == 0 and time.monotonic() > self._deadline:
            raise TemplateLimitError(f"takes longer than {MAX_RENDER_S:g} s")
        return ""

    def check_text(self, n_chars: int) -> None:
        if n_chars > MAX_TEXT_CHARS:
            raise TemplateLimitError(f"writes more than {MAX_TEXT_CHARS} characters")


class _ChatEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox plus size checks on the few operations that turn a short text into a huge one."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, budget: _Budget) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationBlock, jinja2.ext.loopcontrols],
        )
        self._budget = budget
        self.filters["tojson"] = _write_json
        # These three take a width; a chat template that pads text to a million columns is no chat template.
        for name in ("center", "indent", "format"):
            self.filters[name] = self._bound_numbers(self.filters[name])
        self.filters["replace"] = self._replace
        self.globals.pop("lipsum")  # nothing for a chat, and minutes of work in one call
        self.globals["dict"] = _DictMaker()
        self.globals["namespace"] = _Namespace
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["_step"] = budget.step
        self.globals["_join"] = self._join

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for sequence, count in ((left, right), (right, left)):
                if isinstance(sequence, (str, list, tuple)) and isinstance(count, int):
                    self._budget.check_text(len(sequence) * count)
        elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            self._budget.check_text(len(left) + len(right))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self._budget.check_text(left.bit_length() * right)
        elif operator == "%" and isinstance(left, str):
            self._check_format(left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: jinja2.runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        # Jinja puts a wrapper of its own around str.format.
        bound = getattr(__obj, "__wrapped__", __obj)
        owner = getattr(bound, "__self__", None)
        if isinstance(owner, str):
            __self._check_numbers(args, kwargs)
            name = getattr(bound, "__name__", "")
            if name in ("format", "format_map"):
                __self._check_format(owner, args)
            elif name == "replace" and len(args) >= 2 and all(isinstance(arg, str) for arg in args[:2]):
                __self._check_replace(owner, args[0], args[1])
            elif name == "join" and args and isinstance(args[0], (list, tuple)):
                __self._budget.check_text(len(owner) * len(args[0]) + sum(len(str(item)) for item in args[0]))
        return super().call(__context, __obj, *args, **kwargs)

    def _join(self, *parts: object) -> str:
        texts = [str(part) for part in parts]
        self._budget.check_text(sum(map(len, texts)))
        return "".join(texts)

    def _replace(self, text: object, old: object, new: object, count: int | None = None) -> str:
        self._check_replace(str(text), str(old), str(new))
        return str(text).replace(str(old), str(new), -1 if count is None else count)

    def _check_replace(self, text: str, old: str, new: str) -> None:
        self._budget.check_text(len(text) + text.count(old) * len(new))

    def _bound_numbers(self, filter_: Callable[..., Any]) -> Callable[..., Any]:
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self._check_numbers(args, kwargs)
            if args and isinstance(args[0], str):
                self._check_format(args[0], args[1:])
            return filter_(*args, **kwargs)

        return bounded

    def _check_numbers(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, int):
                self._budget.check_text(abs(value))

    def _check_format(self, pattern: str, values: Any) -> None:
        """Refuse a format with a width of seven digits or more, written out or passed as a value."""
        run = 0
        for char in pattern:
            run = run + 1 if char.isdigit() else 0
            if run > 6:
                raise TemplateLimitError("formats text to more than 999999 columns")
        if "*" in pattern or "{" in pattern:
            listed = values if isinstance(values, tuple) else (values,)
            self._check_numbers(tuple(value for value in listed if isinstance(value, int)), {})


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text for training; here it is only rendered."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _DictMaker:
    """The `dict` of a template: makes dictionaries, and is not the type itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Namespace(jinja2.utils.Namespace):
    """A namespace that stores no name with a leading underscore, so that no Python internals can be planted in it."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: B902 - as in Jinja, so that `namespace(self=…)` works
        self, rest = args[0], args[1:]
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_attribute(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace takes no attribute {name!r}")


def _insert_steps(tree: jinja2.nodes.Template) -> None:
    """Count every loop round and macro call, and send every `~` through a function that checks the size."""

    def build_call(name: str, args: list[jinja2.nodes.Expr]) -> jinja2.nodes.Call:
        return jinja2.nodes.Call(jinja2.nodes.Name(name, "load"), args, [], None, None)

    bodies = [node.body for node in tree.find_all(jinja2.nodes.For)]
    bodies += [node.body for node in tree.find_all(jinja2.nodes.Macro)]
    bodies += [node.body for node in tree.find_all(jinja2.nodes.CallBlock)]
    for body in bodies:
        body.insert(0, jinja2.nodes.ExprStmt(build_call("_step", [])))
    _replace_concats(tree, build_call)
    assert tree.environment is not None
    tree.set_environment(tree.environment)
    tree.set_lineno(1)  # only nodes without a line get this one


def _replace_concats(
    node: jinja2.nodes.Node, build_call: Callable[[str, list[jinja2.nodes.Expr]], jinja2.nodes.Call]
) -> None:
    for name, value in list(node.iter_fields()):
        children = value if isinstance(value, list) else [value]
        for index, child in enumerate(children):
            if not isinstance(child, jinja2.nodes.Node):
                continue
            _replace_concats(child, build_call)
            if isinstance(child, jinja2.nodes.Concat):
                call = build_call("_join", child.nodes)
                call.lineno = child.lineno
                if isinstance(value, list):
                    value[index] = call
                else:
                    setattr(node, name, call)


def _raise_exception(message: object) -> str:
    raise _RefusedError(str(message))


def _strftime_now(format_: str) -> str:
    return datetime.now().strftime(format_)


def _write_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
