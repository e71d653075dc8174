"""The input line: history, several lines, completion of commands, status line below."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prompt_toolkit import PromptSession
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import History
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output
from prompt_toolkit.styles import Style

from edgeawq.tui.commands import list_commands

QUIT_HINT = "Ctrl-C again, or Ctrl-D, quits"
_STYLE = Style.from_dict({"bottom-toolbar": "noreverse fg:ansibrightblack", "prompt": "bold fg:ansigreen"})


class CommandCompleter(Completer):
    """Completes command names, and file names after /save and /load."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, argument = text.partition(" ")
        if not space:
            for command in list_commands().values():
                if command.name.startswith(name[1:].lower()):
                    ending = " " if command.argument else ""
                    yield Completion(
                        f"/{command.name}{ending}",
                        start_position=-len(name),
                        display=f"/{command.name} {command.argument}".rstrip(),
                        display_meta=command.summary,
                    )
        elif name in ("/save", "/load"):
            yield from self._paths.get_completions(Document(argument), complete_event)


class ChatPrompt:
    """Asks for the next message. Enter sends; Alt-Enter, Ctrl-J or a backslash at the end begin a new line."""

    def __init__(
        self,
        history: History,
        describe_status: Callable[[], str],
        *,
        input_: Input | None = None,
        output: Output | None = None,
    ) -> None:
        self._describe_status = describe_status
        self._wants_quit = False
        self._session: PromptSession[str] = PromptSession(
            history=history,
            completer=CommandCompleter(),
            complete_while_typing=True,
            multiline=True,
            key_bindings=self._build_bindings(),
            bottom_toolbar=self._build_toolbar,
            prompt_continuation="  ",
            style=_STYLE,
            reserve_space_for_menu=4,
            enable_suspend=True,
            input=input_,
            output=output,
        )
        self._session.default_buffer.on_text_changed += self._forget_quit

    def ask(self) -> str:
        """The message, as typed. EOFError when the person wants to quit."""
        self._wants_quit = False
        return self._session.prompt(FormattedText([("class:prompt", "› ")]))

    def _forget_quit(self, buffer: Buffer) -> None:
        self._wants_quit = False

    def _build_toolbar(self) -> FormattedText:
        return FormattedText([("", QUIT_HINT if self._wants_quit else self._describe_status())])

    def _build_bindings(self) -> KeyBindings:
        bindings = KeyBindings()
        is_choosing = Condition(lambda: _is_choosing(self._session))

        @bindings.add("enter", filter=is_choosing)
        def accept_completion(event: KeyPressEvent) -> None:
            event.current_buffer.complete_state = None

        @bindings.add("enter", filter=~is_choosing)
        def send(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if buffer.document.text_before_cursor.endswith("\\"):
                buffer.delete_before_cursor(1)
                buffer.insert_text("\n")
            elif buffer.text.strip():
                buffer.validate_and_handle()

        @bindings.add("escape", "enter")
        @bindings.add("c-j")
        def break_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @bindings.add("c-c")
        def clear_or_quit(event: KeyPressEvent) -> None:
            if event.current_buffer.text:
                event.current_buffer.reset()
                self._wants_quit = False
            elif self._wants_quit:
                event.app.exit(exception=EOFError())
            else:
                self._wants_quit = True

        return bindings


def _is_choosing(session: PromptSession[str]) -> bool:
    state = session.default_buffer.complete_state
    return state is not None and state.current_completion is not None
