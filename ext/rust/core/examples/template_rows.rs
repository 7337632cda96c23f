//! What does rendering chats with a template cost, and what comes out?
//!
//! `template_rows TEMPLATE ROWS_JSONL [show]` renders every row and finds its turns, and prints the number of bytes and a
//! digest of all texts, turns and errors: the same before and after a change that is only to be faster. With `show`, a
//! line for each row. Only what `measured` calls counts under
//! `valgrind --tool=callgrind --collect-atstart=no --toggle-collect='*template_rows::measured*'`.
#![allow(clippy::print_stdout, clippy::unwrap_used)]
use postmill_core::input::lines::{self, Lines};
use postmill_core::rows::{self, RowOptions};
use postmill_core::template::{Date, Options, SpecialTexts, Template};
use postmill_core::types::{Body, Rendered, Row};
use xxhash_rust::xxh3::xxh3_64;

/// The frame that callgrind looks for.
#[inline(never)]
fn measured(template: &Template, rows: &[Row]) -> Vec<Result<Rendered, String>> {
    let render = |row: &Row| {
        let Body::Chat(messages) = &row.body else { return Err("not a chat".to_owned()) };
        template.render(messages, row.tools.as_ref(), &row.template_kwargs, false).map_err(|error| error.to_string())
    };
    rows.iter().map(render).collect()
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let source = std::fs::read_to_string(&args[1]).unwrap();
    let data = std::fs::read(&args[2]).unwrap();
    let tokens = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "</s>", "<s>"];
    let named = vec![("eos_token".into(), "</s>".into()), ("bos_token".into(), "<s>".into())];
    let specials = SpecialTexts { named, tokens: tokens.map(Box::from).into() };
    let options = Options { date: Some(Date { year: 2024, month: 7, day: 26 }), ..Options::default() };
    let template = Template::new(&source, &specials, options).unwrap();
    let mut rows = vec![];
    for record in Lines::new(&data, 1, lines::MAX_LINE_BYTES) {
        let value = lines::parse_record(&data, &record.unwrap()).unwrap();
        rows.extend(rows::normalize(value, &RowOptions::default()));
    }
    let made = measured(&template, &rows);
    let shown: Vec<String> = made.iter().map(|row| format!("{row:?}")).collect();
    if args.get(3).is_some_and(|mode| mode == "show") {
        for row in &shown {
            println!("{row}");
        }
    }
    let bytes: usize = made.iter().flatten().map(|row| row.text.len()).sum();
    let failed = made.iter().filter(|row| row.is_err()).count();
    let digest = xxh3_64(shown.join("\n").as_bytes());
    let planned = template.num_planned();
    println!("{} rows, {planned} planned, {failed} refused, {bytes} bytes of text, digest {digest:016x}", made.len());
}
