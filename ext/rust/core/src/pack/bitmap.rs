//! A set of small integers that answers "smallest member of at least x" in one step a level of 64.

/// Each level holds one bit a word of the level below, so 2^24 values need four levels.
pub(super) struct Bitmap {
    levels: Vec<Vec<u64>>,
}

impl Bitmap {
    /// The empty set over `0..size`.
    pub(super) fn new(size: usize) -> Self {
        let mut levels = Vec::new();
        let mut words = size.div_ceil(64).max(1);
        loop {
            levels.push(vec![0; words]);
            if words == 1 {
                return Self { levels };
            }
            words = words.div_ceil(64);
        }
    }

    /// Adds `value`.
    pub(super) fn insert(&mut self, mut value: usize) {
        for level in &mut self.levels {
            let word = &mut level[value / 64];
            let was_empty = *word == 0;
            *word |= 1 << (value % 64);
            if !was_empty {
                return;
            }
            value /= 64;
        }
    }

    /// Takes `value` out.
    pub(super) fn remove(&mut self, mut value: usize) {
        for level in &mut self.levels {
            let word = &mut level[value / 64];
            *word &= !(1 << (value % 64));
            if *word != 0 {
                return;
            }
            value /= 64;
        }
    }

    /// The smallest member that is at least `value`.
    pub(super) fn at_least(&self, mut value: usize) -> Option<usize> {
        for (height, level) in self.levels.iter().enumerate() {
            let word = level.get(value / 64)? >> (value % 64);
            if word != 0 {
                value += word.trailing_zeros() as usize;
                for below in self.levels[..height].iter().rev() {
                    value = value * 64 + below[value].trailing_zeros() as usize;
                }
                return Some(value);
            }
            value = value / 64 + 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::order::splitmix64;
    use super::Bitmap;
    use std::collections::BTreeSet;

    #[test]
    fn agrees_with_an_ordered_set() {
        for size in [1, 63, 64, 65, 4097, 70_000] {
            let (mut bitmap, mut set) = (Bitmap::new(size), BTreeSet::new());
            for step in 0..4000_u64 {
                let value = splitmix64(step) as usize % size;
                if splitmix64(step ^ 0xabc).is_multiple_of(3) {
                    bitmap.remove(value);
                    set.remove(&value);
                } else {
                    bitmap.insert(value);
                    set.insert(value);
                }
                let query = splitmix64(step ^ 0xdef) as usize % size;
                assert_eq!(bitmap.at_least(query), set.range(query..).next().copied(), "size {size} query {query}");
            }
        }
    }
}
