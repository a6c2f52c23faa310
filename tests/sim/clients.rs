//! Clients: each has one operation at a time, on a machine of its choice, and remembers what it was told.
//!
//! Guarantees: every write carries a request id that no other write has, so that it can be found in the log; what a client
//! knew before it asked (`floor`) is written down when it asks. Leaves out: HTTP, and repeating requests.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate::node::{Consistency, Node, ReadError, ReadOptions, WriteError};
use quorate::state::{
    Compare, CompareOperator, CompareTarget, Principal, RangeRead, Record, RequestId, Txn, TxnOp, TxnReply,
};
use quorate::storage::Order;
use quorate::types::{Key, KeyRange, LeaseId, Revision, Selector};
use rand::Rng;
use rand::rngs::SmallRng;

use crate::machine::Machine;
use crate::wire::Place;
use crate::world::Planted;

/// An operation and all that is known of it.
#[derive(Debug, Clone)]
pub(crate) struct Op {
    pub(crate) id: u64,
    pub(crate) place: Place,
    pub(crate) what: What,
    pub(crate) called: u64,
    /// The newest revision that anybody was told of before it was called.
    pub(crate) floor: Revision,
}

/// What is done.
#[derive(Debug, Clone)]
pub(crate) enum What {
    Write(Txn),
    Read { consistency: Consistency, at: Option<Revision>, of: Of },
}

/// What is read.
#[derive(Debug, Clone)]
pub(crate) enum Of {
    Key(Key),
    All,
}

/// How it ended.
#[derive(Debug, Clone)]
pub(crate) enum End {
    Written(TxnReply),
    /// For sure it was not done and will not be.
    Refused(String),
    /// It may have been done, or be done later.
    Unknown(String),
    Found {
        revision: Revision,
        records: Vec<Record>,
    },
    /// A read without an answer.
    Failed(String),
}

/// In few words; the same words for the same ending.
impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Written(reply) => write!(f, "written {} {}", reply.revision, reply.succeeded),
            Self::Found { revision, records } => write!(f, "found {} at {revision}", records.len()),
            Self::Refused(why) => write!(f, "refused: {why}"),
            Self::Unknown(why) => write!(f, "unknown: {why}"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

/// Where operations put how they ended.
pub(crate) type Ends = Arc<Mutex<Vec<(u64, End)>>>;

/// The request id of an operation.
pub(crate) fn request_of(id: u64) -> RequestId {
    RequestId { key: id.to_string(), fingerprint: u128::from(id) }
}

pub(crate) fn key(number: usize) -> Key {
    Key::new(format!("k{number:03}")).expect("short and not empty")
}

/// Keys that begin so are only put and read, for the judge that knows nothing else.
pub(crate) const PLAIN: &str = "h";

/// How many of them there are.
const PLAIN_KEYS: usize = 3;

/// Draws an operation.
pub(crate) fn draw(random: &mut SmallRng, id: u64, keys: usize, floor: Revision) -> What {
    let one = key(random.random_range(0..keys));
    let put = |key: &Key, random: &mut SmallRng| TxnOp::Put {
        key: key.clone(),
        value: Bytes::from(format!("{id} {}", "x".repeat(random.random_range(0..300)))),
        lease: LeaseId::ZERO,
    };
    match random.random_range(0..115) {
        100.. => {
            let plain =
                Key::new(format!("{PLAIN}{}", random.random_range(0..PLAIN_KEYS))).expect("short and not empty");
            if random.random_bool(0.4) {
                return What::Write(Txn { success: vec![put(&plain, random)], ..Txn::default() });
            }
            What::Read { consistency: Consistency::Linearizable, at: None, of: Of::Key(plain) }
        }
        0..30 => What::Write(Txn { success: vec![put(&one, random)], ..Txn::default() }),
        30..38 => {
            let selector = Selector::Key(one);
            What::Write(Txn { success: vec![TxnOp::Delete { selector }], ..Txn::default() })
        }
        38..55 => {
            let other = key(random.random_range(0..keys));
            let (target, operator) = if random.random_bool(0.5) {
                (CompareTarget::Version(random.random_range(0..3)), CompareOperator::GreaterOrEqual)
            } else {
                (CompareTarget::ModRevision(floor), CompareOperator::LessOrEqual)
            };
            let compares = vec![Compare { key: one.clone(), target, operator }];
            let success = vec![put(&one, random), put(&other, random)];
            let failure =
                vec![TxnOp::Get { selector: Selector::Key(one), limit: 1, keys_only: false }, put(&other, random)];
            What::Write(Txn { compares, success, failure })
        }
        55..58 => {
            let range = KeyRange::new("k", None).expect("a range");
            What::Write(Txn { success: vec![TxnOp::Delete { selector: Selector::Range(range) }], ..Txn::default() })
        }
        drawn => {
            let consistency = match drawn {
                58..80 => Consistency::Linearizable,
                80..90 => Consistency::Bounded { max_staleness: Duration::from_millis(random.random_range(10..3_000)) },
                _ => Consistency::Stale,
            };
            let back = Revision::new(floor.get().saturating_sub(random.random_range(0..20)));
            let at = Some(back).filter(|_| random.random_bool(0.15));
            let of = if random.random_bool(0.8) { Of::Key(one) } else { Of::All };
            What::Read { consistency, at, of }
        }
    }
}

/// The least revision that a read names: what its client knew, in a third of those that need not be fresh.
pub(crate) fn min_revision(op: &Op) -> Option<Revision> {
    match &op.what {
        What::Read { consistency: Consistency::Stale | Consistency::Bounded { .. }, at: None, .. } => {
            op.id.is_multiple_of(3).then_some(op.floor)
        }
        What::Read { .. } | What::Write(_) => None,
    }
}

/// Has a machine do it; `false` if no process runs there.
pub(crate) fn call(machine: &Machine, op: &Op, patience: Duration, ends: &Ends, planted: Option<Planted>) -> bool {
    let (id, mut what, ends) = (op.id, op.what.clone(), Arc::clone(ends));
    let min_revision = min_revision(op);
    let lies = match planted {
        Some(Planted::StaleRead) => id.is_multiple_of(8),
        Some(Planted::StaleReadBehindJump) => machine.skew != 0,
        Some(Planted::LostWrite | Planted::LostVote | Planted::LostObject | Planted::DoubleApply) | None => false,
    };
    if let (true, What::Read { consistency, .. }) = (lies, &mut what) {
        *consistency = Consistency::Stale;
    }
    machine
        .within(|node, runtime| {
            let node = node.clone();
            runtime.spawn(async move {
                let end = carry_out(&node, id, what, min_revision, patience).await;
                ends.lock().push((id, end));
            });
        })
        .is_some()
}

async fn carry_out(node: &Node, id: u64, what: What, min_revision: Option<Revision>, patience: Duration) -> End {
    let deadline = Node::deadline_in(patience);
    match what {
        What::Write(txn) => match node.write(txn, Principal::Anonymous, Some(request_of(id)), deadline).await {
            Ok(reply) => End::Written(reply),
            Err(error @ (WriteError::OutcomeUnknown(_) | WriteError::Rejected(_))) => End::Unknown(error.to_string()),
            Err(error) => End::Refused(error.to_string()),
        },
        What::Read { consistency, at, of } => {
            let options = ReadOptions { consistency, min_revision, at_revision: at, local_only: false, deadline };
            match read(node, options, of).await {
                Ok((revision, records)) => End::Found { revision, records },
                Err(error) => End::Failed(error.to_string()),
            }
        }
    }
}

async fn read(node: &Node, options: ReadOptions, of: Of) -> Result<(Revision, Vec<Record>), ReadError> {
    let view = node.read(options).await?.view;
    let records = match of {
        Of::Key(key) => view.get(&key)?.into_iter().collect(),
        Of::All => view.range(&everything())?.records,
    };
    Ok((view.revision(), records))
}

/// A listing of all keys.
pub(crate) fn everything() -> RangeRead {
    let range = KeyRange::new("k", None).expect("a range");
    RangeRead { range, order: Order::Ascending, limit: 1_000, bytes_max: 1 << 20, keys_only: false }
}
