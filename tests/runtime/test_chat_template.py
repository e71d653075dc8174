"""Templates render as Hugging Face renders them, and a bad one ends with an error instead of harm."""

from __future__ import annotations

from datetime import datetime

import pytest

from edgeawq.errors import GenerationError
from edgeawq.runtime import template_sandbox
from edgeawq.runtime.chat_template import PLAIN_STOP_STRINGS, ChatTemplate, Message
from tests.runtime.tiny_tokenizer import CHATML

# The shapes of template that public models use.
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = """{{- bos_token }}
{%- if strftime_now is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
FEATURES = """{% macro tag(name, count=1) %}<{{ name ~ ':' ~ count }}>{% endmacro %}
{% set ns = namespace(found=false, text='') %}
{% for message in messages %}
    {% if message.role == 'system' %}{% continue %}{% endif %}
    {% generation %}{{ tag(message.role, loop.index) }}{% endgeneration %}
    {% set ns.text = ns.text ~ message.content | upper %}
    {% if loop.index > 3 %}{% break %}{% endif %}
{% endfor %}
{{ ns.text }} {{ {'a': '<é>', 'b': [1, 2]} | tojson }} {{ {'x': 1} | tojson(indent=2) }}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(', ') }}
{{ '%s-%02d' | format('a', 7) }} {{ 'a,b'.split(',')[-1] }} {{ (3 * 4) ** 2 % 7 + 1 }} {{ 'ab' * 2 }} {{ [1] + [2] }}
{{ 'x'.replace('x', 'yy') | replace('y', 'z') }} {{ dict(a=1).a }} {{ tools is none }} {{ undefined_name is defined }}
{%- if add_generation_prompt %}GO{% endif %}"""

CHAT = [
    Message("system", "Be brief."),
    Message("user", "Hi <b> & \"you\" 'there'"),
    Message("assistant", "Hello"),
    Message("user", "Grüße 🙂\n\n  two"),
]


@pytest.mark.parametrize("source", [CHATML, LLAMA_2, LLAMA_3, FEATURES])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_rendering_equals_transformers(source: str, add_generation_prompt: bool) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    compiled = utils._compile_jinja_template(source)
    expected = compiled.render(
        messages=[{"role": message.role, "content": message.content} for message in CHAT],
        tools=None,
        documents=None,
        add_generation_prompt=add_generation_prompt,
        bos_token="<s>",
        eos_token="</s>",
    )
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    assert template.render(CHAT, add_generation_prompt=add_generation_prompt) == expected


def test_chatml_by_hand() -> None:
    assert (
        ChatTemplate(CHATML).render([Message("user", "Hi")])
        == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_today_is_there() -> None:
    assert datetime.now().strftime("%Y") in ChatTemplate(LLAMA_3).render([Message("user", "Hi")])


def test_a_model_without_a_template_gets_the_plain_format() -> None:
    template = ChatTemplate(None)
    text = template.render([Message("system", "Be brief."), Message("user", " Hi "), Message("assistant", " Hello\n")])
    assert text == "System: Be brief.\n\nUser: Hi\n\nAssistant: Hello\n\nAssistant:"
    assert template.stop_strings == PLAIN_STOP_STRINGS
    assert ChatTemplate(CHATML).stop_strings == ()


def test_one_template_renders_many_times() -> None:
    template = ChatTemplate(CHATML)
    first = template.render(CHAT)
    assert template.render(CHAT) == first
    assert template.render(CHAT[:2]) != first


@pytest.mark.parametrize(
    "source, message",
    [
        ("{{ raise_exception('no system role') }}", "refuses this conversation: no system role"),
        ("{% if %}", "not valid Jinja: line 1"),
        ("\n\n{{ oops", "not valid Jinja: line 3"),
        ("{{ missing.field }}", "'missing' is undefined"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages.__init__.__globals__ }}", "unsafe"),
        ("{{ namespace(__class__=1) }}", "takes no attribute"),
        ("{% include '/etc/passwd' %}", "fails: no loader"),
        ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "recursion"),
    ],
)
def test_a_template_that_fails_says_why(source: str, message: str) -> None:
    with pytest.raises(GenerationError) as caught:
        ChatTemplate(source).render([Message("user", "Hi")])
    assert message in caught.value.what
    assert caught.value.remedy


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='aaaa') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='aaaa') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s=['a']) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='a') %}{% for i in 'abcdef' %}"
        "{% set ns.s = ns.s.replace('a', 'a' * 99) %}{% endfor %}",
        "{% set ns = namespace(s='a') %}{% for i in 'abcdef' %}"
        "{% set ns.s = ns.s | replace('a', 'a' * 99) %}{% endfor %}",
        "{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s.join([1, 2, 3]) %}{% endfor %}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ [0] * 10 ** 10 }}",
        "{{ 2 ** (10 ** 10) }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ 'a' | center(10 ** 10) }}",
        "{{ 'a' | indent(10 ** 10, first=true) }}",
        "{{ 'a'.ljust(10 ** 10) }}",
        "{{ 'a'.zfill(10 ** 10) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' % (10 ** 10, 1) }}",
        "{{ '%9999999999d' | format(1) }}",
        "{{ '{:>9999999999}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 10 ** 10) }}",
        "{% for i in range(99999) %}{{ messages[0].content * 1000 }}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ lipsum(n=100000, max=1000) }}",
    ],
)
def test_a_template_cannot_take_all_time_or_memory(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "MAX_RENDER_S", 0.5)
    with pytest.raises(GenerationError, match="chat template"):
        ChatTemplate(source).render([Message("user", "Hi")])


def test_a_long_source_is_refused() -> None:
    with pytest.raises(GenerationError, match="more than the limit"):
        ChatTemplate("x" * (template_sandbox.MAX_SOURCE_CHARS + 1)).render([Message("user", "Hi")])


def test_unknown_roles_are_refused() -> None:
    with pytest.raises(GenerationError, match="'tool'"):
        ChatTemplate(CHATML).render([Message("tool", "Hi")])
