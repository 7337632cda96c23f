//! Rows become the tokens table: this folder calls all the others, in order.
//!
//! [`pipeline`] takes a chunk of records and gives a batch. For each row, [`conversation`] renders and encodes it; [`thinking`]
//! changes messages before that, [`seams`] finds turns among the tokens behind it; [`truncate`] cuts what is too long,
//! `weigh` weighs what is left, and [`tokens`] lays it into columns.
pub mod conversation;
pub mod pipeline;
pub mod seams;
pub mod thinking;
pub mod tokens;
pub mod truncate;

#[cfg(test)]
mod tests;
