//! The engine's versions of a key, followed from the pointer back.
//!
//! Guarantees: a search looks at a logarithmic number of records, whatever the length of the history; a record that is not
//! of the key asked for, missing, or linked to in a circle is [`Error::Damaged`]. Leaves out: what is in memory (`store`).

use std::ops::Bound;

use bytes::Bytes;

use super::chain::{Chain, Place};
use super::record::VersionedRecord;
use super::rows::{Pointer, StoredRecord, decode_links, decode_record};
use super::schema::StorageKey;
use crate::storage::{Engine, Error, Order, Scan};
use crate::types::Revision;

/// A record that the engine must have.
pub(super) fn record(engine: &dyn Engine, key: &[u8], place: Place) -> Result<VersionedRecord, Error> {
    let body = body(engine, key, place)?;
    let StoredRecord { record, .. } = decode_record(place, &body, |len| value_apart(engine, place, len))?;
    check_key(key, record.key.as_bytes(), place)?;
    Ok(record)
}

/// The newest version of a key at or below a revision; `None` if there is none.
pub(super) fn search(engine: &dyn Engine, key: &[u8], chain: &Chain, at: Revision) -> Result<Option<Place>, Error> {
    let mut next = chain.towards(at);
    while let Some(place) = next {
        if place.revision <= at {
            return Ok(Some(place));
        }
        let body = body(engine, key, place)?;
        let (found, links) = decode_links(&body)?;
        check_key(key, found, place)?;
        next = links.towards(at);
        if next.is_some_and(|next| next >= place) {
            let (revision, key) = (place.revision, key.escape_ascii());
            return Err(Error::Damaged(format!("revision {revision} of {key} links to a later one")));
        }
    }
    Ok(None)
}

/// The value of a version whose record says that it stands apart.
pub(super) fn value_apart(engine: &dyn Engine, place: Place, len: u64) -> Result<Bytes, Error> {
    let (start, end) =
        (StorageKey::Part { place, part: 0 }.encode(), StorageKey::Part { place, part: u32::MAX }.encode());
    let pairs = engine.scan(Scan {
        start: Bound::Included(&start),
        end: Bound::Included(&end),
        order: Order::Ascending,
        limit: usize::MAX,
        bytes_max: usize::MAX,
    })?;
    let found: usize = pairs.iter().map(|(_, part)| part.len()).sum();
    if found as u64 != len {
        let revision = place.revision;
        return Err(Error::Damaged(format!("a value of revision {revision} has {len} bytes, but {found} are there")));
    }
    let mut value = Vec::with_capacity(found);
    for (_, part) in pairs {
        value.extend_from_slice(&part);
    }
    Ok(value.into())
}

fn body(engine: &dyn Engine, key: &[u8], place: Place) -> Result<Bytes, Error> {
    let missing = || Error::Damaged(format!("revision {} of {} is missing", place.revision, key.escape_ascii()));
    engine.get(&StorageKey::Record(place).encode())?.ok_or_else(missing)
}

fn check_key(key: &[u8], found: &[u8], place: Place) -> Result<(), Error> {
    if key == found {
        return Ok(());
    }
    let (revision, key, found) = (place.revision, key.escape_ascii(), found.escape_ascii());
    Err(Error::Damaged(format!("revision {revision} should be of {key}, but is of {found}")))
}

/// The chain of a key's versions up to a revision, for the next one to be appended.
pub(super) fn chain_at(engine: &dyn Engine, key: &[u8], at: Revision) -> Result<Chain, Error> {
    let Some(pointer) = engine.get(&StorageKey::Latest { key }.encode())? else { return Ok(Chain::default()) };
    let Pointer { chain, .. } = Pointer::decode(&pointer)?;
    if chain.newest().is_none_or(|newest| newest.revision <= at) {
        return Ok(chain);
    }
    // An interrupted checkpoint was here. How the older versions hang together, their own links tell.
    Ok(search(engine, key, &chain, at)?.map_or_else(Chain::default, Chain::begun_at))
}
