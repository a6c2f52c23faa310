//! How the archive of one place stands, as the node that archives knows it, and what it is asked for.
//!
//! Guarantees: what is told as archived belongs to the chain of manifests. Leaves out: what other nodes know (`node`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::Notify;

use crate::clock::Instant;
use crate::types::{LogIndex, LogPosition, Revision, WallTime};
use crate::watch;

/// Up to where everything is archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Archived {
    /// The last entry.
    pub position: LogPosition,
    /// The revision of the store that can surely be restored: that behind an entry at or before it.
    pub revision: Revision,
}

/// A whole state in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FullStatus {
    /// The last entry whose effects are in it.
    pub position: LogPosition,
    /// Its revision.
    pub revision: Revision,
    /// When the snapshot was made.
    pub at: WallTime,
    /// Its length in the store.
    pub bytes: u64,
}

/// Trouble that has not ended yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failing {
    /// Since when.
    pub since: WallTime,
    /// What happened last.
    pub error: String,
}

/// Entries that were removed from the log before they were archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The last entry before it.
    pub after: LogIndex,
    /// The first entry that can be restored behind it: that of a snapshot. `None` until there is one.
    pub until: Option<LogIndex>,
    /// When it was found.
    pub since: WallTime,
}

/// An archive that was emptied, replaced or broken while it was in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// When that was found.
    pub since: WallTime,
    /// What was found.
    pub what: String,
    /// The last entry that had been archived, as far as this node knew.
    pub upto: Option<LogIndex>,
}

/// What was sent since the process started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Objects.
    pub objects: u64,
    /// Bytes as they are stored.
    pub bytes: u64,
    /// Bytes of their content.
    pub plain_bytes: u64,
    /// When the last one came to belong to the archive.
    pub last_at: Option<WallTime>,
}

/// How an archive stands.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Status {
    /// Whether the store did what was asked of it last.
    pub healthy: bool,
    /// Up to where everything is archived; `None` until the archive was read, or if there is none.
    pub archived: Option<Archived>,
    /// The last entry that is archived as part of the log, or bridged by a whole state: those behind it are still to be
    /// sent, even where a whole state that was made meanwhile reaches farther. `None` as for `archived`.
    pub shipped: Option<LogPosition>,
    /// Everything that was applied here at this time is archived; `None` until that is known.
    pub covered_at: Option<Instant>,
    /// The newest whole state.
    pub full: Option<FullStatus>,
    /// Whether a whole state is on its way.
    pub full_under_way: bool,
    /// Objects that belong to the archive.
    pub objects: u64,
    /// Their length in the store.
    pub object_bytes: u64,
    /// Trouble.
    pub failing: Option<Failing>,
    /// The chain can't be read as it is stored, so that nothing is archived until somebody has mended it.
    pub broken: Option<Failing>,
    /// Tries that failed since the process started.
    pub errors: u64,
    /// How often another node had continued the archive first.
    pub overtaken: u64,
    /// The last gap.
    pub gap: Option<Gap>,
    /// When what was archived before was lost, the last time; an archive that was begun anew since does not bring it back.
    pub lost: Option<Lost>,
    /// Entries of the log that were sent.
    pub sent_log: Sent,
    /// Entries of the log that were sent again, as fewer objects.
    pub sent_merged: Sent,
    /// Whole states that were sent.
    pub sent_full: Sent,
}

impl Status {
    pub(super) fn sent_objects(&self) -> u64 {
        self.sent_log.objects + self.sent_merged.objects + self.sent_full.objects
    }
}

/// Where an archiver tells how it stands, and hears what is wanted. Shared with whoever watches it.
#[derive(Debug)]
pub struct Desk {
    status: watch::Sender<Status>,
    nudged: Notify,
    /// A revision that somebody waits for.
    wanted: AtomicU64,
    full_wanted: AtomicBool,
    exposure: Histogram,
}

/// Buckets for [`Desk::new`], in seconds.
pub const EXPOSURE_BUCKETS: [f64; 12] = [0.1, 0.25, 0.5, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 15.0, 60.0, 300.0];

impl Default for Desk {
    fn default() -> Self {
        Self::new(Histogram::new(EXPOSURE_BUCKETS))
    }
}

impl Desk {
    /// One that notes in `exposure` for how long entries stood on the nodes' disks alone, at worst, each time they were
    /// sent, in seconds.
    #[must_use]
    pub fn new(exposure: Histogram) -> Self {
        let (status, nudged) = (watch::Sender::default(), Notify::new());
        Self { status, nudged, wanted: AtomicU64::new(0), full_wanted: AtomicBool::new(false), exposure }
    }

    /// How it stands, and news of it.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Somebody waits until this revision is archived: it is sent as soon as it is applied here.
    pub fn want(&self, revision: Revision) {
        self.wanted.fetch_max(revision.get(), Ordering::AcqRel);
        self.nudged.notify_one();
    }

    /// Has a whole state sent soon.
    pub fn want_full(&self) {
        self.full_wanted.store(true, Ordering::Release);
        self.nudged.notify_one();
    }

    pub(super) async fn nudged(&self) {
        self.nudged.notified().await;
    }

    pub(super) fn wanted(&self) -> Revision {
        Revision::new(self.wanted.load(Ordering::Acquire))
    }

    /// Whether one was asked for and is not archived yet.
    #[must_use]
    pub fn is_full_wanted(&self) -> bool {
        self.full_wanted.load(Ordering::Acquire)
    }

    pub(super) fn full_done(&self) {
        self.full_wanted.store(false, Ordering::Release);
    }

    pub(super) fn tell(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(change);
    }

    pub(super) fn covered(&self, at: Instant, exposed: Option<Duration>) {
        if let Some(exposed) = exposed {
            self.exposure.observe(exposed.as_secs_f64());
        }
        // That it moved on nobody waits for; that it is known, somebody may.
        self.status.send_if_modified(|status| {
            let first = status.covered_at.is_none();
            status.covered_at = status.covered_at.max(Some(at));
            first || exposed.is_some()
        });
    }
}
