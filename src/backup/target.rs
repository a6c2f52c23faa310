//! Which store a URL means.
//!
//! `s3://bucket/prefix`, `az://container/prefix`, `gs://bucket/prefix`, `file:///folder`. Credentials and everything else
//! come from the environment as each cloud's own tools read it (`AWS_…`, `AZURE_…`, `GOOGLE_…`), instance roles among
//! them; options stand above the environment. Guarantees: no secret appears in an error or in [`Repository::url`]; every
//! request is bounded in time. Leaves out: whether the store keeps its promises (`probe`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use super::repository::Repository;
use crate::tls;

/// How long connecting to a store may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one request may take: a part of a large object on a slow line. That the store says nothing is noticed earlier
/// (`repository`). There is no limit for the time without a byte from the store: it would count while a part is sent, too.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);

/// How often a request is repeated that a store could not serve for now.
const RETRIES_MAX: usize = 5;

/// How long it is repeated at most. Whoever asked tries again by itself, later and with news.
const RETRY_TIMEOUT: Duration = Duration::from_secs(10);

/// How stores are reached.
#[derive(Debug, Clone, Default)]
pub enum Stores {
    /// By their URLs.
    #[default]
    ByUrl,
    /// All URLs mean this one.
    Given(Arc<dyn ObjectStore>),
}

/// The same store, not an equal one.
impl PartialEq for Stores {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::ByUrl, Self::ByUrl) => true,
            (Self::Given(one), Self::Given(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl Eq for Stores {}

impl Stores {
    /// As [`open_existing`].
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn open_existing(&self, url: &str, options: &Options) -> Result<Repository, TargetError> {
        match self {
            Self::ByUrl => open_existing(url, options),
            Self::Given(store) => Ok(Repository::new(Arc::clone(store), Path::default(), &redacted(url))),
        }
    }
}

/// Settings of a store beside its URL, by the names its cloud gives them (`aws_region`, `endpoint`, …).
pub type Options = BTreeMap<String, String>;

/// Why a URL means no store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Not a URL of a store.
    #[error(
        "\"{url}\" is no place for backups ({why}); allowed are s3://BUCKET/PREFIX, az://CONTAINER/PREFIX, gs://BUCKET/PREFIX and file:///FOLDER"
    )]
    Url {
        /// What was given; without secrets.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// An option that this store does not have.
    #[error("the store of {url} has no option \"{option}\"; see docs/operations.md for the common ones")]
    Option {
        /// Where.
        url: String,
        /// Which.
        option: String,
    },
    /// The store can't be set up: a bucket without a name, credentials that can't be read.
    #[error("the store of {url} can't be set up: {why}")]
    Setup {
        /// Where.
        url: String,
        /// Why.
        why: String,
    },
}

/// Whether a store of any cloud has an option of this name, in small letters.
#[must_use]
pub fn is_option(name: &str) -> bool {
    AmazonS3ConfigKey::from_str(name).is_ok()
        || AzureConfigKey::from_str(name).is_ok()
        || GoogleConfigKey::from_str(name).is_ok()
}

/// Whether two names, in small letters, are of one option of some cloud's store.
#[must_use]
pub fn is_same_option(one: &str, other: &str) -> bool {
    fn same<K: FromStr + PartialEq>(one: &str, other: &str) -> bool {
        K::from_str(one).ok().zip(K::from_str(other).ok()).is_some_and(|(one, other)| one == other)
    }
    same::<AmazonS3ConfigKey>(one, other) || same::<AzureConfigKey>(one, other) || same::<GoogleConfigKey>(one, other)
}

/// Finds out whether a URL means a store at all, without looking for it.
///
/// # Errors
/// [`TargetError::Url`].
pub fn check(url: &str) -> Result<(), TargetError> {
    let shown = redacted(url);
    let wrong = |why: &str| TargetError::Url { url: shown.clone(), why: why.to_owned() };
    let parsed = Url::parse(url).map_err(|error| wrong(&error.to_string()))?;
    if !parsed.username().is_empty() || parsed.password().is_some() || parsed.query().is_some() {
        return Err(wrong("it holds credentials or options; these belong into the environment or the options"));
    }
    let has_host = parsed.host_str().is_some_and(|host| !host.is_empty());
    match parsed.scheme() {
        "s3" | "az" | "gs" if has_host => Ok(()),
        "s3" | "az" | "gs" => Err(wrong("no bucket is named")),
        "file" if parsed.to_file_path().is_ok() => Ok(()),
        "file" => Err(wrong("the path is not absolute")),
        _ => Err(wrong("this scheme is not known")),
    }
}

/// The folder that a `file://` URL means; `None` for any other.
#[must_use]
pub fn folder_of(url: &str) -> Option<PathBuf> {
    Url::parse(url).ok().filter(|url| url.scheme() == "file")?.to_file_path().ok()
}

/// Opens the store that a URL means. Nothing is read or written yet, but that the folder of a `file://` URL is made.
///
/// # Errors
/// [`TargetError`].
pub fn open(url: &str, options: &Options) -> Result<Repository, TargetError> {
    open_or_make(url, options, true)
}

/// As [`open`], to read only: the folder of a `file://` URL must be there.
///
/// # Errors
/// [`TargetError`].
pub fn open_existing(url: &str, options: &Options) -> Result<Repository, TargetError> {
    open_or_make(url, options, false)
}

fn open_or_make(url: &str, options: &Options, make: bool) -> Result<Repository, TargetError> {
    tls::install();
    let shown = redacted(url);
    let wrong = |why: &str| TargetError::Url { url: shown.clone(), why: why.to_owned() };
    let parsed = Url::parse(url).map_err(|error| wrong(&error.to_string()))?;
    if !parsed.username().is_empty() || parsed.password().is_some() || parsed.query().is_some() {
        return Err(wrong("it holds credentials or options; these belong into the environment or the options"));
    }
    let setup = |error: object_store::Error| TargetError::Setup { url: shown.clone(), why: error.to_string() };
    let unknown = |option: &str| TargetError::Option { url: shown.clone(), option: option.to_owned() };
    let below = |path: &str| Path::from_url_path(path).map_err(|error| wrong(&error.to_string()));
    let host = || parsed.host_str().filter(|host| !host.is_empty()).ok_or_else(|| wrong("no bucket is named"));
    let (store, prefix): (Arc<dyn ObjectStore>, Path) = match parsed.scheme() {
        "s3" => {
            let mut builder = AmazonS3Builder::from_env().with_client_options(client(options, "AWS_ALLOW_HTTP"));
            builder = builder.with_bucket_name(host()?);
            for (key, value) in options {
                builder = builder.with_config(AmazonS3ConfigKey::from_str(key).map_err(|_| unknown(key))?, value);
            }
            let builder = builder.with_retry(retry());
            (Arc::new(builder.build().map_err(setup)?), below(parsed.path())?)
        }
        "az" => {
            let mut builder =
                MicrosoftAzureBuilder::from_env().with_client_options(client(options, "AZURE_ALLOW_HTTP"));
            builder = builder.with_container_name(host()?);
            for (key, value) in options {
                builder = builder.with_config(AzureConfigKey::from_str(key).map_err(|_| unknown(key))?, value);
            }
            let builder = builder.with_retry(retry());
            (Arc::new(builder.build().map_err(setup)?), below(parsed.path())?)
        }
        "gs" => {
            let mut builder =
                GoogleCloudStorageBuilder::from_env().with_client_options(client(options, "GOOGLE_ALLOW_HTTP"));
            builder = builder.with_bucket_name(host()?);
            for (key, value) in options {
                builder = builder.with_config(GoogleConfigKey::from_str(key).map_err(|_| unknown(key))?, value);
            }
            let builder = builder.with_retry(retry());
            (Arc::new(builder.build().map_err(setup)?), below(parsed.path())?)
        }
        "file" => {
            if let Some(option) = options.keys().next() {
                return Err(unknown(option));
            }
            (Arc::new(folder(&parsed, &shown, make)?), Path::default())
        }
        _ => return Err(wrong("this scheme is not known")),
    };
    Ok(Repository::new(store, prefix, &shown))
}

fn folder(url: &Url, shown: &str, make: bool) -> Result<LocalFileSystem, TargetError> {
    let setup = |why: String| TargetError::Setup { url: shown.to_owned(), why };
    let path = url.to_file_path().map_err(|()| setup("the path is not absolute".into()))?;
    if make {
        std::fs::create_dir_all(&path).map_err(|error| setup(error.to_string()))?;
    }
    if !path.is_dir() {
        // Where a disk is not mounted its folder would be made on the one below.
        return Err(setup("there is no such folder; is its disk mounted? If so, make the folder".into()));
    }
    let store = LocalFileSystem::new_with_prefix(&path).map_err(|error| setup(error.to_string()))?;
    Ok(store.with_fsync(true))
}

fn retry() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: RETRIES_MAX, retry_timeout: RETRY_TIMEOUT }
}

/// The options of a store's connections. What the builder read of them from the environment is replaced by these, and what
/// the options of a store say comes on top.
fn client(options: &Options, variable: &str) -> ClientOptions {
    let allow = |value: &str| matches!(value, "1" | "true" | "TRUE" | "True");
    let plain = options.iter().any(|(key, value)| key.ends_with("allow_http") && allow(value))
        || std::env::vars().any(|(key, value)| key == variable && allow(&value));
    ClientOptions::new().with_connect_timeout(CONNECT_TIMEOUT).with_timeout(REQUEST_TIMEOUT).with_allow_http(plain)
}

/// The URL without what may be secret in it.
#[must_use]
pub fn redacted(url: &str) -> String {
    match Url::parse(url) {
        Ok(mut parsed) => {
            let _ = parsed.set_password(None);
            let _ = parsed.set_username("");
            parsed.set_query(None);
            parsed.set_fragment(None);
            parsed.to_string()
        }
        Err(_) => {
            let address = url.split('?').next().unwrap_or_default();
            address.rsplit('@').next().unwrap_or_default().to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str, options: &[(&str, &str)]) -> TargetError {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        open(url, &options).unwrap_err()
    }

    #[test]
    fn what_is_no_place_for_backups_is_refused_with_those_that_are() {
        for url in ["backup", "/srv/backup", "http://host/x", "s3:///prefix", "sftp://host/x", "s3://b/p?key=hunter2"] {
            let error = refused(url, &[]);
            assert!(matches!(error, TargetError::Url { .. }) && error.to_string().contains("s3://BUCKET"), "{error}");
        }
        let options = [("aws_region", "x")];
        assert!(matches!(refused("s3://bucket/x", &[("regoin", "x")]), TargetError::Option { .. }));
        assert!(matches!(refused("file:///tmp", &options), TargetError::Option { .. }));
        assert!(matches!(refused("gs://bucket/x", &options), TargetError::Option { .. }));
    }

    #[test]
    fn credentials_in_a_url_are_refused_and_not_shown() {
        for url in ["s3://me:hunter2@bucket/x", "s3://bucket/x?secret=hunter2", "nonsense me:hunter2@x?hunter2"] {
            let text = refused(url, &[]).to_string();
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn a_folder_is_made_to_write_and_must_be_there_to_read() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().join("a/b").display());
        let error = open_existing(&url, &Options::new()).unwrap_err();
        assert!(matches!(error, TargetError::Setup { .. }), "{error}");
        open(&url, &Options::new()).unwrap();
        assert_eq!(open_existing(&url, &Options::new()).unwrap().url(), url);
    }

    #[test]
    fn a_bucket_and_its_options_are_taken_without_a_request() {
        let options =
            [("aws_region", "eu-central-1"), ("aws_endpoint", "http://127.0.0.1:9"), ("aws_allow_http", "true")];
        let options = options.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        assert_eq!(open("s3://bucket/some/prefix", &options).unwrap().url(), "s3://bucket/some/prefix");
    }
}
