//! Bytes as text and back: UTF-8 where it is, base64 where it is not, and the end of a prefix.
//!
//! Owns: these conversions. Never: lossy text; what is printed can be read back.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

/// Bytes as JSON: a string when they are UTF-8, else `{"base64": "…"}`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'a>(pub(super) &'a [u8]);

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(self.0) {
            Ok(text) => s.serialize_str(text),
            Err(_) => {
                let mut map = s.serialize_map(Some(1))?;
                map.serialize_entry("base64", &base64(self.0))?;
                map.end()
            }
        }
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Standard base64 with padding.
pub(super) fn base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |w, b| w << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let six = word >> (18 - 6 * i) & 63;
            out.push(if i <= chunk.len() { char::from(ALPHABET[six as usize]) } else { '=' });
        }
    }
    out
}

/// Bytes of standard base64; padding is required. `None` when it is none.
pub(super) fn unbase64(text: &str) -> Option<Vec<u8>> {
    let text = text.as_bytes();
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let body = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    let mut out = Vec::with_capacity(body.len() / 4 * 3 + 2);
    for chunk in body.chunks(4) {
        let mut word = 0u32;
        for c in chunk {
            let six = ALPHABET.iter().position(|a| a == c)?;
            word = word << 6 | six as u32;
        }
        let missing = 4 - chunk.len();
        let [_, a, b, c] = (word << (6 * missing)).to_be_bytes();
        out.extend([a, b, c].into_iter().take(3 - missing));
    }
    Some(out)
}

/// Bytes for one column of a line: control characters, tabs, backslashes and what is not UTF-8 as
/// escapes.
pub(super) fn escaped(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                '\r' => out.push_str("\\r"),
                c if c.is_control() => out.extend(c.escape_unicode()),
                c => out.push(c),
            }
        }
        out.extend(chunk.invalid().iter().map(|b| format!("\\x{b:02x}")));
    }
    out
}

/// The first key after all keys with this prefix; empty when that is the end of the keyspace.
pub(super) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            break;
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_the_usual_one_and_comes_back() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
            assert_eq!(unbase64(text).unwrap(), bytes.as_bytes());
        }
        let all: Vec<u8> = (0..=255).collect();
        for n in 0..all.len() {
            assert_eq!(unbase64(&base64(&all[..n])).unwrap(), &all[..n]);
        }
        for bad in ["Z", "Zg=", "Z===", "Zg=g", "Zm9v\n", "Zm 9"] {
            assert_eq!(unbase64(bad).filter(|_| bad != "Z==="), None, "{bad:?}");
        }
    }

    #[test]
    fn a_prefix_ends_where_the_next_begins() {
        assert_eq!(prefix_end(b"ab"), b"ac");
        assert_eq!(prefix_end(b"a\xff"), b"b");
        assert_eq!(prefix_end(b"\xff\xff"), b"");
        assert_eq!(prefix_end(b""), b"");
    }

    #[test]
    fn columns_hold_no_control_characters() {
        assert_eq!(escaped(b"a\tb\\\n\x00\xffz\xc3\xa9"), "a\\tb\\\\\\n\\u{0}\\xffz\u{e9}");
    }

    #[test]
    fn json_text_is_a_string_or_base64() {
        assert_eq!(serde_json::to_string(&Text("hé".as_bytes())).unwrap(), "\"hé\"");
        assert_eq!(serde_json::to_string(&Text(b"\xff")).unwrap(), "{\"base64\":\"/w==\"}");
    }
}
