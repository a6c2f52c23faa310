//! Forming a cluster, once: the first members agree on a cluster id and on their ids before any of them has a log.
//!
//! The members of `--initial-cluster`, sorted by name, get the ids 1, 2, …; the first of them coordinates. It waits until
//! *every* first member answers, then gives each an identity, and once all have it on disk it writes the first membership.
//! A first member that answers "I belong to a formed cluster" ends the attempt: then this node's directory was emptied, and
//! it may not vote under its old id. So two clusters can't arise from one list unless every directory was emptied.
//!
//! ```text
//! 0xF0 | version (1) | postcard of Request or Response
//! ```
//!
//! Guarantees: any start order; a crash at any point is continued at the next start; never a second cluster beside an
//! existing one. Leaves out: later members, who are asked the same questions (`membership`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::directory::{Directory, DirectoryError, Identity};
use super::peer_desk::FORMING;
use crate::clock;
use crate::host;
use crate::transport::{Channel, Transport};
use crate::types::{ClusterId, Member, NodeId};
use crate::watch;

/// The newest format of these messages.
const VERSION: u8 = 2;

/// How long one question may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause between attempts: short, for an attempt costs one small call a member.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// After this many attempts without success the operator is told what is waited for, and again each as many.
const ATTEMPTS_PER_NOTICE: u32 = 25;

/// The first members by name, with the peer address of each.
pub type FirstMembers = BTreeMap<String, String>;

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Who are you?
    Probe,
    /// Take this identity.
    Adopt(Identity),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Response {
    /// An empty directory, started with this list; an empty list waits to be added to a cluster.
    Pristine { member: Member, first_members: FirstMembers },
    /// An identity. `initialized` if it has ever had a log entry or a vote.
    Identified { member: Member, identity: Identity, initialized: bool },
    /// The question was not understood or can't be granted.
    Refused(String),
}

/// Why no cluster is formed or joined.
#[derive(Debug, thiserror::Error)]
pub enum FormingError {
    /// This directory is empty, but the cluster exists and knows this node.
    #[error(
        "{name} is already a member of cluster {cluster}, but its directory is empty: its votes and log are lost, so it may \
         not run under its old id; remove this member and add it anew"
    )]
    Wiped {
        /// This node.
        name: String,
        /// The cluster it was part of.
        cluster: ClusterId,
    },
    /// The list of first members differs between nodes.
    #[error("{peer} was started with another --initial-cluster ({theirs}) than this node ({ours}); make them the same")]
    OtherList {
        /// Who.
        peer: String,
        /// Its list.
        theirs: String,
        /// The list of this node.
        ours: String,
    },
    /// Another node answers under the address of a first member.
    #[error("{address} answered as {found}, but --initial-cluster says {expected}; correct the list")]
    OtherNode {
        /// The address.
        address: String,
        /// Who answered.
        found: String,
        /// Who was expected.
        expected: String,
    },
    /// The cluster does not take this node.
    #[error("the cluster did not take {name}: {why}")]
    NotTaken {
        /// This node.
        name: String,
        /// What its leader said.
        why: String,
    },
    /// The identity can't be written.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// What this node knows of itself while, and after, the cluster is formed. Answers probes for as long as it runs.
pub(super) struct FormingDesk {
    member: Member,
    first_members: Option<FirstMembers>,
    directory: Arc<Directory>,
    identity: Mutex<Option<Identity>>,
    identified: watch::Sender<bool>,
    /// `None` until Raft has told.
    initialized: watch::Sender<Option<bool>>,
}

impl FormingDesk {
    pub(super) fn new(
        member: Member,
        first_members: Option<FirstMembers>,
        directory: Arc<Directory>,
        identity: Option<Identity>,
    ) -> Self {
        let identified = watch::Sender::new(identity.is_some());
        let has_log = identity.as_ref().is_some_and(|identity| identity.has_log);
        let initialized = watch::Sender::new(if has_log { None } else { Some(false) });
        Self { member, first_members, directory, identity: Mutex::new(identity), identified, initialized }
    }

    /// This node, as it is started.
    pub(super) fn member(&self) -> &Member {
        &self.member
    }

    pub(super) fn identity(&self) -> Option<Identity> {
        self.identity.lock().clone()
    }

    /// Tells whether this node's Raft has ever had an entry or a vote.
    pub(super) fn set_initialized(&self, initialized: bool) {
        self.initialized.send_replace(Some(initialized));
    }

    /// Writes an identity, if there is none yet; the same one again is fine.
    pub(super) fn adopt(&self, offered: Identity) -> Result<(), String> {
        if offered.name != self.member.name {
            return Err(format!("this is {}, not {}", self.member.name, offered.name));
        }
        let mut identity = self.identity.lock();
        match &*identity {
            Some(mine) if (mine.cluster, mine.id) == (offered.cluster, offered.id) => return Ok(()),
            Some(mine) => return Err(format!("{} already belongs to cluster {}", mine.name, mine.cluster)),
            None => {}
        }
        self.directory.write_identity(&offered).map_err(|error| error.to_string())?;
        *identity = Some(offered);
        self.identified.send_replace(true);
        Ok(())
    }

    /// Writes another name into the identity; returns whether it was another.
    pub(super) fn rename(&self, name: &str) -> Result<bool, DirectoryError> {
        let mut identity = self.identity.lock();
        let Some(mine) = identity.as_mut().filter(|mine| mine.name != name) else { return Ok(false) };
        let renamed = Identity { name: name.to_owned(), ..mine.clone() };
        self.directory.write_identity(&renamed)?;
        *mine = renamed;
        Ok(true)
    }

    /// Records that the log was created and may hold a vote from now on.
    pub(super) fn mark_log(&self) -> Result<Option<Identity>, DirectoryError> {
        let mut identity = self.identity.lock();
        if let Some(mine) = identity.as_mut()
            && !mine.has_log
        {
            let marked = Identity { has_log: true, ..mine.clone() };
            self.directory.write_identity(&marked)?;
            *mine = marked;
        }
        Ok(identity.clone())
    }

    /// Answers one forming message.
    pub(super) fn handle(&self, request: &[u8]) -> Option<Bytes> {
        let response = match decode::<Request>(request) {
            Ok(Request::Probe) => self.introduce(),
            Ok(Request::Adopt(identity)) => match self.adopt(identity) {
                Ok(()) => self.introduce(),
                Err(reason) => Response::Refused(reason),
            },
            Err(reason) => Response::Refused(reason),
        };
        Some(encode(&response))
    }

    fn introduce(&self) -> Response {
        let member = self.member.clone();
        match &*self.identity.lock() {
            Some(identity) => match *self.initialized.borrow() {
                Some(initialized) => Response::Identified { member, identity: identity.clone(), initialized },
                None => Response::Refused("it is starting".into()),
            },
            None => Response::Pristine { member, first_members: self.first_members.clone().unwrap_or_default() },
        }
    }
}

/// The outcome of forming: who this node is, and for the coordinator the members to begin with.
pub(super) struct Formed {
    pub(super) identity: Identity,
    /// Set where this node must write the first membership.
    pub(super) members: Option<BTreeMap<NodeId, Member>>,
}

/// One attempt's findings.
enum Attempt {
    Formed(Formed),
    /// Not yet; for whom or what is waited.
    Waiting(String),
}

/// Forms the cluster or waits until it is formed.
pub(super) async fn form(
    desk: &FormingDesk,
    transport: &Arc<dyn Transport>,
    first_members: &FirstMembers,
) -> Result<Formed, FormingError> {
    let coordinates = first_members.keys().next() == Some(&desk.member.name);
    let mut identified = desk.identified.subscribe();
    for attempt in 1_u32.. {
        if !coordinates && let Some(identity) = desk.identity() {
            return Ok(Formed { identity, members: None });
        }
        match attempt_once(desk, transport, first_members, coordinates).await? {
            Attempt::Formed(formed) => return Ok(formed),
            Attempt::Waiting(reason) if attempt % ATTEMPTS_PER_NOTICE == 0 => {
                tracing::warn!(waiting_for = reason, "the cluster is not formed yet");
            }
            Attempt::Waiting(_) => {}
        }
        tokio::select! {
            biased;
            _ = identified.changed(), if !coordinates => {}
            () = tokio::time::sleep(RETRY_PAUSE) => {}
        }
    }
    unreachable!("attempts are not counted to their end within the age of the universe")
}

async fn attempt_once(
    desk: &FormingDesk,
    transport: &Arc<dyn Transport>,
    first_members: &FirstMembers,
    coordinates: bool,
) -> Result<Attempt, FormingError> {
    let me = &desk.member.name;
    let others: Vec<(&String, &String)> = first_members.iter().filter(|(name, _)| *name != me).collect();
    let answers = join_all(others.iter().map(|(_, address)| ask(&**transport, address, &Request::Probe))).await;

    let mut members = BTreeMap::from([(me.clone(), desk.member.clone())]);
    let mut cluster = desk.identity().map(|identity| identity.cluster);
    let mut waiting = Vec::new();
    for ((name, address), answer) in others.iter().zip(answers) {
        let member = match answer {
            Ok(Response::Pristine { member, first_members: theirs }) => {
                check_list(name, &theirs, first_members)?;
                member
            }
            Ok(Response::Identified { member, identity, initialized }) => {
                if initialized && desk.identity().is_none() {
                    return Err(FormingError::Wiped { name: me.clone(), cluster: identity.cluster });
                }
                cluster = cluster.or(Some(identity.cluster));
                member
            }
            Ok(Response::Refused(reason)) | Err(reason) => {
                waiting.push(format!("{name} at {address}: {reason}"));
                continue;
            }
        };
        if member.name != **name {
            let (address, found, expected) = ((*address).clone(), member.name, (*name).clone());
            return Err(FormingError::OtherNode { address, found, expected });
        }
        members.insert(member.name.clone(), member);
    }
    if !waiting.is_empty() {
        return Ok(Attempt::Waiting(waiting.join("; ")));
    }
    if !coordinates {
        let coordinator = first_members.keys().next().map_or("the coordinator", String::as_str);
        return Ok(Attempt::Waiting(format!("{coordinator} to hand out identities")));
    }
    hand_out(desk, transport, first_members, cluster, members).await
}

/// The coordinator's part once everybody has answered.
async fn hand_out(
    desk: &FormingDesk,
    transport: &Arc<dyn Transport>,
    first_members: &FirstMembers,
    cluster: Option<ClusterId>,
    members: BTreeMap<String, Member>,
) -> Result<Attempt, FormingError> {
    let cluster = cluster.unwrap_or_else(random_cluster_id);
    let ids: BTreeMap<&String, NodeId> = first_members.keys().zip((1..).map(NodeId::new)).collect();
    let identity = |name: &String| Identity { cluster, id: ids[name], name: name.clone(), has_log: false };
    let me = &desk.member.name;
    for (name, address) in first_members.iter().filter(|(name, _)| *name != me) {
        match ask(&**transport, address, &Request::Adopt(identity(name))).await {
            Ok(Response::Identified { identity: theirs, .. }) if theirs.cluster == cluster => {}
            Ok(other) => return Ok(Attempt::Waiting(format!("{name} at {address}: {other:?}"))),
            Err(reason) => return Ok(Attempt::Waiting(format!("{name} at {address}: {reason}"))),
        }
    }
    if let Err(reason) = desk.adopt(identity(me)) {
        return Ok(Attempt::Waiting(reason));
    }
    let Some(mine) = desk.identity() else { return Ok(Attempt::Waiting("this node's own identity".into())) };
    let members = members.into_iter().map(|(name, member)| (ids[&name], member)).collect();
    Ok(Attempt::Formed(Formed { identity: mine, members: Some(members) }))
}

fn check_list(peer: &str, theirs: &FirstMembers, ours: &FirstMembers) -> Result<(), FormingError> {
    if theirs == ours {
        return Ok(());
    }
    let show = |list: &FirstMembers| {
        list.iter().map(|(name, address)| format!("{name}={address}")).collect::<Vec<_>>().join(",")
    };
    Err(FormingError::OtherList { peer: peer.to_owned(), theirs: show(theirs), ours: show(ours) })
}

pub(super) async fn ask(transport: &dyn Transport, address: &str, request: &Request) -> Result<Response, String> {
    let deadline = clock::now() + CALL_TIMEOUT;
    let call = transport.call(address, Channel::Control, encode(request), deadline);
    decode(&call.await.map_err(|error| error.to_string())?)
}

/// A number below 2^53, so that JSON carries it exactly.
pub(super) fn random_cluster_id() -> ClusterId {
    ClusterId::new(host::random() % crate::types::limits::JSON_INTEGER_MAX + 1)
}

fn encode<T: Serialize>(value: &T) -> Bytes {
    let out = postcard::to_extend(value, vec![FORMING, VERSION]);
    Bytes::from(out.expect("plain data into a growing vector can't fail"))
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match bytes {
        [FORMING, VERSION, body @ ..] => postcard::from_bytes(body).map_err(|error| error.to_string()),
        [FORMING, version, ..] => Err(format!(
            "forming message format {version} is not known here (this node speaks {VERSION}); run the same version on all members"
        )),
        _ => Err("not a forming message".into()),
    }
}

#[cfg(test)]
mod tests;
