//! A chunk of JSON Lines in, a batch of tokens out.
//!
//! One call is single-threaded and depends on nothing but its arguments; whoever maps it over chunks in order gets the
//! same bytes with any number of threads.
use crate::encode::conversation::{EncodedRow, RowContext};
use crate::encode::counts::Counts;
use crate::encode::encoder::Encoder;
use crate::encode::tokens::{LedgerLine, RowId, RowMeta, TokensBuilder, TokensReader, ledger_batch};
use crate::encode::truncate::{Kept, Outcome, Truncation};
use crate::error::{Error, RowError};
use crate::input::lines::{self, Endings, Lines, Record};
use crate::json::to_canonical;
use crate::rows::group::{RIGHT, WRONG};
use crate::rows::{self, Purpose, RowOptions};
use crate::types::{Body, Role, Row};
use crate::weigh::sequence::{WeighScratch, Weigher};
use arrow_array::RecordBatch;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use xxhash_rust::xxh3::xxh3_128;

/// A chunk and where it stands in its source.
#[derive(Debug, Clone, Copy, Default)]
pub struct Chunk<'a> {
    /// Whole lines.
    pub data: &'a [u8],
    /// What errors call the file.
    pub file: &'a str,
    /// The folder it lies in; none for what came through a pipe.
    pub folder: Option<&'a str>,
    /// Ordinal of the source.
    pub source: i32,
    /// Number of the first line, from 1.
    pub first_line: u64,
    /// Number of the first record in the source, from 0.
    pub first_record: u64,
    /// Which time the source is read, for sources that repeat.
    pub copy: u32,
    /// Record numbers to take, ascending; none: all.
    pub selection: Option<&'a [u64]>,
    /// Those of them that repeat an earlier row and are left out, ascending.
    pub duplicates: &'a [u64],
}

/// What a chunk became.
#[derive(Debug)]
pub struct Encoded {
    /// Rows of the tokens table.
    pub rows: RecordBatch,
    /// Lines of the ledger.
    pub ledger: RecordBatch,
    /// Sums over the chunk.
    pub counts: Counts,
}

/// How rows are read and what happens to bad ones.
#[derive(Debug, Clone, Default)]
pub struct ReadOptions {
    /// Columns and names.
    pub rows: RowOptions,
    /// Leave bad rows out, with a ledger line, instead of stopping.
    pub skip_bad_rows: bool,
    /// Make a row of each answer of a conversation, with what came before it as its prompt.
    pub each_turn: bool,
    /// Make two rows of a pair: the better answer with the label 1, the worse one with 0.
    pub unpair: bool,
    /// Longest line; 0: the default.
    pub max_line_bytes: usize,
}

/// Identity of record `number` of source `source`.
fn row_id(record: &[u8], source: i32, number: u64, copy: u32, part: u32, buffer: &mut Vec<u8>) -> RowId {
    buffer.clear();
    buffer.extend_from_slice(record);
    buffer.extend_from_slice(&source.to_le_bytes());
    buffer.extend_from_slice(&number.to_le_bytes());
    buffer.extend_from_slice(&copy.to_le_bytes());
    if part > 0 {
        buffer.extend_from_slice(&part.to_le_bytes());
    }
    xxh3_128(buffer).to_be_bytes()
}

/// Encode the records of a chunk.
///
/// # Errors
/// `Error::Data` with `file:line:column` at the first bad row, unless bad rows are skipped; `Error::Config` always.
pub fn encode_chunk(encoder: &Encoder, read: &ReadOptions, chunk: &Chunk) -> Result<Encoded, Error> {
    let mut run = ChunkRun {
        encoder,
        chunk,
        rows: TokensBuilder::for_bytes(chunk.data.len(), read.rows.purpose == Purpose::Prompt, encoder.reads_media()),
        purpose: read.rows.purpose,
        each_turn: read.each_turn,
        unpair: read.unpair,
        ledger: vec![],
        counts: Counts::default(),
        scratch: WeighScratch::default(),
        buffer: vec![],
        sides: vec![EncodedRow::default(), EncodedRow::default()],
    };
    let endings = for_each_record(read, chunk, |record, line, number| run.record(record, line, number, read))?;
    if chunk.copy == 0 {
        run.counts.byte_order_marks += i64::from(endings.bom);
        run.counts.crlf_lines += endings.num_crlf as i64;
        run.counts.first_crlf = endings.first_crlf;
    }
    Ok(Encoded { rows: run.rows.finish()?, ledger: ledger_batch(&run.ledger)?, counts: run.counts })
}

/// Encode whole JSON Lines in memory on at most `threads` threads: the chunks in order, the same for any number.
///
/// # Errors
/// As [`encode_chunk`], of the first chunk that has one.
pub fn encode_lines(
    encoder: &Encoder,
    read: &ReadOptions,
    data: &[u8],
    file: &str,
    threads: usize,
) -> Result<Vec<Encoded>, Error> {
    let mut chunks = vec![];
    let (mut first_line, mut first_record) = (1, 0);
    for range in lines::chunk_bounds(data, 0, lines::CHUNK_BYTES, true) {
        let data = &data[range];
        chunks.push(Chunk { data, file, first_line, first_record, ..Chunk::default() });
        let counts = lines::count(data, first_line == 1);
        first_line += counts.lines;
        first_record += counts.records;
    }
    let next = AtomicUsize::new(0);
    let made: Vec<OnceLock<Result<Encoded, Error>>> = chunks.iter().map(|_| OnceLock::new()).collect();
    let work = || {
        while let Some((chunk, made)) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            chunks.get(index).zip(made.get(index))
        } {
            made.get_or_init(|| encode_chunk(encoder, read, chunk));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(chunks.len()) {
            scope.spawn(work);
        }
        work();
    });
    made.into_iter().filter_map(OnceLock::into_inner).collect()
}

/// A number for the content of every selected record, for finding duplicates: equal if and only if training would see the
/// same. A bad row is like no other.
#[must_use]
pub fn content_hashes(read: &ReadOptions, chunk: &Chunk) -> Vec<(u64, u128)> {
    let mut out = vec![];
    let mut buffer = vec![];
    let hashed = for_each_record(read, chunk, |record, _, number| {
        let parsed = record.and_then(|record| {
            let (value, _) = rows::parse_record(chunk.data, &record, &read.rows)?;
            rows::normalize(value, &read.rows)
        });
        let hash = parsed.map_or_else(
            |_| u128::from_be_bytes(row_id(b"bad row", chunk.source, number, chunk.copy, 0, &mut buffer)),
            |row| rows::content_hash(&row),
        );
        out.push((number, hash));
        Ok::<(), std::convert::Infallible>(())
    });
    // nothing in it can fail
    let _ = hashed;
    out
}

/// Call `visit(record, line, number)` for the selected records.
fn for_each_record<E>(
    read: &ReadOptions,
    chunk: &Chunk,
    mut visit: impl FnMut(Result<Record, RowError>, u64, u64) -> Result<(), E>,
) -> Result<Endings, E> {
    let limit = if read.max_line_bytes == 0 { lines::MAX_LINE_BYTES } else { read.max_line_bytes };
    let mut records = Lines::new(chunk.data, chunk.first_line, limit);
    let mut selection = chunk.selection.map(|numbers| numbers.iter().copied().peekable());
    for number in chunk.first_record.. {
        let line = records.next_line();
        let Some(record) = records.next() else { break };
        if selection.as_mut().is_none_or(|numbers| numbers.next_if_eq(&number).is_some()) {
            visit(record, line, number)?;
        }
    }
    Ok(records.endings)
}

struct ChunkRun<'a> {
    encoder: &'a Encoder,
    chunk: &'a Chunk<'a>,
    rows: TokensBuilder,
    purpose: Purpose,
    each_turn: bool,
    unpair: bool,
    ledger: Vec<LedgerLine>,
    counts: Counts,
    scratch: WeighScratch,
    buffer: Vec<u8>,
    sides: Vec<EncodedRow>,
}

impl ChunkRun<'_> {
    fn record(
        &mut self,
        record: Result<Record, RowError>,
        line: u64,
        number: u64,
        read: &ReadOptions,
    ) -> Result<(), Error> {
        let line = record.as_ref().map_or(line, |record| record.line);
        let bytes = record.as_ref().map_or(&[][..], |record| &self.chunk.data[record.range.clone()]);
        self.counts.rows_in += 1;
        let id = row_id(bytes, self.chunk.source, number, self.chunk.copy, 0, &mut self.buffer);
        if self.chunk.duplicates.binary_search(&number).is_ok() {
            self.drop_row(id, line, "duplicate", 0);
            return Ok(());
        }
        let parsed = record.and_then(|record| {
            let (value, has_nan) = rows::parse_record(self.chunk.data, &record, &read.rows)?;
            self.counts.rows_with_nan += i64::from(has_nan);
            self.counts.see_columns(&value, &read.rows);
            rows::normalize(value, &read.rows)
        });
        let outcome = match parsed {
            Ok(row) => self.row(row, id, line),
            Err(fault) => Err(fault.into()),
        };
        match outcome {
            Ok(()) => Ok(()),
            Err(error @ Error::Config { .. }) => Err(error),
            Err(error @ Error::Internal { .. }) => Err(self.placed(error, line)),
            Err(error) if !read.skip_bad_rows => Err(self.placed(error, line)),
            Err(error) => {
                let reason = match &error {
                    Error::Row(fault) => fault.reason,
                    Error::Template { .. } => "template",
                    _ => "data",
                };
                self.drop_row(id, line, reason, 0);
                Ok(())
            }
        }
    }

    /// An error with the place of its row.
    fn placed(&self, error: Error, line: u64) -> Error {
        let file = self.chunk.file;
        let (column, message) = match &error {
            Error::Row(fault) => (fault.column, fault.to_string()),
            Error::Template { place, message } if !place.is_empty() => (None, format!("{place}: {message}")),
            Error::Data { message, .. } | Error::Template { message, .. } => (None, message.to_string()),
            Error::Internal { message } => {
                return Error::Internal { message: format!("{file}:{line}: {message}").into() };
            }
            Error::Config { .. } => return error,
        };
        let place = match column {
            Some(column) => format!("{file}:{line}:{column}"),
            None => format!("{file}:{line}"),
        };
        Error::Data { place: place.into(), message: message.into() }
    }

    fn drop_row(&mut self, id: RowId, line: u64, reason: &str, tokens: usize) {
        self.note(id, line, "dropped", reason, (tokens, 0));
    }

    fn note(&mut self, id: RowId, line: u64, action: &'static str, reason: &str, tokens: (usize, usize)) {
        let source = self.chunk.source;
        self.ledger.push(LedgerLine { id, source, line: line as i64, action, reason: reason.into(), tokens });
    }

    fn row(&mut self, row: Row, id: RowId, line: u64) -> Result<(), Error> {
        let Row { mut body, tools, template_kwargs, channel, label, margin, extra, unused } = row;
        self.counts.see_unused(unused);
        let side = RowContext { tools: tools.as_ref(), kwargs: &template_kwargs, folder: self.chunk.folder };
        let is_prompt = self.purpose == Purpose::Prompt;
        let conversation = match &mut body {
            Body::Prompt(messages) => {
                self.encoder.add_system(messages);
                Some(to_canonical(&rows::messages_json(messages)))
            }
            _ => None,
        };
        let tools_text = tools.as_ref().filter(|_| is_prompt).map(to_canonical);
        let mut sides = std::mem::take(&mut self.sides);
        let meta = RowMeta {
            id,
            source: self.chunk.source,
            line: line as i64,
            channel: channel.as_deref(),
            pair: None,
            margin,
            label,
            extra: Some(&*extra).filter(|extra| !extra.is_empty()),
            messages: conversation.as_deref(),
            tools: tools_text.as_deref(),
        };
        if let (Body::Chat(messages), true) = (&body, self.each_turn) {
            let result = self.turns(messages, side, &mut sides[0], &meta, line);
            self.sides = sides;
            return result;
        }
        let mut places: Vec<i8> = vec![];
        let mut labels: &[f64] = &[];
        let used = match body {
            Body::Text(text) if is_prompt => self.encoder.text_prompt(&text, &mut sides[0]).map(|()| 1),
            Body::Text(text) => self.encoder.text(&text, &mut sides[0]).map(|()| 1),
            Body::Tokens(ids, mask) => self.encoder.tokens(ids, mask.as_deref(), &mut sides[0]).map(|()| 1),
            Body::Prompt(messages) => self.encoder.prompt(messages, side, &mut sides[0]).map(|()| 1),
            Body::Segments(segments) => self.encoder.segments(&segments, &mut sides[0]).map(|()| 1),
            Body::Chat(messages) => self.encoder.chat(messages, side, &mut sides[0]).map(|()| 1),
            Body::Pair(chosen, rejected) => {
                if self.unpair {
                    labels = &[1.0, 0.0];
                } else {
                    places = vec![0, 1];
                }
                self.encoder
                    .chat(chosen, side, &mut sides[0])
                    .and_then(|()| self.encoder.chat(rejected, side, &mut sides[1]))
                    .map(|()| 2)
            }
            Body::Group(texts) => {
                places = texts.iter().map(|text| text.side).collect();
                sides.resize_with(texts.len().max(sides.len()), EncodedRow::default);
                texts
                    .iter()
                    .zip(&mut sides)
                    .try_for_each(|(text, out)| self.encoder.framed(text, out))
                    .map(|()| texts.len())
            }
        };
        let result = used.and_then(|used| self.commit(&mut sides[..used], &places, labels, &meta, line));
        self.sides = sides;
        result
    }

    /// Add the sides of a record (one, or all of a pair or group with their `places` in it, or two that were a pair with
    /// a label each), or drop them together.
    fn commit(
        &mut self,
        sides: &mut [EncodedRow],
        places: &[i8],
        labels: &[f64],
        meta: &RowMeta,
        line: u64,
    ) -> Result<(), Error> {
        let mut before = 0;
        let mut look_alikes = 0;
        for side in sides.iter() {
            self.counts.encode_calls += side.encode_calls as i64;
            self.counts.rendered_bytes += side.rendered_bytes as i64;
            look_alikes += side.look_alikes;
            self.counts.unwritten_thinking += side.unwritten_thinking as i64;
            self.counts.unwritten_parts += side.unwritten_parts as i64;
            before += side.ids.len();
        }
        self.counts.special_look_alikes += look_alikes as i64;
        self.counts.rows_with_look_alikes += i64::from(look_alikes > 0);
        let (mut truncated, mut masked) = (false, 0);
        let mut left_out: Vec<usize> = vec![];
        let longest = self.encoder.longest_answer(sides);
        for (index, side) in sides.iter_mut().enumerate() {
            match self.encoder.fit(side, longest, &mut self.scratch)? {
                Outcome::Whole => {}
                Outcome::Cut { masked: turns } => {
                    truncated = true;
                    masked += turns;
                }
                Outcome::Blocks(size) => return self.blocks(side, size, meta, line),
                // a text of one token: a group can do without one that is wrong, not without its query or what fits it
                Outcome::Dropped("nothing_to_train") if places.contains(&RIGHT) => {
                    if places[index] != WRONG {
                        self.drop_row(meta.id, line, "one_token_text", before);
                        return Ok(());
                    }
                    left_out.push(index);
                    side.ids.clear();
                }
                Outcome::Dropped(reason) => {
                    self.drop_row(meta.id, line, reason, before);
                    return Ok(());
                }
            }
        }
        let after: usize = sides.iter().map(|side| side.ids.len()).sum();
        if truncated {
            let is_proportional = self.encoder.truncation() == Truncation::Proportional;
            let reason = if is_proportional { "proportional" } else { "max_length" };
            self.note(meta.id, line, "truncated", reason, (before, after));
        } else if !left_out.is_empty() {
            self.note(meta.id, line, "truncated", "one_token_text", (before, after));
        } else {
            self.counts.kept += 1;
        }
        if masked > 0 {
            self.counts.masked_turns += masked as i64;
            self.note(meta.id, line, "masked", "cut_turn", (before, after));
        }
        for (index, side) in sides.iter().enumerate().filter(|(index, _)| !left_out.contains(index)) {
            let pair = places.get(index).map(|place| (meta.id, *place));
            let id = if index == 0 { meta.id } else { self.part_id(meta.id, index as u32) };
            self.counts.straddles += side.straddles as i64;
            let label = labels.get(index).copied().or(meta.label);
            self.push(&RowMeta { id, pair, label, ..*meta }, side, 0..side.ids.len())?;
        }
        Ok(())
    }

    /// A row for each answer of a conversation; what came before is its prompt.
    fn turns(
        &mut self,
        messages: &[crate::types::Message],
        side: RowContext,
        out: &mut EncodedRow,
        meta: &RowMeta,
        line: u64,
    ) -> Result<(), Error> {
        let answers = messages
            .iter()
            .enumerate()
            .filter(|(_, message)| message.role == Role::Assistant && !message.given && message.loss != [false]);
        let (mut part, mut gone) = (0, None);
        for (at, _) in answers {
            let mut messages = messages[..=at].to_vec();
            messages[..at].iter_mut().for_each(|message| {
                message.given = true;
                message.loss.clear();
                message.loss_scale.clear();
            });
            self.encoder.chat(messages, side, out)?;
            self.counts.encode_calls += out.encode_calls as i64;
            self.counts.rendered_bytes += out.rendered_bytes as i64;
            self.counts.unwritten_thinking += out.unwritten_thinking as i64;
            let before = out.ids.len();
            if let Outcome::Dropped(reason) = self.encoder.fit(out, None, &mut self.scratch)? {
                gone = Some((reason, before));
                continue;
            }
            let id = if part == 0 { meta.id } else { self.part_id(meta.id, part) };
            self.push(&RowMeta { id, ..*meta }, out, 0..out.ids.len())?;
            part += 1;
        }
        match (part, gone) {
            (0, gone) => {
                let (reason, tokens) = gone.unwrap_or(("nothing_to_train", 0));
                self.drop_row(meta.id, line, reason, tokens);
            }
            (_, None) => self.counts.kept += 1,
            (_, Some((reason, tokens))) => self.note(meta.id, line, "truncated", reason, (tokens, 0)),
        }
        Ok(())
    }

    /// A text row cut into blocks of `size` tokens.
    fn blocks(&mut self, side: &EncodedRow, block_tokens: usize, meta: &RowMeta, line: u64) -> Result<(), Error> {
        let length = side.ids.len();
        self.note(meta.id, line, "truncated", "split", (length, length));
        for (part, start) in (0..length).step_by(block_tokens).enumerate() {
            let id = if part == 0 { meta.id } else { self.part_id(meta.id, part as u32) };
            self.push(&RowMeta { id, ..*meta }, side, start..length.min(start + block_tokens))?;
        }
        Ok(())
    }

    /// Identity of a further row made from the record with identity `id`.
    fn part_id(&mut self, id: RowId, part: u32) -> RowId {
        row_id(&id, self.chunk.source, 0, self.chunk.copy, part, &mut self.buffer)
    }

    fn push(&mut self, meta: &RowMeta, side: &EncodedRow, keep: std::ops::Range<usize>) -> Result<(), Error> {
        let ids = &side.ids[keep.clone()];
        let mut spans = side.spans.clone();
        if keep.len() < side.ids.len() {
            Kept::from(keep).clip_spans(&mut spans);
        }
        let (trained, _) = crate::weigh::sequence::totals(&spans);
        self.counts.rows += 1;
        self.counts.tokens += ids.len() as i64;
        self.counts.trained_tokens += i64::from(trained);
        self.counts.see_length(ids.len());
        for turn in side.turns.iter().filter(|turn| turn.closing < turn.generated_end) {
            if let Some(id) = side.ids.get(turn.closing as usize) {
                self.counts.closing_ids.insert(*id);
            }
        }
        self.counts.pictures += side.media.len() as i64;
        self.rows.push(meta, ids, &side.turns, &spans, &side.media)
    }
}

/// The rows of a tokens batch with the weights of another specification. No text is encoded.
///
/// # Errors
/// `Error::Data` for a batch that is no tokens batch; as [`Weigher::weigh`].
pub fn reweight(batch: &RecordBatch, weigher: &Weigher) -> Result<RecordBatch, Error> {
    let mut scratch = WeighScratch::default();
    TokensReader::new(batch)?.with_spans(|ids, turns, spans| weigher.weigh(ids, turns, &mut scratch, spans))
}
