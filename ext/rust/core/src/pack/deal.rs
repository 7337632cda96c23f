//! Deals the bins of each step to ranks so that no rank waits long for another.
use crate::error::Error;

/// Who gets what.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Deal {
    /// `[step][rank][slot]`, flat: an index into `costs`, or -1 where the last step runs out of bins.
    pub slots: Vec<i64>,
    /// For each step the largest rank cost over the mean rank cost; 1 is perfect.
    pub imbalance: Vec<f64>,
}

/// Deals consecutive blocks of `num_ranks * bins_per_rank` bins to the ranks.
///
/// Which bins form a step is never changed, only who computes them: longest processing time first with at most
/// `bins_per_rank` bins a rank, then swaps between the slowest rank and another while they help, at most
/// `4 * num_ranks` of them. A last, short step is spread evenly. Within a rank bins keep the order of `costs`.
///
/// # Errors
/// No ranks, no bins a rank, or a cost that is negative or not finite.
#[allow(clippy::cast_precision_loss)] // a count of ranks, far below 2^52
pub fn deal(costs: &[f64], num_ranks: usize, bins_per_rank: usize) -> Result<Deal, Error> {
    let refuse = |message: String| Err(Error::Config { message: message.into() });
    let step_bins = match num_ranks.checked_mul(bins_per_rank) {
        Some(bins) if bins > 0 => bins,
        _ => {
            return refuse(format!(
                "ranks: {num_ranks} ranks of {bins_per_rank} bins hold no step; both must be at least 1"
            ));
        }
    };
    if let Some(bin) = costs.iter().position(|cost| !cost.is_finite() || *cost < 0.0) {
        return refuse(format!("costs: bin {bin} costs {}, which must be finite and not negative", costs[bin]));
    }
    let num_steps = costs.len().div_ceil(step_bins);
    let mut dealt = Deal { slots: vec![-1; num_steps * step_bins], imbalance: Vec::with_capacity(num_steps) };
    for (step, block) in costs.chunks(step_bins).enumerate() {
        let hands = deal_step(block, num_ranks);
        for (rank, hand) in hands.iter().enumerate() {
            let from = step * step_bins + rank * bins_per_rank;
            for (slot, &bin) in dealt.slots[from..].iter_mut().zip(&hand.bins) {
                *slot = (step * step_bins + bin) as i64;
            }
        }
        let slowest = hands.iter().map(|hand| hand.cost).fold(0.0, f64::max);
        let mean = block.iter().sum::<f64>() / num_ranks as f64;
        dealt.imbalance.push(if mean > 0.0 { slowest / mean } else { 1.0 });
    }
    Ok(dealt)
}

/// The bins of one rank in one step.
#[derive(Default, Clone)]
struct Hand {
    bins: Vec<usize>,
    cost: f64,
}

fn deal_step(costs: &[f64], num_ranks: usize) -> Vec<Hand> {
    let most = costs.len().div_ceil(num_ranks);
    let mut order: Vec<usize> = (0..costs.len()).collect();
    order.sort_by(|&a, &b| costs[b].total_cmp(&costs[a]).then(a.cmp(&b)));
    let mut hands = vec![Hand::default(); num_ranks];
    for bin in order {
        let lightest = (0..num_ranks).filter(|&rank| hands[rank].bins.len() < most).min_by(|&a, &b| {
            hands[a].cost.total_cmp(&hands[b].cost).then(hands[a].bins.len().cmp(&hands[b].bins.len()))
        });
        if let Some(rank) = lightest {
            hands[rank].cost += costs[bin];
            hands[rank].bins.push(bin);
        }
    }
    for _ in 0..4 * num_ranks {
        if !swap_once(&mut hands, costs) {
            break;
        }
    }
    for hand in &mut hands {
        hand.bins.sort_unstable();
        hand.cost = hand.bins.iter().map(|&bin| costs[bin]).sum();
    }
    hands
}

/// Swaps one bin of the slowest rank for one of another so that the slower of the two becomes as fast as possible.
fn swap_once(hands: &mut [Hand], costs: &[f64]) -> bool {
    let Some(slow) = (0..hands.len()).max_by(|&a, &b| hands[a].cost.total_cmp(&hands[b].cost).then(b.cmp(&a))) else {
        return false;
    };
    let slow_cost = hands[slow].cost;
    // A gain under one part in 10^9 is rounding, and swapping for it could go round in circles.
    let mut best = (slow_cost * (1.0 - 1e-9), None);
    for (other, hand) in hands.iter().enumerate().filter(|&(rank, _)| rank != slow) {
        for (i, &mine) in hands[slow].bins.iter().enumerate() {
            for (j, &theirs) in hand.bins.iter().enumerate() {
                let moved = costs[mine] - costs[theirs];
                let after = (slow_cost - moved).max(hand.cost + moved);
                if after < best.0 {
                    best = (after, Some((other, i, j, moved)));
                }
            }
        }
    }
    let Some((other, i, j, moved)) = best.1 else {
        return false;
    };
    let mine = hands[slow].bins[i];
    hands[slow].bins[i] = hands[other].bins[j];
    hands[other].bins[j] = mine;
    hands[slow].cost -= moved;
    hands[other].cost += moved;
    true
}

#[cfg(test)]
#[allow(clippy::cast_precision_loss)]
mod tests {
    use super::super::order::splitmix64;
    use super::deal;

    fn random_costs(seed: u64, num: usize) -> Vec<f64> {
        (0..num).map(|i| 1000.0 + (splitmix64(seed ^ i as u64) % 2000) as f64).collect()
    }

    #[test]
    fn every_bin_is_dealt_once_and_inside_its_step() {
        for (num, ranks, each) in [(0, 2, 3), (1, 4, 2), (47, 4, 3), (48, 4, 3), (100, 1, 1), (100, 7, 1), (33, 2, 8)] {
            let costs = random_costs(num as u64, num);
            let dealt = deal(&costs, ranks, each).unwrap();
            assert_eq!(dealt, deal(&costs, ranks, each).unwrap());
            assert_eq!(dealt.slots.len(), num.div_ceil(ranks * each) * ranks * each);
            let mut seen: Vec<i64> = dealt.slots.iter().copied().filter(|&bin| bin >= 0).collect();
            for &bin in &seen {
                let at = dealt.slots.iter().position(|&slot| slot == bin).unwrap();
                assert_eq!(at / (ranks * each), bin as usize / (ranks * each));
            }
            seen.sort_unstable();
            assert_eq!(seen, (0..num as i64).collect::<Vec<_>>());
            for (step, ratio) in dealt.imbalance.iter().enumerate() {
                let block = &dealt.slots[step * ranks * each..(step + 1) * ranks * each];
                let sum =
                    |hand: &[i64]| hand.iter().filter(|&&bin| bin >= 0).map(|&bin| costs[bin as usize]).sum::<f64>();
                let loads: Vec<f64> = block.chunks(each).map(sum).collect();
                let mean = loads.iter().sum::<f64>() / ranks as f64;
                assert!((loads.iter().copied().fold(0.0, f64::max) / mean - ratio).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn a_short_last_step_is_spread_over_all_ranks() {
        let dealt = deal(&[5.0; 6], 4, 2).unwrap();
        let counts: Vec<usize> =
            dealt.slots.chunks(2).map(|hand| hand.iter().filter(|&&bin| bin >= 0).count()).collect();
        assert_eq!(counts.iter().sum::<usize>(), 6);
        assert!(counts.iter().all(|&count| count > 0));
    }

    #[test]
    fn dealing_is_close_to_even_and_better_than_taking_turns() {
        let costs = random_costs(3, 8 * 8 * 50);
        let dealt = deal(&costs, 8, 8).unwrap();
        let worst = dealt.imbalance.iter().copied().fold(0.0, f64::max);
        assert!(worst < 1.01, "{worst}");
        let turns = costs.chunks(64).map(|block| {
            let loads = (0..8).map(|rank| block.iter().skip(rank).step_by(8).sum::<f64>());
            loads.fold(0.0, f64::max) / (block.iter().sum::<f64>() / 8.0)
        });
        assert!(turns.fold(f64::INFINITY, f64::min) > worst);
    }

    #[test]
    fn two_ranks_reach_the_optimum_of_small_steps_by_swaps() {
        // LPT alone ends at {9, 5, 4} = 18 against {7, 5, 4} = 16; swapping a 5 for a 4 makes both 17.
        let dealt = deal(&[9.0, 7.0, 5.0, 5.0, 4.0, 4.0], 2, 3).unwrap();
        assert!((dealt.imbalance[0] - 1.0).abs() < 1e-12, "{dealt:?}");
    }

    #[test]
    fn refuses_what_cannot_be_dealt() {
        assert!(deal(&[1.0], 0, 1).is_err());
        assert!(deal(&[1.0], 1, 0).is_err());
        assert!(deal(&[f64::NAN], 1, 1).is_err());
        assert!(deal(&[-1.0], 1, 1).is_err());
    }
}
