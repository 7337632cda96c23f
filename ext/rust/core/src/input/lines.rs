//! JSON Lines: where the records of a byte slice are, and how a file is cut into chunks.
//!
//! A record is a line that is not blank. Lines are numbered from 1 and blank ones count, so that a number in a message is
//! the number an editor shows. A carriage return before the newline and a byte order mark at the start of a file are
//! accepted and remembered, for one warning each.
//!
//! Chunks depend on the file alone: chunk k begins after the first newline at or behind byte `k * CHUNK_BYTES - 1`. Any
//! number of threads, and any process that looks at any part of the file, finds the same ones.

use std::ops::Range;

use memchr::{memchr, memchr_iter};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::error::RowError;
use crate::json;
use crate::types::Json;

/// Distance between the places where a file is cut at the next newline.
pub const CHUNK_BYTES: usize = 1 << 20;

/// Longest line that is read unless another limit is given.
pub const MAX_LINE_BYTES: usize = 64 << 20;

/// A line that is not blank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Line number, blank lines counted.
    pub line: u64,
    /// Its bytes, without line end and byte order mark.
    pub range: Range<usize>,
    /// False for a last line without a newline, which may be what is left of a longer one.
    pub terminated: bool,
}

/// The records of a byte slice, in order.
#[derive(Debug, Clone)]
pub struct Lines<'a> {
    data: &'a [u8],
    at: usize,
    line: u64,
    max_line_bytes: usize,
    /// What was accepted without being plain JSON Lines.
    pub endings: Endings,
}

/// What a reader of lines puts up with, and its user should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Endings {
    /// A byte order mark stood before the first line.
    pub bom: bool,
    /// Lines that ended in a carriage return and a newline.
    pub num_crlf: u64,
    /// The first of them.
    pub first_crlf: Option<u64>,
}

impl<'a> Lines<'a> {
    /// Records of `data`, whose first line has the number `first_line`; a byte order mark is looked for in line 1 only.
    #[must_use]
    pub fn new(data: &'a [u8], first_line: u64, max_line_bytes: usize) -> Self {
        let saw_bom = first_line == 1 && data.starts_with(b"\xef\xbb\xbf");
        let at = if saw_bom { 3 } else { 0 };
        let endings = Endings { bom: saw_bom, ..Endings::default() };
        Self { data, at, line: first_line, max_line_bytes, endings }
    }

    /// Number of the line after the last one that was looked at.
    #[must_use]
    pub fn next_line(&self) -> u64 {
        self.line
    }
}

impl Iterator for Lines<'_> {
    type Item = Result<Record, RowError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.at < self.data.len() {
            let start = self.at;
            let newline = memchr(b'\n', &self.data[start..]);
            let mut end = newline.map_or(self.data.len(), |length| start + length);
            self.at = self.data.len().min(end + 1);
            let line = self.line;
            self.line += 1;
            if newline.is_some() && end > start && self.data[end - 1] == b'\r' {
                self.endings.num_crlf += 1;
                self.endings.first_crlf.get_or_insert(line);
                end -= 1;
            }
            if is_blank(&self.data[start..end]) {
                continue;
            }
            if end - start > self.max_line_bytes {
                return Some(Err(too_long(end - start, self.max_line_bytes)));
            }
            return Some(Ok(Record { line, range: start..end, terminated: newline.is_some() }));
        }
        None
    }
}

fn too_long(bytes: usize, limit: usize) -> RowError {
    let message =
        format!("the line is {bytes} bytes long, the limit is {limit}; raise --max-line-bytes or split the row");
    RowError::new("line_too_long", message)
}

fn is_blank(line: &[u8]) -> bool {
    line.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r'))
}

/// Read the JSON value of a record of `data`.
///
/// # Errors
/// As [`json::parse`]; a value that ends too early on a last line without newline is reported as a file that was cut.
pub fn parse_record(data: &[u8], record: &Record) -> Result<Json, RowError> {
    json::parse(&data[record.range.clone()]).map_err(|mut fault| {
        if fault.reason == "truncated" && !record.terminated {
            let ending = fault.message;
            fault.message =
                format!("file ends inside a record ({ending}); it was cut while written or copied, get it again");
        }
        fault
    })
}

/// What stands in a slice: counted in one pass at the speed of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LineCounts {
    /// Lines, blank ones too; a last one without newline counts.
    pub lines: u64,
    /// Lines that are not blank.
    pub records: u64,
}

/// Count lines and records.
#[must_use]
pub fn count(data: &[u8], at_file_start: bool) -> LineCounts {
    let data = if at_file_start { data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data) } else { data };
    let mut counts = LineCounts::default();
    let mut start = 0;
    for end in memchr_iter(b'\n', data).chain(std::iter::once(data.len())) {
        if start == data.len() {
            break; // nothing behind the last newline
        }
        counts.lines += 1;
        counts.records += u64::from(!is_blank(&data[start..end]));
        start = end + 1;
    }
    counts
}

/// Cut `data` into its chunks: ranges that end behind a newline (the last one: at the end), none empty, in order.
///
/// `offset` is where `data` begins in its file and must itself be 0 or a chunk's beginning. With `whole` false more of the
/// file follows, and what comes after the last place where the file is certainly cut is left out.
#[must_use]
pub fn chunk_bounds(data: &[u8], offset: u64, chunk_bytes: usize, whole: bool) -> Vec<Range<usize>> {
    let step = chunk_bytes.max(1) as u64;
    let mut chunks = Vec::new();
    let mut start = 0;
    while start < data.len() {
        // The first multiple of `step` behind the chunk's first byte; a cut at the byte before it would start there.
        let target = ((offset + start as u64) / step + 1) * step - 1 - offset;
        let newline =
            usize::try_from(target).ok().and_then(|target| Some(target + memchr(b'\n', data.get(target..)?)?));
        let Some(newline) = newline else {
            if whole {
                chunks.push(start..data.len());
            }
            break;
        };
        chunks.push(start..newline + 1);
        start = newline + 1;
    }
    chunks
}

/// A hash of every record's bytes (XXH3-64 with a seed): decides on which side of a split a row stays for good.
#[must_use]
pub fn record_hashes(data: &[u8], at_file_start: bool, seed: u64) -> Vec<u64> {
    let lines = Lines::new(data, if at_file_start { 1 } else { 2 }, usize::MAX);
    lines.flatten().map(|record| xxh3_64_with_seed(&data[record.range], seed)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(data: &[u8]) -> Vec<(u64, &[u8])> {
        Lines::new(data, 1, MAX_LINE_BYTES).map(|record| record.unwrap()).map(|r| (r.line, &data[r.range])).collect()
    }

    #[test]
    fn line_ends_blank_lines_and_bom() {
        let data = b"\xef\xbb\xbf{}\r\n\n  \t\r\n[1]\n \x00\n2";
        assert_eq!(records(data), [(1, &b"{}"[..]), (4, b"[1]"), (5, b" \x00"), (6, b"2")]);
        let mut lines = Lines::new(data, 1, 10);
        let all: Vec<_> = lines.by_ref().map(|record| record.unwrap().terminated).collect();
        assert_eq!(
            (all, lines.endings, lines.next_line()),
            (vec![true, true, true, false], Endings { bom: true, num_crlf: 2, first_crlf: Some(1) }, 7)
        );
        assert_eq!(records(b""), []);
        assert_eq!(records(b"\n\n"), []);
        assert!(!Lines::new(b"\xef\xbb\xbf{}", 2, 10).endings.bom, "only a file's first line may carry one");
    }

    #[test]
    fn long_lines_are_refused_and_passed_over() {
        let all: Vec<_> = Lines::new(b"1\n123456\n2\n", 1, 5).collect();
        assert_eq!(all.len(), 3);
        let message = "the line is 6 bytes long, the limit is 5; raise --max-line-bytes or split the row";
        assert_eq!(all[1].as_ref().unwrap_err().to_string(), message);
        assert_eq!(all[2].as_ref().unwrap().line, 3);
    }

    #[test]
    fn a_cut_file_is_named_as_such() {
        let data = "{\"a\":1}\n{\"a\":\"語\"}".as_bytes();
        for cut in 9..data.len() {
            let data = &data[..cut];
            let record = Lines::new(data, 1, 99).last().unwrap().unwrap();
            let message = parse_record(data, &record).unwrap_err().to_string();
            assert!(message.contains("file ends inside a record ("), "{message}");
        }
        let record = Lines::new(data, 1, 99).last().unwrap().unwrap();
        assert!(parse_record(data, &record).is_ok());
        let data = b"{\"a\":\n";
        let record = Lines::new(data, 1, 99).last().unwrap().unwrap();
        let message = parse_record(data, &record).unwrap_err().to_string();
        assert_eq!(message, "$.a: the text ends where a value should follow");
    }

    #[test]
    fn a_records_hash_is_its_own() {
        let hashes = record_hashes(b"\xef\xbb\xbfa\r\n\nb\na", true, 7);
        assert_eq!(hashes, [xxh3_64_with_seed(b"a", 7), xxh3_64_with_seed(b"b", 7), xxh3_64_with_seed(b"a", 7)]);
        assert_ne!(record_hashes(b"a", true, 8)[0], hashes[0]);
    }

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        (0..length).map(|_| b"\n\r x"[(next() % if seed.is_multiple_of(3) { 40 } else { 4 }).min(3) as usize]).collect()
    }

    #[test]
    fn counting_equals_scanning() {
        for seed in 0..300 {
            let data = noise(seed, seed as usize);
            let mut lines = Lines::new(&data, 1, MAX_LINE_BYTES);
            let records = lines.by_ref().count() as u64;
            assert_eq!(count(&data, true), LineCounts { lines: lines.next_line() - 1, records });
        }
    }

    #[test]
    fn chunks_cover_the_file_and_do_not_depend_on_the_window() {
        for seed in 0..300 {
            let data = noise(seed, 400);
            let chunks = chunk_bounds(&data, 0, 16, true);
            let mut end = 0;
            for chunk in &chunks {
                assert_eq!(chunk.start, end);
                assert!(chunk.end == data.len() || data[chunk.end - 1] == b'\n');
                end = chunk.end;
            }
            assert_eq!(end, data.len());
            // a reader with a small window, that keeps what was left over
            let (mut seen, mut start, mut window) = (Vec::new(), 0, 7);
            while start < data.len() {
                let stop = data.len().min(start + window);
                let found = chunk_bounds(&data[start..stop], start as u64, 16, stop == data.len());
                window = if found.is_empty() { window * 2 } else { 7 };
                seen.extend(found.iter().map(|chunk| chunk.start + start..chunk.end + start));
                start = seen.last().map_or(start, |chunk| chunk.end);
            }
            assert_eq!(seen, chunks);
        }
    }
}
