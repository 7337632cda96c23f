//! The named strategies.
//!
//! Keys and weights as the ms-swift documentation lists them; `swift-table-14` as in the paper's appendix
//! (SWIFT: A Scalable lightWeight Infrastructure for Fine-Tuning, Table 14, <https://arxiv.org/abs/2408.05517>).
use super::rules::Rules;

/// Every name a specification may use besides the bases.
pub(crate) const NAMES: &[&str] = &[
    "base",
    "ignore_empty_think",
    "ignore_think_prefix",
    "react",
    "hermes",
    "qwen",
    "agentflan",
    "alpha_umi",
    "swift-table-14",
];

type Literals = &'static [(&'static str, f64, f64)];

const REACT: Literals = &[
    ("Action:", 2.0, 2.0),
    ("Action Input:", 2.0, 2.0),
    ("Thought:", 1.0, 1.0),
    ("Final Answer:", 1.0, 1.0),
    ("Observation:", 2.0, 0.0),
];

const QWEN: Literals =
    &[("✿FUNCTION✿:", 2.0, 2.0), ("✿ARGS✿:", 2.0, 2.0), ("✿RETURN✿:", 1.0, 1.0), ("✿RESULT✿:", 2.0, 0.0)];

const AGENTFLAN: Literals = &[
    ("Name:", 1.0, 3.0),
    ("Action:", 1.0, 3.0),
    ("ACTION:", 1.0, 3.0),
    ("Tool:", 1.0, 3.0),
    ("Command", 1.0, 3.0),
    ("Arguments:", 1.0, 3.0),
    ("action input", 1.0, 3.0),
    ("ACTION_INPUT:", 1.0, 3.0),
    ("Action Input:", 1.0, 3.0),
    ("Thought:", 1.0, 1.0),
    ("Final Answer:", 1.0, 1.0),
    ("Observation:", 2.0, 0.0),
];

const AGENTFLAN_QUERY: &[(&str, f64)] = &[
    ("What is the tool you want to use", 3.0),
    ("What are the required parameter names", 3.0),
    ("What is the value of", 3.0),
    ("What are the required parameter names for this tool", 3.0),
];

/// The paper boosts the field and its value; an observation is what the tool said, so only its mark is learnt.
const TABLE_14: Literals = &[
    ("Tool:", 3.0, 3.0),
    ("Name:", 3.0, 3.0),
    ("Action:", 3.0, 3.0),
    ("ACTION:", 3.0, 3.0),
    ("Action Input:", 3.0, 3.0),
    ("ACTION_INPUT:", 3.0, 3.0),
    ("action input", 3.0, 3.0),
    ("Command:", 3.0, 3.0),
    ("Arguments:", 3.0, 3.0),
    ("Thought:", 1.0, 1.0),
    ("Final Answer:", 1.0, 1.0),
    ("Observation:", 2.0, 0.0),
];

const EMPTY_THINK: &[&str] = &[
    r"^<think>\s*</think>\s*",
    r"^<seed:think><seed:cot_budget_reflect>The current thinking budget is 0, so I will directly start answering the question.</seed:cot_budget_reflect>\n</seed:think>\s*",
    r"^</think>\s*",
    r"^<\|channel>thought\n<channel\|>",
    r"^</mm:think>\s*",
];

fn literals(keys: Literals) -> Vec<(String, Vec<f64>)> {
    keys.iter().map(|(key, own, after)| ((*key).to_owned(), vec![*own, *after])).collect()
}

fn regexes(keys: &[&str], weight: f64) -> Vec<(String, Vec<f64>)> {
    keys.iter().map(|key| ((*key).to_owned(), vec![weight])).collect()
}

/// The rules of a named strategy; `base` has none.
pub(super) fn rules(name: &str) -> Option<Rules> {
    let response = match name {
        "react" => literals(REACT),
        "alpha_umi" => {
            let mut keys = literals(REACT);
            keys.push(("Next:".to_owned(), vec![2.0, 2.0]));
            keys
        }
        "qwen" => literals(QWEN),
        "agentflan" => literals(AGENTFLAN),
        "swift-table-14" => literals(TABLE_14),
        "hermes" => regexes(&["<tool_call>.+?</tool_call>"], 2.0),
        "ignore_empty_think" => regexes(EMPTY_THINK, 0.0),
        "ignore_think_prefix" => regexes(&["^<think>\\n?"], 0.0),
        _ => return None,
    };
    let query = match name {
        "agentflan" => AGENTFLAN_QUERY.iter().map(|(key, weight)| ((*key).to_owned(), *weight)).collect(),
        _ => vec![],
    };
    Some(Rules { response, query })
}
