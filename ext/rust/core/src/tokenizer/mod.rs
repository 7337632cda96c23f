//! A model's tokenizer: text to ids and back, and what its files say of its tokens.
//!
//! [`vocabulary::load`] reads a `tokenizer.json` and picks the engine: [`bpe`] for byte-level models, [`char_bpe`] for
//! those of `SentencePiece`, and the `tokenizers` crate behind [`guard`] for whatever neither knows for certain. All three
//! are an [`engine::Engine`] and give the same ids. [`special`] finds special tokens in texts, for all of them and for templates;
//! [`escape`] encodes those that stand in messages as plain text.
mod added;
pub mod bpe;
mod byte_alphabet;
pub mod char_bpe;
pub mod engine;
pub mod escape;
pub mod guard;
pub(crate) mod special;
pub mod vocabulary;
