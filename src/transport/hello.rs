//! How a connection between members begins: each side says who it is in eight bytes.
//!
//! ```text
//! caller:   "QPER" | oldest version | newest version | channel | 0
//! listener: "QPER" | verdict | version to speak | its oldest version | its newest version
//! ```
//!
//! Guarantees: these layouts hold for all versions to come, so that members of any two versions can tell each other why
//! they can't talk; what is no hello is found out after eight bytes, with nothing allocated for it. Leaves out: who the
//! other side is; an address proves nothing.

use super::Channel;

/// The first bytes either way.
const MAGIC: [u8; 4] = *b"QPER";

/// Length of a hello and of its answer, in bytes.
pub(super) const HELLO_BYTES: usize = 8;
pub(super) const ANSWER_BYTES: usize = 8;

/// The protocol versions that one side can speak, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Versions {
    pub(super) oldest: u8,
    pub(super) newest: u8,
}

/// What this program speaks.
pub(super) const OURS: Versions = Versions { oldest: 1, newest: 1 };

impl Versions {
    /// The newest version that both sides speak.
    fn common(self, other: Self) -> Option<u8> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

/// Why a listener does not take a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No version in common.
    Version,
    /// As many connections as it may have, in total or from this address.
    Busy,
    /// A channel that it does not know.
    Channel,
}

impl Refusal {
    const ALL: [Self; 3] = [Self::Version, Self::Busy, Self::Channel];

    /// The verdict on the wire; 0 is "accepted".
    const fn code(self) -> u8 {
        match self {
            Self::Version => 1,
            Self::Busy => 2,
            Self::Channel => 3,
        }
    }

    /// The name in metrics.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Busy => "busy",
            Self::Channel => "channel",
        }
    }
}

/// Whether a connection begins like an HTTP request.
pub(super) fn is_http(heard: [u8; HELLO_BYTES]) -> bool {
    [&b"GET /"[..], b"PUT /", b"HEAD /", b"POST /", b"DELETE /"].iter().any(|start| heard.starts_with(start))
}

/// The caller's first words.
pub(super) fn greet(ours: Versions, channel: Channel) -> [u8; HELLO_BYTES] {
    let [a, b, c, d] = MAGIC;
    [a, b, c, d, ours.oldest, ours.newest, channel.code(), 0]
}

/// The listener's verdict on a hello: the channel that it opens, or the refusal to send back. `None`: this is no hello,
/// so the other side would not understand an answer.
pub(super) fn judge(ours: Versions, hello: [u8; HELLO_BYTES]) -> Option<Result<(Channel, u8), Refusal>> {
    let [a, b, c, d, oldest, newest, channel, _] = hello;
    if [a, b, c, d] != MAGIC {
        return None;
    }
    // The version first: what a channel's number means belongs to the version.
    Some(match (ours.common(Versions { oldest, newest }), Channel::from_code(channel)) {
        (None, _) => Err(Refusal::Version),
        (Some(_), None) => Err(Refusal::Channel),
        (Some(version), Some(channel)) => Ok((channel, version)),
    })
}

/// The listener's answer.
pub(super) fn answer(ours: Versions, verdict: Result<u8, Refusal>) -> [u8; ANSWER_BYTES] {
    let [a, b, c, d] = MAGIC;
    let (code, version) = match verdict {
        Ok(version) => (0, version),
        Err(refusal) => (refusal.code(), 0),
    };
    [a, b, c, d, code, version, ours.oldest, ours.newest]
}

/// What the caller makes of an answer: the version to speak.
///
/// # Errors
/// Why there is no connection, for people.
pub(super) fn understand(ours: Versions, answer: [u8; ANSWER_BYTES]) -> Result<u8, String> {
    let [a, b, c, d, code, version, oldest, newest] = answer;
    if [a, b, c, d] != MAGIC {
        return Err("what listens there is no member's peer port".to_owned());
    }
    if code == 0 {
        let ok = (ours.oldest..=ours.newest).contains(&version);
        return ok.then_some(version).ok_or_else(|| format!("it chose the unknown protocol version {version}"));
    }
    Err(match Refusal::ALL.into_iter().find(|refusal| refusal.code() == code) {
        Some(Refusal::Version) => format!(
            "it speaks peer protocol {}, this member speaks {}: upgrade the older of the two",
            spoken(Versions { oldest, newest }),
            spoken(ours)
        ),
        Some(Refusal::Busy) => "it has as many connections as it may".to_owned(),
        Some(Refusal::Channel) => "it does not know this channel".to_owned(),
        None => format!("it refused with the unknown code {code}"),
    })
}

/// "version 1" or "versions 1 to 3".
fn spoken(versions: Versions) -> String {
    let Versions { oldest, newest } = versions;
    if oldest == newest { format!("version {newest}") } else { format!("versions {oldest} to {newest}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn versions(oldest: u8, newest: u8) -> Versions {
        Versions { oldest, newest }
    }

    #[test]
    fn the_layout_is_for_ever() {
        assert_eq!(&greet(versions(1, 2), Channel::Snapshot), b"QPER\x01\x02\x04\x00");
        assert_eq!(&answer(versions(1, 3), Ok(2)), b"QPER\x00\x02\x01\x03");
        assert_eq!(&answer(versions(1, 3), Err(Refusal::Busy)), b"QPER\x02\x00\x01\x03");
    }

    #[test]
    fn two_sides_speak_the_newest_version_they_share() {
        for (caller, listener, agreed) in [
            (versions(1, 1), versions(1, 1), Some(1)),
            (versions(1, 3), versions(2, 5), Some(3)),
            (versions(2, 5), versions(1, 3), Some(3)),
            (versions(1, 1), versions(2, 2), None),
            (versions(4, 5), versions(1, 3), None),
        ] {
            let verdict = judge(listener, greet(caller, Channel::Append)).unwrap();
            assert_eq!(verdict.ok().map(|(_, version)| version), agreed, "{caller:?} calls {listener:?}");
            let said = answer(listener, verdict.map(|(_, version)| version));
            assert_eq!(understand(caller, said).ok(), agreed);
        }
    }

    #[test]
    fn the_bytes_of_a_hello_stay_as_they_are() {
        assert_eq!(greet(OURS, Channel::Snapshot), *b"QPER\x01\x01\x04\0");
        assert_eq!(answer(OURS, Ok(1)), *b"QPER\0\x01\x01\x01");
        let refusals = Refusal::ALL.map(|refusal| answer(OURS, Err(refusal)));
        assert_eq!(refusals, [*b"QPER\x01\0\x01\x01", *b"QPER\x02\0\x01\x01", *b"QPER\x03\0\x01\x01"]);
        assert_eq!(Channel::ALL.map(Channel::code), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_refusal_says_why() {
        let said = |verdict| understand(versions(1, 1), answer(versions(2, 3), Err(verdict))).unwrap_err();
        let version =
            "it speaks peer protocol versions 2 to 3, this member speaks version 1: upgrade the older of the two";
        assert_eq!(said(Refusal::Version), version);
        assert_eq!(said(Refusal::Busy), "it has as many connections as it may");
        assert_eq!(said(Refusal::Channel), "it does not know this channel");
        assert!(understand(versions(1, 1), *b"HTTP/1.1").unwrap_err().contains("no member's peer port"));
    }

    #[test]
    fn what_is_no_hello_gets_no_answer() {
        assert_eq!(judge(OURS, *b"GET / HT"), None);
        assert_eq!(judge(OURS, *b"QPER\x01\x01\x63\x00"), Some(Err(Refusal::Channel)));
    }
}
