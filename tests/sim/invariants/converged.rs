//! Once nothing goes wrong any more, all nodes serve, have applied the same, and have the same state.
//!
//! Guarantees: told by name who does not. Leaves out: machines that are not members.

use quorate::node::{NodeStatus, Role};

use super::Violation;
use crate::wire::Place;

/// Whether these nodes have come to the same.
pub(crate) fn is_converged(nodes: &[(Place, NodeStatus)]) -> bool {
    let Some((_, first)) = nodes.first() else { return false };
    let leaders = nodes.iter().filter(|(_, status)| status.role == Role::Leader).count();
    leaders == 1
        && nodes.iter().all(|(_, status)| {
            status.applied_index == first.applied_index
                && status.state_hash == first.state_hash
                && status.readiness.is_ok()
                && status.leader.is_some()
        })
}

/// That they have.
pub(crate) fn check_converged(nodes: &[(Place, NodeStatus)], steps: u64) -> Result<(), Violation> {
    if is_converged(nodes) {
        return Ok(());
    }
    let told: Vec<_> = nodes
        .iter()
        .map(|(place, status)| {
            let leader = status.leader.as_ref().map(|(id, _)| *id);
            let (applied, ready) = (status.applied_index, &status.readiness);
            format!(
                "machine {place}: {:?} in term {}, leader {leader:?}, applied {applied:?}, {ready:?}",
                status.role, status.term
            )
        })
        .collect();
    let what = format!("after {steps} steps without faults: {}", told.join("; "));
    Err(Violation::new("convergence", what))
}
