//! The data path of Postmill, with no Python in it: bytes of training data in, token ids with weights out, and plans
//! that pack them.
//!
//! # The way of a row
//!
//! Each folder is one step. It knows the steps before it by the values they hand over, and nothing of those behind it.
//!
//! ```text
//! bytes --input--> Record --rows--> Row --template--> Rendered --tokenizer--> Tokens --encode--> RecordBatch --pack--> Plan
//!                                    |     (agents)                  |            |
//!                                  media ----------------------------+          weigh
//! ```
//!
//! | folder | takes | gives |
//! |---|---|---|
//! | [`input`] | a file: JSON Lines, `.json`, Arrow batches | the place of each record in its bytes ([`input::lines::Record`]) |
//! | [`rows`] | a record in any common format | a [`types::Row`]: messages, a pair, a text or ids, with the marks of training |
//! | [`agents`] | messages with tools and calls | messages without, for templates that know neither |
//! | [`media`] | pictures, sounds and videos in messages | the number of tokens of each, and where they lie |
//! | [`template`] | messages and a model's Jinja template | a [`types::Rendered`]: the text, and the bytes of each turn |
//! | [`tokenizer`] | text | ids with the byte where each ends; the bytes of every id |
//! | [`weigh`] | ids and their turns | which tokens are trained on, and with what weight |
//! | [`encode`] | a chunk of records | rows of the tokens table and lines of the ledger |
//! | [`pack`] | lengths of rows | bins: which rows share one, in which order, on which rank |
//!
//! [`json`] reads and writes JSON for all of them, [`types`] holds the values they hand over, and every refusal is an
//! [`error::Error`].
//!
//! # Rules that hold everywhere
//!
//! Nothing is guessed: what is not known for certain is refused, or left to the plain reading (the `tokenizers` crate,
//! the interpreter of templates). The same input gives the same bytes for any number of threads. A weight never changes
//! an id: text is encoded first and weighed afterwards.
pub mod agents;
mod arrow;
pub mod encode;
pub mod error;
pub mod input;
pub mod json;
pub mod media;
pub mod pack;
pub mod rows;
pub mod template;
pub mod tokenizer;
pub mod types;
pub mod weigh;
