//! How much work a rendering may do.
use std::cell::Cell;

/// Steps left. Once spent it stays spent, and the next statement fails.
#[derive(Debug)]
pub(super) struct Fuel {
    left: Cell<u64>,
}

impl Fuel {
    pub fn new(steps: u64) -> Self {
        Self { left: Cell::new(steps) }
    }

    /// Take `steps`; false if they were not there.
    pub fn spend(&self, steps: u64) -> bool {
        let left = self.left.get();
        let enough = left > steps;
        self.left.set(if enough { left - steps } else { 0 });
        enough
    }

    /// Take what handling `bytes` of text costs.
    pub fn spend_bytes(&self, bytes: usize) -> bool {
        self.spend(1 + bytes as u64 / 64)
    }

    pub fn is_spent(&self) -> bool {
        self.left.get() == 0
    }
}
