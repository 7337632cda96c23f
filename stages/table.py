"""The stages there are: the one list that the command line, help, recipes and completion share."""

STAGES = {
    "tokenize": "chats and texts to token rows with weights",
    "pixels": "pictures of token rows to what a model reads of them",
    "pack": "token rows to bins",
    "train": "bins and a model to an adapter or a model",
    "rollout": "prompts and a model to sampled answers",
    "score": "log-probs of a model for token rows",
    "reward": "rollouts to rewards, or to rows to train on",
    "merge": "an adapter into its model",
    "quantize": "a model's weights to few bits",
    "eval": "a model against questions",
    "serve": "a model over HTTP, as OpenAI and Anthropic do",
}
"""Stage -> what it does. A new stage is a folder under stages/ and a line here; a package of somebody else's adds one
by an entry point of the group `postmill.stages`, `NAME = module:STAGE`."""
