//! Words -> ids. Words are queued, so that their lines of the cache are on the way while others are scanned; words that
//! are not ASCII, or too long for the cache, are queued in pieces.

use super::Bpe;
use super::cache::{self, Key, MAX_WORD, WordCache};
use super::merge::{self, MergeScratch};
use super::tables::Tables;

/// Words that are scanned before the first is looked up.
const BATCH: usize = 128;
/// Room of the queue, a power of two: a batch with what the last block adds to it, and pieces up to [`FULL`].
const QUEUE: usize = 512;
const FULL: usize = 256;

/// Working memory of one thread. It remembers words: use it with one [`Bpe`] only.
#[derive(Debug, Default)]
pub struct Scratch {
    queue: Queue,
    merge: MergeScratch,
    ends: Vec<usize>,
}

/// A word, or a piece of one that is encoded by itself, or the ids of some.
#[derive(Debug, Clone, Copy, Default)]
struct Piece {
    /// That of the word cache; of [`IDS`] up to four ids; of a long piece its start and end.
    key: Key,
    /// Where it starts.
    start: usize,
    /// Bytes; of [`IDS`] their number.
    len: u32,
    /// Of the word cache, or one of the values below.
    line: u32,
}

/// `key` holds ids.
const IDS: u32 = u32::MAX;
/// Too long for the cache.
const LONG_WORD: u32 = u32::MAX - 1;
const LONG_PIECE: u32 = u32::MAX - 2;

#[derive(Debug)]
struct Queue {
    cache: WordCache,
    pieces: Box<[Piece; QUEUE]>,
    len: usize,
}

impl Default for Queue {
    fn default() -> Self {
        Self { cache: WordCache::default(), pieces: Box::new([Piece::default(); QUEUE]), len: 0 }
    }
}

impl Queue {
    #[inline]
    fn push(&mut self, piece: Piece) {
        self.pieces[self.len % QUEUE] = piece;
        self.len += 1;
    }

    /// A word or piece of at most [`MAX_WORD`] bytes.
    #[inline]
    fn push_key(&mut self, key: Key, start: usize, len: usize) {
        let line = WordCache::line(key);
        self.cache.prefetch(line);
        self.push(Piece { key, start, len: len as u32, line });
    }

    #[inline]
    fn push_ids(&mut self, ids: [u32; 4], len: u32) {
        let two = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        self.push(Piece { key: [two(ids[0], ids[1]), two(ids[2], ids[3])], start: 0, len, line: IDS });
    }

    /// Appends the ids of all that is queued.
    #[inline(never)]
    fn flush(&mut self, tables: &Tables, bytes: &[u8], merge: &mut MergeScratch, ids: &mut Vec<u32>) {
        let len = std::mem::take(&mut self.len).min(QUEUE);
        for piece in &self.pieces[..len] {
            let Piece { key, start, len, line } = *piece;
            if let Some((four, n)) = self.cache.get(line, key) {
                push_some(ids, four, n);
            } else if line == IDS {
                push_some(ids, [key[0] as u32, (key[0] >> 32) as u32, key[1] as u32, (key[1] >> 32) as u32], len);
            } else if line == LONG_WORD {
                merge::encode_word(tables, &bytes[key[0] as usize..key[1] as usize], merge, ids);
            } else if line == LONG_PIECE {
                merge::encode_piece(tables, &bytes[key[0] as usize..key[1] as usize], merge, ids);
            } else {
                let before = ids.len();
                let word = &bytes[start..start + len as usize];
                if key[1] & cache::PIECE == 0 {
                    merge::encode_word(tables, word, merge, ids);
                } else {
                    merge::encode_piece(tables, word, merge, ids);
                }
                self.cache.insert(line, key, &ids[before..]);
            }
        }
    }
}

impl Bpe {
    /// Appends the ids of text without added tokens, in normal form.
    pub(super) fn encode_words(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let bytes = text.as_bytes();
        let Scratch { queue, merge, ends } = scratch;
        let mut at = 0;
        while at < bytes.len() {
            ends.clear();
            let mut start = at;
            at = self.scanner.fill(text, at, ends, BATCH);
            let readable = bytes.len() - at >= 16;
            for &end in ends.iter() {
                let len = end - start;
                let key = if readable {
                    // SAFETY: `start` is before the last end of the batch, and 16 bytes of text lie behind that.
                    unsafe { cache::key_inside(bytes, start, len) }
                } else {
                    cache::key(bytes, start, len)
                };
                if len <= MAX_WORD && cache::is_ascii(key) {
                    queue.push_key(key, start, len);
                } else {
                    self.cut_word(bytes, (start, end), queue, merge, ids);
                }
                start = end;
            }
            queue.flush(&self.tables, bytes, merge, ids);
        }
    }

    /// Queues the pieces of a word that is long or not ASCII.
    fn cut_word(
        &self,
        bytes: &[u8],
        (start, end): (usize, usize),
        queue: &mut Queue,
        merge: &mut MergeScratch,
        ids: &mut Vec<u32>,
    ) {
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
                    queue.push_key(key, from, to - from);
                } else {
                    let line = if is_word { LONG_WORD } else { LONG_PIECE };
                    queue.push(Piece { key: [from as u64, to as u64], start: from, len: 0, line });
                }
            }
            if queue.len >= FULL {
                queue.flush(&self.tables, bytes, merge, ids);
            }
        };
        if self.tables.drops_from(&bytes[start..end]) {
            // Where bytes are dropped, characters meet that are not neighbours here.
            push(start, end, None);
        } else {
            self.cuts.pieces(bytes, start, end, &mut push);
        }
        if count > 0 {
            queue.push_ids([known[0], known[1], known[2], known[3]], count);
        }
    }
}

/// Appends the first `count` of four ids by writing all four.
#[inline]
fn push_some(ids: &mut Vec<u32>, four: [u32; 4], count: u32) {
    let len = ids.len();
    if ids.capacity() - len < 4 {
        ids.reserve(BATCH);
    }
    // SAFETY: there is room for four ids after `len`, and all four are written before the length covers `count <= 4`.
    unsafe {
        ids.as_mut_ptr().add(len).cast::<[u32; 4]>().write_unaligned(four);
        ids.set_len(len + count.min(4) as usize);
    }
}
