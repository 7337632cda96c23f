//! The data path of Postmill, with no Python in it.
pub mod agents;
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
