//! The arithmetic and each warning, on groups that are written down as a table of round-trip times.

use serde_json::json;

use super::*;

/// A group: name, zone, whether it votes, time of an fsync and clock offset in milliseconds.
type Row = (&'static str, &'static str, bool, f64, i64);

/// Ids are 1, 2, …, in the order of the rows; `rtt` gives the time between two of them.
fn group(rows: &[Row], rtt: impl Fn(usize, usize) -> f64) -> (ClusterReply, BTreeMap<u64, Account>) {
    let member = |(at, row): (usize, &Row)| {
        json!({"id": at + 1, "name": row.0, "role": if row.2 { "voter" } else { "learner" }, "zone": row.1,
            "peer_addr": format!("{}:7481", row.0), "client_url": format!("http://{}:7480", row.0), "reachable": true,
            "matched_index": 1, "lag_entries": 0, "rtt_ms": null})
    };
    let members: Vec<_> = rows.iter().enumerate().map(member).collect();
    let cluster = json!({"cluster_id": 5, "term": 2, "leader": 1, "view": "leader", "members": members,
        "quorum": {"voters": 0, "needed": 0, "reachable": 0, "spare": 0}});
    let status = |(at, row): (usize, &Row)| {
        let peers = (0..rows.len()).filter(|to| *to != at).map(|to| json!({"id": to + 1, "rtt_ms": rtt(at, to)}));
        let status = json!({"name": row.0, "id": at + 1, "cluster_id": 5, "version": "0.1.0", "role": "follower",
            "leader": null, "term": 2, "last_log_index": 1, "commit_index": 1, "applied_index": 1, "snapshot_index": null,
            "purged_index": null, "revision": 1, "compacted_revision": 0, "state_hash": "00",
            "sizes": {"log_bytes": 1, "state_bytes": 1, "overlay_bytes": 1, "snapshot_bytes": 1}, "ready": true,
            "not_ready_reason": null, "peer_addr": "", "client_url": "", "zone": row.1,
            "timers": {"heartbeat_ms": 240, "election_min_ms": 800, "election_max_ms": 1600, "rtt_ms": 80},
            "peers": peers.collect::<Vec<_>>(), "fsync_ms": row.3, "time_unix_ms": 1_000_000 + row.4});
        let status = serde_json::from_value(status).unwrap();
        let (here, uncertain) = (Duration::from_millis(1_000_000), Duration::from_millis(2));
        (at as u64 + 1, Account { status, here, uncertain })
    };
    (serde_json::from_value(cluster).unwrap(), rows.iter().enumerate().map(status).collect())
}

fn codes(diagnosis: &Diagnosis) -> Vec<&'static str> {
    diagnosis.warnings.iter().map(|warning| warning.code).collect()
}

fn text(diagnosis: &Diagnosis, code: &str) -> String {
    diagnosis.warnings.iter().find(|warning| warning.code == code).unwrap().text.clone()
}

/// 2+2+1 voters: a ms inside a zone, 30 ms between a and b, 70 to c.
fn three_zones() -> (ClusterReply, BTreeMap<u64, Account>) {
    let rows =
        [("a1", "a", true, 1.0, 0), ("a2", "a", true, 1.0, 0), ("b1", "b", true, 2.0, 0), ("b2", "b", true, 3.0, 0)];
    let rows = [&rows[..], &[("c1", "c", true, 50.0, 0)]].concat();
    group(&rows, |one, other| match (one.min(other), one.max(other)) {
        (0, 1) | (2, 3) => 1.0,
        (_, 4) => 70.0,
        _ => 30.0,
    })
}

#[test]
fn a_write_takes_the_way_to_a_majority_and_its_disks() {
    let (cluster, accounts) = three_zones();
    let diagnosis = diagnose(&cluster, &accounts);
    let commit: Vec<_> = diagnosis.members.iter().map(|member| member.commit_ms.unwrap()).collect();
    // In a: a2 and then b1; in b: the neighbour and then one of a; in c: two of the four, all as far away.
    assert_eq!(commit, [32.0, 32.0, 31.0, 31.0, 71.0]);
    assert_eq!(diagnosis.rtt_ms[0], [None, Some(1.0), Some(30.0), Some(30.0), Some(70.0)]);
    assert_eq!(codes(&diagnosis), Vec::<&str>::new());
    assert_eq!(diagnosis.timers.map(|timers| timers.election_min_ms), Some(800));
}

#[test]
fn the_leaders_own_disk_counts_and_learners_do_not() {
    let rows =
        [("n1", "", true, 9.0, 0), ("n2", "", true, 1.0, 0), ("n3", "", true, 1.0, 0), ("l1", "", false, 0.1, 0)];
    let (cluster, accounts) = group(&rows, |_, _| 0.5);
    let commit: Vec<_> = diagnose(&cluster, &accounts).members.iter().map(|member| member.commit_ms).collect();
    assert_eq!(commit, [Some(9.0), Some(1.5), Some(1.5), None]);
    let (cluster, accounts) = group(&rows[..1], |_, _| 0.0);
    let alone = diagnose(&cluster, &accounts);
    assert_eq!((alone.members[0].commit_ms, codes(&alone).len()), (Some(9.0), 0));
}

#[test]
fn what_rests_on_a_member_that_is_silent_is_not_known() {
    let (cluster, mut accounts) = three_zones();
    accounts.remove(&3);
    let diagnosis = diagnose(&cluster, &accounts);
    let commit: Vec<_> = diagnosis.members.iter().map(|member| member.commit_ms).collect();
    assert_eq!(commit, [Some(33.0), Some(33.0), None, Some(31.0), Some(71.0)]);
    assert_eq!(diagnosis.rtt_ms[2], [None; 5]);
    assert_eq!(
        text(&diagnosis, "no_answer"),
        "b1 does not answer under http://b1:7480 from here; what rests on it is not known"
    );
    for id in [2, 4] {
        accounts.remove(&id);
    }
    assert_eq!(diagnose(&cluster, &accounts).members[0].commit_ms, None);
}

#[test]
fn voters_that_stand_badly_are_told() {
    let judge = |zones: &[&'static str]| {
        let rows: Vec<Row> = zones.iter().map(|zone| ("n", *zone, true, 1.0, 0)).collect();
        let (cluster, accounts) = group(&rows, |_, _| 1.0);
        codes(&diagnose(&cluster, &accounts))
    };
    assert_eq!(judge(&["a", "b", "c"]), Vec::<&str>::new());
    assert_eq!(judge(&["", "", ""]), Vec::<&str>::new());
    assert_eq!(judge(&["a"]), Vec::<&str>::new());
    assert_eq!(judge(&["a", "a", "b"]), ["majority_in_one_zone"]);
    assert_eq!(judge(&["a", "a", "b", "b"]), ["even_voters", "zone_loses_quorum", "zone_loses_quorum"]);
    assert_eq!(judge(&["a", "b"]), ["even_voters", "zone_loses_quorum", "zone_loses_quorum"]);
    assert_eq!(judge(&["a", "a", "a", "b", "c"]), ["majority_in_one_zone"]);
}

#[test]
fn timers_below_ten_round_trips_are_told_with_what_to_set() {
    let rows = [("n1", "a", true, 1.0, 0), ("n2", "b", true, 1.0, 0), ("n3", "c", true, 1.0, 0)];
    let judge = |farthest: f64| {
        let (cluster, accounts) = group(&rows, |one, other| if one + other == 3 { farthest } else { 1.0 });
        diagnose(&cluster, &accounts)
    };
    assert_eq!(codes(&judge(99.0)), Vec::<&str>::new());
    let told = text(&judge(101.5), "timers_too_short");
    assert!(
        told.contains("800 ms is below 10 round trips of 101.5 ms from n") && told.ends_with("--rtt 110ms"),
        "{told}"
    );
    let (cluster, mut accounts) = group(&rows, |_, _| 1.0);
    accounts.get_mut(&2).unwrap().status.timers.election_min_ms = 500;
    let differ = diagnose(&cluster, &accounts);
    assert_eq!((codes(&differ), differ.timers), (vec!["timers_differ"], None));
}

#[test]
fn clocks_and_versions_that_differ_are_told() {
    let rows = |offset| [("n1", "a", true, 1.0, -3), ("n2", "b", true, 1.0, offset), ("n3", "c", true, 1.0, 0)];
    let (cluster, accounts) = group(&rows(500), |_, _| 1.0);
    let diagnosis = diagnose(&cluster, &accounts);
    // 503 ms apart, but either may be wrong by 3.
    assert_eq!(codes(&diagnosis), Vec::<&str>::new());
    assert_eq!((diagnosis.members[1].clock_offset_ms, diagnosis.members[1].clock_error_ms), (Some(500.0), Some(3.0)));
    let (cluster, mut accounts) = group(&rows(510), |_, _| 1.0);
    accounts.get_mut(&3).unwrap().status.version = "0.2.0".into();
    let diagnosis = diagnose(&cluster, &accounts);
    assert_eq!(codes(&diagnosis), ["clocks_differ", "versions_differ"]);
    assert_eq!(text(&diagnosis, "clocks_differ"), "the clocks of n2 and n1 are 513 ms apart; look after NTP");
}
