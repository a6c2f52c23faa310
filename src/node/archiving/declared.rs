//! Places for backups that are declared to the cluster, through any node.
//!
//! What was declared stands in the replicated state, so every member archives there, or is ready to, from the moment on at
//! which it has applied the order, and after each start. A declaration names the cluster that it was made in. In another one,
//! which a restore or a recovery has made of the same state, or a drill, nobody archives there: the old cluster may live.
//!
//! Guarantees: a store is tried before it is declared; of two orders at the same time for one name one sees what the other did
//! (`state`), and of two for one store the place whose name comes first is archived to, by every node, and the other one is told
//! as idle; no secret is in a declaration. Leaves out: how a block is read ([`Declare`] is given by `config`).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::gossip;
use super::place::{self, Place};
use super::{Archiving, BackupError, PlaceStatus};
use crate::backup::layout::{cluster_name, cluster_of};
use crate::backup::probe::{self, Probed, SKEW_MILLIS_MAX};
use crate::backup::settings::TargetSettings;
use crate::backup::target::{Stores, redacted};
use crate::clock::{self, Instant};
use crate::node::Node;
use crate::node::request::WriteError;
use crate::state::{TargetChange, Targets};
use crate::types::ClusterId;

/// The newest form of what is declared.
const FORMAT: u32 = 1;

/// How long a store may take to be tried.
const TRY_TIMEOUT: Duration = Duration::from_secs(20);

/// So much of the time that there is stays for the order itself.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// After an order was carried out, this node may take so long to see it before it answers all the same.
const SEEN_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads a block, as it would stand in the configuration, from JSON.
#[derive(Clone)]
pub struct Declare {
    /// Does so: the block, and [`Self::allow`].
    pub read: fn(&str, &[String]) -> Result<TargetSettings, String>,
    /// What of this node a block may refer to, by the configuration of the node: files, variables, other hosts.
    pub allow: Vec<String>,
}

impl Declare {
    fn settings(&self, block: &str) -> Result<TargetSettings, String> {
        (self.read)(block, &self.allow)
    }
}

impl Default for Declare {
    /// For nodes that shall archive nowhere but where their configuration says.
    fn default() -> Self {
        Self {
            read: |_, _| Err("this node takes no places for backups but those of its configuration".to_owned()),
            allow: Vec::new(),
        }
    }
}

impl fmt::Debug for Declare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Declare").field("allow", &self.allow).finish_non_exhaustive()
    }
}

impl PartialEq for Declare {
    /// Who reads it is no setting.
    fn eq(&self, other: &Self) -> bool {
        self.allow == other.allow
    }
}

impl Eq for Declare {}

/// Where a place for backups comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BackupOrigin {
    /// It stands in the configuration of nodes.
    #[default]
    Config,
    /// It was declared to the cluster.
    Api,
}

/// A change of what is declared.
#[derive(Debug, Clone, PartialEq)]
pub enum BackupChange {
    /// Declares a place.
    Add(Map<String, Value>),
    /// Changes a place: fields that are given replace those that are there, `null` takes one out.
    Update(String, Map<String, Value>),
    /// Forgets a place; what is archived there stays.
    Remove(String),
}

/// How a change is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BackupChangeOptions {
    /// Try everything, and change nothing.
    pub dry_run: bool,
    /// Also where the store can't be used, or where a member does not answer.
    pub force: bool,
}

/// What was found of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// Whether an empty place became a repository.
    pub made: bool,
    /// Whether the credentials allow to delete; tried if it became one just now.
    pub can_delete: Option<bool>,
    /// The clock of the store less that of this node, in milliseconds; known if it became one just now.
    pub skew_millis: Option<i64>,
    /// The clusters that have an archive there.
    pub clusters: Vec<ClusterId>,
}

/// What came of a change.
#[derive(Debug, Clone, PartialEq)]
pub struct BackupChanged {
    /// The place.
    pub name: String,
    /// What is declared, as JSON; `None` if nothing is any more.
    pub declared: Option<String>,
    /// What was found of the store, if it was tried and can be used.
    pub tried: Option<Tried>,
    /// What somebody should know.
    pub warnings: Vec<String>,
}

/// What stands in the state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Declaration {
    format: u32,
    /// The cluster in which it was made, as folders are named.
    cluster: String,
    block: Map<String, Value>,
}

impl Declaration {
    fn encode(&self) -> Bytes {
        Bytes::from(serde_json::to_vec(self).expect("plain data into a growing vector can't fail"))
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Form {
            format: u32,
        }
        let malformed = |error: serde_json::Error| format!("it can't be read: {error}");
        let Form { format } = serde_json::from_slice(bytes).map_err(malformed)?;
        if format > FORMAT {
            return Err(format!("it has format {format}, and this node reads {FORMAT}: a newer program declared it"));
        }
        serde_json::from_slice(bytes).map_err(malformed)
    }

    fn json(&self) -> String {
        Value::Object(self.block.clone()).to_string()
    }
}

/// Why a declared place is none for this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Why {
    /// It was declared in another cluster.
    Suspended(String),
    /// This node can't read it.
    Unreadable(String),
    /// The configuration of this node has a place of this name, or for this store.
    Shadowed(String),
    /// Another declared place is for the same store.
    SameStore(String),
}

/// A declared place that is none for this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Idle {
    pub(super) why: Why,
    /// Where that is known; without secrets.
    pub(super) url: String,
    /// As JSON, where it can be read.
    declared: Option<String>,
    /// Whether objects would be encrypted there, and count for writes that ask to be off-site.
    encrypted: bool,
    durable: bool,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Suspended(cluster) => write!(
                f,
                "it was declared in the cluster {cluster}, which this one was restored or recovered from, and which may still \
                 live; nobody archives there"
            ),
            Self::Unreadable(why) => write!(f, "this node does not archive there: {why}"),
            Self::Shadowed(other) => {
                write!(
                    f,
                    "the configuration of this node has the place {other} by this name or for this store, which counts"
                )
            }
            Self::SameStore(other) => {
                write!(
                    f,
                    "it was declared at the same time as the place {other} for the same store, and that one counts"
                )
            }
        }
    }
}

impl Archiving {
    /// Takes over what is declared: places that are new are archived to, those that are gone are not any more.
    pub(super) fn adopt(&self) {
        let _one_at_a_time = self.0.adopting.lock();
        let targets: Targets = self.0.raft.targets().borrow().clone();
        let before = self.list();
        let mut places = self.0.configured.clone();
        let mut idle = std::collections::BTreeMap::new();
        for (name, declaration) in targets.iter() {
            let earlier = &places[self.0.configured.len()..];
            let is_same = |place: &&Arc<Place>| {
                place.declared.as_ref() == Some(declaration)
                    && !earlier.iter().any(|other| other.is_at(&place.settings.url))
            };
            if let Some(same) = before.iter().find(is_same) {
                places.push(Arc::clone(same));
                continue;
            }
            match self.read(name, declaration, earlier) {
                Ok(settings) => {
                    let exposure = self.0.exposure.of(name);
                    places.push(Arc::new(Place::declared(settings, exposure, declaration.clone())));
                }
                Err(one) => {
                    idle.insert(name.to_owned(), one);
                }
            }
        }
        for gone in before.iter().filter(|place| !places.iter().any(|other| Arc::ptr_eq(place, other))) {
            gone.active.send_replace(false);
        }
        *self.0.idle.lock() = idle;
        self.0.places.send_replace(Arc::new(places));
    }

    /// What a declaration means to this node. `earlier` are the declared places whose names come before this one: where two were declared for one store at the same
    /// time, the first one counts, on every node.
    fn read(&self, name: &str, declaration: &[u8], earlier: &[Arc<Place>]) -> Result<TargetSettings, Idle> {
        let unreadable = |why: String, declared: Option<String>| Idle {
            why: Why::Unreadable(why),
            url: String::new(),
            declared,
            encrypted: false,
            durable: false,
        };
        let declaration = Declaration::decode(declaration).map_err(|error| unreadable(error, None))?;
        let declared = declaration.json();
        let read = self.0.declare.settings(&declared);
        let settings = read.map_err(|error| unreadable(error, Some(declared.clone())))?;
        let same = |place: &&Arc<Place>| place.settings.name == name || place.is_at(&settings.url);
        let why = if cluster_of(&declaration.cluster) != Some(self.0.cluster) {
            Why::Suspended(declaration.cluster)
        } else if settings.name != name {
            Why::Unreadable(format!("it is of a place named {}", settings.name))
        } else if let Some(other) = self.0.configured.iter().find(same) {
            Why::Shadowed(other.settings.name.clone())
        } else if let Some(other) = earlier.iter().find(same) {
            Why::SameStore(other.settings.name.clone())
        } else {
            return Ok(settings);
        };
        Err(Idle {
            why,
            url: redacted(&settings.url),
            declared: Some(declared),
            encrypted: !settings.recipients.is_empty(),
            durable: settings.durable,
        })
    }

    /// Adds where places come from, and those that nobody archives to.
    pub(super) fn tell_origins(&self, all: &mut Vec<PlaceStatus>) {
        for place in self.list().iter() {
            let Some(declaration) = &place.declared else { continue };
            let same = |status: &&mut PlaceStatus| status.name == place.settings.name && status.url == place.url;
            if let Some(status) = all.iter_mut().find(same) {
                status.origin = BackupOrigin::Api;
                status.declared = Declaration::decode(declaration).ok().map(|declaration| declaration.json());
            }
        }
        let idle = self.0.idle.lock();
        all.extend(idle.iter().map(|(name, idle)| PlaceStatus {
            name: name.clone(),
            url: idle.url.clone(),
            origin: BackupOrigin::Api,
            declared: idle.declared.clone(),
            idle: Some(idle.why.to_string()),
            encrypted: idle.encrypted,
            durable: idle.durable,
            ..PlaceStatus::default()
        }));
    }

    /// The command for a change, and what is declared then.
    fn command(&self, change: BackupChange) -> Result<(TargetChange, Option<Declaration>), BackupError> {
        let targets = self.0.raft.targets().borrow().clone();
        let of_this_cluster = |block| Declaration { format: FORMAT, cluster: cluster_name(self.0.cluster), block };
        match change {
            BackupChange::Add(block) => {
                let name = block.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
                let declaration = of_this_cluster(block);
                if targets.get(&name).is_some_and(|known| *known != declaration.encode()) {
                    let what = format!(
                        "a place for backups named {name} is declared already; change that one, or choose another name"
                    );
                    return Err(BackupError::Conflict(what));
                }
                Ok((TargetChange::Add { name, declaration: declaration.encode() }, Some(declaration)))
            }
            BackupChange::Update(name, patch) => {
                let was = targets.get(&name).cloned().ok_or_else(|| self.not_declared(&name))?;
                let mut block = Declaration::decode(&was).map_err(BackupError::Conflict)?.block;
                merge(&mut block, patch);
                if block.get("name").and_then(Value::as_str) != Some(&name) {
                    let what = "a place for backups can't get another name; remove it, and declare it anew".to_owned();
                    return Err(BackupError::Invalid(what));
                }
                let declaration = of_this_cluster(block);
                Ok((TargetChange::Replace { name, was, declaration: declaration.encode() }, Some(declaration)))
            }
            BackupChange::Remove(name) => match targets.get(&name) {
                Some(_) => Ok((TargetChange::Remove { name }, None)),
                None => Err(self.not_declared(&name)),
            },
        }
    }

    fn not_declared(&self, name: &str) -> BackupError {
        let places = self.places();
        if places.iter().any(|place| place.name == name) {
            let what = format!("the place for backups {name} stands in the configuration of nodes; change it there");
            return BackupError::Conflict(what);
        }
        let known: Vec<_> = places.iter().map(|place| place.name.as_str()).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        BackupError::Unknown { name: name.to_owned(), known }
    }

    /// Refuses what has the name or the store of another place.
    fn check_others(&self, settings: &TargetSettings) -> Result<(), BackupError> {
        let shown = redacted(&settings.url);
        let same_store = |url: &str| url.trim_end_matches('/') == shown.trim_end_matches('/');
        for other in self.places() {
            let named = other.name == settings.name;
            if named && other.origin == BackupOrigin::Config {
                return Err(BackupError::Conflict(format!(
                    "the configuration of a node has a place for backups named {}; choose another name",
                    other.name
                )));
            }
            if !named && same_store(&other.url) {
                return Err(BackupError::Conflict(format!(
                    "the place for backups {} means the same store; give each its own",
                    other.name
                )));
            }
        }
        Ok(())
    }
}

/// Tries a store as an archiver does. An empty place becomes a repository.
async fn attempt(stores: &Stores, settings: &TargetSettings, deadline: Instant) -> Result<Probed, String> {
    let begun = clock::now();
    let time = TRY_TIMEOUT.min(deadline.saturating_duration_since(begun).saturating_sub(ANSWER_TIME));
    let trying = async {
        let options = place::options(settings).await?;
        let repository = place::open(stores, settings, options).await?;
        probe::probe(&repository).await.map_err(|error| error.to_string())
    };
    let late = || {
        let seconds = begun.elapsed().as_secs_f32();
        format!(
            "{} was not tried to the end within {seconds:.1} s; see whether the store, or the disk that is mounted there, answers",
            settings.url
        )
    };
    tokio::time::timeout(time, trying).await.map_err(|_| late())?
}

/// What an operator should know of a place that can be used.
fn warnings(settings: &TargetSettings, probed: Option<&Probed>) -> Vec<String> {
    let mut warnings = Vec::new();
    if settings.recipients.is_empty() {
        warnings.push(
            "objects are NOT encrypted: whoever can read the store can read all data; give recipients".to_owned(),
        );
    }
    let Some(probed) = probed else { return warnings };
    if probed.can_delete == Some(false) && settings.care.keep.is_some() {
        warnings.push("the credentials don't allow to delete, so nothing can be pruned".to_owned());
    }
    if let Some(skew) = probed.skew_millis.filter(|skew| skew.unsigned_abs() > SKEW_MILLIS_MAX) {
        let what = format!("the clocks of the store and of this node differ by {} s; set them right", skew / 1_000);
        warnings.push(what);
    }
    warnings
}

/// Lays a patch over an object: RFC 7396.
fn merge(object: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (name, value) in patch {
        match value {
            Value::Null => {
                object.remove(&name);
            }
            Value::Object(inner) => {
                let place = object.entry(name).or_insert_with(|| Value::Object(Map::new()));
                if !place.is_object() {
                    *place = Value::Object(Map::new());
                }
                if let Value::Object(below) = place {
                    merge(below, inner);
                }
            }
            value => {
                object.insert(name, value);
            }
        }
    }
}

impl Node {
    /// Changes which places for backups are declared to the cluster; returns once that is so, and this node has seen it.
    ///
    /// # Errors
    /// [`BackupError`]; only an outcome that is unknown leaves open whether it was or will be done.
    pub async fn change_backups(
        &self,
        change: BackupChange,
        options: BackupChangeOptions,
        deadline: Instant,
    ) -> Result<BackupChanged, BackupError> {
        let archiving = self.archiving().map_err(BackupError::NotReady)?;
        // What others have in their configuration, and whether they know of declarations at all.
        let silent = gossip::ask_all(archiving).await;
        // What was declared through another node a moment ago.
        if let Ok(raft) = self.raft() {
            raft.read_barrier(deadline).await.map_err(|error| BackupError::NotReady(error.to_string()))?;
        }
        let (command, declaration) = archiving.command(change)?;
        let mut changed = BackupChanged {
            name: command.name().to_owned(),
            declared: declaration.as_ref().map(Declaration::json),
            tried: None,
            warnings: Vec::new(),
        };
        if let Some(json) = &changed.declared {
            let settings = archiving.0.declare.settings(json).map_err(BackupError::Invalid)?;
            archiving.check_others(&settings)?;
            // Before the store is tried, and in a dry run as well.
            let targets = archiving.0.raft.targets().borrow().clone();
            targets.check(&command).map_err(WriteError::Rejected)?;
            let probed = match attempt(&archiving.0.stores, &settings, deadline).await {
                Ok(probed) => Some(probed),
                Err(why) if options.force => {
                    changed.warnings.push(format!("it can't be used by this node at present: {why}"));
                    None
                }
                Err(why) => return Err(BackupError::Unusable(why)),
            };
            changed.warnings.extend(warnings(&settings, probed.as_ref()));
            changed.tried = probed.map(|Probed { made, can_delete, skew_millis, clusters }| Tried {
                made,
                can_delete,
                skew_millis,
                clusters,
            });
        }
        if !silent.is_empty() && !options.force {
            let names: Vec<String> = silent.iter().map(|id| self.member(*id).name).collect();
            return Err(BackupError::Conflict(format!(
                "{} did not answer: a member of an older version would stop at what it does not know. Try again once it \
                 answers, or force it if all members have this version",
                names.join(", ")
            )));
        }
        if !options.dry_run {
            self.change_targets(command, deadline).await?;
            self.until_seen(&changed, declaration.as_ref()).await;
            if let Some(Idle { why: why @ Why::SameStore(_), .. }) = archiving.0.idle.lock().get(&changed.name) {
                changed.warnings.push(format!("{why}; remove this one"));
            }
            tracing::info!(
                backup = changed.name,
                declared = changed.declared.is_some(),
                "what is declared for backups was changed"
            );
        }
        Ok(changed)
    }

    /// Waits until this node has applied a change: who asks it next shall see it.
    async fn until_seen(&self, changed: &BackupChanged, declaration: Option<&Declaration>) {
        let Ok(raft) = self.raft() else { return };
        let (mut targets, wanted) = (raft.targets(), declaration.map(Declaration::encode));
        let seen = targets.wait_for(|targets| targets.get(&changed.name) == wanted.as_ref());
        let _ = tokio::time::timeout(SEEN_TIMEOUT, seen).await;
        if let Ok(archiving) = self.archiving() {
            archiving.adopt();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_patch_replaces_what_it_names_and_takes_out_what_it_says_is_null() {
        let object = |value: Value| if let Value::Object(object) = value { object } else { Map::new() };
        let mut block = object(json!({"name": "a", "full": "x", "keep": {"hourly": 1, "daily": 2}, "durable": true}));
        merge(&mut block, object(json!({"full": null, "keep": {"daily": 3, "weekly": 4}, "options": {"region": "y"}})));
        let expected = json!({"name": "a", "keep": {"hourly": 1, "daily": 3, "weekly": 4}, "durable": true, "options": {"region": "y"}});
        assert_eq!(Value::Object(block), expected);
    }

    #[test]
    fn the_bytes_of_a_declaration_stay_readable_and_newer_ones_are_told() {
        let block = Map::from_iter([("name".to_owned(), json!("main"))]);
        let declaration = Declaration { format: 1, cluster: cluster_name(ClusterId::new(7)), block };
        let bytes = br#"{"format":1,"cluster":"0000000000000007","block":{"name":"main"}}"#;
        assert_eq!(&declaration.encode()[..], bytes);
        assert_eq!(Declaration::decode(bytes), Ok(declaration));
        let newer = Declaration::decode(br#"{"format":2,"places":[]}"#).unwrap_err();
        assert!(newer.contains("format 2") && newer.contains("newer program"), "{newer}");
        assert!(Declaration::decode(b"\xFF").unwrap_err().contains("can't be read"));
    }
}
