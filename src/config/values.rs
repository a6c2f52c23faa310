//! The values that flags, environment and file are made of: addresses, durations, sizes, the first members.
//!
//! Guarantees: each is valid by itself once it exists, is read by the same parser wherever it comes from, and prints as it
//! is read. Leaves out: relations between two of them; those are [`super::ServeConfig`]'s.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

pub use crate::types::{BaseUrl, HostPort, InvalidValue, NAME_CHARS_MAX, Name};

/// The most members a cluster can be formed with. A group of more than seven voters only gets slower.
pub const INITIAL_MEMBERS_MAX: usize = 15;

/// The most members that can be named to be asked: one that answers is enough.
const ADDRESSES_MAX: usize = 64;

/// Lets a type with [`FromStr`] stand as a string in the file.
macro_rules! from_file_as_string {
    ($name:ty, $what:literal) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($what)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }

                    // Plain numbers are only good where the type reads them: sizes in bytes, not durations.
                    fn visit_u64<E: de::Error>(self, number: u64) -> Result<$name, E> {
                        self.visit_str(&number.to_string())
                    }

                    fn visit_i64<E: de::Error>(self, number: i64) -> Result<$name, E> {
                        self.visit_str(&number.to_string())
                    }
                }
                deserializer.deserialize_any(Text)
            }
        }
    };
}

from_file_as_string!(Name, "a name");

from_file_as_string!(HostPort, "an address as \"host:port\"");

from_file_as_string!(BaseUrl, "a URL");

/// A span of time, written as `80ms` or `1m 30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        humantime::parse_duration(text)
            .map(Self)
            .map_err(|_| InvalidValue::new(format!("'{text}' is no duration; it must be like 80ms, 2s or 1m30s")))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&humantime::format_duration(self.0), f)
    }
}

from_file_as_string!(Span, "a duration like \"80ms\"");

/// A size in bytes, written as a plain number or as `64MiB` (2^20) or `64MB` (10^6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// So many MiB.
    #[must_use]
    pub const fn mib(count: u64) -> Self {
        Self(count * 1024 * 1024)
    }
}

impl FromStr for Size {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        text.parse::<bytesize::ByteSize>()
            .map(|size| Self(size.as_u64()))
            .map_err(|_| InvalidValue::new(format!("'{text}' is no size; it must be like 65536, 64KiB or 256MiB")))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Exact for whole units, because it must read back as the same number.
        let unit = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]
            .into_iter()
            .find(|(unit, _)| self.0 >= *unit && self.0.is_multiple_of(*unit));
        match unit {
            Some((unit, name)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

from_file_as_string!(Size, "a size in bytes, or a string like \"256MiB\"");

/// Bytes a second, written as a size, with or without `/s` behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(pub Size);

impl FromStr for Rate {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let size = text.strip_suffix("/s").unwrap_or(text);
        let invalid = |_| InvalidValue::new(format!("'{text}' is no rate; it must be like 50MiB/s or 512KiB/s"));
        size.parse().map(Self).map_err(invalid)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.0)
    }
}

from_file_as_string!(Rate, "bytes a second, or a string like \"50MiB/s\"");

/// The members a cluster is formed with: the same list, in any order, on each of them. Names and addresses are unique.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitialCluster(Vec<InitialMember>);

/// One of the members a cluster is formed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitialMember {
    /// Its name.
    pub name: Name,
    /// Where the others dial it.
    pub peer_addr: HostPort,
}

impl InitialCluster {
    /// Takes the members as a list to form a cluster with.
    ///
    /// # Errors
    /// [`InvalidValue`] if there are none or too many, or two have the same name or address.
    pub fn new(members: Vec<InitialMember>) -> Result<Self, InvalidValue> {
        if members.is_empty() || members.len() > INITIAL_MEMBERS_MAX {
            return Err(InvalidValue::new(format!(
                "{} members are listed; a cluster is formed with 1 to {INITIAL_MEMBERS_MAX}",
                members.len()
            )));
        }
        for (position, member) in members.iter().enumerate() {
            let before = &members[..position];
            if before.iter().any(|other| other.name == member.name) {
                return Err(InvalidValue::new(format!("the name '{}' is listed twice", member.name)));
            }
            if let Some(other) = before.iter().find(|other| other.peer_addr == member.peer_addr) {
                return Err(InvalidValue::new(format!(
                    "'{}' and '{}' have the same address {}",
                    other.name, member.name, member.peer_addr
                )));
            }
        }
        Ok(Self(members))
    }

    /// The members, as they were listed.
    #[must_use]
    pub fn members(&self) -> &[InitialMember] {
        &self.0
    }

    /// The member of this name.
    #[must_use]
    pub fn find(&self, name: &Name) -> Option<&InitialMember> {
        self.0.iter().find(|member| member.name == *name)
    }
}

impl FromStr for InitialCluster {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let member = |entry: &str| {
            let (name, address) = entry.trim().split_once('=').ok_or_else(|| {
                InvalidValue::new(format!("'{entry}' is no member; the list must be like n1=h1:7481,n2=h2:7481"))
            })?;
            Ok(InitialMember { name: name.parse()?, peer_addr: address.parse()? })
        };
        Self::new(text.split(',').map(member).collect::<Result<_, InvalidValue>>()?)
    }
}

impl fmt::Display for InitialCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, member) in self.0.iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            write!(f, "{comma}{}={}", member.name, member.peer_addr)?;
        }
        Ok(())
    }
}

/// Peer addresses of members, to be asked in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses(Vec<HostPort>);

impl Addresses {
    /// The addresses, as they were listed.
    #[must_use]
    pub fn all(&self) -> &[HostPort] {
        &self.0
    }
}

impl FromStr for Addresses {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let addresses: Vec<HostPort> = text.split(',').map(|one| one.trim().parse()).collect::<Result<_, _>>()?;
        if let Some(address) = addresses.iter().find(|address| address.is_unspecified()) {
            return Err(InvalidValue::new(format!("{address} is no address to call; name the host")));
        }
        if addresses.len() > ADDRESSES_MAX {
            let count = addresses.len();
            return Err(InvalidValue::new(format!("{count} addresses are listed; {ADDRESSES_MAX} are the most")));
        }
        Ok(Self(addresses))
    }
}

from_file_as_string!(Addresses, "a list of addresses like \"h1:7481,h2:7481\"");
from_file_as_string!(InitialCluster, "a list of members like \"n1=h1:7481,n2=h2:7481\"");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port() {
        for good in ["10.0.0.1:7481", "node-1.example.com:1", "[::1]:65535", "localhost:7480"] {
            assert_eq!(good.parse::<HostPort>().map(|address| address.to_string()), Ok(good.to_owned()));
        }
        for bad in ["10.0.0.1", ":7481", "h:0", "h:65536", "h:", "::1:7481", "a b:1", "http://h:1", ""] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad}");
        }
    }

    #[test]
    fn base_urls_are_scheme_host_and_port() {
        assert_eq!("http://h:7480/".parse::<BaseUrl>().unwrap().as_str(), "http://h:7480");
        for bad in ["h:7480", "ftp://h", "http://", "http://h/path", "http://h?x=1", "http://u@h"] {
            assert!(bad.parse::<BaseUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_read_back_as_they_print() {
        for bytes in [0, 1, 1023, 1024, 1536, 4 << 20, 256 << 20, 3 << 30, 1_000_000] {
            assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }
        assert_eq!("64MB".parse(), Ok(Size(64_000_000)));
        assert!("64 horses".parse::<Size>().is_err());
    }

    #[test]
    fn rates_are_sizes_a_second() {
        for text in ["50MiB", "50MiB/s", "52428800", "52428800/s"] {
            assert_eq!(text.parse(), Ok(Rate(Size::mib(50))), "{text}");
        }
        assert_eq!(Rate(Size::mib(50)).to_string(), "50MiB/s");
        for bad in ["50MiB/h", "50MiB/s/s", "/s", "fast", "", "-1"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cluster_is_formed_with_distinct_members() {
        let refusal = |text: &str| text.parse::<InitialCluster>().unwrap_err().to_string();
        assert!("n1=h1:7481,n2=h2:7481".parse::<InitialCluster>().is_ok());
        assert_eq!(refusal("n1=h1:7481,n1=h2:7481"), "the name 'n1' is listed twice");
        assert_eq!(refusal("n1=h1:7481,n2=h1:7481"), "'n1' and 'n2' have the same address h1:7481");
        assert!(refusal("n1").contains("is no member"));
        assert!(refusal("n 1=h1:7481").contains("a name has 1 to 64"));
        assert!(refusal("n1=h1").contains("is no address"));
    }
}
