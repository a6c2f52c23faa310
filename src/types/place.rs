//! What nodes and places are called: names, `host:port`, base URLs.
//!
//! Guarantees: each is valid once it exists, and prints as it is read. Leaves out: whether anybody answers there.

use std::fmt;
use std::str::FromStr;

/// The longest name of a node or a zone, in characters.
pub const NAME_CHARS_MAX: usize = 64;

/// Why a value can't be used, in words that stand behind its name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(String);

impl InvalidValue {
    /// With these words.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// The name of a node or a zone: 1 to 64 of the characters `a-z A-Z 0-9 . _ -`, so that it can stand in a list, a header,
/// a metric label and a file name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name(String);

impl Name {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let allowed = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
        if text.is_empty() || text.len() > NAME_CHARS_MAX || !text.chars().all(allowed) {
            return Err(InvalidValue::new(format!(
                "a name has 1 to {NAME_CHARS_MAX} characters out of a-z, A-Z, 0-9, '.', '_' and '-'"
            )));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `host:port`, where the host is a name, an IPv4 address, or an IPv6 address in brackets. The port is never 0: an
/// address that others must know can't be left to the system.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    host: String,
    port: u16,
}

impl HostPort {
    /// The host, an IPv6 address in its brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether this means "every interface": good to listen on, no good to be called at.
    #[must_use]
    pub fn is_unspecified(&self) -> bool {
        matches!(self.host.as_str(), "0.0.0.0" | "[::]")
    }
}

impl FromStr for HostPort {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let invalid = || InvalidValue::new(format!("'{text}' is no address; it must be host:port, like 10.0.0.1:7481"));
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let port: u16 = port.parse().ok().filter(|port| *port != 0).ok_or_else(|| {
            InvalidValue::new(format!("'{text}' has no usable port; it must be host:port with a port of 1 to 65535"))
        })?;
        // Host names, IPv4 and bracketed IPv6 by the rules of URLs; a bare IPv6 address has colons left over and fails.
        match url::Host::parse(host) {
            Ok(_) if !host.is_empty() => Ok(Self { host: host.to_owned(), port }),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A base URL under which clients reach a node: `http://host[:port]`, kept without a trailing slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl(String);

impl BaseUrl {
    /// The URL of a listener that clients can reach at the address it listens on.
    #[must_use]
    pub fn of(address: &HostPort) -> Self {
        Self(format!("http://{address}"))
    }

    /// The text, without a trailing slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BaseUrl {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let invalid = |why: &str| InvalidValue::new(format!("'{text}' {why}; it must be like http://10.0.0.1:7480"));
        let url = url::Url::parse(text).map_err(|error| invalid(&format!("is no URL ({error})")))?;
        match url.scheme() {
            "http" | "https" => {}
            other => return Err(invalid(&format!("has the scheme '{other}'"))),
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
            return Err(invalid("has more than a host and a port"));
        }
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
