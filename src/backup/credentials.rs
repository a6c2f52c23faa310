//! Where the credentials of a store come from, where they are not given themselves: a file, or variables of the environment.
//!
//! Guarantees: no value is ever shown, nor anything else that a file holds; a variable that holds a secret by its name goes into
//! no option that is sent as it is; a reference can be told to anybody. Leaves out: instance roles and the variables that
//! each cloud's own tools read, which need no reference (`target`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::target::{self, Options};

/// The largest file of credentials that is read, in bytes.
const CREDENTIALS_BYTES_MAX: u64 = 64 * 1024;

/// What the names of variables may begin with: others are nobody's business, and what is named here is sent to a store.
const VARIABLE_PREFIXES: [&str; 4] = ["AWS_", "AZURE_", "GOOGLE_", "QUORATE_BACKUP_"];

/// What the name of a variable has in it if that holds a secret that must not be sent as it is.
const SECRET_WORDS: [&str; 4] = ["SECRET", "PASSWORD", "PRIVATE", "ACCOUNT_KEY"];

/// What the name of an option has in it whose value is only signed with, and its exceptions.
const SIGNING_WORDS: [&str; 2] = ["secret", "key"];
const NOT_SIGNING: [&str; 5] = ["access_key_id", "kms_key_id", "sas_key", "encryption_key", "customer_key_base64"];

/// References to credentials. They are looked up each time a store is set up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// A file of `NAME=VALUE` lines.
    pub file: Option<PathBuf>,
    /// Options of the store, by the name of the variable that holds each.
    pub variables: BTreeMap<String, String>,
}

impl Credentials {
    /// What they are at present, on this machine.
    ///
    /// # Errors
    /// Why they can't be had; without any value.
    pub fn resolve(&self) -> Result<Options, String> {
        let mut options = match &self.file {
            Some(path) => read(path)?,
            None => Options::new(),
        };
        for (option, variable) in &self.variables {
            let found = std::env::vars_os().find(|(name, _)| name == variable.as_str());
            let value = found.and_then(|(_, value)| value.into_string().ok()).ok_or_else(|| {
                format!(
                    "the environment of this node has no variable {variable}, where its option {option} is to be found"
                )
            })?;
            options.insert(option.to_ascii_lowercase(), value);
        }
        Ok(options)
    }

    /// Whether a variable may become an option: no store gets as a name or a token what is a secret to sign with.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_pair(option: &str, variable: &str) -> Result<(), String> {
        Self::check_variable(variable)?;
        let (option, own) = (option.to_ascii_lowercase(), variable.to_ascii_lowercase());
        if !target::is_option(&option) {
            return Err(format!("no store has an option \"{option}\"; see docs/operations.md for the common ones"));
        }
        let signs = SIGNING_WORDS.iter().any(|word| option.contains(word))
            && !NOT_SIGNING.iter().any(|name| option.ends_with(name));
        let is_secret = SECRET_WORDS.iter().any(|word| variable.contains(word));
        if (target::is_option(&own) && !target::is_same_option(&option, &own)) || (is_secret && !signs) {
            return Err(format!(
                "{variable} is by its name not what the option {option} is for, which could send a secret in clear; name a \
                 variable that is for it"
            ));
        }
        Ok(())
    }

    /// Whether a variable may be named.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_variable(name: &str) -> Result<(), String> {
        let plain = name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
        if plain && VARIABLE_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            return Ok(());
        }
        Err(format!(
            "\"{name}\" is not allowed as the name of a variable; it must have capital letters, digits and _, and begin \
             with {}",
            VARIABLE_PREFIXES.join(", ")
        ))
    }
}

/// Reads `KEY=VALUE` lines, as files for the environment have them. Never shows a value.
///
/// # Errors
/// Which line is none, or why the file can't be read.
pub fn read(path: &Path) -> Result<Options, String> {
    let shown = path.display();
    let unreadable = |error: std::io::Error| format!("can't read credentials_file {shown}: {error}");
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > CREDENTIALS_BYTES_MAX {
        return Err(format!("credentials_file {shown} has {size} bytes; {CREDENTIALS_BYTES_MAX} are the most"));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let mut options = BTreeMap::new();
    for (line, content) in (1..).zip(text.lines().map(str::trim)) {
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let pair = content.strip_prefix("export ").unwrap_or(content).split_once('=');
        let pair = pair.map(|(key, value)| (key.trim().to_ascii_lowercase(), value));
        // What stands there may be a secret in another form: it is not shown.
        let Some((key, value)) = pair.filter(|(key, _)| target::is_option(key)) else {
            return Err(format!(
                "{shown}:{line}: expected KEY=VALUE with an option of a store, such as AWS_ACCESS_KEY_ID=…"
            ));
        };
        let value = value.trim();
        let quoted = |mark: char| value.strip_prefix(mark).and_then(|rest| rest.strip_suffix(mark));
        let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
        options.insert(key, value.to_owned());
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_come_from_file_and_environment_and_what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        std::fs::write(&file, "# of the store\nexport AWS_ACCESS_KEY_ID='me'\n").unwrap();
        let mut credentials = Credentials { file: Some(file.clone()), ..Credentials::default() };
        assert_eq!(credentials.resolve().unwrap(), Options::from([("aws_access_key_id".to_owned(), "me".to_owned())]));
        credentials.variables.insert("aws_secret_access_key".into(), "QUORATE_BACKUP_NO_SUCH_VARIABLE".into());
        let error = credentials.resolve().unwrap_err();
        assert!(error.contains("QUORATE_BACKUP_NO_SUCH_VARIABLE") && error.contains("this node"), "{error}");
        for line in ["hunter2", "hunter2=", "hunter2=x", "=hunter2"] {
            std::fs::write(&file, format!("{line}\n")).unwrap();
            let error = credentials.resolve().unwrap_err();
            assert!(error.contains("keys:1") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_variable_that_is_secret_by_its_name_goes_into_no_option_that_is_sent_in_clear() {
        for (option, variable) in [
            ("aws_secret_access_key", "AWS_SECRET_ACCESS_KEY"),
            ("secret_access_key", "QUORATE_BACKUP_SECRET"),
            ("Access_Key_Id", "AWS_ACCESS_KEY_ID"),
            ("token", "AWS_SESSION_TOKEN"),
            ("account_key", "AZURE_STORAGE_ACCOUNT_KEY"),
            ("token", "QUORATE_BACKUP_TOKEN"),
            ("service_account_key", "GOOGLE_SERVICE_ACCOUNT_KEY"),
        ] {
            Credentials::check_pair(option, variable).unwrap();
        }
        for (option, variable) in [
            ("token", "AWS_SECRET_ACCESS_KEY"),
            ("access_key_id", "AWS_SECRET_ACCESS_KEY"),
            ("region", "AWS_SESSION_TOKEN"),
            ("access_key_id", "QUORATE_BACKUP_SECRET"),
            ("client_id", "AZURE_CLIENT_SECRET"),
            ("sas_token", "AZURE_STORAGE_ACCOUNT_KEY"),
            ("endpoint", "QUORATE_BACKUP_PASSWORD"),
            ("colour", "QUORATE_BACKUP_X"),
        ] {
            Credentials::check_pair(option, variable).expect_err(option);
        }
    }

    #[test]
    fn only_variables_that_are_for_stores_can_be_named() {
        for good in ["AWS_SECRET_ACCESS_KEY", "QUORATE_BACKUP_B2"] {
            Credentials::check_variable(good).unwrap();
        }
        for bad in ["PATH", "", "aws_key", "AWS_KEY=1", "DATABASE_PASSWORD"] {
            assert!(Credentials::check_variable(bad).unwrap_err().contains("QUORATE_BACKUP_"), "{bad}");
        }
    }
}
