"""PaliGemma: pictures, the beginning of the sequence, a prompt that ends in a newline, and the answer."""

from typing import Any

from postmill.stages.shared.media.processor import Processor

TEMPLATE = """\
{%- for message in messages %}
{%- if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}
{%- elif message['content'] is string %}{{ bos_token + message['content'] + '\n' }}
{%- else %}
{%- for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% endif %}{% endfor %}
{{- bos_token }}
{%- for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}
{{- '\n' }}
{%- endif %}
{%- endfor %}"""
"""The processor's layout of one question and its answer: its models have no chat template."""


def family(processor: Processor) -> dict[str, Any]:
    """Source: processing_paligemma.py."""
    token = processor.token("image_token", "<image>")
    features = processor.number("image_seq_length", 256)
    rule = {"kind": "fixed", "features": features, "patches": features}
    return {"image": {"placeholder": token, "feature": token, "rule": rule}}
