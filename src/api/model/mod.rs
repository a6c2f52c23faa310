//! The wire types of the client API: what stands in JSON bodies, for the server and the client alike.
//!
//! Guarantees: byte strings are plain strings where they are UTF-8 and base64 under `…_base64` otherwise, in both
//! directions; numbers in requests are below 2^53; unknown fields in a request are an error, in an answer they are
//! passed over, so that an older client can talk to a newer server. Leaves out: headers and status codes (the
//! handlers), keys in paths (`path`), and any limit that an operator can set: those are checked on conversion to the
//! terms of the state machine.

mod backups;
mod bytestring;
mod cluster;
mod kv;
mod members;
mod problem;
mod txn;

pub use backups::{
    AlarmInfo, AlarmsReply, BackupChangeReply, BackupDeclaration, BackupInfo, BackupOrigin, BackupRunReply,
    BackupsReply, FailedInfo, FullInfo, ProofsInfo, StoreInfo, TroubleInfo,
};
pub use cluster::{
    ClusterReply, LeaderInfo, LeaderReply, LeaderRequest, MemberInfo, MemberRole, NodeRole, PeerInfo, PendingChange,
    QuorumInfo, SizesInfo, StatusReply, Timers, ViewSource,
};
pub use kv::{DeleteReply, Listing, PutReply, Record};
pub use members::{AddMemberRequest, MemberChangeReply, QuorumReport, UpdateMemberRequest, ZoneReport};
pub use problem::{Code, Invalid, LeaderHint, OutcomeKind, Problem};
pub use txn::{
    Compare, CompareOperator, CompareTarget, DeletedReply, GetReply, Selector, TxnDelete, TxnGet, TxnOp, TxnOpReply,
    TxnPut, TxnReply, TxnRequest,
};

#[cfg(test)]
mod tests;
