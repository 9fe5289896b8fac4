//! Checksums of whole objects, as stores tell them and as bytes have them.
//!
//! A store writes one in base64, or in hex, with the first byte of a number first. What
//! does not look like one, such as that of parts ("…-12"), is none.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use crc_fast::CrcAlgorithm;
use md5::Md5;
use sha2::{Digest as _, Sha256};

/// How a checksum is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// CRC-32 of ISO-HDLC, as in gzip.
    Crc32,
    /// CRC-32 of Castagnoli.
    Crc32c,
    /// CRC-64 of NVM Express.
    Crc64Nvme,
    /// MD5.
    Md5,
    /// SHA-256.
    Sha256,
}

/// A checksum of all bytes of an object.
#[derive(Clone, PartialEq, Eq)]
pub struct Checksum {
    /// How it is computed.
    pub algorithm: Algorithm,
    value: Vec<u8>,
}

/// A checksum that is being computed.
pub enum Digest {
    /// Any of the CRCs.
    Crc(Algorithm, crc_fast::Digest),
    /// MD5.
    Md5(Md5),
    /// SHA-256.
    Sha256(Sha256),
}

impl Algorithm {
    fn bytes(self) -> usize {
        match self {
            Algorithm::Crc32 | Algorithm::Crc32c => 4,
            Algorithm::Crc64Nvme => 8,
            Algorithm::Md5 => 16,
            Algorithm::Sha256 => 32,
        }
    }
}

impl Checksum {
    /// A checksum in base64.
    pub fn of_base64(algorithm: Algorithm, text: &str) -> Option<Checksum> {
        let value = BASE64.decode(text).ok()?;
        (value.len() == algorithm.bytes()).then_some(Checksum { algorithm, value })
    }

    /// A checksum in hex.
    pub fn of_hex(algorithm: Algorithm, text: &str) -> Option<Checksum> {
        let digits: Option<Vec<u8>> =
            text.chars().map(|digit| Some(digit.to_digit(16)? as u8)).collect();
        let digits = digits.filter(|digits| digits.len() == 2 * algorithm.bytes())?;
        let value = digits.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect();
        Some(Checksum { algorithm, value })
    }

    /// The CRC-32C of an object that is known already.
    pub fn of_crc32c(crc: u32) -> Checksum {
        Checksum { algorithm: Algorithm::Crc32c, value: crc.to_be_bytes().to_vec() }
    }
}

impl Digest {
    /// The checksum of nothing yet.
    pub fn new(algorithm: Algorithm) -> Digest {
        let crc = match algorithm {
            Algorithm::Md5 => return Digest::Md5(Md5::new()),
            Algorithm::Sha256 => return Digest::Sha256(Sha256::new()),
            Algorithm::Crc32 => CrcAlgorithm::Crc32IsoHdlc,
            Algorithm::Crc32c => CrcAlgorithm::Crc32Iscsi,
            Algorithm::Crc64Nvme => CrcAlgorithm::Crc64Nvme,
        };
        Digest::Crc(algorithm, crc_fast::Digest::new(crc))
    }

    /// Takes the bytes that come next.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Digest::Crc(_, digest) => digest.update(bytes),
            Digest::Md5(digest) => digest.update(bytes),
            Digest::Sha256(digest) => digest.update(bytes),
        }
    }

    /// The checksum of all that came.
    pub fn finish(self) -> Checksum {
        let (algorithm, value) = match self {
            Digest::Md5(digest) => (Algorithm::Md5, digest.finalize().to_vec()),
            Digest::Sha256(digest) => (Algorithm::Sha256, digest.finalize().to_vec()),
            Digest::Crc(algorithm, digest) => {
                let value = digest.finalize().to_be_bytes();
                (algorithm, value[value.len() - algorithm.bytes()..].to_vec())
            }
        };
        Checksum { algorithm, value }
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ", self.algorithm)?;
        self.value.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{Effort, Target, fuzz_tests};

    /// Of `123456789`, which catalogues of checksums give for each.
    const KNOWN: [(Algorithm, &str); 5] = [
        (Algorithm::Crc32, "cbf43926"),
        (Algorithm::Crc32c, "e3069283"),
        (Algorithm::Crc64Nvme, "ae8b14860a799888"),
        (Algorithm::Md5, "25f9e794323b453885f5181f1b624d0b"),
        (Algorithm::Sha256, "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"),
    ];

    #[test]
    fn each_is_what_catalogues_have() {
        for (algorithm, hex) in KNOWN {
            let mut digest = Digest::new(algorithm);
            digest.update(b"1234");
            digest.update(b"56789");
            let found = digest.finish();
            assert_eq!(Checksum::of_hex(algorithm, hex), Some(found.clone()));
            assert_eq!(found.to_string(), format!("{algorithm:?} {hex}"));
        }
        let crc = Checksum::of_crc32c(crc32c::crc32c(b"123456789"));
        assert_eq!(Checksum::of_base64(Algorithm::Crc32c, "4waSgw=="), Some(crc));
    }

    #[test]
    fn what_is_no_checksum_of_the_whole_is_none() {
        for text in ["", "4waSgw==-3", "4waSgw", "4waSg8A=", "é"] {
            assert_eq!(Checksum::of_base64(Algorithm::Crc32c, text), None, "{text}");
        }
        for text in ["", "e306928", "e30692833", "e306928g", "e3069283-2", "éééé"] {
            assert_eq!(Checksum::of_hex(Algorithm::Crc32c, text), None, "{text}");
        }
    }

    fuzz_tests!(texts);

    fn texts(effort: Effort) {
        let target = Target {
            name: "checksums",
            corpus: ["4waSgw==", "e3069283", KNOWN[3].1].map(Vec::from).to_vec(),
            words: &["=", "-1", "00", "AA"],
            inputs: 20_000,
            memory: (4 << 10, 16),
        };
        target.run(effort, |input| {
            let text = String::from_utf8_lossy(input);
            KNOWN.iter().any(|(algorithm, _)| {
                Checksum::of_base64(*algorithm, &text).is_some()
                    | Checksum::of_hex(*algorithm, &text).is_some()
            })
        });
    }
}
