//! The first step: files become records, each with its line and its bytes.
//!
//! JSON Lines are the one form that everything else is turned into: [`lines`] finds records and cuts files into chunks,
//! [`json_files`] turns `.json` files into lines, [`arrow_rows`] Arrow batches. `rows` reads the records.
pub mod arrow_rows;
pub mod json_files;
pub mod lines;
