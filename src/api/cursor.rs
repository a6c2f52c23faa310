//! Where a listing goes on: an opaque text for the client, all of the listing's parameters for us.
//!
//! Guarantees: a cursor that was cut, mistyped or made by another version is refused; whatever it holds, it leads to no
//! more than a read of a range. Leaves out: secrecy; it is base64, not encryption, and grants nothing.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut, BytesMut};
use serde::{Deserialize, Serialize};

use super::model::Invalid;
use crate::codec::framed;
use crate::storage::Order;
use crate::types::limits::{JSON_INTEGER_MAX, KEY_BYTES_MAX};
use crate::types::{Key, KeyRange, Revision};

const MAGIC: [u8; 4] = *b"qcur";

/// Version 1: postcard of [`Cursor`].
const VERSION: u8 = 1;

/// The longest text that can be a cursor: two bounds and a key with some numbers, in base64.
const CHARS_MAX: usize = (3 * (KEY_BYTES_MAX + 8) + 64) * 4 / 3;

/// Everything that must stay the same from page to page, and the place reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cursor {
    /// All of the listing.
    pub(super) range: KeyRange,
    /// Largest key first.
    pub(super) descending: bool,
    /// Values are left out.
    pub(super) keys_only: bool,
    /// Every page is read at this revision.
    pub(super) revision: Revision,
    /// How many keys the whole range holds; it can't change at one revision, so it is counted once.
    pub(super) count: u64,
    /// The last key that was returned.
    pub(super) last: Key,
}

impl Cursor {
    pub(super) fn encode(&self) -> String {
        // Serializing plain data into a growing vector can't fail.
        let body = postcard::to_stdvec(self).unwrap_or_default();
        URL_SAFE_NO_PAD.encode(framed::seal(MAGIC, VERSION, &body))
    }

    pub(super) fn decode(text: &str) -> Result<Self, Invalid> {
        let refused = || Invalid::request("the cursor is not one this server gave; begin the listing anew without it");
        if text.len() > CHARS_MAX {
            return Err(refused());
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| refused())?;
        let (_, body) = framed::open(MAGIC, VERSION, &bytes).map_err(|_| refused())?;
        let (cursor, rest): (Self, &[u8]) = postcard::take_from_bytes(body).map_err(|_| refused())?;
        let sound = rest.is_empty() && (1..=JSON_INTEGER_MAX).contains(&cursor.revision.get());
        if sound && cursor.range.contains(cursor.last.as_bytes()) { Ok(cursor) } else { Err(refused()) }
    }

    pub(super) fn order(&self) -> Order {
        if self.descending { Order::Descending } else { Order::Ascending }
    }

    /// What is left of the range behind the last key; `None` if nothing can be.
    pub(super) fn rest(&self) -> Option<KeyRange> {
        let last = self.last.as_bytes();
        if self.descending {
            return KeyRange::new(self.range.start().clone(), Some(last.clone())).ok();
        }
        // The smallest key behind `last` is `last` with a zero byte appended.
        let mut next = BytesMut::with_capacity(last.len() + 1);
        next.put_slice(last);
        next.put_u8(0);
        KeyRange::new(next.freeze(), self.range.end().cloned()).ok()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn cursor(last: &'static str, descending: bool) -> Cursor {
        Cursor {
            range: KeyRange::new("a", Some(Bytes::from("m"))).unwrap(),
            descending,
            keys_only: true,
            revision: Revision::new(9),
            count: 100,
            last: Key::new(last).unwrap(),
        }
    }

    #[test]
    fn a_cursor_goes_on_right_behind_its_last_key() {
        let up = cursor("c", false).rest().unwrap();
        assert!(!up.contains(b"c") && up.contains(b"c\0") && up.contains(b"l") && !up.contains(b"m"));
        let down = cursor("c", true).rest().unwrap();
        assert!(!down.contains(b"c") && down.contains(b"bz") && down.contains(b"a"));
        assert_eq!(cursor("a", true).rest(), None);
    }

    #[test]
    fn the_bytes_of_version_one_stay_readable() {
        let text = cursor("c", false).encode();
        assert_eq!(text, "cWN1cgEBYQEBbQABCWQBY7Aowws");
        assert_eq!(Cursor::decode(&text), Ok(cursor("c", false)));
    }

    #[test]
    fn the_longest_cursor_is_read() {
        let long = |byte: u8| Bytes::from(vec![byte; KEY_BYTES_MAX]);
        let mut end = long(3).to_vec();
        end.push(0);
        let longest = Cursor {
            range: KeyRange::new(long(1), Some(Bytes::from(end))).unwrap(),
            revision: Revision::new(JSON_INTEGER_MAX),
            count: u64::MAX,
            last: Key::new(long(2)).unwrap(),
            ..cursor("c", true)
        };
        assert_eq!(Cursor::decode(&longest.encode()), Ok(longest));
    }

    #[test]
    fn a_cursor_that_points_out_of_its_range_is_refused() {
        assert!(Cursor::decode(&cursor("z", false).encode()).is_err());
        assert!(Cursor::decode(&Cursor { revision: Revision::ZERO, ..cursor("c", false) }.encode()).is_err());
    }

    proptest! {
        #[test]
        fn any_cursor_comes_back(
            last in proptest::collection::vec(any::<u8>(), 1..40),
            descending: bool,
            keys_only: bool,
            revision in 1..=JSON_INTEGER_MAX,
            count: u64,
        ) {
            let last = Key::new(last).unwrap();
            let revision = Revision::new(revision);
            let cursor = Cursor { range: KeyRange::all(), descending, keys_only, revision, count, last };
            prop_assert_eq!(Cursor::decode(&cursor.encode()), Ok(cursor));
        }

        #[test]
        fn one_changed_character_is_noticed(place in 0_usize..27, with in "[A-Za-z0-9_-]") {
            let text = cursor("c", false).encode();
            let mut changed = text.clone();
            changed.replace_range(place..=place, &with);
            prop_assume!(changed != text);
            prop_assert!(Cursor::decode(&changed).is_err());
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC*", body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Cursor::decode(&text);
            let _ = Cursor::decode(&URL_SAFE_NO_PAD.encode(framed::seal(MAGIC, VERSION, &body)));
        }
    }
}
