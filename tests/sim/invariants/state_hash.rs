//! Every node's state hash at an entry is that of the reference: no silent divergence.
//!
//! Guarantees: compared wherever a node is asked for its status. Leaves out: nodes that have applied what no node has yet
//! noted as committed; they are compared later.

use quorate::node::NodeStatus;

use super::Violation;
use super::reference::Reference;
use crate::wire::Place;

pub(super) fn check(place: Place, status: &NodeStatus, reference: &Reference) -> Result<(), Violation> {
    let Some(applied) = status.applied_index else { return Ok(()) };
    let Some((revision, hash)) = reference.behind(applied.get()) else {
        let what = format!("machine {place} has applied {applied}, but only {} entries are committed", reference.len());
        return Err(Violation::new("applied before committed", what));
    };
    let expected = (revision, format!("{hash:032x}"));
    let found = (status.revision, status.state_hash.clone());
    if found == expected {
        return Ok(());
    }
    Err(Violation::new("state hash", format!("machine {place} has {found:?} behind entry {applied}, not {expected:?}")))
}
