//! What tables of Arrow need here and there: items of lists, offsets, and errors.
use crate::error::Error;
use arrow_buffer::{OffsetBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType, Field, FieldRef};
use std::sync::Arc;

/// The field of a list whose items are never null.
pub(crate) fn item(data_type: DataType) -> FieldRef {
    Arc::new(Field::new("item", data_type, false))
}

/// An error of the Arrow crate about a table of tokens.
pub(crate) fn arrow(error: &ArrowError) -> Error {
    Error::Data { place: "tokens".into(), message: error.to_string().into() }
}

/// Offsets of lists; of none where no row was added.
pub(crate) fn offsets<T: arrow_array::OffsetSizeTrait>(mut offsets: Vec<T>) -> OffsetBuffer<T> {
    if offsets.is_empty() {
        offsets.push(T::default());
    }
    OffsetBuffer::new(ScalarBuffer::from(offsets))
}

/// A table of tokens that lacks a column.
pub(crate) fn wrong_column(name: &str) -> Error {
    let message = format!("column \"{name}\" is missing or of another type; run tokenize again");
    Error::Data { place: "tokens".into(), message: message.into() }
}
