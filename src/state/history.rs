//! The engine's versions of a key, followed from the pointer back.
//!
//! Guarantees: a search looks at a number of records that is logarithmic in the length of the history (`chain`); a record that is not
//! of the key asked for, missing, or linked to in a circle is [`Error::Damaged`]. Leaves out: what is in memory (`store`).

use std::ops::Bound;

use bytes::Bytes;

use super::chain::{Chain, Place};
use super::command::RecordMeta;
use super::record::VersionedRecord;
use super::rows::{Pointer, StoredRecord, decode_links, decode_meta, decode_record};
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

/// Where the value of a version that the engine must have comes from; `None` for a delete. The value is not read.
pub(super) fn meta(engine: &dyn Engine, key: &[u8], place: Place) -> Result<Option<RecordMeta>, Error> {
    let body = body(engine, key, place)?;
    let (found, meta) = decode_meta(place, &body)?;
    check_key(key, found, place)?;
    Ok(meta)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::record::Change;
    use crate::state::rows::{PART_BYTES, encode_pointer, encode_record, parts};
    use crate::storage::{Batch, MemoryEngine, Write};
    use crate::types::LeaseId;

    fn place(revision: u64) -> Place {
        Place::first_of(Revision::new(revision))
    }

    fn put(bytes: usize) -> Change {
        let value = Bytes::from(vec![b'v'; bytes]);
        Change::Put { create_revision: Revision::new(1), version: 1, lease: LeaseId::ZERO, value }
    }

    fn row(key: StorageKey<'_>, value: impl Into<Bytes>) -> Write {
        Write::Put(key.encode().into(), value.into())
    }

    /// Versions of `k` at the revisions from 1 on; the last one has its value in three parts.
    fn history(versions: u64) -> (MemoryEngine, Chain) {
        let (engine, mut chain, mut batch) = (MemoryEngine::new(), Chain::default(), Batch::new());
        for revision in 1..=versions {
            let change = put(if revision == versions { 2 * PART_BYTES + 1 } else { 1 });
            let links = chain.append(place(revision));
            batch.push(row(StorageKey::Record(place(revision)), encode_record(b"k", &change, links)));
            for (part, bytes) in (0..).zip(parts(b"k", &change)) {
                batch.push(row(StorageKey::Part { place: place(revision), part }, bytes));
            }
        }
        batch.push(row(StorageKey::Latest { key: b"k" }, encode_pointer(&put(1), chain.clone())));
        for batch in batch.chunks(100) {
            engine.commit(batch.to_vec()).unwrap();
        }
        (engine, chain)
    }

    fn damage<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
        match result {
            Err(Error::Damaged(text)) => text,
            other => panic!("expected damage, got {other:?}"),
        }
    }

    #[test]
    fn every_version_is_found_and_read() {
        let (engine, chain) = history(40);
        for at in 1..=45 {
            let found = search(&engine, b"k", &chain, Revision::new(at)).unwrap().unwrap();
            assert_eq!(found, place(at.min(40)));
            let expected = put(if at >= 40 { 2 * PART_BYTES + 1 } else { 1 });
            assert_eq!(record(&engine, b"k", found).unwrap().change, expected);
            assert_eq!(meta(&engine, b"k", found).unwrap().unwrap().mod_revision, found.revision);
        }
        assert_eq!(search(&engine, b"k", &chain, Revision::ZERO).unwrap(), None);
    }

    #[test]
    fn a_missing_record_and_one_of_another_key_are_damage() {
        let (engine, chain) = history(5);
        assert_eq!(damage(record(&engine, b"l", place(2))), "revision 2 should be of l, but is of k");
        assert_eq!(damage(meta(&engine, b"l", place(2))), "revision 2 should be of l, but is of k");
        engine.commit(vec![Write::Delete(StorageKey::Record(place(4)).encode().into())]).unwrap();
        assert_eq!(damage(record(&engine, b"k", place(4))), "revision 4 of k is missing");
        let lost = (1..5).any(|at| search(&engine, b"k", &chain, Revision::new(at)).is_err());
        assert!(lost, "no search passes the missing version");
    }

    #[test]
    fn a_link_to_a_later_version_is_damage_and_no_circle() {
        let (engine, chain) = history(3);
        let links = super::super::chain::Links { previous: Some(place(3)), jump: None };
        engine.commit(vec![row(StorageKey::Record(place(3)), encode_record(b"k", &put(1), links))]).unwrap();
        assert_eq!(damage(search(&engine, b"k", &chain, Revision::ZERO)), "revision 3 of k links to a later one");
    }

    #[test]
    fn parts_that_do_not_make_up_the_value_are_damage() {
        let (engine, _) = history(3);
        engine.commit(vec![Write::Delete(StorageKey::Part { place: place(3), part: 1 }.encode().into())]).unwrap();
        let text = damage(record(&engine, b"k", place(3)));
        let (len, left) = (2 * PART_BYTES + 1, PART_BYTES + 1);
        assert_eq!(text, format!("a value of revision 3 has {len} bytes, but {left} are there"));
    }

    #[test]
    fn a_chain_is_begun_anew_at_the_newest_sound_version() {
        let (engine, chain) = history(9);
        assert_eq!(chain_at(&engine, b"k", Revision::new(9)).unwrap(), chain);
        assert_eq!(chain_at(&engine, b"k", Revision::new(6)).unwrap(), Chain::begun_at(place(6)));
        assert_eq!(chain_at(&engine, b"k", Revision::ZERO).unwrap(), Chain::default());
        assert_eq!(chain_at(&engine, b"absent", Revision::new(9)).unwrap(), Chain::default());
    }
}
