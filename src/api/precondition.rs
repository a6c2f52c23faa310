//! `If-Match` and `If-None-Match` (RFC 9110 §13.1), where an entity tag is a key's mod revision.
//!
//! Guarantees: a guarded write is decided inside one transaction of the state machine, never here. Leaves out: dates.

use http::HeaderMap;
use http::header::{HeaderName, IF_MATCH, IF_NONE_MATCH};

use super::model::Invalid;
use super::query::shown;
use crate::state::{Compare, CompareOperator, CompareTarget, Txn, TxnOp};
use crate::types::limits::JSON_INTEGER_MAX;
use crate::types::{Key, Revision, Selector};

/// The most entity tags in one header.
const TAGS_MAX: usize = 64;

/// The value of one of the two headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tags {
    /// `*`: any version, as long as the key exists.
    Any,
    /// These mod revisions.
    Listed(Vec<Revision>),
}

/// What must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Precondition {
    if_match: Option<Tags>,
    if_none_match: Option<Tags>,
}

/// What a read does after its precondition was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadVerdict {
    /// Answer with the record.
    Answer,
    /// The client has it already.
    NotModified,
    /// `If-Match` does not hold.
    Failed,
}

/// A write whose precondition is checked where it is applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Guarded {
    pub(super) txn: Txn,
    /// The branch that does the write; the other reads the key instead, without its value.
    pub(super) done_if: bool,
}

impl Precondition {
    pub(super) fn parse(headers: &HeaderMap) -> Result<Self, Invalid> {
        Ok(Self { if_match: tags(headers, &IF_MATCH)?, if_none_match: tags(headers, &IF_NONE_MATCH)? })
    }

    /// For a read of a key that exists.
    pub(super) fn judge_read(&self, current: Revision) -> ReadVerdict {
        if self.if_match.as_ref().is_some_and(|tags| !tags.contain(current)) {
            return ReadVerdict::Failed;
        }
        match &self.if_none_match {
            Some(tags) if tags.contain(current) => ReadVerdict::NotModified,
            _ => ReadVerdict::Answer,
        }
    }

    /// Puts a write under the precondition. All comparisons of a transaction must hold, so "one of these tags" is
    /// written as "not: none of these tags", with the branches exchanged.
    pub(super) fn guard(self, key: &Key, operation: TxnOp) -> Result<Guarded, Invalid> {
        let compare = |target, operator| Compare { key: key.clone(), target, operator };
        let none_of = |tags: Vec<Revision>| -> Vec<Compare> {
            let target = |tag| compare(CompareTarget::ModRevision(tag), CompareOperator::NotEqual);
            tags.into_iter().map(target).collect()
        };
        let exists = |operator| vec![compare(CompareTarget::Version(0), operator)];
        let (compares, done_if) = match (self.if_match, self.if_none_match) {
            (None, None) => (Vec::new(), true),
            (Some(Tags::Any), None) => (exists(CompareOperator::Greater), true),
            (Some(Tags::Listed(tags)), None) => (none_of(tags), false),
            (None, Some(Tags::Any)) => (exists(CompareOperator::Equal), true),
            (None, Some(Tags::Listed(tags))) => (none_of(tags), true),
            (Some(_), Some(_)) => {
                let detail = "a write takes either If-Match or If-None-Match, not both; use POST /v1/txn for more";
                return Err(Invalid::request(detail));
            }
        };
        let done = vec![operation];
        let failed = match compares.is_empty() {
            true => Vec::new(),
            // The answer is a mod revision: the value, which may be large, stays where it is.
            false => vec![TxnOp::Get { selector: Selector::Key(key.clone()), limit: 1, keys_only: true }],
        };
        let (success, failure) = if done_if { (done, failed) } else { (failed, done) };
        Ok(Guarded { txn: Txn { compares, success, failure }, done_if })
    }
}

impl Tags {
    fn contain(&self, revision: Revision) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(tags) => tags.contains(&revision),
        }
    }
}

fn tags(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Tags>, Invalid> {
    // Lines of one header are one list (RFC 9110 §5.3).
    let mut lines = headers.get_all(name).iter().peekable();
    if lines.peek().is_none() {
        return Ok(None);
    }
    let mut any = false;
    let mut listed = Vec::new();
    for line in lines {
        for tag in line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            match tag {
                b"" => {}
                b"*" => any = true,
                _ => listed.push(parse_tag(name, tag)?),
            }
            if listed.len() > TAGS_MAX {
                return Err(Invalid::request(format!("{name} lists more than {TAGS_MAX} entity tags")));
            }
        }
    }
    match (any, listed.is_empty()) {
        (true, true) => Ok(Some(Tags::Any)),
        (false, false) => Ok(Some(Tags::Listed(listed))),
        (true, false) => Err(Invalid::request(format!("{name} is either * or a list of entity tags, not both"))),
        (false, true) => Err(Invalid::request(format!("{name} is empty; give \"<mod_revision>\" in quotes, or *"))),
    }
}

fn parse_tag(name: &HeaderName, tag: &[u8]) -> Result<Revision, Invalid> {
    if tag.starts_with(b"W/") {
        let detail = format!("{name} holds the weak entity tag {}; only strong ones are allowed", shown(tag));
        return Err(Invalid::request(detail));
    }
    let digits = tag.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    let digits = digits.filter(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit));
    let revision = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u64>().ok());
    let revision = revision.filter(|revision| (1..=JSON_INTEGER_MAX).contains(revision));
    revision.map(Revision::new).ok_or_else(|| {
        Invalid::request(format!("{name} holds {}; give a mod revision in quotes, such as \"7\", or *", shown(tag)))
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn parse(name: HeaderName, lines: &[&str]) -> Result<Precondition, String> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(name.clone(), line.parse().unwrap());
        }
        Precondition::parse(&headers).map_err(|invalid| invalid.detail)
    }

    fn put() -> (Key, TxnOp) {
        let key = Key::new("k").unwrap();
        (key.clone(), TxnOp::Put { key, value: Bytes::new(), lease: Default::default() })
    }

    /// Whether the write is done on a key at this mod revision (0: absent), by the meaning of comparisons.
    fn done(precondition: Precondition, at: u64) -> bool {
        let (key, operation) = put();
        let guarded = precondition.guard(&key, operation.clone()).unwrap();
        let holds = |compare: &Compare| {
            let (left, right) = match &compare.target {
                CompareTarget::Version(right) => (u64::from(at > 0), *right),
                CompareTarget::ModRevision(right) => (at, right.get()),
                other => panic!("{other:?}"),
            };
            match compare.operator {
                CompareOperator::Equal => left == right,
                CompareOperator::NotEqual => left != right,
                CompareOperator::Greater => left > right,
                other => panic!("{other:?}"),
            }
        };
        let succeeded = guarded.txn.compares.iter().all(holds);
        let branch = if succeeded { &guarded.txn.success } else { &guarded.txn.failure };
        assert_eq!(branch.contains(&operation), succeeded == guarded.done_if);
        succeeded == guarded.done_if
    }

    #[test]
    fn a_write_is_done_where_its_precondition_holds() {
        let cases: [(HeaderName, &[&str], [bool; 3]); 6] = [
            (IF_MATCH, &[], [true, true, true]),
            (IF_MATCH, &["*"], [false, true, true]),
            (IF_MATCH, &["\"7\""], [false, true, false]),
            (IF_MATCH, &["\"7\", \"8\""], [false, true, true]),
            (IF_NONE_MATCH, &["*"], [true, false, false]),
            (IF_NONE_MATCH, &["\"6\"", "\"7\""], [true, false, true]),
        ];
        for (name, lines, expected) in cases {
            let precondition = parse(name.clone(), lines).unwrap();
            let got = [0, 7, 8].map(|at| done(precondition.clone(), at));
            assert_eq!(got, expected, "{name}: {lines:?} on an absent key, at 7, at 8");
        }
    }

    #[test]
    fn reads_tell_what_has_not_changed() {
        let judge = |name, line| parse(name, &[line]).unwrap().judge_read(Revision::new(7));
        assert_eq!(judge(IF_NONE_MATCH, "\"7\""), ReadVerdict::NotModified);
        assert_eq!(judge(IF_NONE_MATCH, "*"), ReadVerdict::NotModified);
        assert_eq!(judge(IF_NONE_MATCH, "\"6\""), ReadVerdict::Answer);
        assert_eq!(judge(IF_MATCH, "\"6\""), ReadVerdict::Failed);
        assert_eq!(judge(IF_MATCH, "\"6\",\"7\""), ReadVerdict::Answer);
    }

    #[test]
    fn malformed_and_weak_tags_are_refused() {
        for line in
            ["W/\"7\"", "7", "\"7", "\"\"", "\"x\"", "\"-7\"", "\"0\"", "", "*, \"7\"", "\"99999999999999999999\""]
        {
            assert!(parse(IF_MATCH, &[line]).is_err(), "{line}");
            assert!(parse(IF_NONE_MATCH, &[line]).is_err(), "{line}");
        }
        assert!(parse(IF_MATCH, &[&"\"7\",".repeat(65)]).unwrap_err().contains("more than 64"));
        let mut headers = HeaderMap::new();
        headers.insert(IF_MATCH, "*".parse().unwrap());
        headers.insert(IF_NONE_MATCH, "*".parse().unwrap());
        let (key, operation) = put();
        assert!(Precondition::parse(&headers).unwrap().guard(&key, operation).is_err());
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(line in "[ -~]*") {
            let _ = parse(IF_MATCH, &[&line]);
        }
    }
}
