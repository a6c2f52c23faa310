//! What members say to each other: an envelope that names cluster, sender and addressee, and one request or response.
//!
//! ```text
//! version (1) | form (1) | postcard of Envelope { cluster, from, to } and the body
//! ```
//!
//! Guarantees: a message of another cluster, for another node, or of another format is refused by name and never acted on.
//! Leaves out: connections and deadlines (`transport`), the packed form (`packing`), and what a request does (`server`).

use bytes::Bytes;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::types::{Entry, LogId, Payload, SnapshotMeta, TypeConfig, Vote};
use crate::state::Outcome;
use crate::types::{ClusterId, LogIndex, NodeId};

/// The message format, the only one that is read and written.
///
/// | version | |
/// |---|---|
/// | 1 | no form |
/// | 2 | a message may be packed |
const MESSAGE_VERSION: u8 = 2;

/// What stands before the body of a message: version and form.
pub(super) const HEAD_BYTES: usize = 2;

/// How the body of a message is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Form {
    /// As it is.
    Plain = 0,
    /// Its size and a zstd frame of it.
    Zstd = 1,
}

/// The head of a message.
pub(super) fn head(form: Form) -> [u8; HEAD_BYTES] {
    [MESSAGE_VERSION, form as u8]
}

/// The form of a message; `None` if it is of another version, or of a form that is not known here.
pub(super) fn form(message: &[u8]) -> Option<Form> {
    let found = message.first_chunk::<HEAD_BYTES>()?;
    [Form::Plain, Form::Zstd].into_iter().find(|form| head(*form) == *found)
}

/// Who says something to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Envelope {
    /// The cluster both belong to.
    pub(super) cluster: ClusterId,
    /// The sender.
    pub(super) from: NodeId,
    /// The addressee.
    pub(super) to: NodeId,
}

/// What a member may ask of another.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Replicate entries, or a heartbeat.
    Append(AppendEntriesRequest<TypeConfig>),
    /// Ask for a vote.
    Vote(VoteRequest<TypeConfig>),
    /// Ask whether a vote would be granted.
    PreVote(VoteRequest<TypeConfig>),
    /// Tell a follower to take over.
    TransferLeader {
        /// The leader that gives up.
        from: Vote,
        /// The follower that takes over.
        to: NodeId,
        /// What the follower must have.
        last_log_id: Option<LogId>,
    },
    /// Announce a snapshot file.
    SnapshotBegin(SnapshotOffer),
    /// One part of an announced file.
    SnapshotPart(SnapshotPart),
    /// The file is complete: verify and install it.
    SnapshotEnd(SnapshotOffer),
    /// Ask the leader up to which entry a linearizable read must be applied.
    ReadIndex {
        /// How long the leader may take, in milliseconds.
        timeout_ms: u64,
    },
    /// Ask the leader to propose commands.
    Forward {
        /// The encoded commands ([`crate::state::Batch`]).
        commands: Bytes,
        /// How long the leader may take, in milliseconds.
        timeout_ms: u64,
    },
    /// Ask a member whom it follows, to prove that nobody else leads.
    Standing,
}

/// What a snapshot transfer is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotOffer {
    /// The leader's vote.
    pub(super) vote: Vote,
    /// What the snapshot covers.
    pub(super) meta: SnapshotMeta,
    /// Size of the file in bytes.
    pub(super) file_bytes: u64,
    /// SHA-256 of the file.
    pub(super) sha256: [u8; 32],
}

/// A piece of a snapshot file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotPart {
    /// Which file.
    pub(super) sha256: [u8; 32],
    /// Where in the file it belongs.
    pub(super) offset: u64,
    /// CRC-32C of the bytes.
    pub(super) crc: u32,
    /// The bytes.
    pub(super) bytes: Bytes,
}

/// The answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Response {
    /// To [`Request::Append`].
    Append(AppendEntriesResponse<TypeConfig>),
    /// To [`Request::Vote`] and [`Request::PreVote`].
    Vote(VoteResponse<TypeConfig>),
    /// To [`Request::TransferLeader`].
    TransferLeader(Result<(), String>),
    /// To [`Request::SnapshotBegin`] and [`Request::SnapshotPart`]: how many bytes of the file are there.
    SnapshotProgress {
        /// Bytes received and kept, from the beginning of the file.
        received: u64,
    },
    /// To [`Request::SnapshotEnd`].
    SnapshotInstalled(SnapshotResponse<TypeConfig>),
    /// To [`Request::ReadIndex`].
    ReadIndex(Result<LogIndex, ReadIndexRefusal>),
    /// To [`Request::Forward`]: one outcome a command, `None` where the message had no room for it, or why none was proposed
    /// or what became of it is unknown.
    Forward(Result<Vec<Option<Outcome>>, ForwardRefusal>),
    /// The addressee could not act on the message.
    Refused(String),
    /// To [`Request::Standing`].
    Standing(Standing),
}

/// Where a member stood at one moment, between the request and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Standing {
    /// Whom it has voted for or follows.
    pub(super) vote: Vote,
    /// Whether it is that leader itself.
    pub(super) leads: bool,
    /// The last entry that it knew to be committed.
    pub(super) committed: Option<LogId>,
    /// The entry that set the members it goes by.
    pub(super) membership: Option<LogId>,
}

/// Why there is no read index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ReadIndexRefusal {
    /// The addressee does not lead; perhaps this one does.
    NotLeader(Option<NodeId>),
    /// The addressee leads but has lost its quorum.
    NoQuorum,
}

/// Why forwarded commands have no outcomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ForwardRefusal {
    /// The addressee does not lead, so nothing was proposed: a forwarded command is never forwarded again.
    NotLeader(Option<NodeId>),
    /// Nothing was proposed, for this reason.
    NotProposed(String),
    /// Proposed, but what became of it is not known.
    Unknown(String),
}

/// Why bytes are no message for this node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum MessageError {
    /// From a newer program.
    #[error("peer message format {0} is newer than the one this program speaks ({MESSAGE_VERSION}); upgrade it")]
    Newer(u8),
    /// From an older program.
    #[error("peer message format {0} is older than the one this program speaks ({MESSAGE_VERSION}); upgrade the other")]
    Older(u8),
    /// Not a message.
    #[error("not a peer message: {0}")]
    Malformed(String),
    /// From another cluster.
    #[error("the message is of cluster {found}, this node belongs to cluster {expected}")]
    OtherCluster {
        /// The cluster of this node.
        expected: ClusterId,
        /// The cluster of the sender.
        found: ClusterId,
    },
    /// For another node.
    #[error("the message is for node {found}, this is node {expected}")]
    OtherNode {
        /// This node.
        expected: NodeId,
        /// The addressee.
        found: NodeId,
    },
}

/// Encodes a request with its envelope.
///
/// # Errors
/// [`MessageError::Malformed`] if a value refuses to be serialized, which none of these do.
pub(super) fn encode_request(envelope: Envelope, request: &Request) -> Result<Bytes, MessageError> {
    encode(&(envelope, request), ENVELOPE_BYTES + payload_bytes(request))
}

/// What a request takes beside its payload, in bytes, as a rule. A larger one costs copies, no more.
const ENVELOPE_BYTES: usize = 256;

/// What an entry of the log takes in a request beside its commands, in bytes, as a rule.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// The bytes that others have chosen the number of.
fn payload_bytes(request: &Request) -> usize {
    match request {
        Request::Append(append) => append.entries.iter().map(entry_bytes).sum(),
        Request::Forward { commands, .. } => commands.len(),
        Request::SnapshotPart(part) => part.bytes.len(),
        _ => 0,
    }
}

fn entry_bytes(entry: &Entry) -> usize {
    let commands = if let Payload::Normal(batch) = &entry.payload { batch.as_bytes().len() } else { 0 };
    ENTRY_OVERHEAD_BYTES + commands
}

/// Encodes a response. It needs no envelope: it belongs to its call.
///
/// # Errors
/// As [`encode_request`].
pub(super) fn encode_response(response: &Response) -> Result<Bytes, MessageError> {
    encode(response, 0)
}

/// Decodes a request and checks that it is meant for this node of this cluster.
///
/// # Errors
/// [`MessageError`].
pub(super) fn decode_request(
    bytes: &[u8],
    cluster: ClusterId,
    node: NodeId,
) -> Result<(Envelope, Request), MessageError> {
    let (envelope, request): (Envelope, Request) = decode(bytes)?;
    if envelope.cluster != cluster {
        return Err(MessageError::OtherCluster { expected: cluster, found: envelope.cluster });
    }
    if envelope.to != node {
        return Err(MessageError::OtherNode { expected: node, found: envelope.to });
    }
    Ok((envelope, request))
}

/// Decodes a response.
///
/// # Errors
/// [`MessageError`].
pub(super) fn decode_response(bytes: &[u8]) -> Result<Response, MessageError> {
    decode(bytes)
}

/// Whom a member has followed or voted for by answering a request so, if it has: for whoever watches what members say.
#[must_use]
pub fn vote_given(request: &[u8], response: &[u8]) -> Option<Vote> {
    let (_, request): (Envelope, Request) = decode(request).ok()?;
    match (request, decode_response(response).ok()?) {
        (Request::Vote(asked), Response::Vote(answer)) => Some(asked.vote).filter(|_| answer.vote_granted),
        (Request::Append(sent), Response::Append(answer)) => {
            let follows = matches!(answer, AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_));
            Some(sent.vote).filter(|_| follows)
        }
        _ => None,
    }
}

fn encode<T: Serialize>(value: &T, expected_bytes: usize) -> Result<Bytes, MessageError> {
    let mut out = Vec::with_capacity(HEAD_BYTES + expected_bytes);
    out.extend_from_slice(&head(Form::Plain));
    let out = postcard::to_extend(value, out).map_err(|error| MessageError::Malformed(error.to_string()))?;
    Ok(Bytes::from(out))
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, MessageError> {
    let malformed = |what: &str| MessageError::Malformed(what.into());
    match bytes.first() {
        Some(&MESSAGE_VERSION) => {}
        Some(&version) if version > MESSAGE_VERSION => return Err(MessageError::Newer(version)),
        Some(&version @ 1..) => return Err(MessageError::Older(version)),
        _ => return Err(malformed("no version")),
    }
    match form(bytes) {
        Some(Form::Plain) => {
            postcard::from_bytes(&bytes[HEAD_BYTES..]).map_err(|error| MessageError::Malformed(error.to_string()))
        }
        // Whoever takes packed messages unpacks them before.
        Some(Form::Zstd) => Err(malformed("it is packed")),
        None => Err(malformed("its form is not known")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::golden;
    use crate::raft::types::{Entry, LeaderId, Membership, Payload};
    use crate::state::{Batch, Rejection};
    use crate::types::{Member, Term};

    const ENVELOPE: Envelope = Envelope { cluster: ClusterId::new(7), from: NodeId::new(1), to: NodeId::new(2) };

    fn bytes() -> Bytes {
        encode_request(ENVELOPE, &Request::ReadIndex { timeout_ms: 5 }).unwrap()
    }

    #[test]
    fn a_request_comes_back() {
        let (envelope, request) = decode_request(&bytes(), ENVELOPE.cluster, ENVELOPE.to).unwrap();
        assert_eq!(envelope, ENVELOPE);
        assert!(matches!(request, Request::ReadIndex { timeout_ms: 5 }));
    }

    #[test]
    fn messages_of_other_clusters_and_for_other_nodes_are_refused_by_name() {
        let other = decode_request(&bytes(), ClusterId::new(8), ENVELOPE.to).unwrap_err();
        assert_eq!(other.to_string(), "the message is of cluster 7, this node belongs to cluster 8");
        let other = decode_request(&bytes(), ENVELOPE.cluster, NodeId::new(3)).unwrap_err();
        assert_eq!(other.to_string(), "the message is for node 2, this is node 3");
    }

    #[test]
    fn another_format_is_refused_by_number_and_with_what_to_do() {
        let refusal = |at: usize, byte| {
            let mut other = bytes().to_vec();
            other[at] = byte;
            decode_request(&other, ENVELOPE.cluster, ENVELOPE.to).unwrap_err().to_string()
        };
        let newer = "peer message format 9 is newer than the one this program speaks (2); upgrade it";
        let older = "peer message format 1 is older than the one this program speaks (2); upgrade the other";
        assert_eq!((refusal(0, 9).as_str(), refusal(0, 1).as_str()), (newer, older));
        assert_eq!(refusal(0, 0), "not a peer message: no version");
        assert_eq!(refusal(1, 9), "not a peer message: its form is not known");
        assert_eq!(refusal(1, Form::Zstd as u8), "not a peer message: it is packed");
    }

    #[test]
    fn messages_of_format_one_are_told_apart() {
        let stored = golden::read("peer-messages-v1");
        for (name, bytes) in &stored {
            let refused = decode::<(Envelope, Request)>(bytes).unwrap_err();
            assert_eq!(refused, MessageError::Older(1), "{name}");
        }
    }

    fn vote() -> Vote {
        Vote::new_committed(Term::new(3), NodeId::new(1))
    }

    fn log_id(index: u64) -> LogId {
        LogId { leader_id: LeaderId { term: Term::new(3), node_id: NodeId::new(1) }, index }
    }

    /// Every request, with every kind of entry.
    fn requests() -> Vec<(&'static str, Request)> {
        let member = Member {
            name: "n1".into(),
            peer_addr: "h1:7481".into(),
            client_url: "http://h1:7480".into(),
            zone: "dc1".into(),
            ..Member::default()
        };
        let membership = Membership::from(std::collections::BTreeMap::from([(NodeId::new(1), member)]));
        let payloads = [
            Payload::Blank,
            Payload::Normal(Batch::from(Bytes::from("batch"))),
            Payload::Membership(membership.clone()),
        ];
        let entries = payloads.into_iter().zip(300..).map(|(payload, index)| Entry { log_id: log_id(index), payload });
        let append = AppendEntriesRequest {
            vote: vote(),
            prev_log_id: Some(log_id(299)),
            entries: entries.collect(),
            leader_commit: Some(log_id(298)),
        };
        let meta = SnapshotMeta {
            last_log_id: Some(log_id(9)),
            last_membership: crate::raft::types::StoredMembership::new(Some(log_id(8)), membership),
        };
        let offer = SnapshotOffer { vote: vote(), meta, file_bytes: 1_000, sha256: [7; 32] };
        let part = SnapshotPart { sha256: [7; 32], offset: 300, crc: 0xC0FF_EE00, bytes: Bytes::from("part") };
        let ask = VoteRequest { vote: vote(), last_log_id: Some(log_id(9)), leadership_transfer: true };
        vec![
            ("append", Request::Append(append)),
            ("vote", Request::Vote(ask.clone())),
            ("pre_vote", Request::PreVote(VoteRequest::new(vote(), None))),
            (
                "transfer_leader",
                Request::TransferLeader { from: vote(), to: NodeId::new(2), last_log_id: Some(log_id(9)) },
            ),
            ("snapshot_begin", Request::SnapshotBegin(offer.clone())),
            ("snapshot_part", Request::SnapshotPart(part)),
            ("snapshot_end", Request::SnapshotEnd(offer)),
            ("read_index", Request::ReadIndex { timeout_ms: 5 }),
            ("forward", Request::Forward { commands: Bytes::from("commands"), timeout_ms: 300 }),
            ("ask_standing", Request::Standing),
        ]
    }

    /// Every answer, with every refusal.
    fn responses() -> Vec<(&'static str, Response)> {
        let granted = VoteResponse { vote: vote(), vote_granted: true, last_log_id: Some(log_id(9)) };
        let outcome = Err(Rejection::ReplyTooLarge { limit_bytes: 8 });
        let other = Some(NodeId::new(2));
        let standing =
            Standing { vote: vote(), leads: true, committed: Some(log_id(300)), membership: Some(log_id(8)) };
        vec![
            ("appended", Response::Append(AppendEntriesResponse::Success)),
            ("appended_in_part", Response::Append(AppendEntriesResponse::PartialSuccess(Some(log_id(9))))),
            ("append_conflict", Response::Append(AppendEntriesResponse::Conflict)),
            ("append_higher_vote", Response::Append(AppendEntriesResponse::HigherVote(vote()))),
            ("voted", Response::Vote(granted)),
            ("leader_transferred", Response::TransferLeader(Ok(()))),
            ("leader_not_transferred", Response::TransferLeader(Err("why".into()))),
            ("snapshot_progress", Response::SnapshotProgress { received: 300 }),
            ("snapshot_installed", Response::SnapshotInstalled(SnapshotResponse::new(vote()))),
            ("index_read", Response::ReadIndex(Ok(LogIndex::new(300)))),
            ("index_not_leader", Response::ReadIndex(Err(ReadIndexRefusal::NotLeader(other)))),
            ("index_no_quorum", Response::ReadIndex(Err(ReadIndexRefusal::NoQuorum))),
            ("forwarded", Response::Forward(Ok(vec![Some(outcome), None]))),
            ("forward_not_leader", Response::Forward(Err(ForwardRefusal::NotLeader(other)))),
            ("forward_not_proposed", Response::Forward(Err(ForwardRefusal::NotProposed("why".into())))),
            ("forward_unknown", Response::Forward(Err(ForwardRefusal::Unknown("why".into())))),
            ("refused", Response::Refused("why".into())),
            ("standing", Response::Standing(standing)),
        ]
    }

    #[test]
    fn the_bytes_of_format_two_stay_readable() {
        let (requests, responses) = (requests(), responses());
        let written = requests.iter().map(|(name, request)| (*name, encode_request(ENVELOPE, request)));
        let written = written.chain(responses.iter().map(|(name, response)| (*name, encode_response(response))));
        let stored = golden::check("peer-messages-v2", written.map(|(name, bytes)| (name, bytes.unwrap().to_vec())));
        for (name, request) in requests {
            let (envelope, read) = decode_request(&stored[name], ENVELOPE.cluster, ENVELOPE.to).unwrap();
            assert_eq!((envelope, format!("{read:?}")), (ENVELOPE, format!("{request:?}")), "{name}");
        }
        for (name, response) in responses {
            assert_eq!(format!("{:?}", decode_response(&stored[name]).unwrap()), format!("{response:?}"), "{name}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode_request(&bytes, ENVELOPE.cluster, ENVELOPE.to);
            let _ = decode_response(&bytes);
        }
    }
}
