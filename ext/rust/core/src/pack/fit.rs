//! Best-fit decreasing and next-fit over bounded integer lengths.
use super::bitmap::Bitmap;
use super::{MAX_CAPACITY, Plan};
use crate::error::Error;
use std::borrow::Cow;

const NONE: u32 = u32::MAX;

/// Best-fit decreasing over all rows at once.
///
/// Items are taken longest first, equal lengths in input order; each goes to the bin with the least free space that
/// still holds it (among equals, the one that came to that space first), or to a new bin. `groups` joins rows into
/// items that must share a bin: offsets into `lengths`, first 0, last `lengths.len()`, strictly ascending; without it
/// each row is an item of its own. Bins come out in the order they were opened.
///
/// # Errors
/// A length of zero, a capacity outside `1..=MAX_CAPACITY`, malformed `groups`, or 2^32 - 1 rows or more.
pub fn best_fit(lengths: &[u32], groups: Option<&[u32]>, capacity: u32) -> Result<Plan, Error> {
    let items = items(lengths, groups, capacity)?;
    let (order, counts) = sort_descending(&items, capacity);
    let mut shelf = Shelf::new(capacity);
    for (length, &count) in counts.iter().enumerate().skip(1).rev() {
        shelf.place(length as u32, count);
    }
    let (starts, placed) = shelf.replay(&order);
    drop(order);
    let over_long = (0..items.len() as u32).filter(|&item| items[item as usize] > capacity).collect();
    Ok(expand(starts, placed, over_long, groups))
}

/// Next-fit: keeps the order of the input, and opens a new bin when the next item does not fit the open one.
///
/// Arguments as in [`best_fit`].
///
/// # Errors
/// As [`best_fit`].
pub fn in_order(lengths: &[u32], groups: Option<&[u32]>, capacity: u32) -> Result<Plan, Error> {
    let items = items(lengths, groups, capacity)?;
    let (mut starts, mut placed, mut over_long) = (Vec::new(), Vec::with_capacity(items.len()), Vec::new());
    let mut free = 0;
    for (item, &length) in items.iter().enumerate() {
        if length > capacity {
            over_long.push(item as u32);
            continue;
        }
        if length > free {
            starts.push(placed.len() as u32);
            free = capacity;
        }
        free -= length;
        placed.push(item as u32);
    }
    starts.push(placed.len() as u32);
    Ok(expand(starts, placed, over_long, groups))
}

/// Checks the arguments and sums each group; a sum over `u32` saturates, which is over any capacity.
fn items<'a>(lengths: &'a [u32], groups: Option<&[u32]>, capacity: u32) -> Result<Cow<'a, [u32]>, Error> {
    let refuse = |message: String| Err(Error::Config { message: message.into() });
    if capacity == 0 || capacity > MAX_CAPACITY {
        return refuse(format!("row_tokens: {capacity} is outside 1..{MAX_CAPACITY}"));
    }
    if lengths.len() >= NONE as usize {
        return refuse(format!("tokens: {} rows are more than one plan holds (2^32 - 2)", lengths.len()));
    }
    if let Some(row) = lengths.iter().position(|&length| length == 0) {
        return refuse(format!("tokens: row {row} has no tokens; drop empty rows before packing"));
    }
    let Some(starts) = groups else {
        return Ok(Cow::Borrowed(lengths));
    };
    if starts.first() != Some(&0) || starts.last().map(|&end| end as usize) != Some(lengths.len()) {
        return refuse(format!("groups: offsets must run from 0 to {}", lengths.len()));
    }
    if let Some(group) = starts.windows(2).position(|pair| pair[0] >= pair[1]) {
        return refuse(format!("groups: offset {group} is not below the next one"));
    }
    let sum =
        |pair: &[u32]| lengths[pair[0] as usize..pair[1] as usize].iter().fold(0_u32, |a, &b| a.saturating_add(b));
    Ok(Cow::Owned(starts.windows(2).map(sum).collect()))
}

/// Items of at most `capacity` by descending length, ties by index; and how many there are of each length.
fn sort_descending(items: &[u32], capacity: u32) -> (Vec<u32>, Vec<u32>) {
    let mut counts = vec![0_u32; capacity as usize + 1];
    for &length in items {
        if length <= capacity {
            counts[length as usize] += 1;
        }
    }
    let mut next = vec![0_u32; counts.len()];
    let mut total = 0;
    for (slot, &count) in next.iter_mut().zip(&counts).rev() {
        *slot = total;
        total += count;
    }
    let mut order = vec![0_u32; total as usize];
    for (item, &length) in items.iter().enumerate() {
        if length <= capacity {
            let slot = &mut next[length as usize];
            order[*slot as usize] = item as u32;
            *slot += 1;
        }
    }
    (order, counts)
}

/// Bins `first..first + bins` that have the same free space; `next` is the run behind it in the same queue.
#[derive(Clone, Copy)]
struct Run {
    first: u32,
    bins: u32,
    next: u32,
}

/// Each of the bins `first..first + bins` takes the next `per_bin` items of the sorted order.
struct Placement {
    first: u32,
    bins: u32,
    per_bin: u32,
}

/// Open bins by free space: a queue of runs for each amount, and the set of amounts whose queue is not empty.
struct Shelf {
    capacity: u32,
    num_bins: u32,
    amounts: Bitmap,
    heads: Vec<u32>,
    tails: Vec<u32>,
    runs: Vec<Run>,
    recycled: Vec<u32>,
    placements: Vec<Placement>,
}

impl Shelf {
    fn new(capacity: u32) -> Self {
        let size = capacity as usize + 1;
        Self {
            capacity,
            num_bins: 0,
            amounts: Bitmap::new(size),
            heads: vec![NONE; size],
            tails: vec![NONE; size],
            runs: Vec::new(),
            recycled: Vec::new(),
            placements: Vec::new(),
        }
    }

    /// Places `count` items of one length.
    ///
    /// Taking them a bin at a time equals taking them one by one: the chosen bin had the least free space of at least
    /// `length`, so while it still has that much it is the only bin between `length` and what it had before.
    fn place(&mut self, length: u32, mut count: u32) {
        while count > 0 {
            let Some(free) = self.amounts.at_least(length as usize) else {
                return self.open(length, count);
            };
            let per_bin = free as u32 / length;
            let head = self.heads[free] as usize;
            let Run { first, bins, .. } = self.runs[head];
            let (taken, each) = if count >= per_bin { (bins.min(count / per_bin), per_bin) } else { (1, count) };
            self.take_front(free, taken);
            self.fill(first, taken, each, free as u32 - each * length);
            count -= taken * each;
        }
    }

    /// Opens as many bins as `count` items of one length need.
    fn open(&mut self, length: u32, count: u32) {
        let per_bin = self.capacity / length;
        for (bins, each) in [(count / per_bin, per_bin), (1, count % per_bin)] {
            if bins > 0 && each > 0 {
                self.fill(self.num_bins, bins, each, self.capacity - each * length);
                self.num_bins += bins;
            }
        }
    }

    /// Records that `bins` bins take `each` items and are left with `free` tokens.
    fn fill(&mut self, first: u32, bins: u32, each: u32, free: u32) {
        self.placements.push(Placement { first, bins, per_bin: each });
        if free > 0 {
            self.push_back(free as usize, first, bins);
        }
    }

    fn take_front(&mut self, free: usize, bins: u32) {
        let head = self.heads[free];
        let run = &mut self.runs[head as usize];
        run.first += bins;
        run.bins -= bins;
        if run.bins > 0 {
            return;
        }
        self.heads[free] = run.next;
        self.recycled.push(head);
        if self.heads[free] == NONE {
            self.tails[free] = NONE;
            self.amounts.remove(free);
        }
    }

    fn push_back(&mut self, free: usize, first: u32, bins: u32) {
        let tail = self.tails[free];
        if tail != NONE {
            let run = &mut self.runs[tail as usize];
            if run.first + run.bins == first {
                run.bins += bins;
                return;
            }
        }
        let run = Run { first, bins, next: NONE };
        let index = if let Some(index) = self.recycled.pop() {
            self.runs[index as usize] = run;
            index
        } else {
            self.runs.push(run);
            self.runs.len() as u32 - 1
        };
        if tail == NONE {
            self.heads[free] = index;
            self.amounts.insert(free);
        } else {
            self.runs[tail as usize].next = index;
        }
        self.tails[free] = index;
    }

    /// Turns the placements into bins: where each starts, and its items in the order they were placed.
    fn replay(self, order: &[u32]) -> (Vec<u32>, Vec<u32>) {
        let mut starts = vec![0_u32; self.num_bins as usize + 1];
        for Placement { first, bins, per_bin } in &self.placements {
            for count in &mut starts[*first as usize..(first + bins) as usize] {
                *count += per_bin;
            }
        }
        let mut total = 0;
        for start in &mut starts {
            let count = *start;
            *start = total;
            total += count;
        }
        let mut next = starts.clone();
        let mut placed = vec![0_u32; order.len()];
        let mut rest = order;
        for Placement { first, bins, per_bin } in &self.placements {
            for slot in &mut next[*first as usize..(first + bins) as usize] {
                let (taken, left) = rest.split_at(*per_bin as usize);
                placed[*slot as usize..(*slot + per_bin) as usize].copy_from_slice(taken);
                *slot += per_bin;
                rest = left;
            }
        }
        (starts, placed)
    }
}

/// Replaces items by their rows.
fn expand(mut starts: Vec<u32>, placed: Vec<u32>, over_long: Vec<u32>, groups: Option<&[u32]>) -> Plan {
    let Some(groups) = groups else {
        return Plan { starts, rows: placed, over_long };
    };
    let rows_of = |item: u32| groups[item as usize]..groups[item as usize + 1];
    let mut rows = Vec::with_capacity(placed.len());
    let mut from = 0;
    for start in &mut starts {
        rows.extend(placed[from..*start as usize].iter().flat_map(|&item| rows_of(item)));
        from = *start as usize;
        *start = rows.len() as u32;
    }
    Plan { starts, rows, over_long: over_long.into_iter().flat_map(rows_of).collect() }
}

#[cfg(test)]
#[path = "fit_tests.rs"]
mod tests;
