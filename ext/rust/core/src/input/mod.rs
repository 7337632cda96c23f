//! Bytes to records: lines, JSON files and Arrow batches, each record with its place.
pub mod arrow_rows;
pub mod json_files;
pub mod lines;
