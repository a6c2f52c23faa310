//! Starting a node: directory, identity, forming, Raft, in this order.
//!
//! Guarantees: nothing is served before the identity is settled; the existence of the log is recorded before the log can
//! hold a vote, so that a lost log is noticed. Leaves out: listeners, which are the caller's: the peer listener must answer
//! with [`Node::peer_handler`] before [`Node::start`] is called.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Node;
use super::archiving::{ArchiveConfig, Archiving};
use super::directory::{Directory, DirectoryError, Identity};
use super::forming::{self, FirstMembers, Formed, FormingDesk, FormingError};
use super::group::GroupDesk;
use super::leader_transfer::Transfers;
use super::membership::{self, Join, MemberPolicy, Membership, Removal, follow_own_entry, keep, watch_removal};
use super::peer_desk::PeerDesk;
use crate::host;
use crate::raft::{Fatal, LogStore, OpenError, RaftConfig, RaftIdentity, RaftNode};
use crate::telemetry::Metrics;
use crate::transport::Transport;
use crate::types::{Member, NodeId};

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Its directory.
    pub data_dir: PathBuf,
    /// Its name and addresses, as others see them.
    pub member: Member,
    /// Where its identity comes from, if its directory has none yet.
    pub origin: Origin,
    /// What it does about the members when it leads.
    pub policy: MemberPolicy,
    /// Consensus and state.
    pub raft: RaftConfig,
    /// Off-site copies.
    pub archive: ArchiveConfig,
}

/// Where the identity of a node comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// From its directory; a node without one can't start.
    Directory,
    /// From the cluster that these first members form, this one among them.
    FirstMembers(FirstMembers),
    /// From the cluster that it joins.
    Join(Join),
}

impl Origin {
    fn first_members(&self) -> Option<&FirstMembers> {
        if let Self::FirstMembers(first) = self { Some(first) } else { None }
    }
}

/// Why a node can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory can't be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// There is nothing to start from.
    #[error("{0} has no identity; give --initial-cluster to form a cluster, or --join to join one")]
    NoIdentity(PathBuf),
    /// The cluster can't be formed.
    #[error(transparent)]
    Forming(#[from] FormingError),
    /// Consensus can't start.
    #[error(transparent)]
    Raft(#[from] OpenError),
}

impl Node {
    /// Opens the directory and settles what can be settled without others. The node answers from now on, mostly with "not
    /// ready"; [`Node::start`] brings it up.
    ///
    /// # Errors
    /// [`StartError::Directory`] or [`StartError::NoIdentity`].
    pub fn open(config: &NodeConfig, transport: Arc<dyn Transport>) -> Result<Self, StartError> {
        let directory = Arc::new(Directory::open(&config.data_dir)?);
        let identity = directory.identity(&config.member.name)?;
        if identity.is_none() && config.origin == Origin::Directory {
            return Err(StartError::NoIdentity(config.data_dir.clone()));
        }
        let member = config.member.clone();
        let desk =
            Arc::new(FormingDesk::new(member.clone(), config.origin.first_members().cloned(), directory, identity));
        let inner = super::Inner {
            member,
            timers: config.raft.timers,
            peer_desk: Arc::new(PeerDesk::new(desk.clone())),
            desk,
            transport,
            fatal: Fatal::default(),
            raft: OnceLock::new(),
            membership: OnceLock::new(),
            archiving: OnceLock::new(),
            removal: Removal::default(),
            background: TaskTracker::new(),
            stopping: CancellationToken::new(),
            syncs: super::neighbours::Syncs::default(),
            group: super::group::LastView::default(),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// Forms the cluster if that was not done yet (waiting for the other first members as long as it takes), then starts
    /// Raft.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(&self, config: &NodeConfig, metrics: &Metrics) -> Result<(), StartError> {
        let transport = self.0.transport.clone();
        let mut first = None;
        if self.0.desk.identity().is_none() {
            first = match &config.origin {
                Origin::Directory => return Err(StartError::NoIdentity(config.data_dir.clone())),
                Origin::FirstMembers(members) => self.form(&transport, members).await?.members,
                Origin::Join(join) => {
                    tracing::info!(addresses = join.addresses.join(","), "asking to be taken in");
                    membership::join(&self.0.desk, &transport, join).await?;
                    None
                }
            };
        }
        let identity = self.settle_log(config).await?;
        let zone = config.member.zone.clone();
        let raft_identity =
            RaftIdentity { cluster: identity.cluster, me: identity.id, zone, transport: transport.clone() };
        let raft = RaftNode::open(&config.raft, raft_identity, metrics, self.0.fatal.clone()).await?;
        // Known from here on, so that stopping ends it however far the start comes. Set once: a node is started once.
        let raft = self.0.raft.get_or_init(|| raft);
        let initialized = raft.is_initialized().await?;
        self.0.desk.set_initialized(initialized);
        let silence = config.raft.timers.leader_silence();
        let group = GroupDesk::new(identity.cluster, raft.clone(), self.0.transport.clone(), silence);
        let transfers = Transfers {
            cluster: identity.cluster,
            raft: raft.clone(),
            transport: self.0.transport.clone(),
            timers: config.raft.timers,
        };
        let membership = self.0.membership.get_or_init(|| Membership::new(transfers));
        let archiving = self.0.archiving.get_or_init(|| self.archiving_of(config, &identity, raft, metrics));
        self.0.peer_desk.open(raft.handler(), group, membership.clone(), archiving.clone());
        if !initialized {
            self.initialize(&transport, &config.origin, first, &identity, raft).await?;
        }
        match &config.origin {
            Origin::Join(join) => self.go_on_joining(&transport, join, raft),
            Origin::Directory if !initialized => tracing::warn!(
                "this node has an identity, but no entry of the log yet; if nobody takes it in, start it with --join"
            ),
            Origin::Directory | Origin::FirstMembers(_) => {}
        }
        let (background, stopping) = (&self.0.background, &self.0.stopping);
        background.spawn(keep(membership.clone(), config.policy.clone(), stopping.clone()));
        background.spawn(follow_own_entry(raft.clone(), self.0.desk.clone(), stopping.clone()));
        background.spawn(watch_removal(membership.clone(), self.0.removal.clone(), stopping.clone()));
        self.watch_neighbours(raft);
        archiving.spawn(&identity.name, &config.data_dir.join("verify"), background, stopping);
        tracing::info!(cluster = identity.cluster.get(), id = identity.id.get(), name = identity.name, "node started");
        Ok(())
    }

    fn archiving_of(&self, config: &NodeConfig, identity: &Identity, raft: &RaftNode, metrics: &Metrics) -> Archiving {
        let (raft, transport, timers) = (raft.clone(), self.0.transport.clone(), config.raft.timers);
        Archiving::new(&config.archive, identity.cluster, raft, transport, timers, metrics)
    }

    /// Creates the log and then records that there is one, in this order: a crash in between must not look like a loss.
    /// Recording syncs the node's directory, and with it the log's entry there.
    async fn settle_log(&self, config: &NodeConfig) -> Result<Identity, StartError> {
        let no_identity = || StartError::NoIdentity(config.data_dir.clone());
        if !self.0.desk.identity().ok_or_else(no_identity)?.has_log {
            let (dir, log) = (config.raft.data_dir.join("log"), config.raft.log.clone());
            let creating = host::spawn_blocking(move || LogStore::open(&dir, log).map(drop));
            creating.await.map_err(|error| OpenError::Io(error.into()))?.map_err(OpenError::Log)?;
        }
        self.0.desk.mark_log()?.ok_or_else(no_identity)
    }

    async fn form(&self, transport: &Arc<dyn Transport>, first: &FirstMembers) -> Result<Formed, StartError> {
        let formed = forming::form(&self.0.desk, transport, first).await?;
        tracing::info!(cluster = formed.identity.cluster.get(), id = formed.identity.id.get(), "identity settled");
        Ok(formed)
    }

    /// Asks on until it is known to be a member: the order that gave it an identity may not have come to its end.
    fn go_on_joining(&self, transport: &Arc<dyn Transport>, join: &Join, raft: &RaftNode) {
        let (desk, transport, join, raft) = (self.0.desk.clone(), transport.clone(), join.clone(), raft.clone());
        let (removal, stopping) = (self.0.removal.clone(), self.0.stopping.clone());
        let is_done = move || raft.committed_roster().members.contains_key(&raft.id()) || removal.get().is_some();
        self.0.background.spawn(async move {
            let asking = async {
                while !is_done() {
                    if let Err(error) = membership::join(&desk, &transport, &join).await {
                        tracing::error!(%error, "this node has an identity, but is not taken in");
                    }
                    tokio::time::sleep(JOIN_PAUSE).await;
                }
            };
            stopping.run_until_cancelled(asking).await;
        });
    }

    /// The coordinator's last step: the first membership. Repeated after a crash, with the same members.
    async fn initialize(
        &self,
        transport: &Arc<dyn Transport>,
        origin: &Origin,
        known: Option<BTreeMap<NodeId, Member>>,
        identity: &Identity,
        raft: &RaftNode,
    ) -> Result<(), StartError> {
        let first_members = origin.first_members().filter(|first| first.keys().next() == Some(&identity.name));
        if let Some(first_members) = first_members {
            let members = match known {
                Some(members) => Some(members),
                None => self.form(transport, first_members).await?.members,
            };
            raft.initialize(members.unwrap_or_default()).await?;
            self.0.desk.set_initialized(true);
            return Ok(());
        }
        let (desk, raft) = (self.0.desk.clone(), raft.clone());
        // Ends with Raft: a stopped one counts as initialized, which is the cautious answer.
        self.0.background.spawn(async move {
            raft.wait_initialized().await;
            desk.set_initialized(true);
        });
        Ok(())
    }
}

/// Pause before a node with an identity asks again to be taken in.
const JOIN_PAUSE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::memory::Network;
    use crate::types::ClusterId;

    #[tokio::test]
    async fn a_crash_right_behind_the_record_of_the_log_is_not_taken_for_its_loss() {
        let dir = tempfile::tempdir().unwrap();
        let member = Member { name: "n1".into(), ..Member::default() };
        let config = NodeConfig {
            data_dir: dir.path().to_owned(),
            member,
            origin: Origin::FirstMembers(BTreeMap::from([("n1".into(), "127.0.0.1:1".into())])),
            policy: MemberPolicy::default(),
            raft: RaftConfig::small(dir.path()),
            archive: ArchiveConfig::default(),
        };
        let transport = || Arc::new(Network::new().endpoint("n1"));
        let node = Node::open(&config, transport()).unwrap();
        let identity = Identity { cluster: ClusterId::new(7), id: NodeId::new(1), name: "n1".into(), has_log: false };
        node.0.desk.adopt(identity).unwrap();
        assert!(node.settle_log(&config).await.unwrap().has_log);
        // The crash.
        drop(node);
        assert!(Node::open(&config, transport()).is_ok());
    }
}
