//! Rows of tokens as Arrow batches, and back: the `tokens` table and its ledger.
//!
//! The schema is `TOKENS_V1` of `docs/formats.md`; ids lie in one flat column, weights are run-length spans.
use crate::error::Error;
use crate::media;
use crate::media::column;
use crate::types::Role;
use crate::weigh::sequence::{Span, TokenTurn, totals};
use arrow_array::builder::{FixedSizeBinaryBuilder, StringBuilder};
use arrow_array::types::{Float32Type, Int8Type, Int32Type};
use arrow_array::{
    Array, ArrayRef, FixedSizeBinaryArray, Float32Array, Float64Array, Int8Array, Int32Array, Int64Array,
    LargeListArray, ListArray, PrimitiveArray, RecordBatch, StructArray,
};
use arrow_buffer::{OffsetBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use std::sync::Arc;

/// Identity of a row: xxh3-128 of the record's bytes and where it stood.
pub type RowId = [u8; 16];

/// What a row carries besides its tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct RowMeta<'a> {
    /// Identity.
    pub id: RowId,
    /// Ordinal of the source.
    pub source: i32,
    /// Line in it, from 1.
    pub line: i64,
    /// For loss by source.
    pub channel: Option<&'a str>,
    /// Identity shared by the two sides of a pair, and the side: 0 chosen, 1 rejected.
    pub pair: Option<(RowId, i8)>,
    /// Preference margin.
    pub margin: Option<f64>,
    /// KTO label, class or score.
    pub label: Option<f64>,
    /// Other columns, canonical JSON.
    pub extra: Option<&'a str>,
    /// Of a prompt: its messages, canonical JSON.
    pub messages: Option<&'a str>,
    /// Of a prompt: its tools, canonical JSON.
    pub tools: Option<&'a str>,
}

fn turn_fields() -> Fields {
    let int = |name: &str| Field::new(name, DataType::Int32, false);
    Fields::from(vec![
        int("start"),
        int("end"),
        int("generated_start"),
        int("generated_end"),
        int("closing"),
        Field::new("role", DataType::Int8, false),
        int("message"),
        Field::new("loss", DataType::Int8, false),
        Field::new("loss_scale", DataType::Float32, true),
    ])
}

fn span_fields() -> Fields {
    Fields::from(vec![
        Field::new("start", DataType::Int32, false),
        Field::new("end", DataType::Int32, false),
        Field::new("weight", DataType::Float32, false),
    ])
}

pub(crate) fn item(data_type: DataType) -> FieldRef {
    Arc::new(Field::new("item", data_type, false))
}

/// The columns of a tokens table.
#[must_use]
pub fn tokens_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("row_id", DataType::FixedSizeBinary(16), false),
        Field::new("source", DataType::Int32, false),
        Field::new("line", DataType::Int64, false),
        Field::new("input_ids", DataType::LargeList(item(DataType::Int32)), false),
        Field::new("turns", DataType::List(item(DataType::Struct(turn_fields()))), false),
        Field::new("spans", DataType::List(item(DataType::Struct(span_fields()))), false),
        Field::new("length", DataType::Int32, false),
        Field::new("trained_tokens", DataType::Int32, false),
        Field::new("weight_sum", DataType::Float64, false),
        Field::new("channel", DataType::Utf8, true),
        Field::new("pair_id", DataType::FixedSizeBinary(16), true),
        Field::new("side", DataType::Int8, true),
        Field::new("margin", DataType::Float64, true),
        Field::new("label", DataType::Float64, true),
        Field::new("extra", DataType::Utf8, true),
    ]))
}

/// The columns of a table of prompts: those of tokens, and what environments and judges read.
#[must_use]
pub fn prompts_schema() -> SchemaRef {
    let more = ["messages", "tools"].map(|name| Arc::new(Field::new(name, DataType::Utf8, true)));
    let fields = tokens_schema().fields().iter().cloned().chain(more).collect::<Vec<_>>();
    Arc::new(Schema::new(fields))
}

/// `schema` with the column of pictures.
#[must_use]
pub fn with_media(schema: &SchemaRef) -> SchemaRef {
    let more = Arc::new(Field::new("media", DataType::List(item(DataType::Struct(column::fields()))), false));
    Arc::new(Schema::new(schema.fields().iter().cloned().chain([more]).collect::<Vec<_>>()))
}

/// The columns of a ledger.
#[must_use]
pub fn ledger_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("row_id", DataType::FixedSizeBinary(16), true),
        Field::new("source", DataType::Int32, false),
        Field::new("line", DataType::Int64, false),
        Field::new("action", DataType::Utf8, false),
        Field::new("reason", DataType::Utf8, false),
        Field::new("tokens_before", DataType::Int32, true),
        Field::new("tokens_after", DataType::Int32, true),
    ]))
}

pub(crate) fn arrow(error: &ArrowError) -> Error {
    Error::Data { place: "tokens".into(), message: error.to_string().into() }
}

/// Spans of many rows, column by column.
#[derive(Debug, Default)]
struct Spans {
    offsets: Vec<i32>,
    start: Vec<i32>,
    end: Vec<i32>,
    weight: Vec<f32>,
    trained: Vec<i32>,
    weight_sum: Vec<f64>,
}

impl Spans {
    fn push(&mut self, spans: &[Span]) {
        if self.offsets.is_empty() {
            self.offsets.push(0);
        }
        for span in spans {
            self.start.push(span.start);
            self.end.push(span.end);
            self.weight.push(span.weight);
        }
        self.offsets.push(self.start.len() as i32);
        let (trained, sum) = totals(spans);
        self.trained.push(trained);
        self.weight_sum.push(sum);
    }

    fn finish(self) -> Result<[ArrayRef; 3], Error> {
        let values = StructArray::try_new(
            span_fields(),
            vec![
                Arc::new(Int32Array::from(self.start)),
                Arc::new(Int32Array::from(self.end)),
                Arc::new(Float32Array::from(self.weight)),
            ],
            None,
        );
        let list = values.and_then(|values| {
            let field = item(DataType::Struct(span_fields()));
            ListArray::try_new(field, offsets(self.offsets), Arc::new(values), None)
        });
        Ok([
            Arc::new(list.map_err(|error| arrow(&error))?),
            Arc::new(Int32Array::from(self.trained)),
            Arc::new(Float64Array::from(self.weight_sum)),
        ])
    }
}

pub(crate) fn offsets<T: arrow_array::OffsetSizeTrait>(mut offsets: Vec<T>) -> OffsetBuffer<T> {
    if offsets.is_empty() {
        offsets.push(T::default());
    }
    OffsetBuffer::new(ScalarBuffer::from(offsets))
}

/// Rows on their way into a batch.
#[derive(Debug)]
pub struct TokensBuilder {
    row_id: FixedSizeBinaryBuilder,
    source: Vec<i32>,
    line: Vec<i64>,
    ids: Vec<i32>,
    id_offsets: Vec<i64>,
    turn_offsets: Vec<i32>,
    turn_ints: [Vec<i32>; 6],
    turn_role: Vec<i8>,
    turn_loss: Vec<i8>,
    turn_scale: Vec<Option<f32>>,
    spans: Spans,
    length: Vec<i32>,
    channel: StringBuilder,
    pair_id: FixedSizeBinaryBuilder,
    side: Vec<Option<i8>>,
    margin: Vec<Option<f64>>,
    label: Vec<Option<f64>>,
    extra: StringBuilder,
    /// Messages and tools, in a table of prompts.
    prompts: Option<[StringBuilder; 2]>,
    /// Pictures, where the model reads some.
    media: Option<column::MediaColumn>,
}

impl Default for TokensBuilder {
    fn default() -> Self {
        Self {
            row_id: FixedSizeBinaryBuilder::new(16),
            source: vec![],
            line: vec![],
            ids: vec![],
            id_offsets: vec![0],
            turn_offsets: vec![0],
            turn_ints: Default::default(),
            turn_role: vec![],
            turn_loss: vec![],
            turn_scale: vec![],
            spans: Spans::default(),
            length: vec![],
            channel: StringBuilder::new(),
            pair_id: FixedSizeBinaryBuilder::new(16),
            side: vec![],
            margin: vec![],
            label: vec![],
            extra: StringBuilder::new(),
            prompts: None,
            media: None,
        }
    }
}

impl TokensBuilder {
    /// For the rows of about this many bytes of text; of a table of prompts, if they are some; with pictures, if the
    /// model reads some.
    #[must_use]
    pub fn for_bytes(bytes: usize, are_prompts: bool, has_media: bool) -> Self {
        let prompts = are_prompts.then(Default::default);
        let media = has_media.then(Default::default);
        Self { ids: Vec::with_capacity(bytes / 4), prompts, media, ..Self::default() }
    }

    /// Number of rows so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length.len()
    }

    /// Whether there is no row yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length.is_empty()
    }

    /// Append a row.
    ///
    /// # Errors
    /// None in practice: identities are 16 bytes by their type.
    pub fn push(
        &mut self,
        meta: &RowMeta,
        ids: &[i32],
        turns: &[TokenTurn],
        spans: &[Span],
        pictures: &[media::Span],
    ) -> Result<(), Error> {
        self.row_id.append_value(meta.id).map_err(|error| arrow(&error))?;
        self.source.push(meta.source);
        self.line.push(meta.line);
        self.ids.extend_from_slice(ids);
        self.id_offsets.push(self.ids.len() as i64);
        for turn in turns {
            let ints = [turn.start, turn.end, turn.generated_start, turn.generated_end, turn.closing, turn.message];
            for (column, value) in self.turn_ints.iter_mut().zip(ints) {
                column.push(value);
            }
            self.turn_role.push(turn.role as i8);
            self.turn_loss.push(turn.loss.map_or(-1, i8::from));
            self.turn_scale.push(turn.loss_scale);
        }
        self.turn_offsets.push(self.turn_role.len() as i32);
        self.spans.push(spans);
        self.length.push(ids.len() as i32);
        self.channel.append_option(meta.channel);
        if let Some((id, _)) = meta.pair {
            self.pair_id.append_value(id).map_err(|error| arrow(&error))?;
        } else {
            self.pair_id.append_null();
        }
        self.side.push(meta.pair.map(|(_, side)| side));
        self.margin.push(meta.margin);
        self.label.push(meta.label);
        self.extra.append_option(meta.extra);
        if let Some(media) = &mut self.media {
            media.push(pictures)?;
        }
        if let Some([messages, tools]) = &mut self.prompts {
            messages.append_option(meta.messages);
            tools.append_option(meta.tools);
        }
        Ok(())
    }

    /// The batch.
    ///
    /// # Errors
    /// `Error::Data` when a column outgrew its offsets.
    pub fn finish(mut self) -> Result<RecordBatch, Error> {
        let [start, end, generated_start, generated_end, closing, message] = self.turn_ints;
        let int = |values: Vec<i32>| Arc::new(Int32Array::from(values)) as ArrayRef;
        let turns = StructArray::try_new(
            turn_fields(),
            vec![
                int(start),
                int(end),
                int(generated_start),
                int(generated_end),
                int(closing),
                Arc::new(Int8Array::from(self.turn_role)),
                int(message),
                Arc::new(Int8Array::from(self.turn_loss)),
                Arc::new(Float32Array::from(self.turn_scale)),
            ],
            None,
        );
        let turn_item = item(DataType::Struct(turn_fields()));
        let turns = turns
            .and_then(|turns| ListArray::try_new(turn_item, offsets(self.turn_offsets), Arc::new(turns), None))
            .map_err(|error| arrow(&error))?;
        let ids = Arc::new(Int32Array::from(self.ids));
        let ids = LargeListArray::try_new(item(DataType::Int32), offsets(self.id_offsets), ids, None)
            .map_err(|error| arrow(&error))?;
        let [spans, trained, weight_sum] = self.spans.finish()?;
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(self.row_id.finish()),
            int(self.source),
            Arc::new(Int64Array::from(self.line)),
            Arc::new(ids),
            Arc::new(turns),
            spans,
            int(self.length),
            trained,
            weight_sum,
            Arc::new(self.channel.finish()),
            Arc::new(self.pair_id.finish()),
            Arc::new(Int8Array::from(self.side)),
            Arc::new(Float64Array::from(self.margin)),
            Arc::new(Float64Array::from(self.label)),
            Arc::new(self.extra.finish()),
        ];
        let mut schema = tokens_schema();
        if let Some(mut prompts) = self.prompts {
            schema = prompts_schema();
            columns.extend(prompts.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef));
        }
        if let Some(media) = self.media {
            schema = with_media(&schema);
            columns.push(media.finish()?);
        }
        RecordBatch::try_new(schema, columns).map_err(|error| arrow(&error))
    }
}

/// One line of the ledger.
#[derive(Debug, Clone)]
pub struct LedgerLine {
    /// Whose.
    pub id: RowId,
    /// Ordinal of the source.
    pub source: i32,
    /// Line in it.
    pub line: i64,
    /// `dropped`, `truncated` or `masked`.
    pub action: &'static str,
    /// A stable word.
    pub reason: Box<str>,
    /// Tokens of the row before and after; 0 where it never had any.
    pub tokens: (usize, usize),
}

/// Ledger lines as a batch.
///
/// # Errors
/// None in practice.
pub fn ledger_batch(lines: &[LedgerLine]) -> Result<RecordBatch, Error> {
    let mut ids = FixedSizeBinaryBuilder::new(16);
    let (mut action, mut reason) = (StringBuilder::new(), StringBuilder::new());
    for line in lines {
        ids.append_value(line.id).map_err(|error| arrow(&error))?;
        action.append_value(line.action);
        reason.append_value(&line.reason);
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(ids.finish()),
        Arc::new(lines.iter().map(|line| line.source).collect::<PrimitiveArray<Int32Type>>()),
        Arc::new(Int64Array::from_iter_values(lines.iter().map(|line| line.line))),
        Arc::new(action.finish()),
        Arc::new(reason.finish()),
        Arc::new(Int32Array::from_iter_values(lines.iter().map(|line| line.tokens.0 as i32))),
        Arc::new(Int32Array::from_iter_values(lines.iter().map(|line| line.tokens.1 as i32))),
    ];
    RecordBatch::try_new(ledger_schema(), columns).map_err(|error| arrow(&error))
}

/// A tokens batch read row by row.
#[derive(Debug)]
pub struct TokensReader<'a> {
    batch: &'a RecordBatch,
    ids: &'a LargeListArray,
    flat_ids: &'a Int32Array,
    turns: &'a ListArray,
    turn_ints: [&'a Int32Array; 6],
    turn_role: &'a PrimitiveArray<Int8Type>,
    turn_loss: &'a PrimitiveArray<Int8Type>,
    turn_scale: &'a PrimitiveArray<Float32Type>,
}

fn column<'a, T: Array + 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a T, Error> {
    batch.column_by_name(name).and_then(|column| column.as_any().downcast_ref()).ok_or_else(|| wrong_column(name))
}

fn child<'a, T: Array + 'static>(parent: &'a StructArray, name: &str) -> Result<&'a T, Error> {
    parent.column_by_name(name).and_then(|column| column.as_any().downcast_ref()).ok_or_else(|| wrong_column(name))
}

pub(crate) fn wrong_column(name: &str) -> Error {
    let message = format!("column \"{name}\" is missing or of another type; run tokenize again");
    Error::Data { place: "tokens".into(), message: message.into() }
}

impl<'a> TokensReader<'a> {
    /// Look at `batch`.
    ///
    /// # Errors
    /// `Error::Data` when a column is missing, or of another type.
    pub fn new(batch: &'a RecordBatch) -> Result<Self, Error> {
        let ids: &LargeListArray = column(batch, "input_ids")?;
        let flat_ids = ids.values().as_any().downcast_ref().ok_or_else(|| wrong_column("input_ids"))?;
        let turns: &ListArray = column(batch, "turns")?;
        let parts: &StructArray = turns.values().as_any().downcast_ref().ok_or_else(|| wrong_column("turns"))?;
        let _: &FixedSizeBinaryArray = column(batch, "row_id")?;
        Ok(Self {
            batch,
            ids,
            flat_ids,
            turns,
            turn_ints: [
                child(parts, "start")?,
                child(parts, "end")?,
                child(parts, "generated_start")?,
                child(parts, "generated_end")?,
                child(parts, "closing")?,
                child(parts, "message")?,
            ],
            turn_role: child(parts, "role")?,
            turn_loss: child(parts, "loss")?,
            turn_scale: child(parts, "loss_scale")?,
        })
    }

    /// Ids of a row.
    #[must_use]
    pub fn ids(&self, row: usize) -> &'a [i32] {
        let offsets = self.ids.value_offsets();
        &self.flat_ids.values()[offsets[row] as usize..offsets[row + 1] as usize]
    }

    /// Turns of a row, into `out`.
    ///
    /// # Errors
    /// `Error::Data` when a turn does not fit its row.
    pub fn turns(&self, row: usize, out: &mut Vec<TokenTurn>) -> Result<(), Error> {
        out.clear();
        let offsets = self.turns.value_offsets();
        let length = self.ids(row).len() as i32;
        let mut last = 0;
        for at in offsets[row] as usize..offsets[row + 1] as usize {
            let [start, end, generated_start, generated_end, closing, message] =
                self.turn_ints.map(|column| column.value(at));
            let role = match self.turn_role.value(at) {
                0 => Role::System,
                1 => Role::User,
                2 => Role::Assistant,
                _ => Role::Tool,
            };
            let order = [last, start, generated_start, closing, generated_end, end, length];
            if role == Role::Assistant && !order.is_sorted() || !(last <= start && start <= end && end <= length) {
                let message = format!("turns of row {row} do not fit its tokens; run tokenize again");
                return Err(Error::Data { place: "tokens".into(), message: message.into() });
            }
            last = end;
            let loss = match self.turn_loss.value(at) {
                -1 => None,
                flag => Some(flag != 0),
            };
            let loss_scale = self.turn_scale.is_valid(at).then(|| self.turn_scale.value(at));
            out.push(TokenTurn {
                start,
                end,
                generated_start,
                generated_end,
                closing,
                role,
                message,
                loss,
                loss_scale,
            });
        }
        Ok(())
    }

    /// The same rows with other spans (one call of `weigh` a row, in order).
    ///
    /// # Errors
    /// As `weigh`, and `Error::Data` as above.
    pub fn with_spans(
        &self,
        mut weigh: impl FnMut(&[i32], &[TokenTurn], &mut Vec<Span>) -> Result<(), Error>,
    ) -> Result<RecordBatch, Error> {
        let pictures = column::Places::of_batch(self.batch)?;
        let (mut turns, mut spans, mut out) = (vec![], vec![], Spans::default());
        for row in 0..self.batch.num_rows() {
            self.turns(row, &mut turns)?;
            weigh(self.ids(row), &turns, &mut spans)?;
            if let Some(pictures) = &pictures {
                media::expand::unweigh(&mut spans, &pictures.of(row));
            }
            out.push(&spans);
        }
        let mut columns = self.batch.columns().to_vec();
        let schema = self.batch.schema();
        for (name, array) in ["spans", "trained_tokens", "weight_sum"].iter().zip(out.finish()?) {
            let index = schema.index_of(name).map_err(|error| arrow(&error))?;
            columns[index] = array;
        }
        let plain = tokens_schema();
        let schema = if pictures.is_some() { with_media(&plain) } else { plain };
        RecordBatch::try_new(schema, columns).map_err(|error| arrow(&error))
    }
}
