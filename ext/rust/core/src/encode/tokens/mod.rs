//! Rows of tokens as Arrow batches, and back: the `tokens` table and its ledger.
//!
//! The schema is `TOKENS_V1` of `docs/formats.md`; ids lie in one flat column, weights are run-length spans.
mod ledger;
mod reader;
mod schema;

use crate::arrow::{arrow, item, offsets};
use crate::error::Error;
use crate::media::{self, column};
use crate::weigh::sequence::{Span, TokenTurn, totals};
use arrow_array::builder::{FixedSizeBinaryBuilder, StringBuilder};
use arrow_array::{
    ArrayRef, Float32Array, Float64Array, Int8Array, Int32Array, Int64Array, LargeListArray, ListArray, RecordBatch,
    StructArray,
};
use arrow_schema::DataType;
use std::sync::Arc;

pub(crate) use ledger::{LedgerLine, ledger_batch};
pub(crate) use reader::TokensReader;
use schema::{prompts_schema, span_fields, turn_fields};
pub use schema::{tokens_schema, with_media};

/// Identity of a row: xxh3-128 of the record's bytes and where it stood.
pub(crate) type RowId = [u8; 16];

/// What a row carries besides its tokens.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RowMeta<'a> {
    /// Identity.
    pub(crate) id: RowId,
    /// Ordinal of the source.
    pub(crate) source: i32,
    /// Line in it, from 1.
    pub(crate) line: i64,
    /// For loss by source.
    pub(crate) channel: Option<&'a str>,
    /// Identity shared by the two sides of a pair, and the side: 0 chosen, 1 rejected.
    pub(crate) pair: Option<(RowId, i8)>,
    /// Preference margin.
    pub(crate) margin: Option<f64>,
    /// KTO label, class or score.
    pub(crate) label: Option<f64>,
    /// Other columns, canonical JSON.
    pub(crate) extra: Option<&'a str>,
    /// Of a prompt: its messages, canonical JSON.
    pub(crate) messages: Option<&'a str>,
    /// Of a prompt: its tools, canonical JSON.
    pub(crate) tools: Option<&'a str>,
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

/// Rows on their way into a batch.
#[derive(Debug)]
pub(crate) struct TokensBuilder {
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

impl TokensBuilder {
    /// For the rows of about this many bytes of text; of a table of prompts, if they are some; with pictures, if the
    /// model reads some.
    #[must_use]
    pub(crate) fn for_bytes(bytes: usize, are_prompts: bool, has_media: bool) -> Self {
        Self {
            row_id: FixedSizeBinaryBuilder::new(16),
            source: vec![],
            line: vec![],
            ids: Vec::with_capacity(bytes / 4),
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
            prompts: are_prompts.then(Default::default),
            media: has_media.then(Default::default),
        }
    }

    /// Append a row.
    ///
    /// # Errors
    /// None in practice: identities are 16 bytes by their type.
    pub(crate) fn push(
        &mut self,
        meta: &RowMeta,
        ids: &[i32],
        turns: &[TokenTurn],
        spans: &[Span],
        pictures: &[media::MediaSpan],
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
    pub(crate) fn finish(mut self) -> Result<RecordBatch, Error> {
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
