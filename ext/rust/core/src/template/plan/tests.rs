//! Plans and the interpreter render random templates and rows alike. Tests compare every rendering (`Checks::is_due`);
//! a difference is an error that says so.
use crate::template::{Options, SpecialTexts, Template};
use crate::types::{Json, Message, Role};
use std::fmt::Write as _;

/// Splitmix64: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ z >> 31) % limit as u64) as usize
    }

    fn pick<'t>(&mut self, from: &[&'t str]) -> &'t str {
        from[self.below(from.len())]
    }
}

const TEXTS: [&str; 14] = [
    "",
    "user",
    "assistant",
    "tool",
    "\n",
    " \n é\u{a0}",
    "<think>",
    "a</think>b</think>\nc",
    "<|im_end|>",
    "日本語 word",
    "</think>\n\n",
    "<t>x</t>",
    "aaa",
    "None",
];
const KEYS: [&str; 9] =
    ["role", "content", "reasoning_content", "thinking", "tool_calls", "items", "name", "function", "__class__"];
const VARIABLES: [&str; 8] = ["message", "content", "x", "y", "tools", "enable_thinking", "bos_token", "nothing"];

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\n', "\\n"))
}

fn object(random: &mut Random, depth: u32) -> String {
    if depth == 0 {
        return random.pick(&VARIABLES).to_owned();
    }
    match random.below(9) {
        0 => format!("messages[{}]", random.pick(&["0", "-1", "1", "loop.index0 - 1", "loop.index0 + 1", "x"])),
        1 => format!("loop.{}", random.pick(&["previtem", "nextitem", "nothing"])),
        2 => format!("ns.{}", random.pick(&["a", "b", "c"])),
        3 | 4 => {
            let known = random.below(4) > 0;
            let object = if known { "message".to_owned() } else { object(random, depth - 1) };
            let key = random.pick(if known { &KEYS[..5] } else { &KEYS });
            if random.below(2) == 0 { format!("{object}.{key}") } else { format!("{object}['{key}']") }
        }
        _ => random.pick(&VARIABLES).to_owned(),
    }
}

fn number(random: &mut Random, depth: u32) -> String {
    match random.below(if depth == 0 { 3 } else { 6 }) {
        0 => random.below(4).to_string(),
        1 => format!("loop.{}", random.pick(&["index", "index0", "length", "first"])),
        2 => "messages|length".to_owned(),
        3 => format!(
            "({} {} {})",
            number(random, depth - 1),
            random.pick(&["+", "-", "%", "*"]),
            number(random, depth - 1)
        ),
        4 => format!("({}|length)", object(random, depth - 1)),
        _ => format!("-{}", number(random, depth - 1)),
    }
}

fn text(random: &mut Random, depth: u32) -> String {
    if depth == 0 {
        return if random.below(2) == 0 { quoted(random.pick(&TEXTS)) } else { object(random, 1) };
    }
    let inner = text(random, depth - 1);
    match random.below(16) {
        0 => format!("({inner}|trim)"),
        1 => format!(
            "{}.{}({})",
            object(random, depth),
            random.pick(&["strip", "lstrip", "rstrip"]),
            random.pick(&["", "'\\n'", "' \\n'", "'é'"])
        ),
        2 => format!(
            "{}.split('{}')[{}]",
            object(random, depth),
            random.pick(&["</think>", "aa", "<t>"]),
            random.pick(&["0", "-1", "1"])
        ),
        3 => format!("({inner} if {} else {})", condition(random, depth - 1), text(random, depth - 1)),
        4 => format!("({inner} or {})", text(random, depth - 1)),
        5 => format!("({}|tojson)", object(random, depth)),
        6 => number(random, depth - 1),
        7 => format!("({inner} ~ {})", text(random, depth - 1)),
        8 => format!("({} + {inner})", quoted(random.pick(&TEXTS))),
        9 => format!("({} + {})", object(random, depth), object(random, depth)),
        10 => {
            let filters = ["upper", "lower", "capitalize", "string", "safe", "default('d')", "default(x, true)"];
            format!("({inner}|{})", random.pick(&filters))
        }
        11 => format!("{}.get('{}')", object(random, depth), random.pick(&KEYS[..5])),
        12 | 13 => call(random, depth - 1),
        _ => object(random, depth),
    }
}

/// A call of one of the [`macros`].
fn call(random: &mut Random, depth: u32) -> String {
    let value = text(random, depth);
    match random.below(4) {
        0 => format!("f({value})"),
        1 => format!("f({value}, {})", object(random, 1)),
        2 => format!("f({}, y={value})", object(random, 1)),
        _ => format!("g({value})"),
    }
}

/// Two macros, of which the second may call the first, and both themselves.
fn macros(random: &mut Random, out: &mut String) {
    out.push_str("{% macro f(x, y='d', message=none) %}");
    if random.below(2) == 0 {
        out.push_str("{% set ns = namespace(b=x) %}");
    }
    statements(random, 1, 0, out);
    out.push_str("{% endmacro %}{% macro g(message, content=message) %}");
    statements(random, 2, 0, out);
    out.push_str("{% endmacro %}");
}

fn condition(random: &mut Random, depth: u32) -> String {
    if depth == 0 {
        return object(random, 1);
    }
    match random.below(11) {
        0 => format!("not {}", condition(random, depth - 1)),
        1 => format!("({} and {})", condition(random, depth - 1), condition(random, depth - 1)),
        2 => format!("({} or {})", condition(random, depth - 1), condition(random, depth - 1)),
        3 => {
            let tests = [
                "defined",
                "none",
                "string",
                "mapping",
                "true",
                "false",
                "iterable",
                "sequence",
                "undefined",
                "number",
            ];
            format!("{} is {}{}", object(random, depth), random.pick(&["", "not "]), random.pick(&tests))
        }
        4 => format!("{} {} {}", quoted(random.pick(&TEXTS)), random.pick(&["in", "not in"]), text(random, depth - 1)),
        5 => format!(
            "{} {} {}",
            number(random, depth),
            random.pick(&["<", ">", "==", "!=", ">="]),
            number(random, depth)
        ),
        6 => format!(
            "{}.{}({})",
            object(random, depth),
            random.pick(&["startswith", "endswith"]),
            quoted(random.pick(&TEXTS))
        ),
        7 => format!("({} == {})", text(random, depth - 1), text(random, depth - 1)),
        8 => format!("loop.{}", random.pick(&["first", "last"])),
        _ => format!(
            "{}.role {} '{}'",
            random.pick(&["message", "messages[0]"]),
            random.pick(&["==", "!="]),
            random.pick(&["user", "assistant", "tool"])
        ),
    }
}

fn statements(random: &mut Random, depth: u32, loops: u32, out: &mut String) {
    for _ in 0..=random.below(4) {
        let written = match random.below(if depth == 0 { 5 } else { 12 }) {
            0 => out.write_str("<|im_start|>\n"),
            1 => write!(out, "{{{{ {} }}}}", text(random, 2)),
            2 if random.below(2) == 0 => write!(out, "{{{{ '<' + ({}|trim) + message.role }}}}", object(random, 2)),
            2 => write!(out, "{{{{ {} ~ {} ~ \'!\' }}}}", quoted(random.pick(&TEXTS)), text(random, 2)),
            3 => write!(
                out,
                "{{% set {} = {} %}}",
                random.pick(&["x", "y", "content", "ns.a", "ns.b", "message"]),
                text(random, 2)
            ),
            4 if random.below(2) == 0 => {
                let from = random.pick(&["messages[0]", "messages[-1]", "message", "loop.previtem"]);
                write!(out, "{{% set {} = {from} %}}", random.pick(&["message", "message", "x"]))
            }
            4 => write!(out, "{{% set x = {} %}}", number(random, 2)),
            5 | 6 => {
                write!(out, "{{% if {} %}}", condition(random, 3)).unwrap();
                statements(random, depth - 1, loops, out);
                if loops > 0 && random.below(8) == 0 {
                    out.push_str(random.pick(&["{% break %}", "{% continue %}"]));
                }
                if random.below(2) == 0 {
                    write!(out, "{{% elif {} %}}", condition(random, 2)).unwrap();
                    statements(random, depth - 1, loops, out);
                }
                if random.below(2) == 0 {
                    out.push_str("{% else %}");
                    statements(random, depth - 1, loops, out);
                }
                out.write_str("{% endif %}")
            }
            7 => {
                out.push_str("{% generation %}");
                statements(random, depth - 1, 0, out);
                out.write_str("{% endgeneration %}")
            }
            8 => {
                let filters = random.pick(&["", " | trim", " | upper", " | trim | lower"]);
                write!(out, "{{% set {}{filters} %}}", random.pick(&["x", "content"])).unwrap();
                statements(random, depth - 1, 0, out);
                out.write_str("{% endset %}")
            }
            9 => {
                write!(out, "{{% filter {} %}}", random.pick(&["trim", "upper", "length"])).unwrap();
                statements(random, depth - 1, 0, out);
                out.write_str("{% endfilter %}")
            }
            10 => {
                let target = random.pick(&["x", "x, y", "y, content", "x, x"]);
                write!(
                    out,
                    "{{% for {target} in {}{} %}}",
                    object(random, 1),
                    random.pick(&["", ".items()", "|items"])
                )
                .unwrap();
                statements(random, depth - 1, loops + 1, out);
                out.write_str("{% endfor %}")
            }
            _ => {
                let over = random.pick(&[
                    "messages",
                    "messages[1:]",
                    "messages[::-1]",
                    "message.tool_calls",
                    "tools",
                    "nothing",
                ]);
                write!(out, "{{% for {} in {over} %}}", random.pick(&["message", "x", "item"])).unwrap();
                statements(random, depth - 1, loops + 1, out);
                if random.below(4) == 0 {
                    out.push_str("{% else %}none");
                }
                out.write_str("{% endfor %}")
            }
        };
        written.unwrap();
    }
}

fn json(random: &mut Random, depth: u32) -> Json {
    match random.below(if depth == 0 { 7 } else { 9 }) {
        0 => Json::Null,
        1 => Json::Bool(random.below(2) == 0),
        2 => Json::Number(random.pick(&["0", "1", "2.5", "12345678901234567890123"]).into()),
        7 => Json::Array((0..random.below(3)).map(|_| json(random, depth - 1)).collect()),
        8 => Json::Object(members(random, depth - 1)),
        _ => Json::String(random.pick(&TEXTS).into()),
    }
}

fn members(random: &mut Random, depth: u32) -> Vec<(Box<str>, Json)> {
    let keys = KEYS.iter().filter(|key| **key != "role");
    let kept: Vec<&&str> = keys.filter(|_| random.below(3) == 0).collect();
    kept.into_iter().map(|key| ((*key).into(), json(random, depth))).collect()
}

fn message(random: &mut Random) -> Message {
    let (role, name) =
        [(Role::System, "system"), (Role::User, "user"), (Role::Assistant, "assistant"), (Role::Tool, "tool")]
            [random.below(4)];
    let mut fields = vec![("role".into(), Json::String(name.into()))];
    if random.below(8) > 0 {
        fields.push(("content".into(), Json::String(random.pick(&TEXTS).into())));
        fields.extend(members(random, 2).into_iter().filter(|(key, _)| &**key != "content"));
    } else {
        fields.extend(members(random, 2));
    }
    Message { role, fields, loss: vec![], loss_scale: vec![], pieces: vec![], given: false }
}

#[test]
fn a_template_with_more_values_than_registers_is_interpreted() {
    let mut asked = String::new();
    for key in 0..300 {
        write!(asked, "{{{{ tools.k{key} }}}}{{{{ tools.k{key}.a }}}}").unwrap();
    }
    let source =
        format!("{{% if tools %}}{asked}{{% endif %}}{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}");
    let template = Template::new(&source, &SpecialTexts::default(), Options::default()).unwrap();
    assert!(template.render_text(&[], None, &[], false).is_ok());
    assert_eq!(template.num_planned(), 0);
}

#[test]
fn random_templates_are_rendered_as_interpreted() {
    let mut random = Random(7);
    let (mut planned, mut rendered) = (0, 0);
    let named = vec![("bos_token".into(), "<s>".into()), ("eos_token".into(), "</s>".into())];
    let specials = SpecialTexts { named, tokens: vec!["<|im_start|>".into(), "<|im_end|>".into()] };
    for _ in 0..12_000 {
        let mut source = String::new();
        if random.below(8) > 0 {
            macros(&mut random, &mut source);
        }
        if random.below(4) > 0 {
            source.push_str("{% set ns = namespace(a=1, b=messages|length) %}");
        }
        if random.below(8) > 0 {
            source.push_str("{% for message in messages %}");
            statements(&mut random, 2, 1, &mut source);
            source.push_str("{% endfor %}");
        }
        if random.below(3) == 0 {
            statements(&mut random, 3, 0, &mut source);
        }
        source.push_str("{% if add_generation_prompt %}<|im_start|>{% endif %}");
        let mut options = Options::default();
        if random.below(8) == 0 {
            (options.fuel, options.max_output) = (0, 40 + random.below(400));
        }
        let template = Template::new(&source, &specials, options).unwrap();
        for _ in 0..4 {
            let messages: Vec<Message> = (0..random.below(4)).map(|_| message(&mut random)).collect();
            let tools = (random.below(3) == 0).then(|| Json::Array(vec![Json::Object(members(&mut random, 2))]));
            let mut kwargs: Vec<(Box<str>, Json)> = vec![];
            for name in ["enable_thinking", "x", "range"] {
                if random.below(5) == 0 {
                    kwargs.push((name.into(), json(&mut random, 1)));
                }
            }
            let made = template.render_text(&messages, tools.as_ref(), &kwargs, random.below(4) == 0);
            let is_same = !made.as_ref().is_err_and(|error| error.to_string().contains("differ on this row"));
            assert!(is_same, "{source}\n{messages:?}\n{tools:?}\n{kwargs:?}");
            rendered += u64::from(made.is_ok());
        }
        planned += template.num_planned();
    }
    // what is neither is refused, by the interpreter
    assert!(rendered > 6_000 && planned * 2 > rendered, "{planned} planned of {rendered} rendered");
}
