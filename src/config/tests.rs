//! What a configuration is made of, and every relation between settings that is refused.

use std::path::Path;

use super::*;

const PATH: &str = "node.toml";

fn parse(text: &str) -> Result<Settings, ConfigError> {
    Settings::from_toml(text, Path::new(PATH))
}

/// A configuration that is fine, with these lines added.
fn resolve(more: &str) -> Result<ServeConfig, ConfigError> {
    ServeConfig::resolve(parse(&format!("name = 'n1'\ndata_dir = '/data'\n{more}"))?)
}

fn refusal(more: &str) -> String {
    resolve(more).map(|config| format!("accepted: {config:?}")).unwrap_or_else(|error| error.to_string())
}

#[test]
fn a_name_and_a_directory_are_enough() {
    let config = resolve("").unwrap();
    assert_eq!(config.client_addr.to_string(), "127.0.0.1:7480");
    assert_eq!(config.peer_addr.to_string(), "127.0.0.1:7481");
    assert_eq!(config.advertise_client_url.as_str(), "http://127.0.0.1:7480");
    assert_eq!(config.advertise_peer_addr, config.peer_addr);
    assert_eq!((config.zone.as_str(), config.rtt, config.log_format), ("", RTT_DEFAULT, LogFormat::Text));
    assert_eq!(config.tuning.snapshot_log_bytes, 256 << 20);
    assert_eq!(config.tuning.log_chunk_bytes(), 64 << 20);
    assert_eq!(config.tuning.catchup_bytes_per_second, 50 << 20);
    assert_eq!(config.tuning.value_bytes_max, VALUE_BYTES_MAX);
}

#[test]
fn every_setting_can_stand_in_the_file() {
    let config = resolve(
        "client_addr = '0.0.0.0:80'\npeer_addr = '0.0.0.0:81'\nadvertise_client_url = 'http://h1:80'\n\
         advertise_peer_addr = 'h1:81'\nzone = 'dc1'\ninitial_cluster = 'n1=h1:81,n2=h2:81'\nrtt = '80ms'\n\
         log_format = 'json'\nvalue_bytes_max = '1MiB'\nsnapshot_log_bytes = 1048576\ncatchup_limit = '5MiB/s'\nlog_cache_bytes = '2MiB'\n\
         state_cache_bytes = '3MiB'\nvalue_cache_bytes = '4MiB'\nwrite_buffer_bytes = '32MiB'\nruntime_threads = 3\nconnections_max = 5\nconnections_per_ip_max = 4\n\
         in_flight_bytes_max = '64MiB'\nwrite_time_target = '2s'",
    )
    .unwrap();
    assert_eq!(config.advertise_peer_addr.to_string(), "h1:81");
    assert_eq!(config.initial_cluster.map(|cluster| cluster.members().len()), Some(2));
    assert_eq!((config.rtt, config.log_format), (Duration::from_millis(80), LogFormat::Json));
    let expected = Tuning {
        connections_max: 5,
        connections_per_ip_max: 4,
        in_flight_bytes_max: 64 << 20,
        write_time_target: Duration::from_secs(2),
        value_bytes_max: 1 << 20,
        snapshot_log_bytes: 1 << 20,
        catchup_bytes_per_second: 5 << 20,
        log_cache_bytes: 2 << 20,
        state_cache_bytes: 3 << 20,
        value_cache_bytes: 4 << 20,
        write_buffer_bytes: 32 << 20,
        runtime_threads: 3,
    };
    assert_eq!(config.tuning, expected);
    assert_eq!(config.tuning.log_chunk_bytes(), 256 << 10, "a smaller log comes in smaller files");
}

#[test]
fn distance_between_members_leaves_writes_more_time() {
    let target = |text: &str| resolve(text).unwrap().tuning.write_time_target;
    assert_eq!(target(""), Duration::from_millis(540));
    assert_eq!(target("rtt = '300ms'"), Duration::from_millis(1_700));
    assert_eq!(target("rtt = '300ms'\nwrite_time_target = '1s'"), Duration::from_secs(1));
}

#[test]
fn flags_win_over_the_file() {
    let flags = parse("rtt = '5ms'").unwrap();
    let file = parse("rtt = '9ms'\nzone = 'dc1'").unwrap();
    let merged = flags.or(file);
    assert_eq!(merged.rtt.map(|rtt| rtt.to_string()), Some("5ms".to_owned()));
    assert_eq!(merged.zone.map(|zone| zone.to_string()), Some("dc1".to_owned()));
}

#[test]
fn errors_in_the_file_name_the_file_and_the_line() {
    let error = |text: &str| parse(text).unwrap_err().to_string();
    assert!(error("name = 'n1'\n\nzoom = 3").starts_with("node.toml:3: unknown field `zoom`"));
    assert!(error("name = 'n1'\nrtt = 'soon'").starts_with("node.toml:2: 'soon' is no duration"));
    assert!(error("name = 'n1'\nname = 'n2'").starts_with("node.toml:2: duplicate key"));
    assert!(error("name = \n").starts_with("node.toml:1: "));
    assert!(error("client_addr = true").contains("an address as \"host:port\""));
    assert!(error("runtime_threads = -1").starts_with("node.toml:1: "));
    assert!(!error("name = \n").contains('\n'));
    let missing = Settings::from_file(Path::new("/nonexistent/node.toml")).unwrap_err().to_string();
    assert!(missing.starts_with("can't read the configuration file /nonexistent/node.toml: "));
}

#[test]
fn missing_settings_say_where_to_give_them() {
    let error = ServeConfig::resolve(Settings::default()).unwrap_err();
    let expected = "--name is missing; give the flag, QUORATE_NAME, or name in the configuration file";
    assert_eq!(error.to_string(), expected);
    let error = ServeConfig::resolve(parse("name = 'n1'").unwrap()).unwrap_err();
    assert!(error.to_string().contains("QUORATE_DATA_DIR, or data_dir"));
}

#[test]
fn contradictions_are_refused_with_a_way_out() {
    let cases = [
        ("client_addr = 'h:1'\npeer_addr = 'h:1'", "share a port"),
        ("client_addr = '0.0.0.0:7481'", "share a port"),
        ("client_addr = '0.0.0.0:7480'", "add --advertise-client-url http://HOST:7480"),
        ("peer_addr = '[::]:7481'", "add --advertise-peer-addr HOST:7481"),
        ("advertise_peer_addr = '0.0.0.0:7481'", "no address the other members could call"),
        ("initial_cluster = 'n2=h2:7481'", "--name n1 is not in --initial-cluster n2=h2:7481"),
        ("initial_cluster = 'n1=h1:9999'", "or add --advertise-peer-addr h1:9999 if a port mapping"),
        ("initial_cluster = 'n1=h1:7481'\nadvertise_peer_addr = 'h9:7481'", "make them the same"),
        ("initial_cluster = 'n1=0.0.0.0:7481'", "no address the other members could call"),
        ("rtt = '0ms'", "it must be 1ms to 2s"),
        ("rtt = '1m'", "it must be 1ms to 2s"),
        ("value_bytes_max = 0", "it must be at least 1"),
        ("value_bytes_max = '1GiB'", "--value-bytes-max is 1GiB; it must be at most"),
        ("snapshot_log_bytes = 1", "it must be at least 64KiB"),
        ("catchup_limit = 0", "--catchup-limit is 0/s; it must be at least 64KiB/s; to have no limit,"),
        ("catchup_limit = '50'", "--catchup-limit is 50/s"),
        ("catchup_limit = 'much'", "'much' is no rate; it must be like 50MiB/s"),
        ("log_cache_bytes = 1", "it must be at least 1MiB"),
        ("write_buffer_bytes = '1MiB'", "it must be at least 16MiB"),
        ("runtime_threads = 0", "it must be 1 to 256"),
        ("connections_max = 0", "it must be 1 to 1000000"),
        ("in_flight_bytes_max = '1MiB'", "it must be at least 16MiB"),
        ("write_time_target = '1ms'", "it must be 100ms to 1m"),
    ];
    for (settings, expected) in cases {
        let refusal = refusal(settings);
        assert!(refusal.contains(expected) && !refusal.contains('\n'), "{settings}: {refusal}");
    }
}

#[test]
fn the_list_of_first_members_says_where_this_node_is_called() {
    let config = resolve("peer_addr = '0.0.0.0:7481'\ninitial_cluster = 'n1=h1:7481'").unwrap();
    assert_eq!(config.advertise_peer_addr.to_string(), "h1:7481");
    let config = resolve("initial_cluster = 'n1=h1:9999'\nadvertise_peer_addr = 'h1:9999'").unwrap();
    assert_eq!(config.peer_addr.port(), 7481);
}

#[test]
fn dev_nodes_take_neighbouring_ports() {
    let nodes = ServeConfig::dev(3, Path::new("d"), 7480).unwrap();
    let ports: Vec<_> = nodes.iter().map(|node| (node.client_addr.port(), node.peer_addr.port())).collect();
    assert_eq!(ports, [(7480, 7481), (7482, 7483), (7484, 7485)]);
    assert_eq!(nodes[2].data_dir, Path::new("d/n3"));
    assert!(nodes.iter().all(|node| node.initial_cluster == nodes[0].initial_cluster));
    assert!(ServeConfig::dev(3, Path::new("d"), 65530).is_ok());
    for (count, port) in [(0, 7480), (DEV_NODES_MAX + 1, 7480), (3, 65531), (1, 0)] {
        assert!(ServeConfig::dev(count, Path::new("d"), port).is_err());
    }
}

/// What a place for backups is refused with.
fn backup_refusal(more: &str) -> String {
    refusal(&format!("[[backup]]\nname = 'main'\nurl = 's3://bucket/prefix'\n{more}"))
}

#[test]
fn a_place_for_backups_needs_a_name_and_a_url() {
    let config = resolve("[[backup]]\nname = 'main'\nurl = 'file:///srv/backup'").unwrap();
    let place = &config.archive.places[0];
    assert_eq!((place.name.as_str(), place.log, place.durable), ("main", true, true));
    assert_eq!((place.flush_interval, place.flush_bytes), (Duration::from_secs(1), 4 << 20));
    assert_eq!((place.merge_interval, place.bandwidth), (Duration::from_secs(300), None));
    assert_eq!(place.full.to_string(), "0 3 * * *");
    assert_eq!(config.archive.offsite.min_copies, 1);
    assert_eq!(resolve("").unwrap().archive, crate::node::ArchiveConfig::default());
}

#[test]
fn every_setting_of_a_place_for_backups_is_taken() {
    let config = resolve(
        "offsite_min_copies = 2\noffsite_prefixes = ['money/']\n\
         [[backup]]\nname = 'a'\nurl = 's3://bucket/a'\ndirection = 'out'\ndata = ['log', 'full']\nfull = '*/5 * * * *'\n\
         flush_interval = '100ms'\nflush_bytes = '64KiB'\nmerge_interval = '0s'\nrecipients = []\n\
         options = { aws_region = 'eu-central-1' }\nbandwidth = '5MiB'\n\
         [[backup]]\nname = 'b'\nurl = 's3://bucket/b'\n[[backup]]\nname = 'c'\nurl = 'gs://bucket/c'\ndata = ['full']",
    )
    .unwrap();
    let names: Vec<_> = config.archive.places.iter().map(|place| (place.name.as_str(), place.durable)).collect();
    assert_eq!(names, [("a", true), ("b", true), ("c", false)], "without the log nothing is off-site at once");
    let first = &config.archive.places[0];
    assert_eq!((first.merge_interval, first.bandwidth), (Duration::ZERO, Some(5 << 20)));
    assert_eq!(first.options["aws_region"], "eu-central-1");
    assert_eq!(config.archive.offsite.prefixes, [&b"money/"[..]]);
}

#[test]
fn what_is_done_for_a_place_for_backups_is_taken() {
    let care = |more: &str| {
        let text = format!("[[backup]]\nname = 'a'\nurl = 's3://bucket/a'\n{more}");
        resolve(&text).unwrap().archive.places[0].care.clone()
    };
    let unasked = care("");
    assert_eq!((unasked.verify.to_string().as_str(), unasked.level.number(), unasked.keep), ("0 5 * * *", 2, None));
    let all = care("verify_level = 4\nprune = '0 1 * * *'\n[backup.keep]\nwindow = '30d'\nmonthly = 0");
    assert_eq!((all.level.number(), all.prune.to_string().as_str()), (4, "0 1 * * *"));
    let keep = all.keep.unwrap();
    assert_eq!((keep.window, keep.daily, keep.monthly), (Duration::from_secs(30 * 86_400), 7, 0));
    let (_, public) = crate::backup::seal::Identities::generate();
    let sealed = backup_refusal(&format!("verify_level = 3\nrecipients = ['{public}']"));
    assert!(sealed.contains("can't be read without a private key; give identity_file"), "{sealed}");
}

#[test]
fn nodes_drill_what_they_can_read_unless_they_shall_not() {
    let drill = |more: &str| {
        let text = format!("[[backup]]\nname = 'a'\nurl = 's3://bucket/a'\n{more}");
        resolve(&text).unwrap().archive.places[0].drill.as_ref().map(ToString::to_string)
    };
    let (_, public) = crate::backup::seal::Identities::generate();
    let sealed = format!("recipients = ['{public}']");
    assert_eq!(drill("").as_deref(), Some("0 4 * * 0"));
    assert_eq!(drill("drill = '0 5 1 * *'").as_deref(), Some("0 5 1 * *"));
    assert_eq!((drill("drill = 'never'"), drill(&sealed)), (None, None));
    assert_eq!(drill(&format!("{sealed}\nidentity_file = '/key'")).as_deref(), Some("0 4 * * 0"));
    let refused = backup_refusal(&format!("{sealed}\ndrill = '0 4 * * 0'"));
    assert!(refused.contains("private key") && refused.contains("quorate backup drill"), "{refused}");
    assert!(backup_refusal("drill = 'weekly'").contains("or \"never\""), "it tells what is allowed");
    let missing = backup_refusal("credentials_env = { token = 'QUORATE_BACKUP_NO_SUCH' }");
    assert!(missing.contains("no variable QUORATE_BACKUP_NO_SUCH"), "{missing}");
}

#[test]
fn what_is_wrong_with_a_place_for_backups_is_told_with_what_is_allowed() {
    let cases = [
        ("full = 'daily'", "full: 'daily' is no schedule"),
        ("full = '0 3 30 2 *'", "never comes"),
        ("flush_interval = '10ms'", "flush_interval is 10ms; it must be 100ms to 1h"),
        ("flush_interval = '2h'", "it must be 100ms to 1h"),
        ("flush_bytes = 1000", "it must be 64KiB to 64MiB"),
        ("merge_interval = '2d'", "merge_interval is 2days; it must be 200ms to 1day"),
        ("bandwidth = '1KiB'", "it must be at least 64KiB/s"),
        ("data = ['log']", "data must hold \"full\""),
        ("data = ['log', 'state']", "unknown variant"),
        ("direction = 'in'", "unknown variant"),
        ("recipients = ['AGE-SECRET-KEY-1ABC']", "servers need no private key"),
        ("recipients = ['somebody']", "no age public key"),
        ("credentials_file = '/does/not/exist'", "can't read credentials_file /does/not/exist"),
        ("passphrase = 'x'", "unknown field `passphrase`"),
        ("verify = 'often'", "verify: 'often' is no schedule"),
        ("verify_level = 5", "verify_level is 5; it must be 1"),
        ("prune = '0 4 * * *'", "nothing says what is kept"),
        ("[backup.keep]\nyearly = 3", "unknown field `yearly`"),
        ("[[backup]]\nname = 'main'\nurl = 's3://bucket/other'", "have the same name or url"),
        ("[[backup]]\nname = 'other'\nurl = 's3://bucket/prefix'", "have the same name or url"),
        ("[[backup]]\nname = 'other'\nurl = 's3://bucket/prefix/'", "have the same name or url"),
    ];
    for (more, expected) in cases {
        let refused = backup_refusal(more);
        assert!(refused.contains(expected), "{more}: {refused}");
    }
    for url in
        ["", "bucket", "ftp://bucket/x", "s3://", "file://relative", "s3://key:secret@bucket/x", "s3://b/x?key=secret"]
    {
        let refused = refusal(&format!("[[backup]]\nname = 'main'\nurl = '{url}'"));
        assert!(refused.contains("is no place for backups") && !refused.contains("secret"), "{url}: {refused}");
    }
    let copies = refusal("offsite_min_copies = 2\n[[backup]]\nname = 'main'\nurl = 's3://bucket/prefix'");
    assert!(copies.contains("offsite_min_copies is 2, but 1 [[backup]] blocks count"), "{copies}");
    assert!(refusal("offsite_prefixes = ['a']").contains("add blocks"));
}

#[test]
fn credentials_come_from_a_file_and_are_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s3.env");
    std::fs::write(&path, "# for the bucket\nexport AWS_ACCESS_KEY_ID=\"one\"\n\nAWS_SECRET_ACCESS_KEY = two=2\n")
        .unwrap();
    let block = format!("[[backup]]\nname = 'main'\nurl = 's3://b/p'\ncredentials_file = '{}'", path.display());
    let config = resolve(&block).unwrap();
    let options = &config.archive.places[0].options;
    assert_eq!((options["aws_access_key_id"].as_str(), options["aws_secret_access_key"].as_str()), ("one", "two=2"));
    assert!(!format!("{config:?}").contains("two=2"));
    std::fs::write(&path, "AWS_ACCESS_KEY_ID=one\ntopsecret\n").unwrap();
    let refused = refusal(&block);
    assert!(refused.contains("s3.env:2: expected KEY=VALUE") && !refused.contains("topsecret"), "{refused}");
    let given =
        parse("[[backup]]\nname = 'main'\nurl = 's3://b/p'\noptions = { aws_secret_access_key = 'hidden' }").unwrap();
    assert!(!format!("{given:?}").contains("hidden"));
}
