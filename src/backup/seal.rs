//! How the content of an object is packed: zstd, then age to the public keys of whoever may read it.
//!
//! Both are formats of their own, so that `age -d -i key.txt OBJECT | zstd -d` opens an object without this program.
//! Guarantees: what is written can be read only with one of the private keys, which writing does not need; a reader meets
//! an error, never wrong bytes, where an encrypted object was changed or cut; an object that is not encrypted has the
//! checksum of zstd, and its SHA-256 in the manifest. Leaves out: what is packed (`segment`, `state::snapshot`), and where
//! private keys come from.

use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use age::secrecy::ExposeSecret as _;
use sha2::{Digest, Sha256};

/// Compression of what is archived. Blocks of snapshots are compressed already; on these it costs little.
const ZSTD_LEVEL: i32 = 3;

/// The private keys' file is read no further than this, in bytes.
const IDENTITY_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Public keys to which objects are encrypted; none means plaintext.
#[derive(Clone, Default)]
pub struct Recipients(Vec<age::x25519::Recipient>);

/// Private keys that open objects.
#[derive(Clone, Default)]
pub struct Identities(Vec<age::x25519::Identity>);

/// Why a key can't be used. Never shows a private key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a public key.
    #[error("\"{text}\" is no age public key ({why}); one begins with age1 and is printed by `age-keygen`")]
    Recipient {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Somebody is about to put a private key into the configuration of a server.
    #[error(
        "a private key (AGE-SECRET-KEY-…) was given where a public one (age1…) belongs; servers need no private key"
    )]
    SecretAsRecipient,
    /// The file of private keys can't be read.
    #[error("can't read the identity file {}: {why}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
    /// A file for a new private key can't be made.
    #[error("can't make the identity file {}: {why}", .path.display())]
    New {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
    /// A line of the file is no private key.
    #[error("{}:{line}: no age identity ({why}); one begins with AGE-SECRET-KEY-1", .path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The file holds no key at all.
    #[error("{} holds no age identity: a line that begins with AGE-SECRET-KEY-1", .0.display())]
    NoIdentity(PathBuf),
}

impl Recipients {
    /// Reads public keys in the form of age (`age1…`).
    ///
    /// # Errors
    /// [`KeyError`], for the first that is none.
    pub fn parse<S: AsRef<str>>(keys: &[S]) -> Result<Self, KeyError> {
        let parse = |text: &S| {
            let text = text.as_ref().trim();
            if text.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
                return Err(KeyError::SecretAsRecipient);
            }
            age::x25519::Recipient::from_str(text).map_err(|why| KeyError::Recipient { text: text.to_owned(), why })
        };
        keys.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// Whether objects are left readable by everybody.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys, as text.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }
}

impl fmt::Debug for Recipients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl Identities {
    /// Reads private keys from a file as `age-keygen` writes it: one a line, comments behind `#`.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let unreadable = |error: io::Error| KeyError::File { path: path.to_owned(), why: error.to_string() };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(unreadable)?;
        file.take(IDENTITY_FILE_BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
        let mut keys = Vec::new();
        for (line, content) in (1..).zip(text.lines().map(str::trim)) {
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let key = age::x25519::Identity::from_str(content).map_err(|why| KeyError::Identity {
                path: path.to_owned(),
                line,
                why,
            })?;
            keys.push(key);
        }
        if keys.is_empty() { Err(KeyError::NoIdentity(path.to_owned())) } else { Ok(Self(keys)) }
    }

    /// A new key pair: the private key, and its public one as text.
    #[must_use]
    pub fn generate() -> (Self, String) {
        let key = age::x25519::Identity::generate();
        let public = key.to_public().to_string();
        (Self(vec![key]), public)
    }

    /// Makes a key pair and writes the private key into a new file that only its owner may read, as `age-keygen` does; gives
    /// the public one as text.
    ///
    /// # Errors
    /// [`KeyError::New`]; a file that exists stays as it is.
    pub fn generate_into(path: &Path) -> Result<String, KeyError> {
        let (keys, public) = Self::generate();
        let failed = |error: io::Error| KeyError::New { path: path.to_owned(), why: error.to_string() };
        let mut options = std::fs::File::options();
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.write(true).create_new(true).open(path).map_err(failed)?;
        let mut text = format!("# public key: {public}\n");
        for key in &keys.0 {
            text.push_str(key.to_string().expose_secret());
            text.push('\n');
        }
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        Ok(public)
    }

    /// Adds others.
    pub fn add(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The public keys that belong to them.
    #[must_use]
    pub fn public(&self) -> Vec<String> {
        self.0.iter().map(|key| key.to_public().to_string()).collect()
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} private keys", self.0.len())
    }
}

/// What became of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// Length as it is stored.
    pub bytes: u64,
    /// SHA-256 of what is stored.
    pub sha256: [u8; 32],
    /// Length of the content.
    pub plain_bytes: u64,
}

/// Counts and hashes what passes.
struct Hashed<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buf)?;
        self.hash.update(&buf[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// With or without encryption.
enum Cipher<W: Write> {
    Plain(Hashed<W>),
    Age(age::stream::StreamWriter<Hashed<W>>),
}

impl<W: Write> Write for Cipher<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(out) => out.write(buf),
            Self::Age(out) => out.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.flush(),
            Self::Age(out) => out.flush(),
        }
    }
}

/// Packs what is written to it. Nothing is whole before [`Self::finish`].
pub struct SealWriter<W: Write> {
    zstd: zstd::Encoder<'static, Cipher<W>>,
    plain_bytes: u64,
}

impl<W: Write> SealWriter<W> {
    /// Packs into `out`.
    ///
    /// # Errors
    /// `out` failed, or the encryption can't be set up.
    pub fn new(out: W, recipients: &Recipients) -> io::Result<Self> {
        let hashed = Hashed { inner: out, hash: Sha256::new(), bytes: 0 };
        let cipher = if recipients.is_empty() {
            Cipher::Plain(hashed)
        } else {
            let keys = recipients.0.iter().map(|key| key as &dyn age::Recipient);
            let encryptor = age::Encryptor::with_recipients(keys).map_err(io::Error::other)?;
            Cipher::Age(encryptor.wrap_output(hashed)?)
        };
        let mut zstd = zstd::Encoder::new(cipher, ZSTD_LEVEL)?;
        zstd.include_checksum(true)?;
        Ok(Self { zstd, plain_bytes: 0 })
    }

    /// Ends the object; gives back what it was written to.
    ///
    /// # Errors
    /// The writer below failed.
    pub fn finish(self) -> io::Result<(Sealed, W)> {
        let mut out = match self.zstd.finish()? {
            Cipher::Plain(out) => out,
            Cipher::Age(out) => out.finish()?,
        };
        out.flush()?;
        let sealed = Sealed { bytes: out.bytes, sha256: out.hash.finalize().into(), plain_bytes: self.plain_bytes };
        Ok((sealed, out.inner))
    }
}

impl<W: Write> Write for SealWriter<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.zstd.write(buf)?;
        self.plain_bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.zstd.flush()
    }
}

/// Why an object can't be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is encrypted, and no private key was given.
    #[error("it is encrypted, and no private key was given: name the file of one with --identity")]
    NoIdentity,
    /// It is encrypted to other keys.
    #[error(
        "none of the given private keys opens it: it was encrypted to other public keys, or, if the key is known to be right, its \
         first bytes are damaged"
    )]
    WrongIdentity,
    /// It is not what its name says, or damaged.
    #[error("damaged: {0}")]
    Damaged(String),
    /// It can't be read.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Unpacks what it reads. Its end is only believed once it was read to the end without an error.
pub struct OpenReader<R: Read>(Decoder<R>);

enum Decoder<R: Read> {
    Plain(zstd::Decoder<'static, BufReader<R>>),
    Age(Box<zstd::Decoder<'static, BufReader<age::stream::StreamReader<R>>>>),
}

impl<R: Read> OpenReader<R> {
    /// Unpacks an object; `encrypted` follows from its name ([`super::layout`]).
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn new(input: R, encrypted: bool, identities: &Identities) -> Result<Self, OpenError> {
        if !encrypted {
            return Ok(Self(Decoder::Plain(zstd::Decoder::new(input)?)));
        }
        if identities.is_empty() {
            return Err(OpenError::NoIdentity);
        }
        let refused = |error: age::DecryptError| match error {
            age::DecryptError::NoMatchingKeys => OpenError::WrongIdentity,
            age::DecryptError::Io(error) if error.kind() != io::ErrorKind::UnexpectedEof => OpenError::Io(error),
            error => OpenError::Damaged(error.to_string()),
        };
        let decryptor = age::Decryptor::new(input).map_err(refused)?;
        let keys = identities.0.iter().map(|key| key as &dyn age::Identity);
        let plain = decryptor.decrypt(keys).map_err(refused)?;
        Ok(Self(Decoder::Age(Box::new(zstd::Decoder::new(plain)?))))
    }
}

impl<R: Read> Read for OpenReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Decoder::Plain(input) => input.read(buf),
            Decoder::Age(input) => input.read(buf),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(content: &[u8], recipients: &Recipients) -> Vec<u8> {
        let mut writer = SealWriter::new(Vec::new(), recipients).unwrap();
        writer.write_all(content).unwrap();
        let (sealed, bytes) = writer.finish().unwrap();
        assert_eq!(sealed.bytes, bytes.len() as u64);
        assert_eq!(sealed.sha256, <[u8; 32]>::from(Sha256::digest(&bytes)));
        assert_eq!(sealed.plain_bytes, content.len() as u64);
        bytes
    }

    fn opened(bytes: &[u8], encrypted: bool, identities: &Identities) -> Result<Vec<u8>, OpenError> {
        let mut out = Vec::new();
        OpenReader::new(bytes, encrypted, identities)?.read_to_end(&mut out)?;
        Ok(out)
    }

    fn content() -> Vec<u8> {
        (0..200_000_u32).flat_map(u32::to_le_bytes).collect()
    }

    #[test]
    fn any_of_several_keys_opens_and_no_other() {
        let ((ops, ops_public), (escrow, escrow_public)) = (Identities::generate(), Identities::generate());
        let (stranger, _) = Identities::generate();
        let bytes = sealed(&content(), &Recipients::parse(&[ops_public, escrow_public]).unwrap());
        for key in [&ops, &escrow] {
            assert_eq!(opened(&bytes, true, key).unwrap(), content());
        }
        assert!(matches!(opened(&bytes, true, &stranger), Err(OpenError::WrongIdentity)));
        assert!(matches!(opened(&bytes, true, &Identities::default()), Err(OpenError::NoIdentity)));
    }

    #[test]
    fn a_changed_or_cut_object_is_never_read_as_something_else() {
        let (key, public) = Identities::generate();
        let plain = b"some content, and more of it".repeat(50);
        for recipients in [Recipients::default(), Recipients::parse(&[public]).unwrap()] {
            let encrypted = !recipients.is_empty();
            let bytes = sealed(&plain, &recipients);
            assert_eq!(opened(&bytes, encrypted, &key).unwrap(), plain);
            for cut in 0..bytes.len() {
                assert!(opened(&bytes[..cut], encrypted, &key).is_err(), "cut to {cut}");
            }
            for at in 0..bytes.len() {
                let mut bad = bytes.clone();
                bad[at] ^= 1;
                // In what is not encrypted a few bits of zstd's header mean nothing.
                assert!(opened(&bad, encrypted, &key).map_or(true, |read| read == plain), "byte {at}");
            }
        }
    }

    #[test]
    fn keys_that_are_none_are_named_and_private_ones_never_shown() {
        let bad = Recipients::parse(&["age1nonsense"]).unwrap_err().to_string();
        assert!(bad.contains("age1nonsense") && bad.contains("age-keygen"), "{bad}");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key.txt");
        for (text, says) in [("# nothing\n", "holds no age identity"), ("# c\nAGE-SECRET-KEY-1X\n", "key.txt:2")] {
            std::fs::write(&file, text).unwrap();
            let error = Identities::from_file(&file).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains("KEY-1X"), "{error}");
        }
        let secret = Recipients::parse(&["AGE-SECRET-KEY-1QQQ"]).unwrap_err();
        assert!(secret == KeyError::SecretAsRecipient && !secret.to_string().contains("QQQ"));
    }
}
