//! The data path of Postmill, with no Python in it.
pub mod conversation;
pub mod encode;
pub mod error;
pub mod json;
pub mod lines;
pub mod pack;
pub mod pipeline;
pub mod rows;
pub mod seams;
pub mod sequence;
pub mod template;
pub mod thinking;
pub mod tokens;
pub mod truncate;
pub mod types;
pub mod vocabulary;
pub mod weights;
