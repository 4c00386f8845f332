//! The value of an entry in a history table: from which LSN on the version is no longer its key's newest,
//! and what the version was.
//!
//! Owns: the encoding. Never: deciding what superseded a version.
//!
//! ```text
//! superseding LSN varint | 0 delete, 1 put u8 | envelope of a put
//! ```

use crate::codec::{Cursor, Malformed, put_varint};
use crate::lsn::Lsn;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superseded {
    /// Reads at this LSN and above do not see the version. Below, they do unless a newer version is found: a
    /// merge knows only the versions that it reads.
    pub(crate) by: Lsn,
    /// Whether the version is a put.
    pub(crate) put: bool,
    /// Where the envelope begins.
    pub(crate) envelope_at: usize,
}

impl Superseded {
    pub(crate) fn encode(out: &mut Vec<u8>, by: Lsn, value: Option<&[u8]>) {
        put_varint(out, by.0);
        out.push(u8::from(value.is_some()));
        out.extend_from_slice(value.unwrap_or_default());
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut c = Cursor::new(bytes);
        let by = Lsn(c.varint()?);
        let put = match c.u8()? {
            0 if c.is_empty() => false,
            1 => true,
            _ => return Err(Malformed("superseded version of a newer format")),
        };
        Ok(Self { by, put, envelope_at: bytes.len() - c.remaining() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_encoded_comes_back(by: u64, value: Option<Vec<u8>>) {
            let mut out = Vec::new();
            Superseded::encode(&mut out, Lsn(by), value.as_deref());
            let back = Superseded::decode(&out).unwrap();
            prop_assert_eq!((back.by, back.put.then(|| out[back.envelope_at..].to_vec())), (Lsn(by), value));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Superseded::decode(&bytes);
        }
    }
}
