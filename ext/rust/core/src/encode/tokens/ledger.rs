//! The ledger: what became of rows that are not in the table as they were in the file.
use super::RowId;
use crate::arrow::arrow;
use crate::error::Error;
use arrow_array::builder::{FixedSizeBinaryBuilder, StringBuilder};
use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, Int32Array, Int64Array, PrimitiveArray, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use std::sync::Arc;

/// The columns of a ledger.
#[must_use]
pub(crate) fn ledger_schema() -> SchemaRef {
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

/// One line of the ledger.
#[derive(Debug, Clone)]
pub(crate) struct LedgerLine {
    /// Whose.
    pub(crate) id: RowId,
    /// Ordinal of the source.
    pub(crate) source: i32,
    /// Line in it.
    pub(crate) line: i64,
    /// `dropped`, `truncated` or `masked`.
    pub(crate) action: &'static str,
    /// A stable word.
    pub(crate) reason: Box<str>,
    /// Tokens of the row before and after; 0 where it never had any.
    pub(crate) tokens: (usize, usize),
}

/// Ledger lines as a batch.
///
/// # Errors
/// None in practice.
pub(crate) fn ledger_batch(lines: &[LedgerLine]) -> Result<RecordBatch, Error> {
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
