"""The harnesses that are known."""

from postmill.stages.eval.harness import evalscope, inspect, lm_eval
from postmill.stages.eval.harness.harness import Harness

HARNESSES = {
    "lm-eval": Harness(package="lm_eval[api]", command=lm_eval.command, env=lm_eval.env, read=lm_eval.read),
    "evalscope": Harness(package="evalscope", command=evalscope.command, env=evalscope.env, read=evalscope.read),
    "inspect": Harness(package="inspect_ai", command=inspect.command, env=inspect.env, read=inspect.read),
}
