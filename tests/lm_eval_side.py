"""The other side of a comparison with lm-eval: run by the Python of its own environment, not by pytest.

    python tests/lm_eval_side.py MODEL TASKS OUT

MODEL: a folder. TASKS: a folder of lm-eval's YAML files. OUT: JSON, for each task a list of what each row was asked and
answered. The same with `serve=URL` as MODEL asks a server through `local-completions`.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    model, folder, out = sys.argv[1:4]
    names = sorted(path.stem for path in Path(folder).glob("*.yaml"))
    options: dict[str, object] = {"model": "hf", "model_args": {"pretrained": model, "dtype": "float32"}}
    if model.startswith("serve="):
        url = model.removeprefix("serve=")
        args = {
            "base_url": f"{url}/v1/completions",
            "model": "base",
            "tokenizer_backend": "remote",
            "num_concurrent": 4,
        }
        options = {"model": "local-completions", "model_args": args}
    found = lm_eval.simple_evaluate(
        **options,
        tasks=names,
        task_manager=TaskManager(include_path=folder, include_defaults=False),
        log_samples=True,
        batch_size=1,
        device="cpu",
        bootstrap_iters=0,
    )
    metrics = ("acc", "acc_norm", "exact_match")
    samples = {
        name: [
            {
                "doc_id": each["doc_id"],
                "filter": each["filter"],
                "prompt": each["arguments"][0][0],
                "answers": each["filtered_resps"],
                "metrics": {metric: each[metric] for metric in metrics if metric in each},
            }
            for each in sorted(rows, key=lambda each: each["doc_id"])
        ]
        for name, rows in found["samples"].items()
    }
    Path(out).write_text(json.dumps(samples, default=float), encoding="utf-8")


if __name__ == "__main__":
    main()
