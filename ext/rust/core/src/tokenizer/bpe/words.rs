//! Words -> ids. Words are queued, so that their lines of the cache are on the way while others are scanned; long words that
//! are not ASCII are queued in pieces.

use super::Bpe;
use super::cache::{self, Key, MAX_WORD, WordCache};
use super::cuts::Borders;
use super::merge::{self, MergeScratch};
use super::phrases::{self, Phrases};
use super::tables::Tables;

/// Words that are scanned before the first is looked up.
const BATCH: usize = 128;
/// Room of the queue, a power of two: a batch with what the last block adds to it, and pieces up to [`FULL`].
const QUEUE: usize = 512;
const FULL: usize = 256;

/// Working memory of one thread. It remembers words by their ids, so a [`Bpe`] keeps its own and lends it out.
#[derive(Debug, Default)]
pub(super) struct WordScratch {
    work: Work,
    ends: Vec<usize>,
}

#[derive(Debug, Default)]
struct Work {
    queue: Queue,
    merge: MergeScratch,
    block: Borders,
}

/// A word, or a piece of one that is encoded by itself, or the ids of some.
#[derive(Debug, Clone, Copy, Default)]
struct Queued {
    /// That of the word cache; of [`IDS`] up to four ids; of longer ones start and end.
    key: Key,
    /// The hash of the key, of [`IDS`] their number; and above it one of the values below.
    tag: u64,
}

/// Of at most [`MAX_WORD`] bytes.
const SHORT: u64 = 0;
/// Ids.
const IDS: u64 = 1 << 32;
/// A longer word.
const WORD: u64 = 2 << 32;
/// A longer piece of one.
const PIECE: u64 = 3 << 32;

#[derive(Debug)]
struct Queue {
    cache: WordCache,
    phrases: Phrases,
    pieces: Box<[Queued; QUEUE]>,
    len: usize,
}

impl Default for Queue {
    fn default() -> Self {
        let pieces = Box::new([Queued::default(); QUEUE]);
        Self { cache: WordCache::default(), phrases: Phrases::default(), pieces, len: 0 }
    }
}

impl Queue {
    #[inline]
    fn push(&mut self, key: Key, tag: u64) {
        self.pieces[self.len % QUEUE] = Queued { key, tag };
        self.len += 1;
    }

    /// A word or piece of at most [`MAX_WORD`] bytes.
    #[inline]
    fn push_key(&mut self, key: Key) {
        let hash = cache::hash(key);
        self.cache.prefetch(hash);
        self.push(key, SHORT | u64::from(hash));
    }

    #[inline]
    fn push_ids(&mut self, ids: [u32; 4], len: u32) {
        let two = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        self.push([two(ids[0], ids[1]), two(ids[2], ids[3])], IDS | u64::from(len));
    }

    /// A longer one; `kind` is [`WORD`] or [`PIECE`].
    #[inline]
    fn push_long(&mut self, bytes: &[u8], start: usize, end: usize, kind: u64) {
        let hash = self.phrases.ask(&bytes[start..end], kind == PIECE);
        self.push([start as u64, end as u64], kind | u64::from(hash));
    }

    /// Appends the ids of all that is queued.
    #[inline(never)]
    fn flush(&mut self, tables: &Tables, bytes: &[u8], merge: &mut MergeScratch, ids: &mut Vec<u32>) {
        let len = std::mem::take(&mut self.len).min(QUEUE);
        let Self { cache, phrases, pieces, .. } = self;
        // Room for four ids of each piece that is left, at any time.
        ids.reserve(4 * len);
        for (left, &Queued { key, tag }) in (0..len).rev().zip(pieces.iter()) {
            let hash = tag as u32;
            if tag <= u32::MAX.into() {
                if let Some(few) = cache.get(hash, key) {
                    // SAFETY: the room above.
                    unsafe { few.push_to(ids) };
                    continue;
                }
                let before = ids.len();
                let (word, len) = cache::word(key);
                let encode = if key[1] & cache::PIECE == 0 { merge::encode_word } else { merge::encode_piece };
                encode(tables, &word[..len], merge, ids);
                cache.insert(hash, key, &ids[before..]);
            } else if tag & WORD == 0 {
                let four = [key[0] as u32, (key[0] >> 32) as u32, key[1] as u32, (key[1] >> 32) as u32];
                ids.extend_from_slice(&four[..4.min(hash as usize)]);
            } else {
                let kind = tag & PIECE;
                encode_long(tables, &bytes[key[0] as usize..key[1] as usize], (hash, kind), phrases, merge, ids);
            }
            ids.reserve(4 * left);
        }
    }
}

/// Appends the ids of a word or piece that is too long for the word cache.
fn encode_long(
    tables: &Tables,
    long: &[u8],
    (hash, kind): (u32, u64),
    phrases: &mut Phrases,
    merge: &mut MergeScratch,
    ids: &mut Vec<u32>,
) {
    if phrases.append(hash, long, kind == PIECE, ids) {
        return;
    }
    let before = ids.len();
    let encode = if kind == WORD { merge::encode_word } else { merge::encode_piece };
    encode(tables, long, merge, ids);
    phrases.remember(hash, long, kind == PIECE, &ids[before..]);
}

impl Bpe {
    /// Appends the ids of text without added tokens, in normal form.
    pub(super) fn encode_words(&self, text: &str, scratch: &mut WordScratch, ids: &mut Vec<u32>) {
        let bytes = text.as_bytes();
        let WordScratch { work, ends } = scratch;
        let mut at = 0;
        while at < bytes.len() {
            ends.clear();
            let start = at;
            at = self.scanner.fill(text, at, ends, BATCH);
            if bytes.len() - at >= 16 {
                self.queue_words(bytes, start, ends, work, ids, |start, len| {
                    // SAFETY: `start` is before the last end of the batch, and 16 bytes of text lie behind that.
                    unsafe { cache::key_inside(bytes, start, len) }
                });
            } else {
                self.queue_words(bytes, start, ends, work, ids, |start, len| cache::key(bytes, start, len));
            }
            work.queue.flush(&self.tables, bytes, &mut work.merge, ids);
        }
    }

    /// Queues the words from `start` that end at `ends`.
    #[inline]
    fn queue_words(
        &self,
        bytes: &[u8],
        mut start: usize,
        ends: &[usize],
        work: &mut Work,
        ids: &mut Vec<u32>,
        key: impl Fn(usize, usize) -> Key,
    ) {
        for &end in ends {
            let len = end - start;
            let key = key(start, len);
            if len <= MAX_WORD {
                work.queue.push_key(key);
            } else if len <= phrases::MAX && bytes[start..end].is_ascii() {
                // Where words are not looked up, a word has the ids of a piece.
                work.queue.push_long(bytes, start, end, if self.tables.looks_up_words() { WORD } else { PIECE });
            } else {
                self.cut_word(bytes, (start, end), work, ids);
            }
            start = end;
        }
    }

    /// Queues the pieces of a long word.
    fn cut_word(&self, bytes: &[u8], (start, end): (usize, usize), work: &mut Work, ids: &mut Vec<u32>) {
        let Work { queue, merge, block } = work;
        let looks_up = self.tables.looks_up_words();
        // Ids not yet queued; two more may be written behind the first three.
        let (mut known, mut count) = ([0; 8], 0);
        let mut push = |from: usize, to: usize, direct: Option<([u32; 2], u32)>| {
            // A word that is not cut is looked up as a word, a piece of one is not.
            let is_word = looks_up && to - from == end - start;
            if let Some((two, n)) = direct.filter(|_| !is_word) {
                if count + n > 4 {
                    queue.push_ids([known[0], known[1], known[2], known[3]], count);
                    count = 0;
                }
                let place = count as usize & 3;
                known[place] = two[0];
                known[place + 1] = two[1];
                count += n;
            } else {
                if count > 0 {
                    queue.push_ids([known[0], known[1], known[2], known[3]], count);
                    count = 0;
                }
                if to - from <= MAX_WORD {
                    let mut key = cache::key(bytes, from, to - from);
                    key[1] |= if looks_up && !is_word { cache::PIECE } else { 0 };
                    queue.push_key(key);
                } else {
                    queue.push_long(bytes, from, to, if is_word { WORD } else { PIECE });
                }
            }
            if queue.len >= FULL {
                queue.flush(&self.tables, bytes, merge, ids);
            }
        };
        // ASCII is never cut; and where bytes are dropped, characters meet that are not neighbours here.
        if bytes[start..end].is_ascii() || self.tables.drops_from(&bytes[start..end]) {
            push(start, end, None);
        } else {
            self.cuts.pieces(bytes, start, end, block, &mut push);
        }
        if count > 0 {
            queue.push_ids([known[0], known[1], known[2], known[3]], count);
        }
    }
}
