//! A model's tokenizer: text to ids and back, and what its files say of its tokens.
pub mod bpe;
pub mod char_bpe;
pub mod engine;
pub mod escape;
pub mod guard;
pub mod vocabulary;
