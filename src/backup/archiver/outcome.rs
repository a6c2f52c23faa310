//! What came of what was sent: it is named in the chain, and told.
//!
//! Guarantees: nothing is told as archived before a manifest in a chain that is there says so; who was overtaken looks again
//! what is still to be done. Leaves out: what is due next (`worker`).

use super::ArchiveError;
use super::jobs::{Done, Shipment, Stored};
use super::progress::{Archived, Gap, Sent};
use super::source::LogSource;
use super::worker::{Farther as _, Worker, full_status};
use crate::backup::catalogue::{Catalogue, CatalogueError};
use crate::backup::layout::REPOSITORY;
use crate::backup::manifest::Object;
use crate::clock;
use crate::types::{LogPosition, Revision, WallTime};

/// How often a manifest is tried again that others were first with.
const APPEND_TRIES: u32 = 16;

impl<S: LogSource> Worker<'_, S> {
    pub(super) async fn finish(&mut self, done: Done) -> Result<(), ArchiveError> {
        match done {
            Done::Shipped(shipment, stored) => {
                self.shipping = false;
                self.shipped_some(shipment, &stored).await
            }
            Done::Gone { after, purged } => {
                self.shipping = false;
                if self.shipped == after {
                    self.gone(purged);
                } else {
                    // What another node has archived meanwhile may reach behind them.
                    self.urgent = true;
                }
                Ok(())
            }
            Done::Full(stored) => {
                self.sending_full = false;
                self.add_full(stored).await
            }
            Done::Merged(names, stored) => {
                self.merging = false;
                match stored {
                    Some(stored) => self.replace(names, &stored).await,
                    None => Ok(()),
                }
            }
            Done::Checked(missing) => {
                self.checking = false;
                self.checked(missing).await
            }
        }
    }

    /// Sees whether what a check did not find still belongs to the archive.
    async fn checked(&mut self, missing: Option<String>) -> Result<(), ArchiveError> {
        if let Some(name) = missing {
            // Another one may have dropped it from the archive, or pruned the manifest: then it may be gone.
            self.chain.refresh(&self.work.repository).await?;
            if name == REPOSITORY || self.chain.object(&name).is_some() {
                return Err(CatalogueError::Replaced { name }.into());
            }
            // As a whole: the chain may be broken where it is not looked at otherwise.
            self.chain = Catalogue::read(&self.work.repository, self.work.cluster).await?;
            self.look_around();
        }
        self.checked = self.chain.head().map(|head| head.seq);
        Ok(())
    }

    async fn shipped_some(&mut self, shipment: Shipment, stored: &Stored) -> Result<(), ArchiveError> {
        let (sent, last) = (&stored.object, LogPosition::from(stored.object.last));
        match self.append(stored, Vec::new()).await {
            Err(ArchiveError::Chain(CatalogueError::Overtaken)) => {
                // The other one may have archived the same entries: what is missing now is sent again from there.
                self.overtaken();
                self.urgent = true;
                return Ok(());
            }
            appended => appended?,
        }
        self.shipped = Some(last);
        let complete = last == shipment.upto.position;
        if complete {
            self.archived = shipment.upto.state.revision;
        }
        self.desk.tell(|status| {
            count(&mut status.sent_log, sent);
            (status.objects, status.object_bytes) = (status.objects + 1, status.object_bytes + sent.bytes);
            let known = complete.then_some(shipment.upto.state.revision);
            let revision = known.or(status.archived.map(|archived| archived.revision)).unwrap_or_default();
            status.archived = Some(Archived { position: last, revision }).max_by_position(status.archived);
            status.shipped = Some(last);
        });
        self.all_is_well();
        if complete {
            let exposed = self.covered_at.map(|before| clock::now().saturating_duration_since(before));
            self.covered(shipment.at, exposed);
        } else {
            self.shipping = true;
            self.jobs.push(self.work.ship(Shipment { after: Some(last), ..shipment }));
        }
        Ok(())
    }

    /// The log does not have the next entries any more.
    fn gone(&mut self, purged: LogPosition) {
        let after = self.shipped.map_or(crate::types::LogIndex::ZERO, |shipped| shipped.index);
        let bridge = self.full.map(|(full, _)| full).filter(|full| full.index >= purged.index);
        let since = clock::wall();
        self.desk.tell(|status| {
            let since = status.gap.filter(|gap| gap.after == after).map_or(since, |gap| gap.since);
            status.gap = Some(Gap { after, until: bridge.map(|bridge| bridge.index), since });
        });
        let (backup, begins) = (&self.work.settings.name, purged.index.get() + 1);
        match bridge {
            Some(bridge) => {
                tracing::warn!(
                    backup,
                    after = after.get(),
                    until = bridge.index.get(),
                    "a whole state bridges a gap in the archive"
                );
                self.shipped = Some(bridge);
                self.desk.tell(|status| status.shipped = Some(bridge));
                self.urgent = true;
            }
            None => {
                tracing::warn!(
                    backup,
                    after = after.get(),
                    begins,
                    "the log was removed before it was archived; a whole state is sent"
                );
                self.bridging = true;
            }
        }
    }

    async fn add_full(&mut self, stored: Stored) -> Result<(), ArchiveError> {
        // What is gone and was the same as this has no use any more; an older one has, should it be put back.
        let same = self.absent.as_ref().filter(|absent| absent.last == stored.object.last);
        let drops = same.map(|absent| absent.name.clone()).into_iter().collect();
        let is_named = self.append_full(&stored, drops).await?;
        self.absent = None;
        let object = stored.object;
        self.full_name = self.chain.newest_full().map(|full| full.name.clone());
        self.bridging = false;
        self.urgent = true;
        self.desk.full_done();
        if !is_named {
            let (backup, position) = (&self.work.settings.name, object.last.index);
            tracing::info!(backup, position, "a whole state is left out: another node has archived a newer one");
            self.desk.tell(|status| status.full_under_way = false);
            self.all_is_well();
            return Ok(());
        }
        let newest = full_status(&object);
        // One that another node has sent meanwhile may be newer.
        self.full = self.full.max(newest.map(|full| (full.position, full.revision)));
        // Behind its own time: the next one must not be due at once where it took long.
        let made_at = newest.map_or(WallTime::ZERO, |full| full.at).max(clock::wall());
        self.full_at = self.work.settings.full.next_after(made_at);
        let (backup, position) = (&self.work.settings.name, object.last.index);
        tracing::info!(backup, position, bytes = object.bytes, "a whole state is archived");
        self.shipped = self.shipped.or(Some(object.last.into()));
        self.archived = self.archived.max(newest.map_or(Revision::ZERO, |full| full.revision));
        self.desk.tell(|status| {
            count(&mut status.sent_full, &object);
            (status.objects, status.object_bytes) = (status.objects + 1, status.object_bytes + object.bytes);
            status.full_under_way = false;
            status.full = newest;
            let revision = newest.map_or(Revision::ZERO, |full| full.revision);
            status.archived =
                Some(Archived { position: object.last.into(), revision }).max_by_position(status.archived);
            status.shipped = self.shipped;
        });
        self.all_is_well();
        Ok(())
    }

    async fn replace(&mut self, names: Vec<String>, stored: &Stored) -> Result<(), ArchiveError> {
        for _ in 0..APPEND_TRIES {
            // Another node may have merged them meanwhile: then this one is of no use.
            if names.iter().any(|name| self.chain.object(name).is_none()) {
                return Ok(());
            }
            match self.append(stored, names.clone()).await {
                Err(ArchiveError::Chain(CatalogueError::Overtaken)) => self.overtaken(),
                appended => {
                    appended?;
                    let (objects, bytes) =
                        self.chain.objects().fold((0, 0), |(count, sum), one| (count + 1, sum + one.bytes));
                    self.desk.tell(|status| {
                        count(&mut status.sent_merged, &stored.object);
                        (status.objects, status.object_bytes) = (objects, bytes);
                    });
                    // There may be more than one group.
                    self.merge_at = clock::now();
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Names a whole state in the chain, unless there is a newer one: it came late, and the log that is sent follows the other
    /// one. Nothing would ever follow this one. Tells whether it is named.
    async fn append_full(&mut self, stored: &Stored, drops: Vec<String>) -> Result<bool, ArchiveError> {
        for _ in 0..APPEND_TRIES {
            // One that is gone is none.
            let absent = self.absent.as_ref().map(|absent| &absent.name);
            let newest = self.chain.newest_full().filter(|full| Some(&full.name) != absent);
            if newest.is_some_and(|newest| newest.last.index > stored.object.last.index) {
                return Ok(false);
            }
            match self.append(stored, drops.clone()).await {
                Err(ArchiveError::Chain(CatalogueError::Overtaken)) => self.overtaken(),
                appended => return appended.map(|()| true),
            }
        }
        Err(ArchiveError::Chain(CatalogueError::Overtaken))
    }

    /// Names an object in the chain, where the newest whole state must be as well: without it the log behind it can't be
    /// restored.
    async fn append(&mut self, stored: &Stored, drops: Vec<String>) -> Result<(), ArchiveError> {
        stored.check()?;
        let (repository, author) = (&self.work.repository, &self.work.author);
        let adds = vec![stored.object.clone()];
        Ok(self.chain.append_beside(repository, author, adds, drops, self.full_name.as_slice()).await?)
    }

    fn overtaken(&mut self) {
        tracing::debug!(backup = self.work.settings.name, "another node has continued the archive");
        self.desk.tell(|status| status.overtaken += 1);
        self.look_around();
    }
}

fn count(sent: &mut Sent, object: &Object) {
    sent.objects += 1;
    sent.bytes += object.bytes;
    sent.plain_bytes += object.plain_bytes;
    sent.last_at = Some(clock::wall());
}
