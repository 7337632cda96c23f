//! Rows to the tokens table: everything before it, in order, for one conversation, one chunk, one file.
pub mod conversation;
pub mod pipeline;
pub mod seams;
pub mod thinking;
pub mod tokens;
pub mod truncate;

#[cfg(test)]
mod tests;
