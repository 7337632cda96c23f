//! A tokens batch read again, to weigh its rows anew.
use super::Spans;
use super::schema::{tokens_schema, with_media};
use crate::arrow::{arrow, wrong_column};
use crate::error::Error;
use crate::media::{self, column};
use crate::types::Role;
use crate::weigh::sequence::{Span, TokenTurn};
use arrow_array::types::{Float32Type, Int8Type};
use arrow_array::{
    Array, FixedSizeBinaryArray, Int32Array, LargeListArray, ListArray, PrimitiveArray, RecordBatch, StructArray,
};

/// A tokens batch read row by row.
#[derive(Debug)]
pub(crate) struct TokensReader<'a> {
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

impl<'a> TokensReader<'a> {
    /// Look at `batch`.
    ///
    /// # Errors
    /// `Error::Data` when a column is missing, or of another type.
    pub(crate) fn new(batch: &'a RecordBatch) -> Result<Self, Error> {
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
    pub(crate) fn ids(&self, row: usize) -> &'a [i32] {
        let offsets = self.ids.value_offsets();
        &self.flat_ids.values()[offsets[row] as usize..offsets[row + 1] as usize]
    }

    /// Turns of a row, into `out`.
    ///
    /// # Errors
    /// `Error::Data` when a turn does not fit its row.
    pub(crate) fn turns(&self, row: usize, out: &mut Vec<TokenTurn>) -> Result<(), Error> {
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

    /// The rows of the batch with other spans: `weigh` is called once for each row, in order.
    ///
    /// # Errors
    /// As `weigh`, and `Error::Data` as above.
    pub(crate) fn with_spans(
        &self,
        mut weigh: impl FnMut(&[i32], &[TokenTurn], &mut Vec<Span>) -> Result<(), Error>,
    ) -> Result<RecordBatch, Error> {
        let pictures = column::BatchMedia::of_batch(self.batch)?;
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
