//! What is replicated: commands, and what applying one answers.
//!
//! Guarantees: everything here is plain data, encoded with postcard inside a versioned [`Batch`]; the same commands give
//! the same outcomes on every replica. Variants and fields are only ever added at the end, together with a new batch
//! version where postcard could not tell. Leaves out: how a command is applied (`apply`).

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::targets::TargetChange;
use crate::types::{Key, LeaseId, Revision, Selector, WallTime};

/// One command of a client, as it stands in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// When the leader proposed it, on the leader's clock: the only time the state machine knows. Zero until stamped.
    pub proposed_at: WallTime,
    /// On whose behalf; authorization is decided at apply.
    pub principal: Principal,
    /// Makes a repeated request recognizable, where the client named one.
    pub request: Option<RequestId>,
    /// What to do.
    pub operation: Operation,
}

/// Who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Principal {
    /// Nobody in particular: the cluster does not ask for names.
    #[default]
    Anonymous,
    /// The cluster itself.
    System,
    /// A user that the edge has authenticated.
    User(String),
}

/// A client's name for one request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestId {
    /// 1 to 128 characters, chosen by the client.
    pub key: String,
    /// A digest of the request, so that the same key with another request is told apart.
    pub fingerprint: u128,
}

/// What a command does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Reads and writes of keys, all or nothing; a put or delete is a transaction of one.
    Txn(Txn),
    /// Changes which places for backups are declared. Stands in batches of format 2 only.
    Target(TargetChange),
}

/// Comparisons, and what is done if all of them hold or not. All operations share one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    /// All must hold for `success`.
    pub compares: Vec<Compare>,
    /// Done in order if all comparisons hold (as they do if there are none).
    pub success: Vec<TxnOp>,
    /// Done in order otherwise.
    pub failure: Vec<TxnOp>,
}

/// One comparison: the key's current property stands left of the operator, the operand right of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// Whose property.
    pub key: Key,
    /// Which property, with the operand.
    pub target: CompareTarget,
    /// How.
    pub operator: CompareOperator,
}

/// A property with the operand it is compared to. An absent key has version, revisions and lease 0; a comparison of its
/// value never holds, whatever the operator (as in etcd).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompareTarget {
    /// The value, bytewise.
    Value(Bytes),
    /// The number of changes since the key was created.
    Version(u64),
    /// The revision that created the key.
    CreateRevision(Revision),
    /// The revision that last changed the key.
    ModRevision(Revision),
    /// The lease the key is attached to.
    Lease(LeaseId),
}

/// An operator of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompareOperator {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `>`
    Greater,
    /// `<=`
    LessOrEqual,
    /// `>=`
    GreaterOrEqual,
}

/// One operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TxnOp {
    /// Set a value.
    Put {
        /// The key.
        key: Key,
        /// Its new value.
        value: Bytes,
        /// The lease it is attached to; zero for none.
        lease: LeaseId,
    },
    /// Read; sees what earlier operations of the transaction did.
    Get {
        /// One key or a range.
        selector: Selector,
        /// The most records returned, 1 to [`PAGE_RECORDS_MAX`](crate::types::limits::PAGE_RECORDS_MAX).
        limit: u32,
        /// Whether values are left out: they come back empty.
        keys_only: bool,
    },
    /// Remove; a key that is absent is no error.
    Delete {
        /// One key or a range.
        selector: Selector,
    },
}

/// A key with everything that is known of its current value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The key.
    pub key: Key,
    /// Its value.
    pub value: Bytes,
    /// Where it comes from.
    pub meta: RecordMeta,
}

/// Where a value comes from, in etcd's terms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordMeta {
    /// The revision that created the key (the last time, if it was deleted in between).
    pub create_revision: Revision,
    /// The revision that wrote this value.
    pub mod_revision: Revision,
    /// How many revisions have written the key since it was created; 1 for the first.
    pub version: u64,
    /// The lease it is attached to; zero for none.
    pub lease: LeaseId,
}

/// What applying a command answers: replicated and deterministic. A disk failure is not an outcome.
pub type Outcome = Result<Reply, Rejection>;

/// A command was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Answer to [`Operation::Txn`].
    Txn(TxnReply),
    /// Answer to [`Operation::Target`]: it is so now.
    Target,
}

/// What a transaction did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnReply {
    /// Whether all comparisons held.
    pub succeeded: bool,
    /// The revision of the store behind the transaction: its own, if it changed anything.
    pub revision: Revision,
    /// One answer per operation of the branch that was taken.
    pub responses: Vec<OpReply>,
}

/// Answer to one operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpReply {
    /// Answer to a put.
    Put {
        /// The key that was written.
        key: Key,
        /// What it now carries.
        meta: RecordMeta,
    },
    /// Answer to a get.
    Get {
        /// The records in key order, at most as many as asked for.
        records: Vec<Record>,
        /// How many keys match, also beyond the limit.
        count: u64,
        /// Whether values were left out, as asked for.
        keys_only: bool,
    },
    /// Answer to a delete: how many keys there were.
    Delete {
        /// Keys removed.
        deleted: u64,
    },
}

/// A command was refused by the state machine; nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    /// The answer of a transaction would be over the limit, in bytes.
    #[error("the answer of the transaction is over {limit_bytes} bytes; read less in one transaction")]
    ReplyTooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// The command stands in the log, but this version of the format can't be applied. Never produced for commands
    /// this program encoded.
    #[error("the command is malformed: {0}")]
    Malformed(String),
    /// The ranges of a transaction hold too many keys.
    #[error("the transaction touches more than {limit} keys; split the range, or delete page by page")]
    TooManyKeys {
        /// The most keys it may touch.
        limit: u64,
    },
    /// The name of a place for backups is taken.
    #[error("a place for backups named {name} is declared already; change that one, or choose another name")]
    TargetExists {
        /// Which.
        name: String,
    },
    /// There is no such place for backups among those that were declared.
    #[error("no place for backups named {name} is declared")]
    NoSuchTarget {
        /// Which.
        name: String,
    },
    /// It was changed since whoever asks has seen it.
    #[error("the place for backups {name} was changed meanwhile; look at it again")]
    TargetChanged {
        /// Which.
        name: String,
    },
    /// There are too many.
    #[error("{limit} places for backups are declared, the most there can be; remove one")]
    TooManyTargets {
        /// The most there can be.
        limit: u64,
    },
    /// A declaration or its name is too long.
    #[error("the declaration of a place for backups takes {limit_bytes} bytes at most")]
    TargetTooLarge {
        /// The most it may take.
        limit_bytes: u64,
    },
}

/// The formats of a batch, all of them postcard of `Vec<Command>`: 2 may hold other operations than transactions. One of
/// transactions alone is written as 1, which older programs read.
const BATCH_OF_TXNS: u8 = 1;
const BATCH_VERSION: u8 = 2;

/// Commands that travel and are logged together, encoded once: a version byte, then postcard.
///
/// Kept encoded so that replication, log and network only ever copy bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch(Bytes);

/// Why a batch can't be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Written by a newer program.
    #[error("command format {0} is newer than the newest this program knows ({BATCH_VERSION})")]
    Newer(u8),
    /// Not a batch.
    #[error("the commands can't be decoded: {0}")]
    Malformed(String),
}

impl Batch {
    /// Encodes commands.
    #[must_use]
    pub fn encode(commands: &[Command]) -> Self {
        Self::encode_sized(commands, 0)
    }

    /// As [`Self::encode`], into as many bytes as are expected: more are made room for, at the cost of copies.
    #[must_use]
    pub fn encode_sized(commands: &[Command], expected_bytes: usize) -> Self {
        let mut out = Vec::with_capacity(expected_bytes + 64);
        let is_txn = |command: &Command| matches!(command.operation, Operation::Txn(_));
        out.push(if commands.iter().all(is_txn) { BATCH_OF_TXNS } else { BATCH_VERSION });
        // An empty batch in its place would end every replica that applies it.
        let out = postcard::to_extend(commands, out).expect("plain data into a growing vector can't fail");
        Self(Bytes::from(out))
    }

    /// Decodes the commands.
    ///
    /// # Errors
    /// [`BatchError`] if the bytes are no batch or from a newer format.
    pub fn decode(&self) -> Result<Vec<Command>, BatchError> {
        let malformed = |error: postcard::Error| BatchError::Malformed(error.to_string());
        match self.0.split_first() {
            Some((&(BATCH_OF_TXNS | BATCH_VERSION), body)) => postcard::from_bytes(body).map_err(malformed),
            Some((&version, _)) if version > BATCH_VERSION => Err(BatchError::Newer(version)),
            _ => Err(BatchError::Malformed("no version".into())),
        }
    }

    /// Bytes taken.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing at all, not even a version.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The encoded form.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

/// Logs name a batch by its size, never by its contents.
impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl From<Bytes> for Batch {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::golden;
    use crate::types::KeyRange;

    fn key(text: &'static str) -> Key {
        Key::new(text).unwrap()
    }

    fn compare(target: CompareTarget, operator: CompareOperator) -> Compare {
        Compare { key: key("k"), target, operator }
    }

    /// Every variant and every field of what is logged, none of them zero.
    fn commands() -> Vec<Command> {
        let range = KeyRange::new("a", Some(Bytes::from("b"))).unwrap();
        let open = KeyRange::new("a", None).unwrap();
        let txn = Txn {
            compares: vec![
                compare(CompareTarget::Value("v".into()), CompareOperator::Equal),
                compare(CompareTarget::Version(300), CompareOperator::NotEqual),
                compare(CompareTarget::CreateRevision(Revision::new(2)), CompareOperator::Less),
                compare(CompareTarget::ModRevision(Revision::new(3)), CompareOperator::Greater),
                compare(CompareTarget::Lease(LeaseId::new(4)), CompareOperator::LessOrEqual),
                compare(CompareTarget::Version(5), CompareOperator::GreaterOrEqual),
            ],
            success: vec![
                TxnOp::Put { key: key("k"), value: "value".into(), lease: LeaseId::new(6) },
                TxnOp::Get { selector: Selector::Key(key("k")), limit: 7, keys_only: true },
            ],
            failure: vec![
                TxnOp::Delete { selector: Selector::Range(range) },
                TxnOp::Get { selector: Selector::Range(open), limit: 1, keys_only: false },
            ],
        };
        let command = |principal, request, txn| Command {
            proposed_at: WallTime::new(1_700_000_000_000),
            principal,
            request,
            operation: Operation::Txn(txn),
        };
        let request = RequestId { key: "id".into(), fingerprint: u128::MAX - 1 };
        vec![
            command(Principal::Anonymous, None, Txn::default()),
            command(Principal::System, None, Txn::default()),
            command(Principal::User("ada".into()), Some(request), txn),
        ]
    }

    fn outcomes() -> Vec<Outcome> {
        let meta = RecordMeta {
            create_revision: Revision::new(1),
            mod_revision: Revision::new(2),
            version: 3,
            lease: LeaseId::new(4),
        };
        let records = vec![Record { key: key("k"), value: "v".into(), meta }];
        let responses = vec![
            OpReply::Put { key: key("k"), meta },
            OpReply::Get { records, count: 5, keys_only: true },
            OpReply::Delete { deleted: 6 },
        ];
        vec![
            Ok(Reply::Txn(TxnReply { succeeded: true, revision: Revision::new(7), responses })),
            Err(Rejection::ReplyTooLarge { limit_bytes: 8 }),
            Err(Rejection::Malformed("why".into())),
            Err(Rejection::TooManyKeys { limit: 9 }),
        ]
    }

    #[test]
    fn the_bytes_of_batch_format_one_stay_readable() {
        let outcome_bytes = postcard::to_stdvec(&outcomes()).unwrap();
        let examples = [("batch", Batch::encode(&commands()).as_bytes().to_vec()), ("outcomes", outcome_bytes)];
        let stored = golden::check("commands-v1", examples);
        assert_eq!(Batch::from(Bytes::from(stored["batch"].clone())).decode(), Ok(commands()));
        assert_eq!(postcard::from_bytes(&stored["outcomes"]), Ok(outcomes()));
    }

    fn target_commands() -> Vec<Command> {
        let command = |change| Command {
            proposed_at: WallTime::new(1_700_000_000_000),
            principal: Principal::Anonymous,
            request: None,
            operation: Operation::Target(change),
        };
        let name = || "off-site".to_owned();
        vec![
            command(TargetChange::Add { name: name(), declaration: "first".into() }),
            command(TargetChange::Replace { name: name(), was: "first".into(), declaration: "second".into() }),
            command(TargetChange::Remove { name: name() }),
        ]
    }

    fn target_outcomes() -> Vec<Outcome> {
        let name = || "off-site".to_owned();
        vec![
            Ok(Reply::Target),
            Err(Rejection::TargetExists { name: name() }),
            Err(Rejection::NoSuchTarget { name: name() }),
            Err(Rejection::TargetChanged { name: name() }),
            Err(Rejection::TooManyTargets { limit: 10 }),
            Err(Rejection::TargetTooLarge { limit_bytes: 11 }),
        ]
    }

    #[test]
    fn the_bytes_of_batch_format_two_stay_readable() {
        let commands: Vec<Command> = commands().into_iter().chain(target_commands()).collect();
        let outcome_bytes = postcard::to_stdvec(&target_outcomes()).unwrap();
        let examples = [("batch", Batch::encode(&commands).as_bytes().to_vec()), ("outcomes", outcome_bytes)];
        let stored = golden::check("commands-v2", examples);
        assert_eq!(Batch::from(Bytes::from(stored["batch"].clone())).decode(), Ok(commands));
        assert_eq!(postcard::from_bytes(&stored["outcomes"]), Ok(target_outcomes()));
    }

    #[test]
    fn only_what_older_programs_can_not_apply_is_in_the_newer_format() {
        assert_eq!(Batch::encode(&commands()).as_bytes()[0], 1);
        assert_eq!(Batch::encode(&[]).as_bytes()[0], 1);
        assert_eq!(Batch::encode(&target_commands()[..1]).as_bytes()[0], 2);
    }

    #[test]
    fn a_newer_batch_and_bytes_that_are_none_are_told_apart() {
        let decode = |bytes: &'static [u8]| Batch::from(Bytes::from_static(bytes)).decode();
        assert_eq!(decode(b"\x03whatever"), Err(BatchError::Newer(3)));
        for bad in [&b""[..], b"\0", b"\x01", b"\x01\x05", b"\x02\x01"] {
            assert!(matches!(decode(bad), Err(BatchError::Malformed(_))), "{bad:?}");
        }
    }
}
