//! Many texts, or one long one, on several threads; the ids do not depend on how many.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Bpe;
use super::scan::Scanner;
use super::words::WordScratch;
use crate::tokenizer::engine::Batch;

/// Bytes a thread takes at a time.
const CHUNK: usize = 1 << 18;

/// A part of one text.
struct TextPart {
    text: usize,
    bytes: Range<usize>,
}

/// What is done so far: the ids of the first chunks, and chunks that were done before one in front of them.
#[derive(Default)]
struct Done {
    ids: Vec<u32>,
    /// How many ids each part has.
    counts: Vec<usize>,
    /// Chunks whose ids are in `ids`.
    chunks: usize,
    /// By number, chunks that wait for another.
    early: Vec<(usize, EncodedParts)>,
}

/// Ids of the parts of a chunk, and how many each has.
#[derive(Default)]
struct EncodedParts {
    ids: Vec<u32>,
    counts: Vec<usize>,
}

impl Done {
    /// Takes a chunk and gives back one whose memory may be used again.
    fn take(&mut self, chunk: usize, encoded: EncodedParts) -> EncodedParts {
        self.early.push((chunk, encoded));
        let mut free = EncodedParts::default();
        while let Some(at) = self.early.iter().position(|(chunk, _)| *chunk == self.chunks) {
            free = self.early.swap_remove(at).1;
            self.ids.extend_from_slice(&free.ids);
            self.counts.extend_from_slice(&free.counts);
            self.chunks += 1;
        }
        free.ids.clear();
        free.counts.clear();
        free
    }
}

impl Bpe {
    /// Encodes each text as [`Bpe::encode_into`] does, on at most `threads` threads.
    #[must_use]
    pub fn encode_batch(&self, texts: &[&str], threads: usize) -> Batch {
        let parts = self.parts(texts);
        let mut chunks = Vec::new();
        let (mut first, mut bytes, mut total) = (0, 0, 0);
        for (i, part) in parts.iter().enumerate() {
            bytes += part.bytes.len();
            if bytes >= CHUNK || i + 1 == parts.len() {
                chunks.push(first..i + 1);
                total += bytes;
                (first, bytes) = (i + 1, 0);
            }
        }
        // Three bytes a token are less than most texts have; what is not written to costs nothing.
        let ids = Vec::with_capacity(total / 3 + 16);
        let mut done = Done { ids, counts: Vec::with_capacity(parts.len()), ..Done::default() };
        let threads = threads.min(chunks.len());
        if threads <= 1 {
            self.with_scratch(|scratch| self.encode_parts(&parts, texts, scratch, &mut done.ids, &mut done.counts));
        } else {
            let (next, shared) = (AtomicUsize::new(0), Mutex::new(std::mem::take(&mut done)));
            let work = || {
                self.with_scratch(|scratch| {
                    let mut memory = EncodedParts::default();
                    while let Some((chunk, range)) =
                        Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, chunks.get(i)?.clone())))
                    {
                        self.encode_parts(&parts[range], texts, scratch, &mut memory.ids, &mut memory.counts);
                        memory = shared.lock().unwrap_or_else(PoisonError::into_inner).take(chunk, memory);
                    }
                });
            };
            std::thread::scope(|scope| {
                for _ in 1..threads {
                    scope.spawn(work);
                }
                work();
            });
            done = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        }
        let mut offsets = vec![0; texts.len() + 1];
        for (part, count) in parts.iter().zip(done.counts) {
            offsets[part.text + 1] += count as i64;
        }
        for i in 1..offsets.len() {
            offsets[i] += offsets[i - 1];
        }
        Batch { ids: done.ids, offsets }
    }

    /// Appends the ids of all parts, and how many each has.
    fn encode_parts(
        &self,
        parts: &[TextPart],
        texts: &[&str],
        scratch: &mut WordScratch,
        ids: &mut Vec<u32>,
        counts: &mut Vec<usize>,
    ) {
        for part in parts {
            let before = ids.len();
            self.encode_with(&texts[part.text][part.bytes.clone()], scratch, ids, |_, _| {});
            counts.push(ids.len() - before);
        }
    }

    /// The texts, long ones cut where that changes nothing.
    fn parts(&self, texts: &[&str]) -> Vec<TextPart> {
        let mut parts = Vec::with_capacity(texts.len());
        for (i, text) in texts.iter().enumerate() {
            let mut start = 0;
            while self.has_seams() && text.len() - start > 2 * CHUNK {
                let from = start + CHUNK;
                let Some(seam) = (from..text.len()).find(|&at| Scanner::is_seam(text.as_bytes(), at)) else { break };
                parts.push(TextPart { text: i, bytes: start..seam });
                start = seam;
            }
            parts.push(TextPart { text: i, bytes: start..text.len() });
        }
        parts
    }
}
