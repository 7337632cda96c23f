use super::super::Plan;
use super::super::order::splitmix64;
use super::{best_fit, in_order};
use std::collections::VecDeque;

/// Best-fit decreasing as its definition says it, one item after another.
fn best_fit_reference(lengths: &[u32], capacity: u32) -> Vec<Vec<u32>> {
    let mut order: Vec<u32> = (0..lengths.len() as u32).filter(|&row| lengths[row as usize] <= capacity).collect();
    order.sort_by_key(|&row| std::cmp::Reverse(lengths[row as usize]));
    let mut bins: Vec<Vec<u32>> = Vec::new();
    let mut queues: Vec<VecDeque<usize>> = vec![VecDeque::new(); capacity as usize + 1];
    for row in order {
        let length = lengths[row as usize] as usize;
        let free = (length..=capacity as usize).find(|&free| !queues[free].is_empty());
        let (bin, free) = if let Some(free) = free {
            (queues[free].pop_front().unwrap(), free)
        } else {
            bins.push(Vec::new());
            (bins.len() - 1, capacity as usize)
        };
        bins[bin].push(row);
        queues[free - length].push_back(bin);
    }
    bins
}

fn bins(plan: &Plan) -> Vec<Vec<u32>> {
    plan.starts.windows(2).map(|pair| plan.rows[pair[0] as usize..pair[1] as usize].to_vec()).collect()
}

/// Lengths in `1..=longest`: even, skewed to short, or few distinct values, as the seed says.
fn random_lengths(seed: u64, num: usize, longest: u32) -> Vec<u32> {
    let draw = |i: usize| splitmix64(splitmix64(seed) ^ i as u64);
    (0..num)
        .map(|i| {
            let value = draw(i) % u64::from(longest);
            1 + match seed % 3 {
                0 => value,
                1 => value * value / u64::from(longest),
                _ => value - value % (1 + u64::from(longest) / 7),
            } as u32
        })
        .collect()
}

/// The laws of any plan: every row once, no bin empty or over capacity.
fn check_laws(plan: &Plan, lengths: &[u32], capacity: u32) {
    let mut seen: Vec<u32> = plan.rows.iter().chain(&plan.over_long).copied().collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..lengths.len() as u32).collect::<Vec<_>>());
    for bin in bins(plan) {
        let tokens: u32 = bin.iter().map(|&row| lengths[row as usize]).sum();
        assert!(!bin.is_empty() && tokens <= capacity);
    }
}

#[test]
fn equals_best_fit_decreasing_done_one_by_one() {
    for seed in 0..1500_u64 {
        let capacity = 1 + (splitmix64(seed ^ 0x5eed) % [9, 64, 130, 5000][seed as usize % 4]) as u32;
        let num = (splitmix64(seed) % 300) as usize;
        let lengths = random_lengths(seed, num, capacity + capacity / 8);
        let plan = best_fit(&lengths, None, capacity).unwrap();
        check_laws(&plan, &lengths, capacity);
        assert_eq!(bins(&plan), best_fit_reference(&lengths, capacity), "seed {seed} capacity {capacity}");
        let long: Vec<u32> = (0..num as u32).filter(|&row| lengths[row as usize] > capacity).collect();
        assert_eq!(plan.over_long, long);
    }
}

#[test]
fn the_worked_examples_of_ms_swift_hold() {
    assert_eq!(bins(&best_fit(&[7, 6, 4, 3, 3], None, 10).unwrap()), [vec![0, 3], vec![1, 2], vec![4]]);
    // The fullest bin that fits, as `binpacking` up to 1.5 had it: {a, c}, {b, d} and not {b, c}, {a, d}.
    assert_eq!(bins(&best_fit(&[6, 5, 3, 3], None, 10).unwrap()), [vec![0, 2], vec![1, 3]]);
}

#[test]
fn groups_stay_together_and_count_as_one_item() {
    for seed in 0..300_u64 {
        let capacity = 40 + (seed % 50) as u32;
        let lengths = random_lengths(seed, 1 + (seed % 120) as usize, capacity);
        let mut starts = vec![0_u32];
        while (*starts.last().unwrap() as usize) < lengths.len() {
            let step = 1 + splitmix64(seed ^ starts.len() as u64) as u32 % 3;
            starts.push((starts.last().unwrap() + step).min(lengths.len() as u32));
        }
        let sums: Vec<u32> = starts.windows(2).map(|w| lengths[w[0] as usize..w[1] as usize].iter().sum()).collect();
        for (plan, alone) in [
            (best_fit(&lengths, Some(&starts), capacity), best_fit(&sums, None, capacity)),
            (in_order(&lengths, Some(&starts), capacity), in_order(&sums, None, capacity)),
        ] {
            let (plan, alone) = (plan.unwrap(), alone.unwrap());
            check_laws(&plan, &lengths, capacity);
            let rows_of = |&group: &u32| starts[group as usize]..starts[group as usize + 1];
            let expanded: Vec<Vec<u32>> =
                bins(&alone).iter().map(|bin| bin.iter().flat_map(rows_of).collect()).collect();
            assert_eq!(bins(&plan), expanded);
            assert_eq!(plan.over_long, alone.over_long.iter().flat_map(rows_of).collect::<Vec<_>>());
        }
    }
}

#[test]
fn in_order_keeps_the_order_and_never_closes_a_bin_too_early() {
    for seed in 0..300_u64 {
        let capacity = 10 + (seed % 90) as u32;
        let lengths = random_lengths(seed, (seed % 200) as usize, capacity + 3);
        let plan = in_order(&lengths, None, capacity).unwrap();
        check_laws(&plan, &lengths, capacity);
        assert!(plan.rows.is_sorted());
        for pair in bins(&plan).windows(2) {
            let tokens: u32 = pair[0].iter().map(|&row| lengths[row as usize]).sum();
            assert!(tokens + lengths[pair[1][0] as usize] > capacity);
        }
    }
}

#[test]
fn nothing_in_gives_no_bins() {
    for plan in [best_fit(&[], None, 8), in_order(&[], None, 8), best_fit(&[], Some(&[0]), 8)] {
        assert_eq!(plan.unwrap(), Plan { starts: vec![0], rows: vec![], over_long: vec![] });
    }
}

#[test]
fn a_group_longer_than_32_bits_is_over_long() {
    let plan = best_fit(&[u32::MAX, u32::MAX, 3], Some(&[0, 2, 3]), 8).unwrap();
    assert_eq!(plan, Plan { starts: vec![0, 1], rows: vec![2], over_long: vec![0, 1] });
}

#[test]
fn refuses_bad_arguments() {
    let message = |groups: Option<&[u32]>, lengths: &[u32], capacity| {
        best_fit(lengths, groups, capacity).unwrap_err().to_string()
    };
    assert!(message(None, &[1], 0).contains("row_tokens: 0"));
    assert!(message(None, &[1], u32::MAX).contains("outside 1..16777216"));
    assert!(message(None, &[3, 0], 8).contains("row 1 has no tokens"));
    assert!(message(Some(&[1, 2]), &[3, 3], 8).contains("from 0 to 2"));
    assert!(message(Some(&[]), &[3, 3], 8).contains("from 0 to 2"));
    assert!(message(Some(&[0, 1, 1, 2]), &[3, 3], 8).contains("offset 1"));
}
