"""Chat templates: the text and the ids of transformers, and templates that mean harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

import weightkit as wk
from tests import tiny
from weightkit.engine import chat
from weightkit.errors import EngineError, FormatError

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIAL += ["[INST]", "[/INST]"]
# Written in the manner of three well-known ones.
LLAMA3 = """{%- if not date_string is defined %}{% set date_string = strftime_now("%Y") %}{%- endif %}
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if tools is not none %}{{ raise_exception("no tools here") }}{% endif %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
CHATML = """{% for message in messages %}
{% if loop.first and message.role != 'system' %}
<|im_start|>system
You help.<|im_end|>
{% endif %}
{% if message.content == 'skip' %}{% continue %}{% endif %}
<|im_start|>{{ message.role }}
{% generation %}{{ message.content }}{% endgeneration %}<|im_end|>
{% endfor %}
{{ {'b': '<é>', 'a': [1]} | tojson }}{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""
MISTRAL = """{%- set ns = namespace(system='') %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] + '\\n\\n' %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- bos_token }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate\\nuser/assistant') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + (ns.system if loop.last else '') + message['content'] + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""
TEMPLATES = {"llama3": LLAMA3, "chatml": CHATML, "mistral": MISTRAL}
USER, AGAIN = {"role": "user", "content": " Hello <|im_end|> "}, {"role": "user", "content": "skip"}
SYSTEM, ASSISTANT = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "Yes?"}
CHATS = {"one": [USER], "with a system": [SYSTEM, USER], "three turns": [SYSTEM, USER, ASSISTANT, AGAIN]}


def write(folder: Path, template: Any = None, **settings: Any) -> Path:
    """A tiny llama with a tokenizer of bytes, which begins a text with <s>."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["Hello system user assistant"] * 5, trainer)
    made.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 0)])
    tiny.write(folder, vocab_size=300, seed=3)
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **settings}
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", CHATS.values(), ids=CHATS)
def test_texts_and_ids_are_those_of_transformers(name: str, messages: list[dict[str, str]], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = write(tmp_path, TEMPLATES[name])
    theirs = AutoTokenizer.from_pretrained(folder)
    model = wk.open(folder)
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert model.chat_prompt(messages) == text
    ids = theirs.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert model.chat(messages).prompt == ids


def test_special_tokens_of_the_template_are_not_put_twice(tmp_path: Path) -> None:
    model = wk.open(write(tmp_path, MISTRAL))
    assert model.chat_prompt([USER]) == "<s>[INST]  Hello <|im_end|>  [/INST]"
    ids = model.chat([USER]).prompt
    assert ids.count(0) == 1
    assert ids[:2] == [0, SPECIAL.index("[INST]")]
    assert model.ids("Hello")[0] == 0


def test_where_a_template_is_found(tmp_path: Path) -> None:
    folder = write(
        tmp_path, [{"name": "tool_use", "template": "b"}, {"name": "default", "template": "a{{ bos_token }}"}]
    )
    assert wk.open(folder).chat_prompt([USER]) == "a<s>"
    (folder / "chat_template.jinja").write_text("é{{ messages[0].role }}", "utf-8")
    assert wk.open(folder).chat_prompt([USER]) == "éuser"
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(FormatError, match="UTF-8"):
        wk.open(folder).chat_prompt([USER])


@pytest.mark.parametrize("template", [7, {"a": "b"}, [{"name": "default", "template": 3}]])
def test_templates_that_are_none(template: Any, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="chat_template is neither"):
        wk.open(write(tmp_path, template)).chat_prompt([USER])


@pytest.mark.parametrize("template", [None, [], [{"name": "tools", "template": "a"}]])
def test_without_a_template(template: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no chat template"):
        wk.open(write(tmp_path, template)).chat_prompt([USER])


def test_an_answer_ends_where_either_file_says(tmp_path: Path) -> None:
    folder = write(tmp_path, CHATML, eos_token="[/INST]")
    model = wk.open(folder)
    ids = [token_id for token_id, _ in model.stream(model.chat([USER]).prompt, 12)]
    assert len(set(ids)) == 12
    written = model.chat([USER], 12)
    text = "".join(written)
    assert (text, written.ids) == (model.decode(ids), ids)  # and nothing of the prompt
    assert model.chat([USER], 12, stop=text[3:5]).whole() == text[:3]
    vocab = {i: token for token, i in json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"].items()}
    for config, tokenizer, length in ((ids[4], ids[6], 5), ([299, ids[6]], ids[4], 5), (None, ids[5], 6)):
        write(folder, CHATML, eos_token=vocab[tokenizer])
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": config}))
        written = wk.open(folder).chat([USER], 12)
        assert written.whole() == model.decode(ids[:length])
        assert written.ids == ids[:length]


# ── templates that mean harm ─────────────────────────────────────────────────────────────────────────

HARM = {
    "for ever": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "too long"),
    "a long range": ("{% for i in range(999999999) %}{% endfor %}", "too big"),
    "memory": ("{{ 'a' * 10**10 }}", "needs too much memory"),
    "doubling": (
        "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "memory",
    ),
    "a long text": ("{{ 'a' * 9999999 }}", "more than"),
    "into itself": ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion"),
    "into Python": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "into modules": ("{{ raise_exception.__globals__['sys'].exit() }}", "failed"),
    "a name": ("{% set n = namespace() %}{% set n.__class__ = 1 %}", "may not set"),
    "a file": ("{% include '/etc/passwd' %}", "no loader"),
    "a change of the messages": ("{{ messages.append(1) }}", "'append' of 'list' object is unsafe"),
    "no template": ("{% if %}", "Expected an expression"),
    "a refusal": ("{{ raise_exception('not\\nthis') }}", "failed: not this"),
}


@pytest.mark.parametrize(("template", "says"), HARM.values(), ids=HARM)
def test_a_template_that_means_harm_is_an_error_of_one_line(
    template: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "SECONDS", 1)
    with pytest.raises(EngineError, match=says) as caught:
        chat.render(template, [USER], {}, "model")
    assert str(caught.value).startswith("model: the chat template failed: ")
    assert "\n" not in str(caught.value)


def test_a_template_has_so_much_memory_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{{ ('a' * 300000000) | length }}"
    assert chat.render(template, [USER], {}, "model") == "300000000"
    monkeypatch.setattr(chat, "MEMORY", 200 << 20)
    with pytest.raises(EngineError, match="needs too much memory"):
        chat.render(template, [USER], {}, "model")


def test_messages_that_are_no_json() -> None:
    with pytest.raises(EngineError, match="objects with a role"):
        chat.render("", [{"role": "user", "content": object()}], {}, "model")


@pytest.mark.parametrize("bad", ["hello", USER, [1], ["hello"], [{"role": "user"}], [{"role": 1, "content": "a"}]])
def test_messages_that_are_none(bad: Any) -> None:
    with pytest.raises(EngineError, match="objects with a role"):
        chat.render("{{ messages }}", bad, {}, "model")
    called = {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}
    assert chat.render("{{ messages | length }}", [USER, called], {}, "model") == "2"
