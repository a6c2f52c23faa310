//! What goes to the store beside each other: new entries, whole states, and entries again as fewer objects.
//!
//! Guarantees: a job that was given up, wherever it was, leaves nothing that belongs to the archive: objects belong to it
//! only once a manifest says so. Leaves out: which job is due, and the manifests (`worker`).

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use super::ArchiveError;
use super::source::{LogSource, Reached, SourceError};
use crate::backup::bandwidth::Bandwidth;
use crate::backup::log_object::LogObject;
use crate::backup::manifest::Object;
use crate::backup::prune::NAME_WITHIN;
use crate::backup::repository::{Repository, StoreError};
use crate::backup::settings::TargetSettings;
use crate::backup::transfer::{store_entries, store_snapshot};
use crate::clock::{self, Instant};
use crate::types::{ClusterId, LogPosition, WallTime};

/// What all jobs need.
pub(super) struct Work<S> {
    pub(super) cluster: ClusterId,
    pub(super) author: String,
    pub(super) settings: TargetSettings,
    pub(super) repository: Repository,
    pub(super) source: Arc<S>,
    pub(super) bandwidth: Bandwidth,
}

/// New entries to be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shipment {
    /// The last entry that is archived.
    pub(super) after: Option<LogPosition>,
    /// How far the log goes.
    pub(super) upto: Reached,
    /// When that was found.
    pub(super) at: Instant,
}

/// An object that is stored, and belongs to nothing yet.
pub(super) struct Stored {
    pub(super) object: Object,
    /// By a clock that goes on where this machine sleeps.
    pub(super) at: WallTime,
}

impl Stored {
    fn now(object: Object) -> Self {
        Self { object, at: clock::wall() }
    }

    /// Refuses one that whoever prunes may have taken for left over.
    pub(super) fn check(&self) -> Result<(), ArchiveError> {
        let ago = Duration::from_millis(clock::wall().get().saturating_sub(self.at.get()));
        if ago < NAME_WITHIN {
            return Ok(());
        }
        Err(ArchiveError::Late { name: self.object.name.clone(), ago: Duration::from_secs(ago.as_secs()) })
    }
}

/// A job that has ended.
pub(super) enum Done {
    /// Entries are stored, perhaps not all of the shipment.
    Shipped(Shipment, Stored),
    /// Entries of a shipment are not in the log any more.
    Gone {
        /// The last entry before them, as the shipment had it.
        after: Option<LogPosition>,
        /// The last entry that was removed.
        purged: LogPosition,
    },
    /// A whole state is stored; nothing if the snapshot holds nothing.
    Full(Stored),
    /// These objects may be replaced by one; `None` if the log does not have the entries any more.
    Merged(Vec<String>, Option<Stored>),
    /// It was looked for what must be there: that which is missing, if something is.
    Checked(Option<String>),
}

/// A job under way.
pub(super) type Job = BoxFuture<'static, Result<Done, ArchiveError>>;

impl<S: LogSource> Work<S> {
    /// Sends the next entries of a shipment, about as many as one object holds.
    pub(super) fn ship(self: &Arc<Self>, shipment: Shipment) -> Job {
        let work = Arc::clone(self);
        Box::pin(async move {
            let Shipment { after, upto, .. } = shipment;
            let (settings, source) = (&work.settings, &work.source);
            let entries = match source.entries(after, upto.position.index, settings.flush_bytes).await {
                Ok(entries) => entries,
                Err(SourceError::Gone { purged }) => return Ok(Done::Gone { after, purged }),
                Err(error) => return Err(error.into()),
            };
            let last = entries.last().map(|entry| entry.position);
            let state = (last == Some(upto.position)).then_some(upto.state);
            let (repository, cluster) = (&work.repository, work.cluster);
            let object = store_entries(repository, cluster, after, entries, state, &settings.recipients).await?;
            // New entries don't wait for a limit: what they take, others do not get.
            work.bandwidth.count(object.bytes);
            Ok(Done::Shipped(shipment, Stored::now(object)))
        })
    }

    /// Sends a whole state.
    pub(super) fn full(self: &Arc<Self>) -> Job {
        let work = Arc::clone(self);
        Box::pin(async move {
            let snapshot = work.source.snapshot().await?;
            let limit = Arc::clone(&work);
            let pace = move |bytes: usize| {
                let limit = Arc::clone(&limit);
                async move { limit.bandwidth.turn(bytes as u64).await }
            };
            let recipients = &work.settings.recipients;
            let object = store_snapshot(&work.repository, &snapshot.path, &snapshot.meta, recipients, pace).await?;
            Ok(Done::Full(Stored::now(object)))
        })
    }

    /// Sends the entries of these objects, which follow each other, as one.
    pub(super) fn merge(self: &Arc<Self>, objects: &[&Object]) -> Job {
        let work = Arc::clone(self);
        let names: Vec<String> = objects.iter().map(|object| object.name.clone()).collect();
        let ends = objects.first().zip(objects.last());
        let ends = ends.map(|(first, last)| (first.previous.map(LogPosition::from), (*last).clone()));
        Box::pin(async move {
            let Some((previous, last)) = ends else { return Ok(Done::Merged(names, None)) };
            let recipients = &work.settings.recipients;
            let upto = LogPosition::from(last.last);
            let first = previous.map_or(0, |previous| previous.index.get() + 1);
            let object =
                LogObject { cluster: work.cluster, previous, first, last: upto, state: last.state.map(Into::into) };
            let mut sending = object.begin(&work.repository, recipients).await?;
            let mut after = previous;
            while after.is_none_or(|after| after.index < upto.index) {
                let read = work.source.entries(after, upto.index, work.settings.flush_bytes).await;
                let entries = match read {
                    Ok(entries) if entries.is_empty() => Err(SourceError::Failed("entries are missing".into())),
                    read => read,
                };
                let entries = match entries {
                    Ok(entries) => entries,
                    Err(error) => {
                        sending.abort().await;
                        return match error {
                            SourceError::Gone { .. } => Ok(Done::Merged(names, None)),
                            SourceError::Failed(_) => Err(error.into()),
                        };
                    }
                };
                after = entries.last().map(|entry| entry.position);
                let sent = sending.push(entries).await?;
                work.bandwidth.turn(sent).await;
            }
            Ok(Done::Merged(names, Some(Stored::now(sending.finish().await?))))
        })
    }

    /// Looks whether these objects are where they were.
    pub(super) fn check(self: &Arc<Self>, names: Vec<String>) -> Job {
        let work = Arc::clone(self);
        Box::pin(async move {
            for name in names {
                match work.repository.head(&name).await {
                    Ok(_) => {}
                    Err(StoreError::Missing { .. }) => return Ok(Done::Checked(Some(name))),
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(Done::Checked(None))
        })
    }
}
