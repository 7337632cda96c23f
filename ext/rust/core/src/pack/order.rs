//! Orders drawn from counters: item i's key depends on (seed, epoch, i) alone, so no generator state is carried about.

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of splitmix64 at counter `x + GOLDEN`: a bijection of 64 bits.
///
/// Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators"; constants of David Stafford's mix 13.
#[must_use]
pub(crate) fn splitmix64(x: u64) -> u64 {
    let mut z = x.wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The order in which epoch `epoch` visits `num_bins` bins: bin indices by ascending key, ties by index.
///
/// Bin i's key is `splitmix64(splitmix64(splitmix64(seed) ^ epoch) ^ i)`.
#[must_use]
pub fn bin_order(seed: u64, epoch: u64, num_bins: u32) -> Vec<u32> {
    let base = splitmix64(splitmix64(seed) ^ epoch);
    let mut keyed: Vec<(u64, u32)> = (0..num_bins).map(|bin| (splitmix64(base ^ u64::from(bin)), bin)).collect();
    keyed.sort_unstable();
    keyed.into_iter().map(|(_, bin)| bin).collect()
}

#[cfg(test)]
mod tests {
    use super::{bin_order, splitmix64};

    #[test]
    fn splitmix_gives_the_published_sequence() {
        // First outputs of Vigna's splitmix64.c from state 1234567.
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423_u64];
        let mut state = 1_234_567_u64;
        for value in expected {
            assert_eq!(splitmix64(state), value);
            state = state.wrapping_add(super::GOLDEN);
        }
    }

    #[test]
    fn order_is_a_permutation_that_depends_on_seed_and_epoch() {
        let order = bin_order(7, 0, 1000);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<u32>>());
        assert_eq!(order, bin_order(7, 0, 1000));
        assert_ne!(order, bin_order(7, 1, 1000));
        assert_ne!(order, bin_order(8, 0, 1000));
        assert!(bin_order(7, 0, 0).is_empty());
    }
}
