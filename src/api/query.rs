//! Query parameters: a closed list for each call.
//!
//! Guarantees: an unknown, repeated or badly encoded parameter is refused with its name, and the message lists what is
//! allowed; a parameter of a later version is told apart from a typing error. Leaves out: what parameters mean.

use std::borrow::Cow;
use std::time::Duration;

use super::model::Invalid;
use super::path::decode;
use crate::types::Revision;
use crate::types::limits::JSON_INTEGER_MAX;

/// The most characters of a foreign name or value that are shown in a message.
const SHOWN_CHARS_MAX: usize = 64;

/// The parameters of one request.
#[derive(Debug)]
pub(super) struct Query<'a> {
    allowed: &'static [&'static str],
    /// In the order of `allowed`; empty if there is no query at all.
    values: Vec<Option<Cow<'a, [u8]>>>,
}

impl<'a> Query<'a> {
    /// Reads a query string. `later` names parameters of the contract that this version does not have yet.
    pub(super) fn parse(
        raw: Option<&'a str>,
        allowed: &'static [&'static str],
        later: &'static [&'static str],
    ) -> Result<Self, Invalid> {
        let mut query = Self { allowed, values: Vec::new() };
        let Some(raw) = raw else { return Ok(query) };
        for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decoded = |part: &'a str| {
                decode(part.as_bytes(), true).map_err(|_| {
                    Invalid::request(format!(
                        "the query parameter \"{}\" is badly percent-encoded: % needs two hexadecimal digits behind it",
                        shown(name.as_bytes())
                    ))
                })
            };
            let name_bytes = decoded(name)?;
            let Some(place) = allowed.iter().position(|known| known.as_bytes() == &*name_bytes) else {
                return Err(query.unknown(&name_bytes, later));
            };
            if query.values.is_empty() {
                query.values.resize_with(allowed.len(), || None);
            }
            if query.values[place].replace(decoded(value)?).is_some() {
                return Err(Invalid::request(format!("the query parameter \"{}\" is given twice", allowed[place])));
            }
        }
        Ok(query)
    }

    fn unknown(&self, name: &[u8], later: &[&str]) -> Invalid {
        let name_shown = shown(name);
        if later.iter().any(|later| later.as_bytes() == name) {
            return Invalid::request(format!(
                "the query parameter \"{name_shown}\" is not available in this version; leave it out"
            ));
        }
        let allowed = match self.allowed {
            [] => "none is allowed here".to_owned(),
            names => format!("allowed are: {}", names.join(", ")),
        };
        Invalid::request(format!("the query parameter \"{name_shown}\" is unknown; {allowed}"))
    }

    /// The bytes of a parameter.
    pub(super) fn bytes(&self, name: &'static str) -> Option<&[u8]> {
        let place = self.allowed.iter().position(|known| *known == name)?;
        self.values.get(place)?.as_deref()
    }

    /// The text of a parameter.
    pub(super) fn text(&self, name: &'static str) -> Result<Option<&str>, Invalid> {
        let Some(bytes) = self.bytes(name) else { return Ok(None) };
        let text = std::str::from_utf8(bytes).map_err(|_| wrong(name, bytes, "UTF-8 text"))?;
        Ok(Some(text))
    }

    /// A whole number below 2^53.
    pub(super) fn number(&self, name: &'static str) -> Result<Option<u64>, Invalid> {
        let Some(bytes) = self.bytes(name) else { return Ok(None) };
        let digits = bytes.iter().all(u8::is_ascii_digit);
        let number = std::str::from_utf8(bytes).ok().filter(|_| digits).and_then(|text| text.parse::<u64>().ok());
        let number = number.filter(|number| *number <= JSON_INTEGER_MAX);
        number.map(Some).ok_or_else(|| wrong(name, bytes, "a whole number from 0 to 9007199254740991"))
    }

    /// A revision, at least `least`.
    pub(super) fn revision(&self, name: &'static str, least: u64) -> Result<Option<Revision>, Invalid> {
        match self.number(name)? {
            Some(number) if number < least => Err(Invalid::request(format!(
                "the query parameter \"{name}\" is {number}; it must be at least {least}"
            ))),
            number => Ok(number.map(Revision::new)),
        }
    }

    /// A switch: `true` or `false`; the bare name is `true`.
    pub(super) fn flag(&self, name: &'static str) -> Result<Option<bool>, Invalid> {
        match self.bytes(name) {
            None => Ok(None),
            Some(b"" | b"true" | b"1") => Ok(Some(true)),
            Some(b"false" | b"0") => Ok(Some(false)),
            Some(other) => Err(wrong(name, other, "true or false")),
        }
    }

    /// A duration such as `2s` or `500ms`, at most `most`.
    pub(super) fn duration(&self, name: &'static str, most: Duration) -> Result<Option<Duration>, Invalid> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match humantime::parse_duration(text) {
            Ok(duration) if duration <= most => Ok(Some(duration)),
            _ => {
                let allowed = format!("a duration such as 2s or 500ms, at most {}", humantime::format_duration(most));
                Err(wrong(name, text.as_bytes(), &allowed))
            }
        }
    }
}

fn wrong(name: &str, value: &[u8], allowed: &str) -> Invalid {
    Invalid::request(format!("the query parameter \"{name}\" is \"{}\"; it must be {allowed}", shown(value)))
}

/// Foreign bytes in a message: escaped and cut.
pub(super) fn shown(bytes: &[u8]) -> String {
    match bytes.get(..SHOWN_CHARS_MAX) {
        Some(head) if bytes.len() > SHOWN_CHARS_MAX => format!("{}…", head.escape_ascii()),
        _ => bytes.escape_ascii().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALLOWED: &[&str] = &["prefix", "limit", "keys_only", "max_staleness"];

    fn parse(raw: &str) -> Result<Query<'_>, String> {
        Query::parse(Some(raw), ALLOWED, &["ttl"]).map_err(|invalid| invalid.detail)
    }

    #[test]
    fn parameters_are_read_as_bytes() {
        let query = parse("prefix=a%2Fb+%ff&&limit=7&keys_only").unwrap();
        assert_eq!(query.bytes("prefix"), Some(&b"a/b \xFF"[..]));
        assert_eq!(query.number("limit"), Ok(Some(7)));
        assert_eq!(query.flag("keys_only"), Ok(Some(true)));
        assert_eq!(query.bytes("max_staleness"), None);
        assert_eq!(Query::parse(None, ALLOWED, &[]).unwrap().number("limit"), Ok(None));
        assert_eq!(
            parse("max_staleness=500ms")
                .unwrap()
                .duration("max_staleness", Duration::from_secs(9))
                .unwrap()
                .unwrap()
                .as_millis(),
            500
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_allowed() {
        let cases = [
            ("limt=3", "the query parameter \"limt\" is unknown; allowed are: prefix, limit, keys_only, max_staleness"),
            ("ttl=3s", "the query parameter \"ttl\" is not available in this version; leave it out"),
            ("limit=1&limit=2", "the query parameter \"limit\" is given twice"),
            ("prefix=%f", "the query parameter \"prefix\" is badly percent-encoded"),
            ("%zz=1", "badly percent-encoded"),
        ];
        for (raw, expected) in cases {
            let error = parse(raw).unwrap_err();
            assert!(error.contains(expected), "{raw}: {error}");
        }
        for value in ["", "-1", "+1", "1.0", "9007199254740992", "99999999999999999999", "%ff", "x"] {
            let raw = format!("limit={value}");
            let error = parse(&raw).unwrap().number("limit").unwrap_err();
            assert!(error.detail.contains("whole number from 0 to"), "{error}");
        }
        assert!(parse("keys_only=yes").unwrap().flag("keys_only").is_err());
        assert!(parse("max_staleness=2").unwrap().duration("max_staleness", Duration::MAX).is_err());
        assert!(parse("max_staleness=2h").unwrap().duration("max_staleness", Duration::from_secs(9)).is_err());
    }

    proptest! {
        #[test]
        fn no_query_makes_it_panic(raw in "\\PC*") {
            if let Ok(query) = parse(&raw) {
                let _ = (query.number("limit"), query.flag("keys_only"));
                let _ = query.duration("max_staleness", Duration::MAX);
            }
        }
    }
}
