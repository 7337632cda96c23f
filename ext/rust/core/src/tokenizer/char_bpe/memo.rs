//! Pieces whose tokens were found before.
use xxhash_rust::xxh3::xxh3_64;

/// Slots, a power of two.
const SLOTS: usize = 1 << 17;
/// When so many are taken, all is forgotten: text that goes on so differs from word to word.
const FULL: usize = SLOTS / 2;

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    hash: u32,
    key: u32,
    tokens: u32,
    key_len: u8,
    /// 0 in a free slot.
    num_tokens: u8,
}

/// Keys of up to 255 bytes, each with its tokens and how many bytes of the text each of them covers.
#[derive(Debug, Default)]
pub(super) struct Memo {
    slots: Vec<Slot>,
    keys: Vec<u8>,
    ids: Vec<u32>,
    lengths: Vec<u8>,
    taken: usize,
}

impl Memo {
    pub(crate) fn hash(key: &[u8]) -> u64 {
        xxh3_64(key)
    }

    /// The slot of `key`, or the free one where it belongs; none before the first key.
    fn find(&self, hash: u64, key: &[u8]) -> Option<usize> {
        let mut at = hash as usize & (SLOTS - 1);
        loop {
            let slot = self.slots.get(at)?;
            let stored = slot.key as usize..slot.key as usize + usize::from(slot.key_len);
            if slot.num_tokens == 0 || (slot.hash == (hash >> 32) as u32 && self.keys[stored] == *key) {
                return Some(at);
            }
            at = (at + 1) & (SLOTS - 1);
        }
    }

    pub(crate) fn get(&self, hash: u64, key: &[u8]) -> Option<(&[u32], &[u8])> {
        let slot = self.slots[self.find(hash, key)?];
        let tokens = slot.tokens as usize..slot.tokens as usize + usize::from(slot.num_tokens);
        (slot.num_tokens > 0).then(|| (&self.ids[tokens.clone()], &self.lengths[tokens]))
    }

    pub(crate) fn put(&mut self, hash: u64, key: &[u8], ids: &[u32], lengths: &[u32]) {
        let (Ok(key_len), Ok(num_tokens)) = (u8::try_from(key.len()), u8::try_from(ids.len())) else { return };
        if self.slots.is_empty() || self.taken == FULL {
            *self = Self { slots: vec![Slot::default(); SLOTS], ..Self::default() };
        }
        let Some(at) = self.find(hash, key).filter(|_| num_tokens > 0) else { return };
        let (start, tokens) = (self.keys.len() as u32, self.ids.len() as u32);
        self.slots[at] = Slot { hash: (hash >> 32) as u32, key: start, tokens, key_len, num_tokens };
        self.keys.extend_from_slice(key);
        self.ids.extend_from_slice(ids);
        self.lengths.extend(lengths.iter().map(|length| *length as u8));
        self.taken += 1;
    }
}
