//! `.json` files -> JSON Lines, while they are read: a list gives its items, anything else its top-level values.
//!
//! Values are told apart by brackets and quotes alone and copied as they are, so that columns inside a record stay true;
//! only line breaks become spaces. Whether a value is right is for the parser of the line to say.

use memchr::memchr3;

use crate::error::RowError;

/// Cuts a stream of bytes into values, however it is divided into pieces.
#[derive(Debug, Default)]
pub struct Splitter {
    place: State,
    /// Open brackets inside the value.
    depth: usize,
    in_string: bool,
    after_backslash: bool,
    offset: u64,
    records: u64,
    /// Bytes of a byte order mark that were seen.
    mark: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but white space so far.
    #[default]
    Start,
    /// Between the values of a sequence.
    Between,
    /// In a list that has just opened: a value or the end must come.
    FirstItem,
    /// In a list, behind a comma: a value must come.
    BeforeItem,
    /// In a list: a comma or the end must come.
    AfterItem,
    /// Inside a value; `true` for an item of a list.
    Inside(bool),
    /// The list has ended.
    End,
}

const BYTE_ORDER_MARK: [u8; 3] = *b"\xef\xbb\xbf";

impl Splitter {
    /// Take `data`, append the lines that it completes or continues to `out`.
    ///
    /// # Errors
    /// [`RowError`] for what stands between items and is no comma; the message has the byte offset in the file.
    pub fn feed(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<(), RowError> {
        let mut at = 0;
        while at < data.len() {
            if self.in_string && !self.after_backslash {
                // Most bytes are text of strings.
                let plain = memchr3(b'"', b'\\', b'\n', &data[at..]).unwrap_or(data.len() - at);
                out.extend_from_slice(&data[at..at + plain]);
                at += plain;
                self.offset += plain as u64;
                if at == data.len() {
                    break;
                }
            }
            self.byte(data[at], out)?;
            at += 1;
            self.offset += 1;
        }
        Ok(())
    }

    /// The stream has ended; the last line is completed.
    ///
    /// # Errors
    /// [`RowError`] with the reason `truncated` if the file ends inside a value or a list.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> Result<u64, RowError> {
        match self.place {
            State::Inside(false) if self.depth == 0 && !self.in_string => {
                self.end_value(out);
                Ok(self.records)
            }
            State::Start | State::Between | State::End => Ok(self.records),
            State::FirstItem | State::BeforeItem | State::AfterItem | State::Inside(_) => {
                let message = "file ends inside a record; it was cut while written or copied, get it again";
                Err(self.fault("truncated", message))
            }
        }
    }

    fn byte(&mut self, byte: u8, out: &mut Vec<u8>) -> Result<(), RowError> {
        if let State::Inside(item) = self.place {
            self.inside(byte, item, out);
            return Ok(());
        }
        match (self.place, byte) {
            (State::Start, _) if self.offset == self.mark as u64 && BYTE_ORDER_MARK.get(self.mark) == Some(&byte) => {
                self.mark += 1;
            }
            (_, b' ' | b'\t' | b'\n' | b'\r') => {}
            (State::Start, b'[') => self.place = State::FirstItem,
            (State::FirstItem | State::AfterItem, b']') => self.place = State::End,
            (State::AfterItem, b',') => self.place = State::BeforeItem,
            (State::AfterItem, _) => return Err(self.unexpected(byte, "',' or ']' after an item of the list")),
            (State::End, _) => return Err(self.unexpected(byte, "nothing after the end of the list")),
            (State::FirstItem | State::BeforeItem, b',' | b']') => {
                return Err(self.unexpected(byte, "an item of the list"));
            }
            (place, _) => {
                self.place = State::Inside(matches!(place, State::FirstItem | State::BeforeItem));
                self.start_value(byte, out);
            }
        }
        Ok(())
    }

    fn start_value(&mut self, byte: u8, out: &mut Vec<u8>) {
        self.depth = usize::from(matches!(byte, b'{' | b'['));
        self.in_string = byte == b'"';
        self.after_backslash = false;
        out.push(byte);
    }

    fn inside(&mut self, byte: u8, item: bool, out: &mut Vec<u8>) {
        if self.in_string {
            self.in_string = byte != b'"' || self.after_backslash;
            self.after_backslash = byte == b'\\' && !self.after_backslash;
            // A line break inside a string is not JSON; as an escape that does not exist it still is not, on one line.
            out.extend_from_slice(if byte == b'\n' { b"\\\x01" } else { std::slice::from_ref(&byte) });
            if !self.in_string && self.depth == 0 {
                self.end_value(out);
            }
            return;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' if self.depth > 0 => {
                self.depth -= 1;
                if self.depth == 0 {
                    out.push(byte);
                    self.end_value(out);
                    return;
                }
            }
            // Numbers and words have no closing mark of their own.
            b',' | b']' if self.depth == 0 && item => {
                self.end_value(out);
                self.place = if byte == b',' { State::BeforeItem } else { State::End };
                return;
            }
            b' ' | b'\t' | b'\n' | b'\r' if self.depth == 0 => {
                self.end_value(out);
                return;
            }
            _ => {}
        }
        out.push(if matches!(byte, b'\n' | b'\r') { b' ' } else { byte });
    }

    fn end_value(&mut self, out: &mut Vec<u8>) {
        out.push(b'\n');
        self.records += 1;
        self.place = if self.place == State::Inside(true) { State::AfterItem } else { State::Between };
    }

    fn unexpected(&self, byte: u8, wanted: &str) -> RowError {
        self.fault("json", &format!("'{}' where {wanted} should be", byte.escape_ascii()))
    }

    fn fault(&self, reason: &'static str, message: &str) -> RowError {
        let message = format!("{message} (byte {} of the file, behind record {})", self.offset, self.records);
        RowError::new(reason, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(data: &[u8], piece: usize) -> Result<String, String> {
        let (mut splitter, mut out) = (Splitter::default(), Vec::new());
        for part in data.chunks(piece) {
            splitter.feed(part, &mut out).map_err(|fault| fault.to_string())?;
        }
        let records = splitter.finish(&mut out).map_err(|fault| fault.to_string())?;
        assert_eq!(records, memchr::memchr_iter(b'\n', &out).count() as u64);
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn lists_and_sequences() {
        for (data, lines) in [
            ("[]", ""),
            ("", ""),
            (" [ ] \n", ""),
            ("[{\"a\":[1,\"]},\\\"\"]}, 2 ,\"x\", null]", "{\"a\":[1,\"]},\\\"\"]}\n2\n\"x\"\nnull\n"),
            ("\u{feff}[\n {\n  \"a\": 1\r\n }\n]\n", "{   \"a\": 1   }\n"),
            ("{\n\"a\": 1}", "{ \"a\": 1}\n"),
            ("{\"a\":1}{\"b\":2}\n{\"c\":3}", "{\"a\":1}\n{\"b\":2}\n{\"c\":3}\n"),
            ("12", "12\n"),
            ("[\"a\nb\"]", "\"a\\\u{1}b\"\n"),
            ("[\"a\\\\\",1]", "\"a\\\\\"\n1\n"),
        ] {
            for piece in 1..7 {
                assert_eq!(split(data.as_bytes(), piece).as_deref(), Ok(lines), "{data}");
            }
        }
    }

    #[test]
    fn faults() {
        let cut = "file ends inside a record; it was cut while written or copied, get it again";
        for (data, message) in [
            (
                "[{} {}]",
                "'{' where ',' or ']' after an item of the list should be (byte 4 of the file, behind record 1)".into(),
            ),
            (
                "[1] 2",
                "'2' where nothing after the end of the list should be (byte 4 of the file, behind record 1)".into(),
            ),
            ("[,1]", "',' where an item of the list should be (byte 1 of the file, behind record 0)".into()),
            ("[{\"a\":1},", format!("{cut} (byte 9 of the file, behind record 1)")),
            ("[{\"a\":1}", format!("{cut} (byte 8 of the file, behind record 1)")),
            ("{\"a", format!("{cut} (byte 3 of the file, behind record 0)")),
            ("[1,]", "']' where an item of the list should be (byte 3 of the file, behind record 1)".into()),
            ("[1", format!("{cut} (byte 2 of the file, behind record 0)")),
        ] {
            for piece in 1..7 {
                assert_eq!(split(data.as_bytes(), piece), Err(message.clone()), "{data}");
            }
        }
    }
}
