"""Writes FOLDER/expected.json: what `transformers` makes of every *.jinja in FOLDER, for a few conversations.

    python render_chat_templates.py FOLDER

The Rust test `real_templates_render_as_transformers_renders_them` compares with it. The date is fixed, so that templates
that write it can be compared.
"""

import json
import sys
from datetime import datetime
from pathlib import Path

from jinja2.exceptions import TemplateError
from transformers.utils import chat_template_utils

NOW = datetime(2024, 7, 26, 12)
CONVERSATIONS = [
    [{"role": "user", "content": "Why is the sky blue?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi! \n"}],
    [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And 2+2? \"<b>é</b>\""},
    ],
]


class FixedDate(datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def render(template, messages):
    """The text, or why the template itself refused (`raise_exception`); neither if it failed in another way."""
    try:
        compiled = chat_template_utils._compile_jinja_template(template)
        text = compiled.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
        )
        return {"text": text, "refused": None}
    except Exception as e:
        print(f"  {type(e).__name__}: {e}", file=sys.stderr)
        return {"text": None, "refused": str(e) if type(e) is TemplateError else None}


def main():
    folder = Path(sys.argv[1])
    chat_template_utils.datetime = FixedDate
    cases = []
    for path in sorted(folder.glob("*.jinja")):
        print(path.name, file=sys.stderr)
        template = path.read_text()
        for messages in CONVERSATIONS:
            cases.append({"template": path.name, "messages": messages} | render(template, messages))
    (folder / "expected.json").write_text(json.dumps({"cases": cases}, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
