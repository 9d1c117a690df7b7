"""Chat: messages as the one text that a model was trained to go on from, by the template beside its tokenizer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightkit.errors import EngineError, FormatError

Messages = Sequence[Mapping[str, Any]]  # {"role": "user", "content": "…"}, …

NO_MESSAGES = "messages are a list of objects with a role and a content, as JSON has them"
MOST_CHARACTERS = 4 << 20
SECONDS, MEMORY = 5, 1 << 30  # of the process that renders a template
PATIENCE = 10  # times the seconds: it may have to share the processor


def template_of(value: Any, where: str) -> str | None:
    """The template in a `chat_template`: a string, or the default one of several [{name, template}].

    Raises FormatError where it is neither.
    """
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    if value is not None and not isinstance(value, str):
        raise FormatError(f"{where}: chat_template is neither a template nor a list that has a default one")
    return value


def render(template: str, messages: Messages, tokens: Mapping[str, str], where: str) -> str:
    """The text of messages, up to where the assistant begins. `tokens` are the special tokens by name.

    Raises EngineError where the messages are none, and where the template refuses them, is wrong, or takes more than
    it may.
    """
    if isinstance(messages, (str, Mapping)) or not all(map(_is_message, messages)):
        raise EngineError(NO_MESSAGES)
    values = {**tokens, "messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
    asked = {"template": template, "values": values, "most": MOST_CHARACTERS, "seconds": SECONDS, "memory": MEMORY}
    try:
        answer = _ask(json.dumps(asked))
    except (TypeError, ValueError):
        raise EngineError(NO_MESSAGES) from None
    if "text" not in answer:
        reason = answer.get("error", "it takes too long or too much memory")
        raise EngineError(f"{where}: the chat template failed: {' '.join(reason.split())}")
    return str(answer["text"])


def _is_message(message: object) -> bool:
    """Whether it has a role and something that is said, or that a tool is asked."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        return False
    return message.get("content") is not None or bool(message.get("tool_calls"))


def _ask(request: str) -> dict[str, Any]:
    """The answer of the process that renders; nothing where it was ended."""
    command = [sys.executable, "-P", "-X", "utf8", str(Path(__file__).with_name("template.py"))]
    try:
        done = subprocess.run(
            command, input=request, capture_output=True, encoding="utf-8", timeout=PATIENCE * SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {}
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {}
