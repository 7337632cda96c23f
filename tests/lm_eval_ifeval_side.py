"""The other side of a comparison of IFEval's verdicts: run by the Python of lm-eval's environment, not by pytest.

    python tests/lm_eval_ifeval_side.py CASES OUT

CASES: JSON with `rows` of the dataset and `answers`, some texts for each. OUT: for each row and text, the four numbers.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    import nltk

    # the rules of sentences are not compared, and their tables would be fetched
    nltk.download = lambda *_, **__: True
    import langdetect
    from lm_eval.tasks.ifeval.utils import process_results

    langdetect.DetectorFactory.seed = 0  # it draws at random; ours is seeded too

    cases = json.loads(Path(sys.argv[1]).read_text())
    found = [
        [process_results(row, [text]) for text in texts]
        for row, texts in zip(cases["rows"], cases["answers"], strict=True)
    ]
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
