//! The engine behind the trait that the chat encoder uses.

use std::sync::Mutex;

use super::{Bpe, Scratch};
use crate::error::Error;
use crate::tokenizer::engine::{Engine, Tokens};

/// A [`Bpe`] with a pool of working memory, one for each thread that encodes at the same time.
#[derive(Debug)]
pub struct BpeEngine {
    bpe: Bpe,
    pool: Mutex<Vec<Scratch>>,
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
    pub fn with_scratch<T>(&self, work: impl FnOnce(&Bpe, &mut Scratch) -> T) -> T {
        // A poisoned pool only means that a worker was lost; those in it are whole.
        let pool = || self.pool.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut scratch = pool().pop().unwrap_or_default();
        let out = work(&self.bpe, &mut scratch);
        pool().push(scratch);
        out
    }
}

impl Engine for BpeEngine {
    fn name(&self) -> String {
        concat!("postmill bpe ", env!("CARGO_PKG_VERSION")).to_owned()
    }

    fn encode(&self, text: &str, out: &mut Tokens) -> Result<(), Error> {
        let mut ids = unsigned(&mut out.ids);
        self.with_scratch(|bpe, scratch| bpe.encode_with_ends(text, scratch, &mut ids, &mut out.ends));
        out.ids = signed(ids);
        Ok(())
    }

    fn encode_at(
        &self,
        text: &str,
        places: &[u32],
        out: &mut Tokens,
        found: &mut Vec<(u32, bool)>,
    ) -> Result<(), Error> {
        let mut ids = unsigned(&mut out.ids);
        let done = self.with_scratch(|bpe, scratch| bpe.encode_at(text, places, scratch, &mut ids, found));
        out.ids = signed(ids);
        if done {
            return Ok(());
        }
        self.encode(text, out)?;
        out.find_places(places, found);
        Ok(())
    }
}

/// The same memory under the other sign: collecting a vector's own items of one size moves nothing.
fn unsigned(ids: &mut Vec<i32>) -> Vec<u32> {
    std::mem::take(ids).into_iter().map(i32::cast_unsigned).collect()
}

fn signed(ids: Vec<u32>) -> Vec<i32> {
    ids.into_iter().map(u32::cast_signed).collect()
}
