//! What is superseded goes, oldest first; whoever reads, writes or slept meanwhile loses nothing.

use std::sync::Arc;

use super::*;
use crate::backup::faults::{Fault, Faults};
use crate::backup::manifest::Object;
use crate::backup::sample::{Archive, CLUSTER};
use crate::backup::seal::Recipients;
use crate::clock;

const LAYOUT: Layout = Layout::new(CLUSTER);

/// An archive whose chain has so many manifests.
async fn archive(manifests: u64) -> (Archive, Arc<Faults>) {
    let (repository, faults) = Faults::repository();
    let (mut archive, _) = Archive::filled(repository, Recipients::default()).await;
    lengthen(&mut archive, manifests).await;
    (archive, faults)
}

async fn lengthen(archive: &mut Archive, manifests: u64) {
    while archive.catalogue.head().unwrap().seq < manifests {
        archive.catalogue.append(&archive.repository, "n1", vec![], vec![]).await.unwrap();
    }
}

fn in_hours(hours: u64) -> WallTime {
    WallTime::new(clock::wall().get() + hours * 3_600_000)
}

async fn trim(archive: &Archive, hours: u64) -> Result<Trimmed, TrimError> {
    run(&archive.repository, CLUSTER, Duration::ZERO, in_hours(hours)).await
}

async fn seqs(archive: &Archive) -> Vec<u64> {
    let listed = archive.repository.list(&LAYOUT.chain(), None).await.unwrap();
    listed.iter().filter_map(|object| LAYOUT.manifest_seq(&object.name)).collect()
}

/// It reads as it did before, back to its newest list and from its oldest one on.
async fn check(archive: &Archive) {
    assert_eq!(Catalogue::read(&archive.repository, CLUSTER).await.unwrap(), archive.catalogue);
    assert_eq!(Catalogue::walk(&archive.repository, CLUSTER, |_, _| ()).await.unwrap(), archive.catalogue);
}

#[tokio::test]
async fn superseded_manifests_go_after_a_grace_and_a_lock_and_the_archive_stays_the_same() {
    let (mut archive, _) = archive(2 * BASE_EVERY + 3).await;
    assert_eq!(trim(&archive, 0).await.unwrap().removed, 0, "whoever reads is not done");
    let locked = run(&archive.repository, CLUSTER, 5 * GRACE, in_hours(4)).await.unwrap();
    assert_eq!(locked.removed, 0, "the store would refuse");
    let told = look(&archive.repository, CLUSTER, Duration::ZERO, in_hours(1)).await.unwrap();
    assert_eq!(seqs(&archive).await.len() as u64, 2 * BASE_EVERY + 3, "it only looks");
    assert_eq!(trim(&archive, 1).await.unwrap(), told);
    assert_eq!((told.removed as u64, told.left), (2 * BASE_EVERY - 1, 4));
    assert_eq!(trim(&archive, 1).await.unwrap(), Trimmed { removed: 0, left: 4 });
    check(&archive).await;
    // And on from there.
    lengthen(&mut archive, 4 * BASE_EVERY).await;
    assert_eq!(trim(&archive, 1).await.unwrap(), Trimmed { removed: 2 * BASE_EVERY as usize, left: 1 });
    check(&archive).await;
    lengthen(&mut archive, 4 * BASE_EVERY + 1).await;
    check(&archive).await;
}

#[tokio::test]
async fn a_short_chain_stays_whole() {
    let (archive, _) = archive(BASE_EVERY - 1).await;
    assert_eq!(trim(&archive, 999).await.unwrap(), Trimmed { removed: 0, left: BASE_EVERY as usize - 1 });
    check(&archive).await;
}

#[tokio::test]
async fn of_a_chain_that_is_not_whole_nothing_goes() {
    // A manifest that was changed, one that is missing, and a list that lost an object.
    for damage in 0..3 {
        let (archive, faults) = archive(2 * BASE_EVERY + 1).await;
        match damage {
            0 => faults.put_raw(&LAYOUT.manifest(7), "{}".into()).await,
            1 => archive.repository.delete(&LAYOUT.manifest(BASE_EVERY + 7)).await.unwrap(),
            _ => {
                let name = LAYOUT.manifest(BASE_EVERY);
                let bytes = archive.repository.get(&name, 1 << 20).await.unwrap();
                let mut list = Manifest::decode(&bytes, CLUSTER, BASE_EVERY).unwrap();
                list.base = list.base.map(|base: Vec<Object>| base[1..].to_vec());
                faults.put_raw(&name, list.encode().into()).await;
            }
        }
        let before = seqs(&archive).await;
        let trimmed = trim(&archive, 1).await;
        assert!(matches!(&trimmed, Err(TrimError::Chain(error)) if error.is_broken()), "{trimmed:?}");
        assert_eq!(seqs(&archive).await, before);
    }
}

#[tokio::test]
async fn killed_at_any_point_it_leaves_a_chain_that_is_read_and_gone_on_with() {
    for killed_after in [0, 1, 2, 31, 100, BASE_EVERY as usize - 2, BASE_EVERY as usize + 9] {
        let (mut archive, faults) = archive(2 * BASE_EVERY + 3).await;
        faults.set(Fault::KilledAfter(killed_after));
        trim(&archive, 1).await.unwrap_err();
        faults.clear();
        let left = seqs(&archive).await;
        assert_eq!(left, (killed_after as u64 + 1..=2 * BASE_EVERY + 3).collect::<Vec<_>>(), "the oldest go first");
        check(&archive).await;
        lengthen(&mut archive, 2 * BASE_EVERY + 4).await;
        assert_eq!(trim(&archive, 1).await.unwrap().left, 5);
        check(&archive).await;
    }
}

#[tokio::test]
async fn two_at_the_same_time_do_no_harm() {
    let (archive, _) = archive(2 * BASE_EVERY + 3).await;
    let (one, other) = tokio::join!(trim(&archive, 1), trim(&archive, 1));
    assert!(one.is_ok() && other.is_ok(), "{one:?} {other:?}");
    assert_eq!(seqs(&archive).await.len(), 4);
    check(&archive).await;
}

#[tokio::test]
async fn a_writer_that_slept_while_all_it_knew_was_superseded_is_not_told_that_it_has_appended() {
    let (mut archive, _) = archive(100).await;
    let mut slept = archive.catalogue.clone();
    let mut stray = archive.catalogue.clone();
    lengthen(&mut archive, BASE_EVERY + 2).await;
    trim(&archive, 1).await.unwrap();
    // Its name is new again.
    let appended = slept.append(&archive.repository, "n2", vec![], vec![]).await;
    assert!(matches!(appended, Err(CatalogueError::Overtaken)), "{appended:?}");
    assert_eq!(slept, archive.catalogue, "it goes on behind the others");
    assert_eq!(seqs(&archive).await, [BASE_EVERY, BASE_EVERY + 1, BASE_EVERY + 2]);
    // Even if it fell asleep right in front of the request itself.
    archive.repository.create(&LAYOUT.manifest(101), "what it wrote".into()).await.unwrap();
    archive.repository.create(&LAYOUT.manifest(BASE_EVERY - 1), "or this".into()).await.unwrap();
    check(&archive).await;
    stray.refresh(&archive.repository).await.unwrap();
    assert_eq!(stray, archive.catalogue);
    assert_eq!(trim(&archive, 1).await.unwrap(), Trimmed { removed: 2, left: 3 });
    check(&archive).await;
}
