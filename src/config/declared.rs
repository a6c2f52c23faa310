//! Places for backups that are declared to the cluster: the same block as in the file, as JSON.
//!
//! Guarantees: whatever the file takes is taken and checked alike, but for two things. What is declared stands on the disk of
//! every member, so anything that could hold a secret is refused. And it comes from whoever reaches the client port, so by
//! itself it can neither have a file or a variable of a node read, nor have the credentials of a node go to a host that is not
//! its cloud's: that needs the very same setting in `backup_declare_allow` of the node's own configuration. Leaves out: keeping
//! the declaration (`state`) and trying the store (`node`).

use super::backup::{BackupSettings, Lookup, place};
use crate::backup::credentials::Credentials;
use crate::backup::settings::TargetSettings;
use crate::node::Declare;

/// Options of stores that hold no secret, and name neither a host nor a file, without the name of the cloud in front.
const OPTIONS_OPEN: [&str; 22] = [
    "account_name",
    "allow_http",
    "authority_id",
    "checksum_algorithm",
    "client_id",
    "default_region",
    "disable_bulk_delete",
    "disable_tagging",
    "imdsv1_fallback",
    "region",
    "request_payer",
    "role_session_name",
    "s3_express",
    "server_side_encryption",
    "skip_signature",
    "sse_bucket_key_enabled",
    "sse_kms_key_id",
    "storage_account_name",
    "tenant_id",
    "unsigned_payload",
    "use_fabric_endpoint",
    "virtual_hosted_style_request",
];

/// Those of them that become a part of the name of a host, or of an address there.
const OPTIONS_IN_ADDRESS: [&str; 7] =
    ["account_name", "authority_id", "client_id", "default_region", "region", "storage_account_name", "tenant_id"];

/// Options that say to which host a node goes with its credentials, as whom, or which of its files it reads.
const OPTIONS_BY_NODE: [&str; 12] = [
    "application_credentials",
    "base_url",
    "endpoint",
    "endpoint_url",
    "endpoint_url_s3",
    "endpoint_url_sts",
    "federated_token_file",
    "role_arn",
    "service_account",
    "service_account_path",
    "use_emulator",
    "web_identity_token_file",
];

/// Reads what is declared to a cluster, for [`ArchiveConfig`](crate::node::ArchiveConfig); refers to nothing of the node.
pub const DECLARE: Declare = Declare { read: declared, allow: Vec::new() };

/// What a declaration means, as a block of the file would. Credentials are not looked up: they may differ from node to node,
/// and be there later. `allow` is what [`allowed`] gave.
///
/// # Errors
/// What is wrong with it, and what is allowed.
fn declared(json: &str, allow: &[String]) -> Result<TargetSettings, String> {
    let block: BackupSettings = serde_json::from_str(json).map_err(|error| format!("the declaration: {error}"))?;
    check_bucket(&block.url)?;
    let options = block.options.as_ref().map(|options| options.entries()).into_iter().flatten();
    for (option, value) in options {
        check_option(option, value, allow)?;
    }
    let settings = place(&block, Lookup::Later).map_err(|error| error.to_string())?;
    for (option, variable) in &settings.credentials.variables {
        let option = plain(option);
        check_allowed(&format!("credentials_env.{option}"), variable, allow)?;
    }
    if let Some(file) = &settings.credentials.file {
        check_allowed("credentials_file", &file.display().to_string(), allow)?;
    }
    if let Some(file) = &settings.care.identity_file {
        check_allowed("identity_file", &file.display().to_string(), allow)?;
    }
    Ok(settings)
}

/// Reads what the configuration of a node lets declarations refer to; gives it in the form in which it is compared.
///
/// # Errors
/// Which entry is wrong, and what one must be.
pub(super) fn allowed(entries: &[String]) -> Result<Vec<String>, String> {
    entries.iter().map(|entry| allowed_entry(entry)).collect()
}

fn allowed_entry(entry: &str) -> Result<String, String> {
    let (setting, value) = entry.split_once('=').unwrap_or((entry, ""));
    let (table, option) = setting.split_once('.').unwrap_or((setting, ""));
    if table == "credentials_env" {
        Credentials::check_pair(option, value)?;
    }
    let setting = if option.is_empty() { table.to_owned() } else { format!("{table}.{}", plain(option)) };
    let known = match (table, option) {
        ("credentials_file" | "identity_file", "") => true,
        ("credentials_env", option) => !option.is_empty(),
        ("options", option) => OPTIONS_BY_NODE.contains(&plain(option).as_str()),
        _ => false,
    };
    if known && !value.is_empty() {
        return Ok(format!("{setting}={value}"));
    }
    Err(format!(
        "\"{entry}\" is nothing that could be allowed; it must be credentials_file=PATH, identity_file=PATH, \
         credentials_env.OPTION=VARIABLE, or options.OPTION=VALUE with one of: {}",
        OPTIONS_BY_NODE.join(", ")
    ))
}

/// The name of an option, without the name of the cloud in front.
fn plain(option: &str) -> String {
    let lower = option.to_ascii_lowercase();
    ["aws_", "azure_", "google_"].iter().find_map(|cloud| lower.strip_prefix(cloud)).unwrap_or(&lower).to_owned()
}

/// The bucket becomes a part of the name of a host.
fn check_bucket(url: &str) -> Result<(), String> {
    let bucket = url.split_once("://").map_or("", |(_, rest)| rest).split('/').next().unwrap_or_default();
    // What is wrong with credentials in front of it is told by whoever reads the URL.
    let bucket = bucket.rsplit('@').next().unwrap_or_default();
    let plain = bucket.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if plain {
        return Ok(());
    }
    Err("the bucket in the url must have letters, digits, '-', '_' and '.' alone".to_owned())
}

fn check_option(option: &str, value: &str, allow: &[String]) -> Result<(), String> {
    let name = plain(option);
    let by_node = OPTIONS_BY_NODE.contains(&name.as_str());
    if !by_node && !OPTIONS_OPEN.contains(&name.as_str()) {
        return Err(format!(
            "the option {option} may hold a secret, or is not known to hold none, and what is declared stands on the disks of \
             all members; let the nodes have credentials in their environment (AWS_…) or an instance role, or give a \
             reference: credentials_file (a path on each node) or credentials_env (options by the name of a variable in each \
             node's environment). Options that are allowed: {}",
            OPTIONS_OPEN.join(", ")
        ));
    }
    if value.contains("://") && value.contains(['@', '?']) {
        return Err(format!("the URL in the option {option} holds credentials or a query; leave them out"));
    }
    if by_node {
        return check_allowed(&format!("options.{name}"), value, allow);
    }
    let is_name = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if OPTIONS_IN_ADDRESS.contains(&name.as_str()) && !is_name {
        return Err(format!("the option {option} must have letters, digits and '-' alone"));
    }
    Ok(())
}

/// Refuses what the node's own configuration does not name.
fn check_allowed(setting: &str, value: &str, allow: &[String]) -> Result<(), String> {
    let wanted = format!("{setting}={value}");
    if allow.contains(&wanted) {
        return Ok(());
    }
    let here = if allow.is_empty() { "nothing".to_owned() } else { allow.join(", ") };
    Err(format!(
        "{setting} has a node use its credentials elsewhere, or read its files or variables, so this value must stand in the \
         node's own configuration, too: backup_declare_allow = [\"{setting}=…\"], at the top of the file of every node. \
         This one allows: {here}"
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::api::model::BackupDeclaration;

    /// As a node reads it that allows nothing by its configuration.
    fn declared(json: &str) -> Result<TargetSettings, String> {
        super::declared(json, &[])
    }

    /// A declaration with one field more than it must have.
    fn with(url: &str, field: &str, value: &str) -> String {
        format!(r#"{{"name": "main", "url": "{url}", "{field}": {value}}}"#)
    }

    #[test]
    fn what_a_node_has_goes_nowhere_that_its_own_configuration_does_not_name() {
        let allow = [
            "options.endpoint=https://minio.example:9000",
            "credentials_file=/etc/quorate/minio.env",
            "credentials_env.secret_access_key=QUORATE_BACKUP_MINIO_SECRET",
            "identity_file=/etc/quorate/key.txt",
        ];
        let allow = allowed(&allow.map(str::to_owned)).unwrap();
        for (url, field, value) in [
            ("s3://b/x", "options", r#"{"AWS_Endpoint": "https://minio.example:9000"}"#),
            ("s3://b/x", "credentials_file", r#""/etc/quorate/minio.env""#),
            ("s3://b/x", "credentials_env", r#"{"aws_secret_access_key": "QUORATE_BACKUP_MINIO_SECRET"}"#),
            ("s3://b/x", "identity_file", r#""/etc/quorate/key.txt""#),
        ] {
            let json = with(url, field, value);
            super::declared(&json, &allow).unwrap();
            let error = declared(&json).unwrap_err();
            assert!(error.contains("backup_declare_allow") && error.contains("nothing"), "{json}: {error}");
        }
        for (url, field, value) in [
            ("s3://b/x", "options", r#"{"endpoint": "https://minio.example:9000.evil.example"}"#),
            ("s3://b/x", "options", r#"{"endpoint_url_s3": "https://evil.example"}"#),
            ("s3://b/x", "options", r#"{"aws_endpoint_url_sts": "https://evil.example"}"#),
            ("s3://b/x", "options", r#"{"web_identity_token_file": "/etc/shadow"}"#),
            ("s3://b/x", "options", r#"{"role_arn": "arn:aws:iam::1:role/x"}"#),
            ("gs://b/x", "options", r#"{"base_url": "https://evil.example"}"#),
            ("gs://b/x", "options", r#"{"google_service_account_path": "/etc/shadow"}"#),
            ("gs://b/x", "options", r#"{"application_credentials": "/etc/shadow"}"#),
            ("az://b/x", "options", r#"{"azure_endpoint": "https://evil.example"}"#),
            ("az://b/x", "options", r#"{"azure_federated_token_file": "/etc/shadow"}"#),
            ("az://b/x", "options", r#"{"use_emulator": "true"}"#),
            ("s3://b/x", "credentials_file", r#""/etc/shadow""#),
            ("s3://b/x", "identity_file", r#""/var/key.txt""#),
            ("s3://b/x", "credentials_env", r#"{"access_key_id": "QUORATE_BACKUP_MINIO"}"#),
            ("s3://b/x", "credentials_env", r#"{"token": "AWS_SESSION_TOKEN"}"#),
        ] {
            let json = with(url, field, value);
            let error = super::declared(&json, &allow).unwrap_err();
            assert!(error.contains("backup_declare_allow") && error.contains("minio.example"), "{json}: {error}");
        }
        // Not even where it is allowed does a secret go into an option that is sent as it is.
        for entry in ["credentials_env.token=AWS_SECRET_ACCESS_KEY", "credentials_env.x=QUORATE_BACKUP_X"] {
            allowed(&[entry.to_owned()]).expect_err(entry);
        }
        for entry in ["", "endpoint=https://x", "options.endpoint", "options.region=x", "credentials_file", "data=x"] {
            let error = allowed(&[entry.to_owned()]).unwrap_err();
            assert!(error.contains("credentials_file=PATH"), "{entry}: {error}");
        }
    }

    #[test]
    fn what_becomes_a_part_of_an_address_can_not_make_it_another_host() {
        for (url, field, value) in [
            ("s3://b/x", "options", r#"{"region": "x@evil.example/"}"#),
            ("s3://b/x", "options", r#"{"aws_default_region": "evil.example#"}"#),
            ("az://b/x", "options", r#"{"account_name": "evil.example/x"}"#),
            ("az://b/x", "options", r#"{"azure_storage_account_name": "evil.example?"}"#),
            ("az://b/x", "options", r#"{"tenant_id": "../x"}"#),
            ("s3://evil.example%2F/x", "durable", "true"),
            ("s3://@evil%23/x", "durable", "true"),
        ] {
            let json = with(url, field, value);
            let error = declared(&json).unwrap_err();
            assert!(error.contains("alone"), "{json}: {error}");
        }
        declared(&with("az://b/x", "options", r#"{"account_name": "backups1"}"#)).unwrap();
    }

    #[test]
    fn a_declaration_is_read_as_a_block_of_the_file_and_credentials_stay_references() {
        let json = r#"{"name": "main", "url": "s3://bucket/prefix", "full": "0 2 * * *", "flush_interval": "2s",
            "flush_bytes": "1MiB", "bandwidth": "50MiB/s", "keep": {"window": "7d"}, "credentials_file": "/no/such/file",
            "credentials_env": {"aws_secret_access_key": "QUORATE_BACKUP_SECRET"},
            "options": {"aws_region": "eu-central-1", "endpoint": "https://s3.example.com"}}"#;
        let allow = [
            "credentials_file=/no/such/file",
            "credentials_env.aws_secret_access_key=QUORATE_BACKUP_SECRET",
            "options.aws_endpoint=https://s3.example.com",
        ];
        let settings = super::declared(json, &allowed(&allow.map(str::to_owned)).unwrap()).unwrap();
        assert_eq!((settings.name.as_str(), settings.flush_bytes), ("main", 1 << 20));
        assert!(settings.care.keep.is_some() && settings.log && settings.durable);
        let variables = [("aws_secret_access_key".to_owned(), "QUORATE_BACKUP_SECRET".to_owned())].into();
        assert_eq!(settings.credentials, Credentials { file: Some("/no/such/file".into()), variables });
        assert!(!settings.options.contains_key("aws_secret_access_key"));
    }

    #[test]
    fn the_interface_tells_of_every_setting_that_a_block_has() {
        let fields = |error: serde_json::Error| {
            let text = error.to_string();
            let known = text.split('`').skip(3).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
            assert!(known.len() > 10, "{text}");
            known
        };
        let unknown = r#"{"no such setting": 1}"#;
        let told = serde_json::from_str::<BackupDeclaration>(unknown).unwrap_err();
        assert_eq!(fields(told), fields(serde_json::from_str::<BackupSettings>(unknown).unwrap_err()));
        let declaration = BackupDeclaration {
            name: "main".into(),
            url: "s3://b/x".into(),
            flush_bytes: Some("1MiB".into()),
            drill: Some("never".into()),
            ..BackupDeclaration::default()
        };
        assert_eq!(declared(&serde_json::to_string(&declaration).unwrap()).unwrap().drill, None);
    }

    #[test]
    fn what_may_be_secret_is_refused_with_the_way_to_refer_to_it_and_not_shown() {
        let with = |option: &str, value: &str| {
            declared(&format!(r#"{{"name": "main", "url": "s3://bucket/x", "options": {{"{option}": "{value}"}}}}"#))
        };
        for option in [
            "aws_secret_access_key",
            "AWS_Secret_Access_Key",
            "access_key_id",
            "token",
            "azure_storage_account_key",
            "sas_token",
            "google_service_account_key",
            "sse_customer_key_base64",
            "proxy_url",
            "conditional_put",
        ] {
            let error = with(option, "hunter2").unwrap_err();
            assert!(error.contains("credentials_env") && !error.contains("hunter2"), "{option}: {error}");
        }
        for url in ["https://me:hunter2@host", "https://host/?sig=hunter2"] {
            let error = with("endpoint", url).unwrap_err();
            assert!(error.contains("holds credentials") && !error.contains("hunter2"), "{error}");
        }
        let in_url = declared(r#"{"name": "main", "url": "s3://me:hunter2@bucket/x"}"#).unwrap_err();
        assert!(!in_url.contains("hunter2"), "{in_url}");
    }

    #[test]
    fn what_is_no_declaration_is_refused_with_the_field() {
        for (json, says) in [
            ("[]", "declaration"),
            (r#"{"name": "main"}"#, "url"),
            (r#"{"name": "a b", "url": "s3://b/x"}"#, "characters"),
            (r#"{"name": "main", "url": "s3://b/x", "colour": "red"}"#, "colour"),
            (r#"{"name": "main", "url": "ftp://b/x"}"#, "s3://BUCKET"),
            (r#"{"name": "main", "url": "s3://b/x", "full": "daily"}"#, "five fields"),
            (r#"{"name": "main", "url": "s3://b/x", "credentials_env": {"token": "HOME"}}"#, "QUORATE_BACKUP_"),
        ] {
            let error = declared(json).unwrap_err();
            assert!(error.contains(says), "{json}: {error}");
        }
    }
}
