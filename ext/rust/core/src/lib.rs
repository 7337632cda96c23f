//! The data path of Postmill, with no Python in it.
pub mod error;
pub mod template;
pub mod types;
