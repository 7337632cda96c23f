//! The data path of Postmill, with no Python in it.
pub mod error;
pub mod json;
pub mod lines;
pub mod pack;
pub mod template;
pub mod types;
