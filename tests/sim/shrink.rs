//! Makes a failing plan small: fewer steps, fewer faults, the same violation.
//!
//! Guarantees: what is returned was run and fails by the same invariant; the number of runs is bounded. Leaves out: the
//! smallest there is, which would take too long, and fewer clients, which would be another run altogether.

use crate::plan::Plan;
use crate::world::{Failure, Options, run};

/// Runs that shrinking may take.
const RUNS_MAX: usize = 60;

/// A plan that fails, and how.
pub(crate) struct Shrunk {
    pub(crate) steps: u64,
    /// The actions that are left, by their place in the plan of the seed.
    pub(crate) kept: Vec<usize>,
    pub(crate) failure: Failure,
}

/// Leaves out what the failure does not need.
pub(crate) fn shrink(plan: &Plan, failure: Failure, options: Options) -> Shrunk {
    let options = Options { loud: false, ..options };
    let mut runs = 0;
    let mut fails = |plan: &Plan| {
        runs += 1;
        if runs > RUNS_MAX {
            return None;
        }
        run(plan, options).err().filter(|found| found.violation.of == failure.violation.of)
    };
    let mut smallest = Shrunk { steps: plan.steps, kept: (0..plan.actions.len()).collect(), failure: failure.clone() };
    // A plan of fewer steps is the beginning of the longer one.
    let steps = failure.step.min(plan.steps);
    let shorter = Plan::draw(plan.seed, steps);
    if let Some(failure) = fails(&shorter) {
        smallest = Shrunk { steps, kept: (0..shorter.actions.len()).collect(), failure: *failure };
    }
    let whole = Plan::draw(plan.seed, smallest.steps);
    let mut chunk = smallest.kept.len().div_ceil(2);
    while chunk > 0 {
        let mut at = 0;
        while at < smallest.kept.len() {
            let mut kept = smallest.kept.clone();
            kept.drain(at..(at + chunk).min(kept.len()));
            match fails(&whole.only(&kept)) {
                Some(failure) => smallest = Shrunk { steps: smallest.steps, kept, failure: *failure },
                None => at += chunk,
            }
        }
        chunk = if chunk == 1 { 0 } else { chunk.div_ceil(2) };
    }
    smallest
}
