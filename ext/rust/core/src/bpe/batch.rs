//! Many texts, or one long one, on several threads; the ids do not depend on how many.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::engine::BpeEngine;
use super::scan::Scanner;

/// Bytes a thread takes at a time.
const CHUNK: usize = 1 << 19;

/// A part of one text.
struct Part {
    text: usize,
    bytes: Range<usize>,
}

/// Ids of all texts in a row, and where those of each text end.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Ids.
    pub ids: Vec<u32>,
    /// `offsets[i]..offsets[i + 1]` are those of text `i`; one more than there are texts.
    pub offsets: Vec<i64>,
}

impl BpeEngine {
    /// Encodes each text as [`super::Bpe::encode_into`] does, on at most `threads` threads.
    #[must_use]
    pub fn encode_batch(&self, texts: &[&str], threads: usize) -> Batch {
        let parts = self.parts(texts);
        let mut chunks = Vec::new();
        let (mut first, mut bytes) = (0, 0);
        for (i, part) in parts.iter().enumerate() {
            bytes += part.bytes.len();
            if bytes >= CHUNK || i + 1 == parts.len() {
                chunks.push(first..i + 1);
                (first, bytes) = (i + 1, 0);
            }
        }
        let next = AtomicUsize::new(0);
        let results: Vec<Mutex<(Vec<u32>, Vec<usize>)>> = chunks.iter().map(|_| Mutex::default()).collect();
        let work = || {
            while let Some((chunk, result)) =
                Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((chunks.get(i)?.clone(), results.get(i)?)))
            {
                let found = self.encode_parts(&parts[chunk], texts);
                *result.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = found;
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads.min(chunks.len()) {
                scope.spawn(work);
            }
            work();
        });
        let mut lengths = vec![0i64; texts.len()];
        let mut pieces = Vec::with_capacity(results.len());
        for (chunk, result) in chunks.into_iter().zip(results) {
            let (ids, counts) = result.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            for (part, count) in parts[chunk].iter().zip(counts) {
                lengths[part.text] += count as i64;
            }
            pieces.push(ids);
        }
        let mut offsets = vec![0];
        offsets.extend(lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        }));
        let ids = if pieces.len() == 1 { pieces.swap_remove(0) } else { pieces.concat() };
        Batch { ids, offsets }
    }

    /// Ids of all parts, and how many each has.
    fn encode_parts(&self, parts: &[Part], texts: &[&str]) -> (Vec<u32>, Vec<usize>) {
        self.with_scratch(|bpe, scratch| {
            let bytes: usize = parts.iter().map(|part| part.bytes.len()).sum();
            let (mut ids, mut counts) = (Vec::with_capacity(bytes / 3), Vec::with_capacity(parts.len()));
            for part in parts {
                let before = ids.len();
                bpe.encode_into(&texts[part.text][part.bytes.clone()], scratch, &mut ids);
                counts.push(ids.len() - before);
            }
            (ids, counts)
        })
    }

    /// The texts, long ones cut where that changes nothing.
    fn parts(&self, texts: &[&str]) -> Vec<Part> {
        let mut parts = Vec::with_capacity(texts.len());
        for (i, text) in texts.iter().enumerate() {
            let mut start = 0;
            while self.bpe().has_seams() && text.len() - start > 2 * CHUNK {
                let from = start + CHUNK;
                let Some(seam) = (from..text.len()).find(|&at| Scanner::is_seam(text.as_bytes(), at)) else { break };
                parts.push(Part { text: i, bytes: start..seam });
                start = seam;
            }
            parts.push(Part { text: i, bytes: start..text.len() });
        }
        parts
    }
}
