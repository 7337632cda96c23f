//! The columns of the tokens table.
use crate::arrow::item;
use crate::media::column;
use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef};
use std::sync::Arc;

pub(super) fn turn_fields() -> Fields {
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

pub(super) fn span_fields() -> Fields {
    Fields::from(vec![
        Field::new("start", DataType::Int32, false),
        Field::new("end", DataType::Int32, false),
        Field::new("weight", DataType::Float32, false),
    ])
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
pub(crate) fn prompts_schema() -> SchemaRef {
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
