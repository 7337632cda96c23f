"""Rows in the manner of the peers' tests, our own words, and what each peer makes of them: the text, trained parts in brackets.

A template of six words stands for theirs: `<user>...<end>` and `<bot>...<end>`. `axolotl` names `roles_to_train`,
`train_on_eos`, `message_property_mappings`, `roles`, `drop_system_message`; `trl` its data formats; `llama-factory` its
Alpaca, ShareGPT and OpenAI readers; `ms-swift` its preprocessors.
"""

from typing import Any

U, A = {"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"}
U2, A2 = {"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2"}
S = {"role": "system", "content": "s"}
TWO = [U, A, U2, A2]
BOTH = "<user>q1<end><bot>[a1<end>]<user>q2<end><bot>[a2<end>]"
ONE = "<user>q1<end><bot>[a1<end>]"


def sharegpt(*texts: str, names: tuple[str, str] = ("human", "gpt")) -> list[dict[str, str]]:
    return [{"from": names[index % 2], "value": text} for index, text in enumerate(texts)]


CASES: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("axolotl", {"messages": TWO}, {}, BOTH),
    ("axolotl", {"messages": [S, *TWO]}, {}, "<user>s<end>" + BOTH),
    ("axolotl", {"conversations": sharegpt("q1", "a1", "q2", "a2")}, {}, BOTH),
    ("axolotl", {"messages": TWO}, {"train_closing": "last"}, "<user>q1<end><bot>[a1]<end><user>q2<end><bot>[a2<end>]"),
    ("axolotl", {"messages": TWO}, {"train_closing": "none"}, "<user>q1<end><bot>[a1]<end><user>q2<end><bot>[a2]<end>"),
    ("axolotl", {"messages": TWO}, {"train_closing": "all"},
     "<user>q1[<end>]<bot>[a1<end>]<user>q2[<end>]<bot>[a2<end>]"),
    ("axolotl", {"messages": TWO}, {"train_roles": ["user"]},
     "<user>[q1<end>]<bot>a1<end><user>[q2<end>]<bot>a2<end>"),
    ("axolotl", {"messages": TWO}, {"train_roles": ["user", "assistant"]},
     "<user>[q1<end>]<bot>[a1<end>]<user>[q2<end>]<bot>[a2<end>]"),
    ("axolotl", {"messages": TWO}, {"train_roles": ["user"], "train_closing": "none"},
     "<user>[q1]<end><bot>a1<end><user>[q2]<end><bot>a2<end>"),
    ("axolotl", {"messages": TWO}, {"train_roles": ["user"], "train_closing": "all"},
     "<user>[q1<end>]<bot>a1[<end>]<user>[q2<end>]<bot>a2[<end>]"),
    ("axolotl", {"messages": [S, U, A]}, {"train_roles": ["system"]}, "<user>[s<end>]<user>q1<end><bot>a1<end>"),
    ("axolotl", {"messages": [S, *TWO]}, {"drop": ["system"]}, BOTH),
    ("axolotl", {"messages": [U, A | {"train": False}, U2, A2]}, {}, "<user>q1<end><bot>a1<end><user>q2<end><bot>[a2<end>]"),
    ("axolotl", {"messages": [U, A | {"training": False}, U2, A2 | {"training": True}]}, {},
     "<user>q1<end><bot>a1<end><user>q2<end><bot>[a2<end>]"),
    ("axolotl", {"messages": [U, A | {"weight": 0}, U2, A2 | {"weight": 1}]}, {},
     "<user>q1<end><bot>a1<end><user>q2<end><bot>[a2<end>]"),
    ("axolotl", {"messages": [{"who": "user", "said": "q1"}, {"who": "assistant", "said": "a1"}]},
     {"columns": [("who", "role"), ("said", "content")]}, ONE),
    ("axolotl", {"messages": [{"role": "npc", "content": "q1"}, {"role": "hero", "content": "a1"}]},
     {"roles": [("npc", "user"), ("hero", "assistant")]}, ONE),
    ("axolotl", {"turns": [U, A]}, {"columns": [("turns", "messages")]}, ONE),
    ("axolotl", {"instruction": "q1", "input": "", "output": "a1"}, {}, ONE),
    ("axolotl", {"instruction": "q1", "input": "x", "output": "a1"}, {}, "<user>q1\nx<end><bot>[a1<end>]"),
    ("axolotl", {"input_ids": [10, 11, 12], "labels": [-100, 11, 12], "attention_mask": [1, 1, 1]}, {}, "+[,-]"),
    ("axolotl", {"input_ids": [10, 11, 12], "attention_mask": [1, 1, 0]}, {}, "[+,]"),
    ("axolotl", {"input_ids": [10, 11, 12], "labels": [-100, 11, -100]}, {}, "+[,]-"),
    ("axolotl", {"text": "raw words"}, {}, "[raw words<end>]"),
    ("trl", {"messages": TWO}, {}, BOTH),
    ("trl", {"prompt": [U], "completion": [A]}, {}, ONE),
    ("trl", {"prompt": [U, A, U2], "completion": [A2]}, {}, "<user>q1<end><bot>a1<end><user>q2<end><bot>[a2<end>]"),
    ("trl", {"prompt": [S, U], "completion": [A]}, {}, "<user>s<end>" + ONE),
    ("trl", {"prompt": "q1", "completion": "a1"}, {"plain": True}, "q1[a1<end>]"),
    ("trl", {"prompt": "q1", "completion": " a1"}, {"plain": True}, "q1[ a1<end>]"),
    ("trl", {"text": "raw words<end>"}, {}, "[raw words<end>]"),
    ("trl", {"prompt": [U], "chosen": [A], "rejected": [A2]}, {}, ONE + "|<user>q1<end><bot>[a2<end>]"),
    ("trl", {"chosen": [U, A], "rejected": [U, A2]}, {}, ONE + "|<user>q1<end><bot>[a2<end>]"),
    ("trl", {"prompt": [U, A, U2], "chosen": [A2], "rejected": [A]}, {},
     "<user>q1<end><bot>a1<end><user>q2<end><bot>[a2<end>]|<user>q1<end><bot>a1<end><user>q2<end><bot>[a1<end>]"),
    ("trl", {"prompt": "q1", "chosen": "a1", "rejected": "a2"}, {"plain": True}, "q1[a1<end>]|q1[a2<end>]"),
    ("trl", {"prompt": [U], "completion": [A], "label": True}, {}, ONE),
    ("trl", {"input_ids": [10, 11, 12], "completion_mask": [0, 1, 1]}, {}, "+[,-]"),
    ("trl", {"input_ids": [10, 11, 12], "assistant_masks": [0, 1, 0]}, {}, "+[,]-"),
    ("llama-factory", {"instruction": "q2", "input": "", "output": "a2", "history": [["q1", "a1"]]}, {}, BOTH),
    ("llama-factory", {"instruction": "q1", "input": "x", "output": "a1", "system": "s"}, {},
     "<user>s<end><user>q1\nx<end><bot>[a1<end>]"),
    ("llama-factory", {"conversations": sharegpt("q1", "a1"), "system": "s"}, {}, "<user>s<end>" + ONE),
    ("llama-factory", {"conversations": sharegpt("q1"), "chosen": {"from": "gpt", "value": "a1"},
                       "rejected": {"from": "gpt", "value": "a2"}}, {}, ONE + "|<user>q1<end><bot>[a2<end>]"),
    ("llama-factory", {"instruction": "q1", "input": "", "chosen": "a1", "rejected": "a2"}, {},
     ONE + "|<user>q1<end><bot>[a2<end>]"),
    ("llama-factory", {"messages": [U, A], "kto_tag": False}, {}, ONE),
    ("llama-factory", {"messages": [U, A | {"loss_weight": 0.0}, U2, A2 | {"loss_weight": 1.0}]}, {},
     "<user>q1<end><bot>a1<end><user>q2<end><bot>[a2<end>]"),
    ("llama-factory", {"messages": TWO}, {"loss_scale": "all"},
     "[<user>q1<end><bot>a1<end><user>q2<end><bot>a2<end>]"),
    ("llama-factory", {"messages": TWO}, {"loss_scale": "last_round"},
     "<user>q1<end><bot>a1<end><user>q2<end><bot>[a2<end>]"),
    ("llama-factory", {"conversations": sharegpt("q1", "a1", names=("observation", "gpt"))}, {}, ONE),
    ("ms-swift", {"query": "q2", "response": "a2", "history": [["q1", "a1"]]}, {}, BOTH),
    ("ms-swift", {"query": "q1", "response": "a1", "system": "s"}, {}, "<user>s<end>" + ONE),
    ("ms-swift", {"query": "q1", "response": "a1", "rejected_response": "a2"}, {}, ONE + "|<user>q1<end><bot>[a2<end>]"),
    ("ms-swift", {"messages": [U, A], "rejected_messages": [U, A2]}, {}, ONE + "|<user>q1<end><bot>[a2<end>]"),
    ("ms-swift", {"conversation": [{"human": "q1", "assistant": "a1"}]}, {}, ONE),
    ("ms-swift", {"messages": [U, A | {"loss": False}, U2, A2]}, {}, "<user>q1<end><bot>a1<end><user>q2<end><bot>[a2<end>]"),
    ("ms-swift", {"messages": [U, A | {"loss": True}, U2, A2]}, {"loss_scale": "last_round"}, BOTH),
    ("ms-swift", {"messages": [{"role": "assistant", "content": "raw words"}]}, {}, "[raw words<end>]"),
    ("openai", {"input": {"messages": [U]}, "preferred_output": [A], "non_preferred_output": [A2]}, {},
     ONE + "|<user>q1<end><bot>[a2<end>]"),
    ("openai", {"messages": [U, A | {"weight": 0}, U2, A2]}, {}, "<user>q1<end><bot>a1<end><user>q2<end><bot>[a2<end>]"),
    ("ms-swift", {"messages": TWO}, {"each_turn": True}, ONE + "|<user>q1<end><bot>a1<end><user>q2<end><bot>[a2<end>]"),
]  # fmt: skip
