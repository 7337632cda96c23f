//! The engine behind the trait that the chat encoder uses.

use std::sync::Mutex;

use super::{Bpe, Scratch};
use crate::encode::{Engine, Tokens};
use crate::error::Error;

/// A [`Bpe`] with a pool of working memory, one for each thread that encodes at the same time.
#[derive(Debug)]
pub struct BpeEngine {
    bpe: Bpe,
    pool: Mutex<Vec<Worker>>,
}

#[derive(Debug, Default)]
struct Worker {
    scratch: Scratch,
    ids: Vec<u32>,
}

impl BpeEngine {
    /// The engine of a compiled tokenizer.
    #[must_use]
    pub fn new(bpe: Bpe) -> Self {
        Self { bpe, pool: Mutex::default() }
    }

    /// The compiled tokenizer.
    #[must_use]
    pub fn bpe(&self) -> &Bpe {
        &self.bpe
    }

    /// Calls `work` with working memory that no other thread has.
    pub fn with_scratch<T>(&self, work: impl FnOnce(&Bpe, &mut Scratch, &mut Vec<u32>) -> T) -> T {
        // A poisoned pool only means that a worker was lost; those in it are whole.
        let pool = || self.pool.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut worker = pool().pop().unwrap_or_default();
        worker.ids.clear();
        let out = work(&self.bpe, &mut worker.scratch, &mut worker.ids);
        pool().push(worker);
        out
    }
}

impl Engine for BpeEngine {
    fn name(&self) -> String {
        concat!("postmill bpe ", env!("CARGO_PKG_VERSION")).to_owned()
    }

    fn encode(&self, text: &str, out: &mut Tokens) -> Result<(), Error> {
        self.with_scratch(|bpe, scratch, ids| {
            bpe.encode_with_ends(text, scratch, ids, &mut out.ends);
            out.ids.extend(ids.iter().map(|&id| id as i32));
        });
        Ok(())
    }
}
