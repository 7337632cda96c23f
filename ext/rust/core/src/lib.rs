//! The data path of Postmill, with no Python in it.
pub mod types;
