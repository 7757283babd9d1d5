//! Checksums of whole files, as distributions publish them beside their disks (Debian's `SHA512SUMS`).

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::str::FromStr;

use sha2::{Digest, Sha256, Sha512};

use super::error::{Error, Result, failed};

/// How much is read at once, in bytes.
const PIECE: usize = 1 << 20;

/// The checksum of a file. It is written `sha256:` or `sha512:` and hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// SHA-256.
    Sha256([u8; 32]),
    /// SHA-512.
    Sha512([u8; 64]),
}

impl FromStr for Checksum {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (algorithm, digits) = text.split_once(':')?;
            let digits = digits.to_ascii_lowercase();
            match algorithm {
                "sha256" => from_hex(&digits).map(Self::Sha256),
                "sha512" => from_hex(&digits).map(Self::Sha512),
                _ => None,
            }
        };
        parse().ok_or_else(|| Error::ChecksumSyntax(text.to_owned()))
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(digest) => write!(f, "sha256:{}", hex(digest)),
            Self::Sha512(digest) => write!(f, "sha512:{}", hex(digest)),
        }
    }
}

impl Checksum {
    /// Reads a whole file, and compares. `done` hears how many bytes were read so far.
    ///
    /// # Errors
    /// The file has another checksum, or cannot be read. `path` is for the message.
    pub(super) fn check(&self, file: &File, path: &Path, done: impl FnMut(u64)) -> Result<()> {
        let found = match self {
            Self::Sha256(_) => Self::Sha256(digest::<Sha256>(file, path, done)?.into()),
            Self::Sha512(_) => Self::Sha512(digest::<Sha512>(file, path, done)?.into()),
        };
        if found == *self {
            return Ok(());
        }
        Err(Error::Checksum { path: path.into(), expected: self.to_string(), found: found.to_string() })
    }
}

fn digest<D: Digest>(file: &File, path: &Path, mut done: impl FnMut(u64)) -> Result<sha2::digest::Output<D>> {
    let mut hash = D::new();
    let mut buffer = vec![0; PIECE];
    let mut offset: u64 = 0;
    loop {
        let count = match file.read_at(&mut buffer, offset) {
            Ok(0) => return Ok(hash.finalize()),
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed("read", path)(error)),
        };
        hash.update(buffer.get(..count).unwrap_or_default());
        offset = offset.saturating_add(count as u64);
        done(offset);
    }
}

/// Lower-case hexadecimal digits, two for each byte.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that [`hex`] writes so, if it does.
pub(super) fn from_hex<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = value(*high)? << 4 | value(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_is_published_can_be_given_as_it_is() {
        // Of the three letters abc, from FIPS 180-4's examples.
        let published = "sha256:BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD";
        let sha512 = "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                      2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abc").unwrap();
        for text in [published, sha512] {
            let checksum: Checksum = text.parse().unwrap();
            assert_eq!(checksum.to_string(), text.to_lowercase());
            let mut read = 0;
            checksum.check(&file, Path::new("abc"), |bytes| read = bytes).unwrap();
            assert_eq!(read, 3);
            file.write_all_at(b"abd", 0).unwrap();
            let error = checksum.check(&file, Path::new("abc"), |_| ()).unwrap_err().to_string();
            assert!(error.contains(&text.to_lowercase()) && error.contains("get it anew"), "{error}");
            file.write_all_at(b"abc", 0).unwrap();
        }
    }

    #[test]
    fn anything_else_is_not_a_checksum() {
        let good = "0".repeat(64);
        assert!(format!("sha256:{good}").parse::<Checksum>().is_ok());
        for text in [
            good.clone(),
            format!("md5:{good}"),
            format!("sha512:{good}"),
            format!("sha256:{good}0"),
            format!("sha256:{}", &good[1..]),
            format!("sha256:{}g", &good[1..]),
            format!("sha256:{}é", &good[2..]),
            format!("sha256: {}", &good[1..]),
            String::new(),
        ] {
            let error = text.parse::<Checksum>().unwrap_err().to_string();
            assert!(error.contains("128"), "{error}");
        }
    }
}
