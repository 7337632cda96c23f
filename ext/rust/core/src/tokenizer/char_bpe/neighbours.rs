//! Where text may be cut: between two characters that stand side by side in no token that a merge makes.
use super::SPACE;

/// Bits of the table of others, a power of two. Gemma's half a million pairs fill a tenth of it.
const BITS: usize = 1 << 22;

/// Which two characters stand side by side in some token, where `▁` is a space.
#[derive(Debug)]
pub(super) struct Neighbours {
    /// Of two ASCII characters, a bit each, in two words for each left one.
    ascii: Box<[u64; 256]>,
    /// Of others, a bit each, some set for others.
    others: Box<[u64]>,
}

fn read(c: char) -> char {
    if c == SPACE { ' ' } else { c }
}

impl Neighbours {
    pub fn new() -> Self {
        Self { ascii: Box::new([0; 256]), others: vec![0; BITS / 64].into() }
    }

    /// The word and the bit of two characters.
    #[inline]
    fn place(left: char, right: char) -> (bool, usize, u32) {
        if left.is_ascii() && right.is_ascii() {
            let (left, right) = (left as usize, right as usize);
            return (true, 2 * left + right / 64, right as u32 % 64);
        }
        let both = (left as u64) << 21 | right as u64;
        let bit = (both.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 42) as usize;
        (false, bit / 64, bit as u32 % 64)
    }

    /// Add those of a token.
    pub fn add(&mut self, token: &str) {
        for (left, right) in token.chars().zip(token.chars().skip(1)) {
            let (is_ascii, word, bit) = Self::place(read(left), read(right));
            let table = if is_ascii { &mut self.ascii[..] } else { &mut self.others };
            table[word] |= 1 << bit;
        }
    }

    #[inline]
    fn may_meet(&self, left: char, right: char) -> bool {
        let (is_ascii, word, bit) = Self::place(left, right);
        let table = if is_ascii { &self.ascii[..] } else { &self.others };
        table[word] >> bit & 1 == 1
    }

    /// Call `piece` with the start and end of each piece of `text`, in order.
    #[inline]
    pub fn cut(&self, text: &str, mut piece: impl FnMut(usize, usize)) {
        let mut all = text.char_indices();
        let Some((mut start, first)) = all.next() else { return };
        let mut left = read(first);
        for (at, right) in all {
            let right = read(right);
            if !self.may_meet(left, right) {
                piece(start, at);
                start = at;
            }
            left = right;
        }
        piece(start, text.len());
    }
}
