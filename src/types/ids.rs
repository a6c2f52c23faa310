//! Ids and counters. Each is a `u64` in memory and on disk, and below 2^53 wherever it meets JSON.
//!
//! Guarantees: they can't be mixed up. Leaves out: arithmetic beyond "the next one".

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The zero of this counter.
            pub const ZERO: Self = Self(0);

            /// Wraps a plain number.
            #[must_use]
            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            /// The plain number.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The one after this. Counters never come near `u64::MAX`; the sum saturates.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

counter! {
    /// A member of the group. Never reused, also not after the member was removed.
    NodeId
}
counter! {
    /// One cluster, chosen at random when it is formed; data of another cluster is refused.
    ClusterId
}
counter! {
    /// The counter of mutating commands: each takes the next one, assigned in apply and nowhere else. An empty store is
    /// at revision 0.
    Revision
}
counter! {
    /// A lease; 0 means "no lease".
    LeaseId
}
counter! {
    /// The place of an entry in the Raft log, from 0.
    LogIndex
}
counter! {
    /// A Raft term.
    Term
}
counter! {
    /// Milliseconds since the Unix epoch on the clock of the leader that proposed a command. Never compared with the
    /// clock of another machine to decide anything about safety.
    WallTime
}

/// openraft's conformance suite makes node ids and terms from numbers.
macro_rules! from_number {
    ($($name:ident),*) => {
        $(
            impl From<u64> for $name {
                fn from(value: u64) -> Self {
                    Self(value)
                }
            }
        )*
    };
}

from_number!(NodeId, Term);

/// Identifies one log entry for ever: its index and the leadership that created it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogPosition {
    /// Term of the leader that created the entry.
    pub term: Term,
    /// The leader that created the entry.
    pub leader: NodeId,
    /// Place in the log.
    pub index: LogIndex,
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.term, self.leader, self.index)
    }
}
