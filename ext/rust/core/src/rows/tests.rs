use super::*;
use crate::json::to_canonical;

fn options() -> RowOptions {
    RowOptions::default()
}

fn read(row: &str) -> Result<Row, RowError> {
    normalize_bytes(row.as_bytes(), &options())
}

#[track_caller]
fn gives(row: &str, expected: &str) {
    let row = read(row).unwrap_or_else(|fault| panic!("{fault}"));
    let expected = to_canonical(&json::parse_text(expected).unwrap());
    assert_eq!(to_canonical(&to_json(&row)), expected);
}

#[track_caller]
fn fails(row: &str, expected: &str) {
    match read(row) {
        Err(fault) => assert_eq!(fault.to_string(), expected),
        Ok(row) => panic!("accepted {}", to_canonical(&to_json(&row))),
    }
}

const CHAT: &str = r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#;

#[test]
fn the_same_chat_in_every_shape() {
    for row in [
        CHAT,
        r#"{"conversations":[{"from":"human","value":"q"},{"from":"gpt","value":"a"}]}"#,
        r#"{"Conversation":[{"human":"q","assistant":"a"}]}"#,
        r#"{"conversation":[{"bot":"a","user":"q"}]}"#,
        r#"{"query":"q","response":"a"}"#,
        r#"{"PROMPT":"q","Completion":"a"}"#,
        r#"{"instruction":"q","input":"","output":"a"}"#,
        r#"{"instruction":"","input":"q","output":"a","history":[]}"#,
        r#"{"problem":"q","solution":"a","system":null,"tools":"[]","images":[]}"#,
        r#"{"query":"q","response":["a","b"]}"#,
        r#"{"messages":"[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\"}]","system":""}"#,
        r#"{"messages":[{"role":"USER","content":[{"type":"text","text":"q"}],"name":null},{"role":"assistant","content":"a","tool_calls":[]}]}"#,
        r#"{"messages":[{"role":null,"from":"human","value":"q","content":null},{"content":null,"role":"assistant","value":"a"}]}"#,
        r#"{"prompt":[{"role":"user","content":"q"}],"completion":[{"role":"assistant","content":"a"}]}"#,
    ] {
        gives(row, CHAT);
    }
}

#[test]
fn alpaca_and_history() {
    gives(
        r#"{"instruction":"i","input":"x","output":"a","history":[["q1","a1"],[null,"a0"]],"system":"s"}"#,
        r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"q1"},{"role":"assistant","content":"a1"},
            {"role":"assistant","content":"a0"},{"role":"user","content":"i\nx"},{"role":"assistant","content":"a"}]}"#,
    );
    fails(
        r#"{"query":"q","response":"a","history":[["x"]]}"#,
        "$.history[0]: expected a [query, response] pair, got a list of 1",
    );
    fails(
        r#"{"response":"a","history":[["x","y"]]}"#,
        "$: history needs a query column (columns: response); name one with --columns OLD=messages, OLD=query or OLD=response",
    );
    fails(r#"{"instruction":1,"input":"x","output":"a"}"#, "$.instruction: expected a text, got the number 1");
}

#[test]
fn ambiguous_columns() {
    fails(
        r#"{"query":"q","answer":"a","output":"b"}"#,
        "$: answer, output could each be the response; choose with --columns answer=response",
    );
    gives(
        r#"{"query":"q","answer":"a","output":"b","response":"c"}"#,
        r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"c"}],"extra":"{\"answer\":\"a\",\"output\":\"b\"}"}"#,
    );
    gives(r#"{"query":"q","answer":"a","output":null}"#, CHAT);
    fails(
        r#"{"conversation":[],"conversations":[]}"#,
        "$: conversation, conversations could each be the messages; choose with --columns conversation=messages",
    );
    fails(
        r#"{"instruction":"i","input":"x","prompt":"p","output":"a"}"#,
        "$: instruction, input, prompt could each be the query; choose with --columns instruction=query",
    );
    fails(
        r#"{"prompt":"i","question":"x","output":"a"}"#,
        "$: prompt, question could each be the query; choose with --columns prompt=query",
    );
    let renamed = RowOptions { columns: vec![("output".into(), "response".into())], ..options() };
    let row = normalize_bytes(br#"{"query":"q","answer":"a","output":"b"}"#, &renamed).unwrap();
    assert_eq!(&*row.extra, r#"{"answer":"a"}"#);
    let fault = normalize_bytes(br#"{"query":"q","response":"a","output":"b"}"#, &renamed).unwrap_err();
    assert_eq!(fault.to_string(), r#"$: --columns makes a second column "response"; rename the other one too"#);
}

#[test]
fn tools_and_calls() {
    let joined = r#"{"messages":[{"role":"user","content":"q"},
        {"role":"assistant","content":"let me see","tool_calls":[
            {"type":"function","function":{"name":"f","arguments":{"x":1.50}}},
            {"type":"function","function":{"name":"g","arguments":{}}}]},
        {"role":"tool","content":"1"},{"role":"tool","content":"{\"b\": [1.0, \"é\"]}"},{"role":"assistant","content":"a"}],
        "tools":[{"type":"function","function":{"name":"f"}}]}"#;
    gives(
        r#"{"conversations":[{"from":"human","value":"q"},{"from":"gpt","value":"let me see"},
        {"from":"function_call","value":"{\"name\":\"f\",\"arguments\":{\"x\":1.50}}"},
        {"from":"tool_call","value":{"name":"g","parameters":""}},
        {"from":"observation","value":"1"},{"from":"tool_response","value":{"b":[1.0,"é"]}},{"from":"gpt","value":"a"}],
        "tools":"[{\"name\":\"f\"}]"}"#,
        joined,
    );
    gives(
        r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"let me see","tool_calls":[
        {"function":{"name":"f","arguments":"{\"x\":1.50}"}},{"name":"g","arguments":null}]},
        {"role":"function","content":"1"},{"role":"tool","content":{"b":[1.0,"é"]}},{"role":"assistant","content":"a"}],
        "tools":[{"name":"f"}]}"#,
        joined,
    );
    gives(
        r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":null,"tool_calls":[
        {"id":"7","type":"function","function":{"name":"f","arguments":"{}"}}]}]}"#,
        r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"","tool_calls":[
        {"id":"7","type":"function","function":{"name":"f","arguments":{}}}]}]}"#,
    );
    gives(
        r#"{"messages":[{"role":"user","content":"q"},{"role":"tool_call","content":"[{\"name\":\"f\"},{\"name\":\"g\"}]"}]}"#,
        r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"","tool_calls":[
        {"type":"function","function":{"name":"f","arguments":{}}},{"type":"function","function":{"name":"g","arguments":{}}}]}]}"#,
    );
    let call = |content: &str| {
        format!(r#"{{"messages":[{{"role":"user","content":"q"}},{{"role":"tool_call","content":{content}}}]}}"#)
    };
    fails(
        &call(r#""f(1)""#),
        r#"$.messages[1].content: expected a tool call {"name": ..., "arguments": {...}}, got the text "f(1)""#,
    );
    fails(
        &call(r#""{'name': 1}""#),
        "$.messages[1].content: the text is not valid JSON at byte 2: single quote where a key in double quotes should be; JSON text needs double quotes",
    );
    fails(
        &call(r#"{"arguments":{}}"#),
        r#"$.messages[1].content: expected a tool call {"name": ..., "arguments": {...}}, got an object with arguments"#,
    );
    fails(
        &call(r#"{"name":"f","arguments":"[1]"}"#),
        "$.messages[1].content.arguments: expected an object of arguments or its JSON text, got a list of 1",
    );
    fails(
        &call(r#"{"name":"f","arguments":"{\"a\":1,\"a\":2}"}"#),
        "$.messages[1].content.arguments: the text is not valid JSON at byte 8: this key occurs twice; remove one of the two",
    );
    fails(
        r#"{"query":"q","response":"a","tools":{"name":"f"}}"#,
        "$.tools: expected a list of tool schemas or its JSON text, got an object with name",
    );
    fails(
        r#"{"query":"q","response":"a","tools":["f"]}"#,
        r#"$.tools[0]: expected a tool schema (an object), got the text "f""#,
    );
    fails(
        r#"{"messages":[{"role":"user","content":"q","tool_calls":[{"name":"f"}]}]}"#,
        "$.messages[0]: only an assistant message can call tools",
    );
}

#[test]
fn anthropic_blocks() {
    gives(
        r#"{"system":[{"type":"text","text":"s"}],"messages":[{"role":"user","content":"q"},
        {"role":"assistant","content":[{"type":"thinking","thinking":"hm","signature":"x"},{"type":"text","text":"t"},
            {"type":"tool_use","id":"c1","name":"f","input":{"x":1}}]},
        {"role":"user","content":[{"type":"tool_result","tool_use_id":"c1","content":[{"type":"text","text":"r"}]},
            {"type":"tool_result","tool_use_id":"c2","content":"bad","is_error":true},{"type":"text","text":"go on"}]},
        {"role":"user","content":[{"type":"tool_result","tool_use_id":"c1"}]}]}"#,
        r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"q"},
        {"role":"assistant","content":"t","reasoning_content":"hm","tool_calls":[
            {"id":"c1","type":"function","function":{"name":"f","arguments":{"x":1}}}]},
        {"role":"tool","content":"r","name":"f","tool_call_id":"c1"},
        {"role":"tool","content":"bad","tool_call_id":"c2","is_error":true},
        {"role":"user","content":"go on"},
        {"role":"tool","content":"","name":"f","tool_call_id":"c1"}]}"#,
    );
    fails(
        r#"{"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"c","name":"f","input":{}},{"type":"text","text":"t"}]}]}"#,
        "$.messages[0].content[1]: text after a tool call has no place in a message with tool_calls; make it a message of its own",
    );
    fails(
        r#"{"messages":[{"role":"user","content":[{"type":"text","text":"t"},{"type":"tool_result","content":"r"}]}]}"#,
        "$.messages[0].content[1]: a tool_result block must come before the user's text; move it to the front",
    );
    fails(
        r#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]}"#,
        "$.messages[0].content[0]: image_url parts need a model that reads pictures; give one with -m, or remove these rows",
    );
    fails(
        r#"{"messages":[{"role":"user","content":[{"type":"txt","text":"x"}]}]}"#,
        r#"$.messages[0].content[0]: unknown content part "txt"; known are text, thinking, reasoning, tool_call, tool_use, tool_result"#,
    );
}

#[test]
fn llama_factory_v1() {
    gives(
        r#"{"messages":[{"role":"user","content":[{"type":"text","value":"q"}],"loss_weight":0.0},
        {"role":"assistant","content":[{"type":"reasoning","value":"hm"},{"type":"tool_call","value":"{\"name\": \"f\", \"arguments\": {}}"},
        {"type":"tool_call","value":"{\"name\": \"g\"}"}],"loss_weight":0.5}]}"#,
        r#"{"messages":[{"role":"user","content":"q","loss":[false],"loss_scale":[0]},
        {"role":"assistant","content":"","reasoning_content":"hm","tool_calls":[{"type":"function","function":{"name":"f","arguments":{}}},
        {"type":"function","function":{"name":"g","arguments":{}}}],"loss":[true],"loss_scale":[0.5]}]}"#,
    );
    fails(
        r#"{"messages":[{"role":"assistant","content":"q","loss_weight":1,"loss":true}]}"#,
        "$.messages[0].loss_weight: loss_weight says what loss says; keep one of them",
    );
    fails(
        r#"{"messages":[{"role":"user","content":[{"type":"text"}]}]}"#,
        "$.messages[0].content[0].value: expected a text, got null",
    );
}

#[test]
fn marks_and_pieces() {
    gives(
        r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":["a","bé",{"type":"text","text":"c"}],
        "loss":[true,0,1],"loss_scale":[1,0.5,-2]},{"role":"assistant","content":"d","loss":false,"loss_scale":2,"x":{"y":1}}]}"#,
        r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"abéc","loss":[true,false,true],"loss_scale":[1,0.5,-2],"pieces":[1,3,1]},
        {"role":"assistant","content":"d","x":{"y":1},"loss":[false],"loss_scale":[2]}]}"#,
    );
    let assistant = |rest: &str| {
        format!(r#"{{"messages":[{{"role":"user","content":"q"}},{{"role":"assistant","content":["a","b"],{rest}}}]}}"#)
    };
    fails(
        &assistant(r#""loss":[true]"#),
        "$.messages[1].loss: a list of 1 marks for 2 content piece(s); give one mark each",
    );
    fails(&assistant(r#""loss":"yes""#), r#"$.messages[1].loss: expected true or false, got the text "yes""#);
    fails(&assistant(r#""loss_scale":[1,null]"#), "$.messages[1].loss_scale[1]: expected a number, got null");
    fails(&assistant(r#""loss_scale":1e99"#), "$.messages[1].loss_scale: expected a number, got the number 1e99");
    fails(
        r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a","loss":false},{"role":"tool_call","content":{"name":"f"}}]}"#,
        "$.messages[2]: this call joins the assistant turn before it, but their loss or loss_scale differ; make them equal",
    );
}

#[test]
fn pairs() {
    let expected = r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}],
        "rejected_messages":[{"role":"user","content":"q"},{"role":"assistant","content":"b"}]}"#;
    for row in [
        r#"{"query":"q","response":"a","rejected_response":"b"}"#,
        r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}],"rejected_response":["b","c"]}"#,
        r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}],"rejected_response":[{"role":"assistant","content":"b"}]}"#,
        r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}],"rejected_messages":[{"role":"user","content":"q"},{"role":"assistant","content":"b"}]}"#,
        r#"{"conversations":[{"from":"human","value":"q"}],"chosen":{"from":"gpt","value":"a"},"rejected":{"from":"gpt","value":"b"}}"#,
        r#"{"prompt":"q","chosen":"a","rejected":"b"}"#,
        r#"{"chosen":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}],"rejected":[{"role":"user","content":"q"},{"role":"assistant","content":"b"}]}"#,
    ] {
        gives(row, expected);
    }
    gives(
        r#"{"system":"s","messages":[{"role":"user","content":"1"},{"role":"assistant","content":"2"},{"role":"user","content":"3"},
        {"role":"tool_call","content":{"name":"f"}},{"role":"tool","content":"t"},{"role":"assistant","content":"4"}],"rejected_response":"5","margin":"0.5","label":true}"#,
        r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"1"},{"role":"assistant","content":"2","loss":[false]},{"role":"user","content":"3"},
        {"role":"assistant","content":"","tool_calls":[{"type":"function","function":{"name":"f","arguments":{}}}]},{"role":"tool","content":"t"},{"role":"assistant","content":"4"}],
        "rejected_messages":[{"role":"system","content":"s"},{"role":"user","content":"1"},{"role":"assistant","content":"2","loss":[false]},{"role":"user","content":"3"},{"role":"assistant","content":"5"}],
        "label":1,"margin":0.5}"#,
    );
    fails(
        r#"{"query":"q","response":"a","rejected_response":"a"}"#,
        "$.rejected_response: the rejected side equals the chosen one, so the pair teaches nothing; remove the row",
    );
    fails(
        r#"{"query":"q","response":"a","rejected_response":[{"role":"tool","content":"x"},{"role":"user","content":"b"}]}"#,
        "$.rejected_response: expected messages of assistant and tool, got one of user; use rejected_messages for a whole conversation",
    );
    fails(
        r#"{"text":"a","rejected_response":"b"}"#,
        "$.rejected_response: replaces what follows the last user message, but the row has no user message; if both texts begin \
         with the prompt, split it off or pass --plain",
    );
    fails(
        r#"{"query":"q","response":"a","rejected_response":"b","rejected_messages":[]}"#,
        "$: the row has both rejected_messages and rejected_response; keep one of them",
    );
    fails(
        r#"{"query":"q","response":"a","rejected_respons":"b"}"#,
        "$.rejected_respons: unknown column; did you mean rejected_response? rename it with --columns rejected_respons=rejected_response, or to something else to keep it",
    );
}

#[test]
fn texts() {
    for row in [
        r#"{"text":"once"}"#,
        r#"{"response":"once","images":null}"#,
        r#"{"messages":[{"role":"assistant","content":"once"}]}"#,
        r#"{"messages":[{"role":"assistant","content":["on","ce"]}]}"#,
    ] {
        gives(row, r#"{"text":"once"}"#);
    }
    fails(r#"{"text":""}"#, "$.text: the text is empty");
    fails(
        r#"{"messages":[{"role":"assistant","content":"x","loss":true}]}"#,
        "$.messages: loss and loss_scale need a conversation; this row is text alone (no user message)",
    );
}

#[test]
fn other_columns() {
    gives(
        r#"{"query":"q","response":"a","label":"false","channel":"web","chat_template_kwargs":{"enable_thinking":false},"id":7,"z":{"b":1,"a":null}}"#,
        r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}],"chat_template_kwargs":{"enable_thinking":false},
        "channel":"web","label":0,"extra":"{\"id\":7,\"z\":{\"a\":null,\"b\":1}}"}"#,
    );
    gives(
        r#"{"query":"q","response":"a","label":["x"]}"#,
        r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}],"extra":"{\"label\":[\"x\"]}"}"#,
    );
    fails(
        r#"{"query":"q","response":"a","margin":"big"}"#,
        r#"$.margin: expected a number, how much better the chosen side is, got the text "big""#,
    );
    fails(
        r#"{"query":"q","response":"a","channel":3}"#,
        "$.channel: expected a text, the name of a channel, got the number 3",
    );
    fails(
        r#"{"query":"q","response":"a","chat_template_kwargs":"x"}"#,
        r#"$.chat_template_kwargs: expected an object of template options, got the text "x""#,
    );
    fails(
        r#"{"query":"q","response":"a","images":["x.png"]}"#,
        "$.images: the row has pictures and the model reads none; give one that does with -m, or leave the column out with --drop",
    );
    fails(
        r#"{"query":"q","response":"a","rejected_images":["x.png"]}"#,
        "$.rejected_images: tools and media of one side alone are not supported yet; remove the column or these rows",
    );
}

#[test]
fn faults_teach() {
    fails("[]", "$: expected an object with columns, got a list of 0");
    fails(
        "{}",
        "$: no column holds a conversation or a text (columns: none); name one with --columns OLD=messages, OLD=query or OLD=response",
    );
    fails(
        r#"{"mesages":[]}"#,
        r#"$: no column holds a conversation or a text; did you mean messages by "mesages"? --columns mesages=messages"#,
    );
    fails(
        r#"{"foo":1,"bar":2}"#,
        "$: no column holds a conversation or a text (columns: foo, bar); name one with --columns OLD=messages, OLD=query or OLD=response",
    );
    fails(
        r#"{"query":"q","respnse":"a"}"#,
        "$.respnse: unknown column; did you mean response? rename it with --columns respnse=response, or to something else to keep it",
    );
    fails(r#"{"messages":[]}"#, "$.messages: the list of messages is empty");
    fails(r#"{"messages":"hi"}"#, r#"$.messages: expected a list of messages, got the text "hi""#);
    fails(
        r#"{"messages":["hi"]}"#,
        r#"$.messages[0]: expected a message (an object with role and content), got the text "hi""#,
    );
    fails(
        r#"{"messages":[{"role":"user","content":null}]}"#,
        "$.messages[0].content: expected a text or a list of content parts, got null",
    );
    fails(
        r#"{"messages":[{"role":"user"}]}"#,
        "$.messages[0].content: expected a text or a list of content parts, got null",
    );
    fails(
        r#"{"messages":[{"role":"user","content":3}]}"#,
        "$.messages[0].content: expected a text or a list of content parts, got the number 3",
    );
    fails(
        r#"{"messages":[{"role":"asistant","content":"x"}]}"#,
        r#"$.messages[0].role: unknown role "asistant"; did you mean assistant?"#,
    );
    fails(
        r#"{"messages":[{"role":"narrator","content":"x"}]}"#,
        "$.messages[0].role: unknown role \"narrator\"; expected system, user, assistant, tool_call, tool or an alias; --roles NAME=ROLE names it, --on-bad-row skip leaves such rows out",
    );
    fails(
        r#"{"messages":[{"rol":"user","content":"x"}]}"#,
        r#"$.messages[0]: the message has no role; did you mean role by "rol"?"#,
    );
    fails(
        r#"{"messages":[{"speaker":"user","content":"x"}]}"#,
        "$.messages[0]: the message has no role (members: speaker, content); expected role or from",
    );
    fails(
        r#"{"messages":[{"role":1,"content":"x"}]}"#,
        "$.messages[0].role: expected the name of a role, got the number 1",
    );
    fails(
        r#"{"system":"a","messages":[{"role":"system","content":"b"},{"role":"user","content":"q"}]}"#,
        "$.messages: the conversation has a system message and the row another one in its system column; keep one of them",
    );
    fails(r#"{"query":"q","response":true}"#, "$.response: expected a text or a list of content parts, got true");
}

#[test]
fn placeholders() {
    let named = RowOptions { model_name: Some("Mill".into()), model_author: Some("Ann".into()), ..options() };
    let row =
        normalize_bytes(br#"{"query":"Are you {{name}}?","response":"{{NAME}} by {{AUTHOR}}, {{other}}"}"#, &named)
            .unwrap();
    assert_eq!(
        to_canonical(&to_json(&row)),
        r#"{"messages":[{"content":"Are you Mill?","role":"user"},{"content":"Mill by Ann, {{other}}","role":"assistant"}]}"#
    );
    let half = RowOptions { model_name: Some("Mill".into()), ..options() };
    let fault = normalize_bytes(br#"{"query":"{{author}}","response":"x"}"#, &half).unwrap_err();
    assert_eq!(fault.to_string(), "$.query: {{author}} has no value; give --model-author too");
    assert!(read(r#"{"query":"{{author}}","response":"x"}"#).is_ok());
}

#[test]
fn equal_content_has_equal_hashes_and_nothing_else_has() {
    let rows = [
        CHAT,
        r#"{"text":"a"}"#,
        r#"{"query":"q","response":"a","label":1}"#,
        r#"{"query":"q","response":"a","margin":1}"#,
        r#"{"query":"q","response":"a","channel":"c"}"#,
        r#"{"query":"q","response":"a","tools":[{"a":1}]}"#,
        r#"{"query":"q","response":"a","tools":[{"a":"1"}]}"#,
        r#"{"query":"q","response":"a","chat_template_kwargs":{"a":1}}"#,
        r#"{"query":"q","response":"a","system":"s"}"#,
        r#"{"query":"qa","response":""}"#,
        r#"{"query":"q","response":"a","rejected":"b"}"#,
        r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a","loss":true}]}"#,
        r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a","loss_scale":1}]}"#,
        r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":["a",""]}]}"#,
    ];
    let hashes: Vec<u128> = rows.iter().map(|row| content_hash(&read(row).unwrap())).collect();
    for (i, hash) in hashes.iter().enumerate() {
        assert!(!hashes[..i].contains(hash), "{}", rows[i]);
    }
    let same = read(r#"{"id":9,"response":"a","query":"q"}"#).unwrap();
    assert_eq!(content_hash(&same), hashes[0]);
}

fn random_value(dice: &mut impl FnMut(usize) -> usize, words: &[&str], depth: usize) -> Json {
    match dice(if depth > 3 { 3 } else { 7 }) {
        0 => Json::Null,
        1 => Json::Number(["1", "0", "-2.5", "1e999"][dice(4)].into()),
        2 => Json::String(words[dice(words.len())].into()),
        3 => Json::Array((0..dice(4)).map(|_| random_value(dice, words, depth + 1)).collect()),
        _ => {
            let mut members: Vec<(Box<str>, Json)> = Vec::new();
            for _ in 0..dice(5) {
                let key = words[dice(words.len())];
                if members.iter().all(|(other, _)| **other != *key) {
                    members.push((key.into(), random_value(dice, words, depth + 1)));
                }
            }
            Json::Object(members)
        }
    }
}

#[test]
fn any_json_is_a_row_or_a_fault() {
    let mut state = 7_u64;
    let mut dice = |sides: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % sides
    };
    let words = [
        "messages",
        "role",
        "from",
        "content",
        "value",
        "user",
        "assistant",
        "tool",
        "tool_call",
        "function",
        "name",
        "arguments",
        "type",
        "text",
        "tool_use",
        "tool_result",
        "loss",
        "loss_scale",
        "query",
        "response",
        "rejected",
        "chosen",
        "rejected_response",
        "rejected_messages",
        "instruction",
        "input",
        "history",
        "tools",
        "label",
        "system",
        "{\"a\":",
        "[1]",
        "",
    ];
    let mut accepted = 0;
    for _ in 0..100_000 {
        let Json::Object(mut members) = random_value(&mut dice, &words, 0) else { continue };
        members.retain(|(key, _)| &**key != "messages");
        members.push(("messages".into(), random_value(&mut dice, &words, 1)));
        let text = to_canonical(&Json::Object(members));
        if let Ok(row) = read(&text) {
            accepted += 1;
            // what was read reads again as itself
            let Json::Object(mut members) = to_json(&row) else { continue };
            members.retain(|(key, _)| &**key != "extra");
            for (key, value) in &mut members {
                if let (true, Json::Array(messages)) = (key.ends_with("messages"), value) {
                    for message in messages {
                        let Json::Object(fields) = message else { continue };
                        let has_pieces = fields.iter().any(|(key, _)| &**key == "pieces");
                        fields.retain(|(key, _)| &**key != "pieces" && !(has_pieces && key.starts_with("loss")));
                    }
                }
            }
            let again =
                normalize(Json::Object(members.clone()), &options()).unwrap_or_else(|fault| panic!("{fault}: {text}"));
            assert_eq!(to_json(&again), Json::Object(members), "{text}");
        }
    }
    assert!(accepted > 200, "{accepted}");
}
