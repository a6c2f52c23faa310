//! Keys and values: put, get, delete, list, transactions.
//!
//! Guarantees: keys may be any bytes; pages of one listing are all at one revision. Leaves out: retries (`call`).

use std::fmt::Write as _;

use bytes::Bytes;
use futures::stream::{self, Stream, TryStreamExt};
use http::{HeaderMap, HeaderValue, Method, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use super::call::{Call, number};
use super::{Answer, Client, Consistency, Error, ListOptions, Precondition, ReadOptions, WriteOptions};
use crate::api::model::{DeleteReply, Listing, PutReply, Record, TxnReply, TxnRequest};
use crate::types::{Key, KeyRange};

/// What needs no escape in a path.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// What needs no escape in a query, or in a path where a slash must not separate.
const SEGMENT: &AsciiSet = &PATH.add(b'/');

impl Client {
    /// Writes a value.
    ///
    /// # Errors
    /// [`Error`]; `precondition_failed` if the precondition does not hold.
    pub async fn put(&self, key: &Key, value: Bytes, options: WriteOptions) -> Result<Answer<PutReply>, Error> {
        let call = Call::write(Method::PUT, key_target(key, options)?).body(value).timeout(options.timeout);
        self.call(with_precondition(call, options.precondition)?).await?.json()
    }

    /// Reads a value; `None` if there is no such key.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn get(&self, key: &Key, options: ReadOptions) -> Result<Answer<Option<Record>>, Error> {
        let mut target = path_of(key)?;
        append(&mut target, &read_query(options));
        let reply = self.call(Call::read(Method::GET, target).may_be_absent().timeout(options.timeout)).await?;
        let record = match reply.absent {
            true => None,
            false => Some(record_of(key, &reply.headers, reply.body.clone())?),
        };
        Ok(reply.answer(record))
    }

    /// Deletes a key. Nothing deleted is no error: `deleted` is 0 then.
    ///
    /// # Errors
    /// [`Error`]; `precondition_failed` if the precondition does not hold.
    pub async fn delete(&self, key: &Key, options: WriteOptions) -> Result<Answer<DeleteReply>, Error> {
        let call = Call::write(Method::DELETE, key_target(key, options)?).may_be_absent().timeout(options.timeout);
        let reply = self.call(with_precondition(call, options.precondition)?).await?;
        if reply.absent {
            let nothing = reply.answer(DeleteReply { deleted: 0, revision: 0 });
            let value = DeleteReply { revision: nothing.revision.get(), ..nothing.value };
            return Ok(Answer { value, ..nothing });
        }
        reply.json()
    }

    /// Deletes every key of a range, at one revision.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn delete_range(&self, range: &KeyRange, options: WriteOptions) -> Result<Answer<DeleteReply>, Error> {
        let mut target = "/v1/kv".to_owned();
        let mut query = range_query(range);
        query.extend(write_query(options));
        append(&mut target, &query);
        self.call(Call::write(Method::DELETE, target).timeout(options.timeout)).await?.json()
    }

    /// One page of the keys of a range; `cursor` is the `next_cursor` of the page before.
    ///
    /// # Errors
    /// [`Error`]; `revision_compacted` if the revision of the first page is gone meanwhile.
    pub async fn list_page(
        &self,
        range: &KeyRange,
        cursor: Option<&str>,
        options: ListOptions,
    ) -> Result<Answer<Listing>, Error> {
        let mut query = range_query(range);
        query.extend(read_query(options.read));
        query.extend(options.page_records.map(|limit| format!("limit={limit}")));
        query.extend(options.keys_only.then(|| "keys_only=true".to_owned()));
        query.extend(options.descending.then(|| "order=desc".to_owned()));
        query.extend(cursor.map(|cursor| format!("cursor={}", percent_encode(cursor.as_bytes(), SEGMENT))));
        let mut target = "/v1/kv".to_owned();
        append(&mut target, &query);
        let call = Call::read(Method::GET, target).timeout(options.read.timeout);
        self.call(call.header(header::ACCEPT, JSON)).await?.json()
    }

    /// Every record of a range in order, page by page, all at one revision.
    pub fn list(
        &self,
        range: KeyRange,
        options: ListOptions,
    ) -> impl Stream<Item = Result<Record, Error>> + Send + use<> {
        let client = self.clone();
        let pages = stream::try_unfold(Some(None::<String>), move |place| {
            let (client, range) = (client.clone(), range.clone());
            async move {
                let Some(cursor) = place else { return Ok::<_, Error>(None) };
                let page = client.list_page(&range, cursor.as_deref(), options).await?.value;
                let next = page.next_cursor.map(Some);
                Ok(Some((stream::iter(page.items.into_iter().map(Ok)), next)))
            }
        });
        pages.try_flatten()
    }

    /// Carries out a transaction: all of one branch at one revision, or nothing.
    ///
    /// # Errors
    /// [`Error`]. A comparison that does not hold is no error: `succeeded` is false then.
    pub async fn txn(&self, request: &TxnRequest, options: WriteOptions) -> Result<Answer<TxnReply>, Error> {
        let body = serde_json::to_vec(request).map_err(|error| Error::Usage(error.to_string()))?;
        let mut target = "/v1/txn".to_owned();
        append(&mut target, &write_query(options));
        let call = Call::write(Method::POST, target).timeout(options.timeout);
        self.call(call.header(header::CONTENT_TYPE, JSON).body(body.into())).await?.json()
    }
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The path of a key.
fn path_of(key: &Key) -> Result<String, Error> {
    let bytes: &[u8] = key.as_ref();
    let is_dots = |segment: &[u8]| matches!(segment, b"." | b"..");
    if is_dots(bytes) {
        // By the rules of URLs these vanish from a path, however they are escaped.
        return Err(Error::Usage(format!("the key '{key}' can't stand in a URL; use a transaction")));
    }
    // Between slashes they would vanish too; with the slashes escaped they are part of a longer segment.
    let set = if bytes.split(|byte| *byte == b'/').any(is_dots) { SEGMENT } else { PATH };
    Ok(format!("/v1/kv/{}", percent_encode(bytes, set)))
}

/// Path and query of a write of a key.
fn key_target(key: &Key, options: WriteOptions) -> Result<String, Error> {
    let mut target = path_of(key)?;
    append(&mut target, &write_query(options));
    Ok(target)
}

fn write_query(options: WriteOptions) -> Vec<String> {
    options.offsite.then(|| "durability=offsite".to_owned()).into_iter().collect()
}

fn range_query(range: &KeyRange) -> Vec<String> {
    let end = range.end().map_or(&b""[..], |end| &end[..]);
    vec![
        format!("start={}", percent_encode(range.start(), SEGMENT)),
        // An empty end is the end of the key space.
        format!("end={}", percent_encode(end, SEGMENT)),
    ]
}

fn read_query(options: ReadOptions) -> Vec<String> {
    let mut query = Vec::new();
    match options.consistency {
        Consistency::Linearizable => {}
        Consistency::Bounded { max_staleness } => {
            query.push(format!("consistency=bounded&max_staleness={}ms", max_staleness.as_millis()));
        }
        Consistency::Stale => query.push("consistency=stale".to_owned()),
    }
    query.extend(options.min_revision.map(|revision| format!("min_revision={revision}")));
    query.extend(options.revision.map(|revision| format!("revision={revision}")));
    query
}

fn append(target: &mut String, query: &[String]) {
    for (position, parameter) in query.iter().enumerate() {
        let mark = if position == 0 { '?' } else { '&' };
        // Writing to a string can't fail.
        let _ = write!(target, "{mark}{parameter}");
    }
}

fn with_precondition(call: Call, precondition: Precondition) -> Result<Call, Error> {
    Ok(match precondition {
        Precondition::None => call,
        Precondition::Match(revision) => {
            let tag =
                HeaderValue::try_from(format!("\"{revision}\"")).map_err(|error| Error::Usage(error.to_string()))?;
            call.header(header::IF_MATCH, tag)
        }
        Precondition::Absent => call.header(header::IF_NONE_MATCH, HeaderValue::from_static("*")),
    })
}

/// Puts the record together out of a raw value and its headers.
fn record_of(key: &Key, headers: &HeaderMap, value: Bytes) -> Result<Record, Error> {
    let need = |name: &str| {
        number(headers, name).ok_or_else(|| Error::Integrity(format!("the answer to a read lacks the header {name}")))
    };
    Ok(Record {
        key: key.as_bytes().clone(),
        value: Some(value),
        create_revision: need("quorate-create-revision")?,
        mod_revision: need("etag")?,
        version: need("quorate-version")?,
        lease: number(headers, "quorate-lease").unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_escaped_so_that_no_url_rule_changes_them() {
        let path = |key: &'static [u8]| path_of(&Key::new(key).unwrap()).unwrap();
        assert_eq!(path(b"config/app.json"), "/v1/kv/config/app.json");
        assert_eq!(path(b"a b?c#d%\xFF"), "/v1/kv/a%20b%3Fc%23d%25%FF");
        assert_eq!(path(b"a/../b"), "/v1/kv/a%2F..%2Fb");
        assert_eq!(path(b"/a//b/"), "/v1/kv//a//b/");
        assert!(matches!(path_of(&Key::new("..").unwrap()), Err(Error::Usage(_))));
        for key in [&b"config/app.json"[..], b"a/../b", b"./a", b"/a//b/", b"a\\..\\b", b"\xFF"] {
            let url = url::Url::parse(&format!("http://h{}", path_of(&Key::new(key).unwrap()).unwrap())).unwrap();
            let sent = url.path().strip_prefix("/v1/kv/").unwrap();
            assert_eq!(percent_encoding::percent_decode_str(sent).collect::<Vec<_>>(), key);
        }
    }

    #[test]
    fn a_range_names_both_its_bounds() {
        let range = KeyRange::new("a/&", None).unwrap();
        assert_eq!(range_query(&range), ["start=a%2F%26", "end="]);
    }
}
