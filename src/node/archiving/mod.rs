//! Off-site copies as this node's part of them: which node archives, what others know of it, and waiting for it.
//!
//! Every node with a place for backups in its configuration could archive to it, and every node to those that are declared to
//! the cluster. They tell each other how they stand, once a
//! second and whenever something is archived, and each sees by itself who is to do it (`choice`). The work is done by
//! `backup::archiver`, on a thread of its own (`thread`).
//!
//! Guarantees: consensus never waits for a store; a write that asked for it is told as off-site only once the archive has
//! it; the log is kept until it is archived, up to a bound (`raft::retention`). Leaves out: the archive itself (`backup`).

mod alarms;
mod choice;
mod declared;
mod drilling;
mod gossip;
mod metrics;
mod news;
mod offsite;
mod place;
mod source;
mod thread;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::alarms::Board;
use self::choice::{Candidate, Need};
use self::declared::Idle;
pub use self::declared::{BackupChange, BackupChangeOptions, BackupChanged, BackupOrigin, Declare, Tried};
pub use self::drilling::DrillOrder;
use self::metrics::{ArchiveCollector, Exposure};
pub(super) use self::news::ARCHIVE;
pub use self::news::{Alarm, Archived, Full, Proofs, Trouble};
use self::news::{Answer, Message, News, PlaceNews, What};
pub use self::offsite::OffsiteRule;
use self::place::Place;
use self::thread::Author;
use super::Node;
use super::request::WriteError;
use crate::backup::settings::TargetSettings;
use crate::backup::target::Stores;
use crate::clock::{self, Instant};
use crate::raft::{Forgetful, RaftNode, Timers};
use crate::telemetry::Metrics;
use crate::transport::{Channel, Transport};
use crate::types::{ClusterId, LogIndex, NodeId, Revision};
use crate::watch;

/// A node that was not heard from for so long is gone.
const GONE_AFTER: Duration = Duration::from_secs(3);

/// What of off-site copies is in the configuration of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArchiveConfig {
    /// The places for backups.
    pub places: Vec<TargetSettings>,
    /// Which writes wait until they are off-site.
    pub offsite: OffsiteRule,
    /// Reads what is declared to the cluster.
    pub declare: Declare,
    /// How stores are reached.
    pub stores: Stores,
}

/// Off-site copies of one node: a cheap handle.
#[derive(Clone)]
pub(super) struct Archiving(Arc<Shared>);

struct Shared {
    cluster: ClusterId,
    raft: RaftNode,
    transport: Arc<dyn Transport>,
    timers: Timers,
    /// Those of the configuration.
    configured: Vec<Arc<Place>>,
    /// These and those that were declared.
    places: watch::Sender<Arc<Vec<Arc<Place>>>>,
    /// What was declared, but is no place for this node.
    idle: Mutex<BTreeMap<String, Idle>>,
    /// Held while the list is made anew.
    adopting: Mutex<()>,
    declare: Declare,
    stores: Stores,
    exposure: Exposure,
    offsite: OffsiteRule,
    heard: Mutex<BTreeMap<NodeId, Heard>>,
    /// Changes with all that is heard, and with what this node archives.
    changed: watch::Sender<u64>,
    /// The newest revision that somebody here waits for.
    wanted: Mutex<Revision>,
    /// Others are to be told at once.
    telling: Notify,
    board: Mutex<Board>,
    /// Whether the others were asked once: before, each would think that it is alone.
    settled: AtomicBool,
}

/// What another node said last.
struct Heard {
    at: Instant,
    news: News,
}

/// How a place stands, as far as this node knows.
#[derive(Debug, Clone, Default)]
pub struct PlaceStatus {
    /// Its name.
    pub name: String,
    /// Which store, without secrets.
    pub url: String,
    /// Whether objects are encrypted.
    pub encrypted: bool,
    /// Whether it counts for writes that ask to be off-site.
    pub durable: bool,
    /// Who archives.
    pub active: Option<NodeId>,
    /// Who could.
    pub candidates: Vec<NodeId>,
    /// Up to where everything is archived.
    pub archived: Option<Archived>,
    /// What was written in this time may not be archived yet; `None` where it is not known.
    pub behind: Option<Duration>,
    /// The newest whole state.
    pub full: Option<Full>,
    /// Whether one is on its way.
    pub full_under_way: bool,
    /// Objects in the archive, and their length.
    pub objects: (u64, u64),
    /// Why candidates fail, if some do.
    pub troubles: Vec<(NodeId, Trouble)>,
    /// Where it comes from.
    pub origin: BackupOrigin,
    /// What is declared, as JSON; `None` where it stands in the configuration.
    pub declared: Option<String>,
    /// Why nobody archives there at all.
    pub idle: Option<String>,
    /// What the proofs beside the archive tell, as far as they were read.
    pub proofs: Option<Proofs>,
    /// Tries to archive that failed, on the nodes that told, since each began.
    pub errors: u64,
    /// Entries of the log that the node that archives keeps until they are archived; `None` where the log is not archived.
    pub held_entries: Option<u64>,
}

/// Why what was asked of backups is not done.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// This node is not ready.
    #[error("this node is not ready: {0}")]
    NotReady(String),
    /// There is no such place.
    #[error("no place for backups is named {name}; there are: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// Those that are known.
        known: String,
    },
    /// Nobody archives there at present.
    #[error("nobody can archive to {name} at present: {why}")]
    Nobody {
        /// The place.
        name: String,
        /// What is known of the reason.
        why: String,
    },
    /// What is declared is malformed, or not allowed.
    #[error("{0}")]
    Invalid(String),
    /// It does not go with what there is.
    #[error("{0}")]
    Conflict(String),
    /// The store can't be used, as this node finds.
    #[error("{0}; nothing was changed. With force it is declared all the same, and tried again and again")]
    Unusable(String),
    /// The change was not carried out, or it is not known whether it was.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Archiving {
    pub(super) fn new(
        config: &ArchiveConfig,
        cluster: ClusterId,
        raft: RaftNode,
        transport: Arc<dyn Transport>,
        timers: Timers,
        metrics: &Metrics,
    ) -> Self {
        let exposure = metrics.register(Exposure::register);
        let place = |settings: &TargetSettings| Place::new(settings.clone(), exposure.of(&settings.name));
        let configured: Vec<_> = config.places.iter().map(|settings| Arc::new(place(settings))).collect();
        let archiving = Self(Arc::new(Shared {
            cluster,
            raft,
            transport,
            timers,
            places: watch::Sender::new(Arc::new(configured.clone())),
            configured,
            idle: Mutex::default(),
            adopting: Mutex::default(),
            declare: config.declare.clone(),
            stores: config.stores.clone(),
            exposure,
            offsite: config.offsite.clone(),
            heard: Mutex::default(),
            changed: watch::Sender::new(0),
            wanted: Mutex::new(Revision::ZERO),
            telling: Notify::new(),
            board: Mutex::default(),
            settled: AtomicBool::new(false),
        }));
        archiving.adopt();
        if !archiving.list().iter().any(|place| place.settings.log) {
            // Where the log is archived it is kept as a whole until it is known how far it was.
            archiving.0.raft.keep_log_behind(None);
        }
        let collector = ArchiveCollector(archiving.clone());
        metrics.register(|registry| registry.register_collector(Box::new(collector)));
        archiving
    }

    /// Begins to archive and to talk with the others, until the node stops.
    /// `scratch` is a folder that may be made and removed.
    pub(super) fn spawn(&self, name: &str, scratch: &Path, background: &TaskTracker, stopping: &CancellationToken) {
        let (gossiping, stop) = (self.clone(), stopping.clone());
        background.spawn(async move {
            stop.run_until_cancelled(gossip::run(gossiping)).await;
        });
        let (cluster, stores) = (self.0.cluster, self.0.stores.clone());
        let author = Author { cluster, name: name.to_owned(), scratch: scratch.to_owned(), stores };
        let (raft, places) = (self.0.raft.clone(), self.0.places.subscribe());
        background.spawn(thread::run(raft, author, places, stopping.clone()));
    }

    /// The places that this node could archive to, at present.
    fn list(&self) -> Arc<Vec<Arc<Place>>> {
        Arc::clone(&self.0.places.borrow())
    }

    /// Answers another node; `None` for what is no message to this one.
    pub(super) fn handle(&self, message: &[u8]) -> Option<Bytes> {
        let Message { cluster, from, to, what } = news::decode(message)?;
        if cluster != self.0.cluster || to != self.0.raft.id() {
            return None;
        }
        let answer = match what {
            What::News(news) => {
                self.hear(from, news);
                Answer::News(self.news())
            }
            What::SendFull(name) => Answer::SendFull(self.send_full_here(&name)),
        };
        Some(news::encode(&answer))
    }

    /// Takes note of what another node says.
    fn hear(&self, from: NodeId, news: News) {
        let wanted = news.wanted;
        self.0.heard.lock().insert(from, Heard { at: clock::now(), news });
        self.nudge(wanted);
        self.decide();
        self.0.changed.send_modify(|changes| *changes += 1);
    }

    /// Has what is wanted off-site sent at once, where this node archives.
    fn nudge(&self, wanted: Revision) {
        for place in self.list().iter().filter(|place| *place.active.borrow()) {
            let archived = place.desk.status().borrow().archived.map(|archived| archived.revision);
            if archived < Some(wanted) {
                place.desk.want(wanted);
            }
        }
    }

    /// What this node says.
    fn news(&self) -> News {
        let purged = self.0.raft.log_begins_behind();
        let applied = self.0.raft.applied().borrow().position.map_or(0, |position| position.index.get());
        let places = self.list().iter().map(|place| place.news(self.needed(place), purged, applied)).collect();
        let (wanted, alarms) = (*self.0.wanted.lock(), self.0.board.lock().all());
        News { leads: self.0.raft.leads(), applied, wanted, places, alarms }
    }

    /// What others said lately of a place.
    fn heard_of(&self, name: &str, url_hash: u64) -> Vec<(NodeId, Instant, bool, u64, PlaceNews)> {
        let heard = self.0.heard.lock();
        let live = heard.iter().filter(|(_, heard)| heard.at.elapsed() < GONE_AFTER);
        let of_place = |(id, heard): (&NodeId, &Heard)| {
            let place = heard.news.places.iter().find(|place| place.name == name && place.url_hash == url_hash)?;
            Some((*id, heard.at, heard.news.leads, heard.news.applied, place.clone()))
        };
        live.filter_map(of_place).collect()
    }

    /// The farthest that anybody knows to be archived at a place.
    fn archived(&self, place: &Place) -> Option<Archived> {
        let own = place.desk.status().borrow().archived;
        let own = own.map(|own| Archived { position: own.position, revision: own.revision });
        let heard = self.0.heard.lock();
        let places = heard.values().flat_map(|heard| &heard.news.places);
        let same = places.filter(|one| one.name == place.settings.name && one.url_hash == place.url_hash);
        same.filter_map(|one| one.archived).chain(own).max_by_key(|one| (one.position.index, one.revision))
    }

    /// The last entry that need not be sent to a place any more, as far as anybody knows: whole states that reach farther
    /// don't count where the log is archived, for what lies between would be lost.
    fn needed(&self, place: &Place) -> Option<LogIndex> {
        if !place.settings.log {
            return self.archived(place).map(|archived| archived.position.index);
        }
        let own = place.desk.status().borrow().shipped.map(|shipped| shipped.index);
        let heard = self.0.heard.lock();
        let places = heard.values().flat_map(|heard| &heard.news.places);
        let same = places.filter(|one| one.name == place.settings.name && one.url_hash == place.url_hash);
        same.filter_map(|one| one.shipped).chain(own).max()
    }

    /// Sees who archives to each place, and for how long the log is needed.
    fn decide(&self) {
        let raft = &self.0.raft;
        let own = self.news();
        let places = self.list();
        let needs = places.iter().map(|place| Need { log: place.settings.log, done: self.needed(place) });
        raft.keep_log_behind(choice::hold(needs));
        // They are the same but where the list has just changed, and then this is done again at once.
        let told = |place: &Place| own.places.iter().find(|news| place.is_told(news));
        for (place, news) in places.iter().filter_map(|place| Some((place, told(place)?))) {
            let candidate = |id, leads, applied, news: &PlaceNews| Candidate {
                id,
                healthy: news.healthy,
                continues: news.continues,
                leads,
                active: news.active,
                applied,
            };
            let mut candidates = vec![candidate(raft.id(), own.leads, own.applied, news)];
            let heard = self.heard_of(&news.name, news.url_hash);
            candidates.extend(heard.iter().map(|(id, _, leads, applied, news)| candidate(*id, *leads, *applied, news)));
            let settled = self.0.settled.load(Ordering::Relaxed) && self.is_settled(place, heard.len());
            let active = settled && choice::choose(&candidates) == Some(raft.id());
            place.active.send_if_modified(|before| std::mem::replace(before, active) != active);
        }
    }

    /// Whether this node knows enough of the others to see who archives. `told` is how many have told of the place.
    fn is_settled(&self, place: &Place, told: usize) -> bool {
        let heard = self.0.heard.lock();
        let live = heard.values().filter(|heard| heard.at.elapsed() < GONE_AFTER).count();
        choice::is_settled(place.declared.is_some(), told, live, place.began.elapsed())
    }

    /// Raises and ends alarms.
    fn look(&self) {
        let leads = self.0.raft.leads();
        let list = self.list();
        let places = list.iter().map(|place| {
            let rpo = self.behind(place).filter(|_| leads);
            (&**place, rpo, self.others_elsewhere(place))
        });
        let idle: Vec<_> = self.0.idle.lock().iter().map(|(name, idle)| (name.clone(), idle.clone())).collect();
        let forgetful = self.forgetful();
        self.0.board.lock().update(places, &idle, &forgetful);
    }

    /// Members that have forgotten what they had acknowledged, by name.
    fn forgetful(&self) -> Vec<(String, Forgetful)> {
        let forgetful = self.0.raft.forgetful();
        let members = if forgetful.is_empty() { BTreeMap::new() } else { self.0.raft.roster().members };
        let named = |one: Forgetful| members.get(&one.id).map(|member| (member.name.clone(), one));
        forgetful.into_iter().filter_map(named).collect()
    }

    /// Nodes that mean another store by the name of a place.
    fn others_elsewhere(&self, place: &Place) -> Vec<String> {
        let members = self.0.raft.roster().members;
        let heard = self.0.heard.lock();
        let elsewhere = heard.iter().filter(|(_, heard)| {
            let other = |one: &PlaceNews| one.name == place.settings.name && one.url_hash != place.url_hash;
            heard.at.elapsed() < GONE_AFTER && heard.news.places.iter().any(other)
        });
        elsewhere.filter_map(|(id, _)| members.get(id).map(|member| member.name.clone())).collect()
    }

    /// The least time such that all that was written before is known to be archived.
    fn behind(&self, place: &Place) -> Option<Duration> {
        let own = place.desk.status().borrow().covered_at.map(|at| at.elapsed());
        let heard = self.0.heard.lock();
        let of_others = heard.values().filter_map(|heard| {
            let same = |one: &&PlaceNews| one.name == place.settings.name && one.url_hash == place.url_hash;
            let behind = heard.news.places.iter().find(same)?.behind_ms?;
            Some(Duration::from_millis(behind).saturating_add(heard.at.elapsed()))
        });
        of_others.chain(own).min()
    }

    /// How each known place stands.
    fn places(&self) -> Vec<PlaceStatus> {
        let own = self.news();
        let me = self.0.raft.id();
        let mut all: BTreeMap<(String, u64), PlaceStatus> = BTreeMap::new();
        let heard = self.0.heard.lock();
        let others = heard.iter().filter(|(_, heard)| heard.at.elapsed() < GONE_AFTER);
        let others = others.flat_map(|(id, heard)| heard.news.places.iter().map(|one| (*id, heard.at.elapsed(), one)));
        let own = own.places.iter().map(|one| (me, Duration::ZERO, one));
        for (id, age, news) in own.chain(others) {
            let status = all.entry((news.name.clone(), news.url_hash)).or_default();
            status.take(id, age, news);
        }
        drop(heard);
        let mut all: Vec<_> = all.into_values().collect();
        self.tell_origins(&mut all);
        all
    }

    fn send_full_here(&self, name: &str) -> Result<(), String> {
        let places = self.list();
        let place = places.iter().find(|place| place.settings.name == name);
        match place.filter(|place| *place.active.borrow()) {
            Some(place) => {
                place.desk.want_full();
                Ok(())
            }
            None => Err("it does not archive there at present".to_owned()),
        }
    }

    /// Has whoever archives to a place send a whole state; returns who that is.
    async fn send_full(&self, name: &str, deadline: Instant) -> Result<NodeId, BackupError> {
        let places = self.places();
        let Some(place) = places.iter().find(|place| place.name == name) else {
            let known: Vec<_> = places.iter().map(|place| place.name.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(BackupError::Unknown { name: name.to_owned(), known });
        };
        let nobody = |why: String| BackupError::Nobody { name: name.to_owned(), why };
        let Some(active) = place.active else {
            let why = place.troubles.first().map(|(_, trouble)| trouble.error.clone());
            return Err(nobody(why.unwrap_or_else(|| "the nodes have not settled who does; try again".to_owned())));
        };
        if active == self.0.raft.id() {
            return self.send_full_here(name).map(|()| active).map_err(nobody);
        }
        match self.call(active, What::SendFull(name.to_owned()), deadline).await {
            Some(Answer::SendFull(answer)) => answer.map(|()| active).map_err(nobody),
            _ => Err(nobody(format!("the node that archives there, {active}, does not answer"))),
        }
    }

    /// Says something to another node.
    async fn call(&self, to: NodeId, what: What, deadline: Instant) -> Option<Answer> {
        let Shared { cluster, raft, transport, .. } = &*self.0;
        let peer = raft.roster().members.get(&to)?.peer_addr.clone();
        let message = Message { cluster: *cluster, from: raft.id(), to, what };
        let answer = transport.call(&peer, Channel::Control, news::encode(&message), deadline).await;
        news::decode(&answer.inspect_err(|error| tracing::debug!(%error, "a node gave no news of archives")).ok()?)
    }
}

impl PlaceStatus {
    /// Adds what one node knows, which it said so long ago.
    fn take(&mut self, id: NodeId, age: Duration, news: &PlaceNews) {
        self.name.clone_from(&news.name);
        self.url.clone_from(&news.url);
        self.encrypted = news.encrypted;
        self.durable = news.durable;
        self.candidates.push(id);
        let farther = |one: Option<Archived>| one.map(|one| (one.position.index, one.revision));
        if farther(news.archived) > farther(self.archived) {
            self.archived = news.archived;
        }
        let behind = news.behind_ms.map(|ms| Duration::from_millis(ms).saturating_add(age));
        self.behind = [self.behind, behind].into_iter().flatten().min();
        // Of the archive whoever continues it knows most.
        if news.active || self.full.is_none() {
            self.full = news.full;
            self.objects = (news.objects, news.object_bytes);
            self.held_entries = news.held_entries;
        }
        self.errors = self.errors.saturating_add(news.errors);
        // All read the same proofs, some later than others.
        let newest = |proofs: &Option<Proofs>| proofs.as_ref().map(Proofs::newest);
        if newest(&news.proofs) > newest(&self.proofs) {
            self.proofs.clone_from(&news.proofs);
        }
        if news.active && news.healthy {
            self.active = Some(id);
        }
        self.full_under_way |= news.full_under_way;
        self.troubles.extend(news.trouble.clone().map(|trouble| (id, trouble)));
    }
}

impl Node {
    fn archiving(&self) -> Result<&Archiving, String> {
        self.raft()?;
        self.0.archiving.get().ok_or_else(|| "it is starting".to_owned())
    }

    /// The places for backups and how they stand, as this node and those that it hears of know it.
    ///
    /// # Errors
    /// Why this node does not know.
    pub async fn backups(&self) -> Result<Vec<PlaceStatus>, BackupError> {
        let archiving = self.archiving().map_err(BackupError::NotReady)?;
        gossip::ask_all(archiving).await;
        Ok(archiving.places())
    }

    /// Has a whole state sent to the place of this name; returns which node will do it.
    ///
    /// # Errors
    /// [`BackupError`].
    pub async fn send_full(&self, name: &str, deadline: Instant) -> Result<NodeId, BackupError> {
        self.archiving().map_err(BackupError::NotReady)?.send_full(name, deadline).await
    }

    /// The alarms of this node.
    #[must_use]
    pub fn own_alarms(&self) -> Vec<Alarm> {
        self.0.archiving.get().map(|archiving| archiving.0.board.lock().all()).unwrap_or_default()
    }

    /// The alarms of all members, and the members that did not tell theirs.
    ///
    /// # Errors
    /// Why this node does not know.
    pub async fn alarms(&self) -> Result<(Vec<(NodeId, Alarm)>, Vec<NodeId>), BackupError> {
        let archiving = self.archiving().map_err(BackupError::NotReady)?;
        let silent = gossip::ask_all(archiving).await;
        let me = archiving.0.raft.id();
        let mut alarms: Vec<_> = self.own_alarms().into_iter().map(|alarm| (me, alarm)).collect();
        let heard = archiving.0.heard.lock();
        let others = heard.iter().filter(|(id, heard)| heard.at.elapsed() < GONE_AFTER && !silent.contains(id));
        alarms.extend(others.flat_map(|(id, heard)| heard.news.alarms.iter().map(|alarm| (*id, alarm.clone()))));
        Ok((alarms, silent))
    }
}
