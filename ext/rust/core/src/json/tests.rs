use super::*;

fn fault(text: &[u8]) -> String {
    match parse(text) {
        Err(error) => format!("column {}: {error}", error.column.unwrap()),
        Ok(value) => panic!("accepted {}", to_canonical(&value)),
    }
}

fn round(text: &str) -> String {
    to_canonical(&parse(text.as_bytes()).unwrap())
}

#[test]
fn values_survive() {
    for text in ["null", "true", "false", "0", "-0", "1.50", "1e5", "-1E-7", "\"\"", "[]", "{}", "[1,[2,{}]]"] {
        assert_eq!(round(text), text);
    }
    assert_eq!(round(" { \"b\" : 1 ,\n\"a\":[ 1 , 2 ]}\r\n"), r#"{"a":[1,2],"b":1}"#);
    assert_eq!(round("123456789012345678901234567890.10"), "123456789012345678901234567890.10");
}

#[test]
fn escapes() {
    assert_eq!(
        parse(br#""\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00\u0000""#).unwrap(),
        Json::String("\"\\/\u{8}\u{c}\n\r\t\u{e9}\u{1f600}\0".into())
    );
    assert_eq!(round("\"\\u2028\u{7f}\""), "\"\u{2028}\u{7f}\"");
    assert_eq!(round(r#""\u0001\n""#), r#""\u0001\n""#);
}

#[test]
fn long_strings_of_every_length_and_stop() {
    for length in 0..70 {
        for stop in ["", "\\n", "\\u0041", "é"] {
            let body = "x".repeat(length) + stop + &"y".repeat(length % 9);
            let expected: String = body.replace("\\n", "\n").replace("\\u0041", "A");
            assert_eq!(parse(format!("\"{body}\"").as_bytes()).unwrap(), Json::String(expected.into()));
        }
        let body = "x".repeat(length);
        assert!(fault(format!("\"{body}\u{1f}\"").as_bytes()).contains("control character 0x1f"));
        assert!(fault(format!("\"{body}").as_bytes()).contains("ends inside a string"));
    }
}

#[test]
fn faults_say_column_and_path() {
    let table: &[(&[u8], &str)] = &[
        (b"", "column 1: $: the text ends where a value should follow"),
        (b"{\"a\":[1,{\"b\":}]}", "column 14: $.a[1].b: '}' where a value should be"),
        (b"{\"a\":1,\"b\":{\"k\":1,\"k\":2}}", "column 19: $.b.k: this key occurs twice; remove one of the two"),
        (b"{\"a b\":nul}", "column 8: $[\"a b\"]: 'n' where a value should be"),
        (b"[1,]", "column 4: $[1]: ']' where a value should be"),
        (b"[NaN]", "column 2: $[0]: NaN is not JSON; use null or leave the member out"),
        (b"[-Infinity]", "column 2: $[0]: -Infinity is not JSON; use null or leave the member out"),
        (b"{'a':1}", "column 2: $: single quote where a key in double quotes should be; JSON text needs double quotes"),
        (b"[True]", "column 2: $[0]: True is Python, not JSON; write true (json.dumps does)"),
        (b"[01]", "column 2: $[0]: a number cannot start with 0; put quotes around it if it is text"),
        (b"1 2", "column 3: $: '2' after the end of the value; one JSON value a line"),
        (b"\"\\x\"", "column 2: $: unknown escape \\x; write a backslash as \\\\"),
        (
            b"[\"\\ud800x\"]",
            "column 3: $[0]: lone surrogate \\ud800; it is half a character and has no UTF-8 form, remove it",
        ),
        (
            b"[\"\\udc00\"]",
            "column 3: $[0]: lone surrogate \\udc00; it is half a character and has no UTF-8 form, remove it",
        ),
        (
            b"[\"\\ud800\\u0041\"]",
            "column 3: $[0]: lone surrogate \\ud800; it is half a character and has no UTF-8 form, remove it",
        ),
        (
            b"{\"a\":[\"x\",\"y\xff\"]}",
            "column 13: $.a[1]: byte 0xff is not UTF-8; convert the file, for example with `iconv -t utf-8`",
        ),
        (
            b"\xff\xfe[\0",
            "column 1: $: the text is UTF-16; convert the file, for example with `iconv -f utf-16 -t utf-8`",
        ),
        (b"\"\\u12", "column 6: $: the text ends inside a string"),
        (b"\"\\u12g4\"", "column 2: $: \\u needs four hexadecimal digits"),
        (b"[1.]", "column 4: $[0]: ']' where a digit should be"),
        (b"tru", "column 4: $: the text ends inside a word"),
    ];
    for (text, expected) in table {
        assert_eq!(&fault(text), expected, "{}", String::from_utf8_lossy(text));
    }
}

#[test]
fn every_cut_is_called_truncated() {
    let text = "{\"a\": [true, null, -1.5e+3, \"x\\n\\u00e9\\ud83d\\ude00y\"], \"b\": {\"c\": false}}";
    for end in 0..text.len() {
        match parse(&text.as_bytes()[..end]) {
            Err(fault) => assert_eq!(fault.reason, "truncated", "{end}"),
            other => panic!("{other:?} at {end}"),
        }
    }
}

#[test]
fn nesting_stops_at_the_limit() {
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    assert!(parse(nested(MAX_DEPTH).as_bytes()).is_ok());
    assert!(fault(nested(MAX_DEPTH + 1).as_bytes()).contains("nested deeper than 128"));
    assert!(fault("[".repeat(1_000_000).as_bytes()).contains("nested deeper than 128"));
    let deep = fault("{\"a\":".repeat(1_000_000).as_bytes());
    assert_eq!(
        deep,
        "column 641: $.a.a.a.a.a.a.a.a....a.a.a.a.a.a.a.a: nested deeper than 128; store such values as JSON text"
    );
}

#[test]
fn duplicates_are_found_in_large_objects() {
    let mut members: Vec<String> = (0..100_000).map(|i| format!("\"k{i}\":{i}")).collect();
    assert!(parse(format!("{{{}}}", members.join(",")).as_bytes()).is_ok());
    members.push("\"k77\":0".to_owned());
    assert!(fault(format!("{{{}}}", members.join(",")).as_bytes()).contains("$.k77: this key occurs twice"));
    for count in 14..20 {
        let mut few = members[..count].to_vec();
        few.push("\"k13\":0".to_owned());
        assert!(fault(format!("{{{}}}", few.join(",")).as_bytes()).contains("$.k13: this key occurs twice"));
    }
}

#[test]
fn python_prints_floats_and_layout() {
    for (number, text) in [
        (0.0, "0.0"),
        (-0.0, "-0.0"),
        (1.0, "1.0"),
        (0.1, "0.1"),
        (1e16, "1e+16"),
        (9_999_999_999_999_998.0, "9999999999999998.0"),
        (1e-4, "0.0001"),
        (1e-5, "1e-05"),
        (1.5e-7, "1.5e-07"),
        (1e22, "1e+22"),
        (1.797_693_134_862_315_7e308, "1.7976931348623157e+308"),
        (5e-324, "5e-324"),
        (123_456.789, "123456.789"),
        (f64::INFINITY, "Infinity"),
    ] {
        assert_eq!(python_float(number), text);
    }
    let value = parse(br#"{"b":[1,1.0,1e2,-0,"\u00e9\ud83d\ude00\u007f"],"a":{},"c":[]}"#).unwrap();
    assert_eq!(
        python_dumps(&value, &PythonStyle::one_line()),
        "{\"b\": [1, 1.0, 100.0, 0, \"é😀\u{7f}\"], \"a\": {}, \"c\": []}"
    );
    let ascii = PythonStyle { ensure_ascii: true, sort_keys: true, ..PythonStyle::indented(2) };
    assert_eq!(
        python_dumps(&value, &ascii),
        "{\n  \"a\": {},\n  \"b\": [\n    1,\n    1.0,\n    100.0,\n    0,\n    \"\\u00e9\\ud83d\\ude00\\u007f\"\n  ],\n  \"c\": []\n}"
    );
}

/// A small generator, so that the property tests need no crate: `SplitMix64` (Steele, Lea, Flood 2014).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }
}

fn random_value(dice: &mut Dice, depth: usize) -> Json {
    let text = |dice: &mut Dice| -> Box<str> {
        (0..dice.roll(20))
            .map(|_| ['a', '"', '\\', '\n', '\0', 'é', '语', '😀', '\u{7f}', ' '][dice.roll(10)])
            .collect::<String>()
            .into()
    };
    match dice.roll(if depth > 4 { 4 } else { 6 }) {
        0 => Json::Null,
        1 => Json::Bool(dice.roll(2) == 0),
        2 => Json::Number(["0", "-1.5", "1e9", "12345678901234567890"][dice.roll(4)].into()),
        3 => Json::String(text(dice)),
        4 => Json::Array((0..dice.roll(5)).map(|_| random_value(dice, depth + 1)).collect()),
        _ => Json::Object(
            (0..dice.roll(25)).map(|i| (format!("{}{i}", text(dice)).into(), random_value(dice, depth + 1))).collect(),
        ),
    }
}

#[test]
fn what_is_written_reads_back() {
    let mut dice = Dice(1);
    for _ in 0..2000 {
        let value = random_value(&mut dice, 0);
        let python = python_dumps(
            &value,
            &PythonStyle { ensure_ascii: dice.roll(2) == 0, ..PythonStyle::indented(dice.roll(3)) },
        );
        // 1e9 prints as a float, so compare what the printed text prints as.
        let again = parse(python.as_bytes()).unwrap();
        assert_eq!(python_dumps(&again, &PythonStyle::one_line()), python_dumps(&value, &PythonStyle::one_line()));
        let canonical = to_canonical(&value);
        assert_eq!(to_canonical(&parse(canonical.as_bytes()).unwrap()), canonical);
    }
}

#[test]
fn no_bytes_make_it_panic() {
    let mut dice = Dice(2);
    let alphabet = b"{}[]\",:\\u0123dD8c\xc3\xa9\xff\x00 \ntruefalsn-+.eE\xf0\x9f\x98\x80";
    for round in 0..200_000 {
        let length = dice.roll(40);
        let mut bytes: Vec<u8> = (0..length).map(|_| alphabet[dice.roll(alphabet.len())]).collect();
        if round % 4 == 0 {
            // damage something valid instead
            bytes = to_canonical(&random_value(&mut dice, 3)).into_bytes();
            for _ in 0..=dice.roll(3) {
                let at = dice.roll(bytes.len());
                bytes[at] = dice.roll(256) as u8;
            }
        }
        if let Err(fault) = parse(&bytes) {
            assert!(fault.column.is_some_and(|column| column >= 1 && column <= bytes.len() + 1));
        }
    }
}
