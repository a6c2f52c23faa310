//! Levels 1 and 2: what can be told from manifests and listings alone.
//!
//! Guarantees: no object of data is read. Leaves out: their content (`content`).

use std::collections::BTreeMap;

use super::super::catalogue::{Catalogue, CatalogueError};
use super::super::layout::Layout;
use super::super::manifest::{Object, Place, State};
use super::super::probe::SKEW_MILLIS_MAX;
use super::super::repository::{Listed, Repository, StoreError};
use super::{Finding, Level, Report, VerifyError};
use crate::types::WallTime;

/// How often a walk is begun again because a manifest that was listed is gone.
const WALKS_MAX: usize = 3;

const BROKEN_CHAIN: &str = "what was archived before is not to be believed; restore from another repository if you must, and archive to a \
                            new prefix from now on";
const LOST: &str = "points that need it can't be restored; take it from a copy of the repository, or make a new snapshot now: quorate \
                    backup run NAME";
const TWO_HISTORIES: &str = "two clusters with one id have archived here; keep all of it, archive to a new prefix from now on, and find out \
                             which one was meant";
const ORPHANS: &str = "nothing to do: they were left behind or replaced; quorate backup prune removes them";
const LOST_ARCHIVE: &str = "they are left of an archive whose manifests are gone, or of a first upload that came to nothing. To restore from them \
                            copy full/ and log/ to another prefix, with chain/ as it was, from older versions in the bucket; to be rid of \
                            them: quorate backup prune --lost";
const SKEW: &str = "set the clocks, by NTP for instance; restoring to a time, and what is kept how long, go by them";

/// The catalogue, and whether its chain is whole; `None` if it can't be read at all.
pub(super) async fn catalogue(repository: &Repository, report: &mut Report) -> Result<Option<Catalogue>, VerifyError> {
    if report.level >= Level::Chain {
        let mut walked = walk(repository, report).await;
        for _ in 1..WALKS_MAX {
            if !matches!(walked, Err(CatalogueError::Store(StoreError::Missing { .. }))) {
                break;
            }
            // A superseded one may have been removed since it was listed.
            walked = walk(repository, report).await;
        }
        match walked {
            Ok(catalogue) => return Ok(Some(catalogue)),
            Err(error) => report.findings.push(broken(error)?),
        }
    }
    // What is wrong with old manifests need not matter for what those behind the last list amount to.
    match Catalogue::read(repository, report.cluster).await {
        Ok(catalogue) => Ok(Some(catalogue)),
        Err(error) => {
            let finding = broken(error)?;
            if !report.findings.contains(&finding) {
                report.findings.push(finding);
            }
            Ok(None)
        }
    }
}

/// Walks over the chain, and notes what it says twice of one object.
async fn walk(repository: &Repository, report: &mut Report) -> Result<Catalogue, CatalogueError> {
    let (mut manifests, mut replaced) = (0, Vec::new());
    let walked = Catalogue::walk(repository, report.cluster, |before, manifest| {
        manifests += 1;
        let twice = manifest.adds.iter().filter(|added| before.object(&added.name).is_some_and(|had| had != *added));
        replaced.extend(twice.map(|added| {
            let what = format!("manifest {} says of it something else than one before", manifest.seq);
            Finding::damage(Some(&added.name), what, BROKEN_CHAIN)
        }));
    });
    let walked = walked.await;
    (report.manifests, report.findings) = (manifests, replaced);
    walked
}

/// The finding that an error of the chain is, unless the store is the reason.
fn broken(error: CatalogueError) -> Result<Finding, StoreError> {
    match error {
        // Listed, and gone when it was read: neither pruning nor archiving does that to those that are read.
        CatalogueError::Store(StoreError::Missing { name }) => {
            Ok(Finding::damage(Some(&name), "it is listed, but missing", BROKEN_CHAIN))
        }
        CatalogueError::Store(error) => Err(error),
        error => Ok(Finding::damage(None, error.to_string(), BROKEN_CHAIN)),
    }
}

/// Level 1.
pub(super) fn existence(
    catalogue: &Catalogue,
    listed: &BTreeMap<String, Listed>,
    began: Option<WallTime>,
    report: &mut Report,
) {
    for object in catalogue.objects() {
        match listed.get(&object.name) {
            None => report.findings.push(Finding::damage(Some(&object.name), "it is missing", LOST)),
            Some(found) if found.bytes != object.bytes => {
                let what = format!("it has {} bytes, and should have {}", found.bytes, object.bytes);
                report.findings.push(Finding::damage(Some(&object.name), what, LOST));
            }
            Some(_) => {}
        }
    }
    let unnamed = listed.values().filter(|found| catalogue.object(&found.name).is_none()).cloned();
    (report.lost, report.orphans) = unnamed.partition(|found| began.is_none_or(|began| found.stored_at < began));
    for (objects, what, advice) in [
        (&report.orphans, "do not belong to the archive", ORPHANS),
        (&report.lost, "were stored before this archive began", LOST_ARCHIVE),
    ] {
        if !objects.is_empty() {
            let bytes = objects.iter().fold(0_u64, |sum, object| sum.saturating_add(object.bytes));
            let what = format!("{} objects ({bytes} bytes) {what}", objects.len());
            report.findings.push(Finding::note(None, what, advice));
        }
    }
    if catalogue.fulls().is_empty() {
        let what = "there is no snapshot: nothing can be restored";
        report.findings.push(Finding::damage(None, what, "make one now: quorate backup run NAME"));
    }
}

/// Whether the clock of whoever wrote last is that of the store.
pub(super) async fn clock(
    repository: &Repository,
    catalogue: &Catalogue,
    report: &mut Report,
) -> Result<(), VerifyError> {
    let Some(head) = catalogue.head() else { return Ok(()) };
    let stored = match repository.head(&Layout::new(catalogue.cluster()).manifest(head.seq)).await {
        Ok(stored) => stored.stored_at.get(),
        Err(StoreError::Missing { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let differ = stored.abs_diff(head.written_at);
    if differ > SKEW_MILLIS_MAX {
        let what = format!(
            "the clock of the node that wrote manifest {} and that of the store differ by {} s",
            head.seq,
            differ / 1000
        );
        report.findings.push(Finding::note(None, what, SKEW));
    }
    Ok(())
}

/// Level 2: all that the catalogue says of one point of the log agrees.
pub(super) fn consistency(catalogue: &Catalogue, report: &mut Report) {
    let mut points: BTreeMap<u64, (Place, Option<State>, &Object)> = BTreeMap::new();
    for object in catalogue.objects() {
        let ends = [object.previous.map(|place| (place, None)), Some((object.last, object.state))];
        for (place, state) in ends.into_iter().flatten() {
            let known = points.entry(place.index).or_insert((place, state, object));
            let differs = match (known.1, state) {
                (Some(one), Some(other)) => one != other,
                _ => false,
            };
            if known.0 != place || differs {
                let what = format!("at entry {} it tells of another history than {}", place.index, known.2.name);
                report.findings.push(Finding::damage(Some(&object.name), what, TWO_HISTORIES));
            } else if known.1.is_none() {
                *known = (place, state, object);
            }
        }
        if object.previous.is_some_and(|previous| previous.index >= object.last.index) {
            report.findings.push(Finding::damage(Some(&object.name), "it ends before it begins", LOST));
        }
    }
}
