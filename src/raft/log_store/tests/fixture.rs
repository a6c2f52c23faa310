//! Old bytes: the chunk files of each format under `tests/fixtures` must open and hold what they held for ever, and today's
//! program still writes those of the newest.

use std::collections::BTreeMap;

use super::*;
use crate::raft::types::Membership;
use crate::types::Member;

const FIXTURE_V1: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/raft-log-v1");
const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/raft-log-v2");

/// Set to write the fixture anew: only ever for a new directory of a new format.
const BLESS: &str = "QUORATE_BLESS_FIXTURES";

fn entries() -> Vec<Entry> {
    let member = |name: &str| Member {
        name: name.into(),
        peer_addr: format!("{name}.example:7001"),
        client_url: format!("http://{name}.example:7000"),
        zone: "eu".into(),
        ..Member::default()
    };
    let nodes = BTreeMap::from([(NodeId::new(1), member("one")), (NodeId::new(2), member("two"))]);
    let first = Entry { log_id: id(1, 0), payload: Payload::Membership(Membership::from(nodes)) };
    let blank = Entry { log_id: id(1, 1), payload: Payload::Blank };
    let normal = (2..24).map(|index| entry(if index < 20 { 1 } else { 2 }, index));
    [first, blank].into_iter().chain(normal).collect()
}

/// Every kind of record, in more than one chunk.
async fn write(dir: &Path) {
    let mut store = open(dir);
    store.save_vote(&vote(1)).await.unwrap();
    let entries = entries();
    for entry in &entries[..20] {
        append(&mut store, [entry.clone()]).await.unwrap();
    }
    append(&mut store, [entry(1, 20), entry(1, 21)]).await.unwrap();
    store.truncate_after(Some(id(1, 19))).await.unwrap();
    store.save_vote(&vote(2)).await.unwrap();
    append(&mut store, entries[20..].to_vec()).await.unwrap();
    store.save_committed(Some(id(2, 22))).await.unwrap();
    store.purge(id(1, 0)).await.unwrap();
    store.sync().await.unwrap();
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    chunk_files(dir).into_iter().map(|path| (name(&path), std::fs::read(&path).unwrap())).collect()
}

#[tokio::test]
async fn every_format_still_opens() {
    for fixture in [FIXTURE_V1, FIXTURE] {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files(Path::new(fixture)) {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        let mut store = open(dir.path());
        assert_eq!(store.read_vote().await.unwrap(), Some(vote(2)));
        assert_eq!(store.committed(), Some(position(2, 22)));
        assert_eq!(store.purged(), Some(position(1, 0)));
        assert_eq!(all(&mut store).await, entries()[1..]);
    }
}

#[tokio::test]
async fn the_same_history_still_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path()).await;
    let written = files(dir.path());
    assert!(written.len() > 1);
    if std::env::var_os(BLESS).is_some() {
        std::fs::create_dir_all(FIXTURE).unwrap();
        for (name, bytes) in &written {
            std::fs::write(Path::new(FIXTURE).join(name), bytes).unwrap();
        }
    }
    assert!(written == files(Path::new(FIXTURE)), "the format on disk has changed: add a format, keep the old fixture");
}
