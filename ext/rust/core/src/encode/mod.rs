//! Rows become the tokens table: this folder calls all the others, in order.
//!
//! [`pipeline`] takes a chunk of records and gives a batch and its [`counts`]. An [`encoder`] holds the parts and the
//! [`options`] of a run. For
//! each row, `prepare` brings the messages into the form that the template is to see ([`thinking`] changes some),
//! [`conversation`] renders and encodes them, [`seams`] finds their turns among the tokens, [`truncate`] cuts what is too long
//! and weighs what is left, and [`tokens`] lays it into columns.
pub(crate) mod conversation;
pub mod counts;
pub mod encoder;
pub mod options;
pub mod pipeline;
mod prepare;
pub(crate) mod seams;
pub(crate) mod thinking;
pub mod tokens;
pub(crate) mod truncate;

#[cfg(test)]
mod tests;
