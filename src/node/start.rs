//! Starting a node: directory, identity, forming, Raft, in this order.
//!
//! Guarantees: nothing is served before the identity is settled; the existence of the log is recorded before the log can
//! hold a vote, so that a lost log is noticed. Leaves out: listeners, which are the caller's: the peer listener must answer
//! with [`Node::peer_handler`] before [`Node::start`] is called.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use tokio_util::task::TaskTracker;

use super::Node;
use super::directory::{Directory, DirectoryError, Identity};
use super::forming::{self, FirstMembers, Formed, FormingDesk, FormingError};
use super::peer_desk::PeerDesk;
use crate::raft::{Fatal, OpenError, RaftConfig, RaftIdentity, RaftNode};
use crate::telemetry::Metrics;
use crate::transport::Transport;
use crate::transport::tcp::TcpTransport;
use crate::types::{Member, NodeId};

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Its directory.
    pub data_dir: PathBuf,
    /// Its name and addresses, as others see them.
    pub member: Member,
    /// The first members; `None` where the directory must have an identity already.
    pub first_members: Option<FirstMembers>,
    /// Consensus and state.
    pub raft: RaftConfig,
}

/// Why a node can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory can't be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// There is nothing to start from.
    #[error("{0} has no identity, and no first members were named; give --initial-cluster")]
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
    pub fn open(config: &NodeConfig, transport: TcpTransport) -> Result<Self, StartError> {
        let directory = Arc::new(Directory::open(&config.data_dir)?);
        let identity = directory.identity(&config.member.name)?;
        if identity.is_none() && config.first_members.is_none() {
            return Err(StartError::NoIdentity(config.data_dir.clone()));
        }
        let member = config.member.clone();
        let desk = Arc::new(FormingDesk::new(member.clone(), config.first_members.clone(), directory, identity));
        let inner = super::Inner {
            member,
            timers: config.raft.timers,
            peer_desk: Arc::new(PeerDesk::new(desk.clone())),
            desk,
            transport: Arc::new(transport),
            fatal: Fatal::default(),
            raft: OnceLock::new(),
            background: TaskTracker::new(),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// Forms the cluster if that was not done yet (waiting for the other first members as long as it takes), then starts
    /// Raft.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(&self, config: &NodeConfig, metrics: &Metrics) -> Result<(), StartError> {
        let transport: Arc<dyn Transport> = self.0.transport.clone();
        let mut first = None;
        if self.0.desk.identity().is_none() {
            let members = config.first_members.as_ref();
            let members = members.ok_or_else(|| StartError::NoIdentity(config.data_dir.clone()))?;
            first = self.form(&transport, members).await?.members;
        }
        let identity = self.0.desk.identity().ok_or_else(|| StartError::NoIdentity(config.data_dir.clone()))?;
        let raft_identity = RaftIdentity { cluster: identity.cluster, me: identity.id, transport: transport.clone() };
        let raft = RaftNode::open(&config.raft, raft_identity, metrics, self.0.fatal.clone()).await?;
        // The log is on disk, and nothing was promised on it yet: nobody reaches Raft before its handler is known. So a
        // crash before this line leaves a node that may begin anew, and one behind it a log that must be there.
        self.0.desk.mark_log()?;
        let initialized = raft.is_initialized().await?;
        self.0.desk.set_initialized(initialized);
        self.0.peer_desk.open(raft.handler());
        if !initialized {
            self.initialize(&transport, config.first_members.as_ref(), first, &identity, &raft).await?;
        }
        // Set once: a node is started once.
        let _ = self.0.raft.set(raft);
        tracing::info!(cluster = identity.cluster.get(), id = identity.id.get(), name = identity.name, "node started");
        Ok(())
    }

    async fn form(&self, transport: &Arc<dyn Transport>, first: &FirstMembers) -> Result<Formed, StartError> {
        let formed = forming::form(&self.0.desk, transport, first).await?;
        tracing::info!(cluster = formed.identity.cluster.get(), id = formed.identity.id.get(), "identity settled");
        Ok(formed)
    }

    /// The coordinator's last step: the first membership. Repeated after a crash, with the same members.
    async fn initialize(
        &self,
        transport: &Arc<dyn Transport>,
        first_members: Option<&FirstMembers>,
        known: Option<BTreeMap<NodeId, Member>>,
        identity: &Identity,
        raft: &RaftNode,
    ) -> Result<(), StartError> {
        let coordinates = first_members.is_some_and(|first| first.keys().next() == Some(&identity.name));
        if let (true, Some(first_members)) = (coordinates, first_members) {
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
