//! The layers a configuration is made of: defaults, file, environment, flags.
//!
//! Owns: reading each layer into `(key, text, origin)` and their precedence. Never: the meaning of
//! a value.

use std::collections::BTreeMap;
use std::path::Path;

use super::schema::{KEYS, VARIABLE_PREFIX, find, nearest};
use super::{ConfigError, Origin};

/// A value as text, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The text.
    pub text: String,
    /// Where it came from.
    pub origin: Origin,
}

/// Largest configuration file in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Configuration values by key, later layers over earlier ones.
#[derive(Clone, Debug)]
pub struct Layers {
    values: BTreeMap<&'static str, Value>,
}

impl Layers {
    /// The built-in defaults.
    #[must_use]
    pub fn defaults() -> Self {
        let value = |text: &str| Value { text: text.to_owned(), origin: Origin::Default };
        Self { values: KEYS.iter().filter_map(|k| Some((k.path, value(k.default?)))).collect() }
    }

    /// The value of a key, if any layer gave one.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Value> {
        self.values.get(path)
    }

    /// Sets one key.
    ///
    /// # Errors
    /// `UnknownKey`.
    pub fn set(&mut self, path: &str, text: String, origin: Origin) -> Result<(), ConfigError> {
        let Some(key) = find(path) else {
            return Err(ConfigError::UnknownKey { key: path.to_owned(), origin, nearest: nearest(path) });
        };
        self.values.insert(key.path, Value { text, origin });
        Ok(())
    }

    /// Adds a TOML file over what is there.
    ///
    /// # Errors
    /// `Read`, and those of [`Layers::add_toml`].
    pub fn add_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let name = path.display().to_string();
        let read = |source| ConfigError::Read { path: name.clone(), source };
        let text = read_bounded(path).map_err(read)?;
        self.add_toml(&text, &name)
    }

    /// Adds TOML text over what is there; `name` stands in the origins.
    ///
    /// # Errors
    /// `Syntax`, `UnknownKey`, `Invalid` for a value that is a table of something else.
    pub fn add_toml(&mut self, text: &str, name: &str) -> Result<(), ConfigError> {
        let origin = || Origin::File(name.to_owned());
        let syntax = |e: toml::de::Error| ConfigError::Syntax {
            path: name.to_owned(),
            what: e.to_string().trim_end().to_owned(),
        };
        let table: toml::Table = text.parse().map_err(syntax)?;
        for (section, inside) in table {
            let toml::Value::Table(inside) = inside else {
                return Err(ConfigError::UnknownKey { nearest: nearest(&section), key: section, origin: origin() });
            };
            for (key, value) in inside {
                let path = format!("{section}.{key}");
                let shown = value.to_string();
                let Some(text) = plain(value) else {
                    let what = "expected one value, a list of texts or a table of texts".to_owned();
                    return Err(ConfigError::Invalid { key: path, text: shown, origin: origin(), what });
                };
                self.set(&path, text, origin())?;
            }
        }
        Ok(())
    }

    /// Adds the variables `MAINSTAY__SECTION__KEY` over what is there; others are ignored.
    ///
    /// # Errors
    /// `UnknownKey`: a variable with the prefix that is no key.
    pub fn add_environment(
        &mut self,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(), ConfigError> {
        for (name, text) in variables {
            let Some(rest) = name.strip_prefix(VARIABLE_PREFIX) else { continue };
            let path = rest.to_lowercase().replacen("__", ".", 1);
            match self.set(&path, text, Origin::Environment(name.clone())) {
                Err(ConfigError::UnknownKey { origin, nearest, .. }) => {
                    let nearest = nearest.and_then(|n| find(&n)).map(super::Key::variable);
                    return Err(ConfigError::UnknownKey { key: name, origin, nearest });
                }
                other => other?,
            }
        }
        Ok(())
    }
}

/// One value as text: lists and tables of texts become `a,b` and `k=a,l=b`.
fn plain(value: toml::Value) -> Option<String> {
    let scalar = |v: toml::Value| match v {
        toml::Value::String(s) => Some(s),
        v @ (toml::Value::Integer(_) | toml::Value::Boolean(_)) => Some(v.to_string()),
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => None,
    };
    match value {
        toml::Value::Array(items) => Some(items.into_iter().map(scalar).collect::<Option<Vec<_>>>()?.join(",")),
        toml::Value::Table(t) => {
            let pair = |(k, v)| Some(format!("{k}={}", scalar(v)?));
            Some(t.into_iter().map(pair).collect::<Option<Vec<_>>>()?.join(","))
        }
        one => scalar(one),
    }
}

#[expect(clippy::disallowed_methods, reason = "the operator's file, read before there is a store")]
fn read_bounded(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::other(format!(
            "larger than {FILE_BYTES_MAX} bytes; this is no configuration file"
        )));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(file: bool, environment: bool, flag: bool) -> Value {
        let mut l = Layers::defaults();
        if file {
            l.add_toml("[node]\nid = 2\n", "f.toml").unwrap();
        }
        if environment {
            l.add_environment([("MAINSTAY__NODE__ID".to_owned(), "3".to_owned())]).unwrap();
        }
        if flag {
            l.set("node.id", "4".to_owned(), Origin::Flag("--node-id".to_owned())).unwrap();
        }
        l.get("node.id").unwrap().clone()
    }

    #[test]
    fn flags_win_over_environment_over_file_over_defaults() {
        for bits in 0..8 {
            let (file, environment, flag) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
            let (text, origin) = match (file, environment, flag) {
                (_, _, true) => ("4", "flag --node-id"),
                (_, true, _) => ("3", "environment MAINSTAY__NODE__ID"),
                (true, ..) => ("2", "file f.toml"),
                _ => ("1", "default"),
            };
            let got = layers(file, environment, flag);
            assert_eq!((got.text.as_str(), got.origin.to_string().as_str()), (text, origin), "{bits:03b}");
        }
    }

    #[test]
    fn unknown_keys_name_their_origin_and_neighbour() {
        let mut l = Layers::defaults();
        let e = l.add_toml("[storage]\nmemtabel_bytes = 1\n", "f.toml").unwrap_err().to_string();
        assert_eq!(e, "unknown key `storage.memtabel_bytes` (file f.toml); did you mean `storage.memtable_bytes`?");
        let e = l.add_environment([("MAINSTAY__NODE__IDD".to_owned(), "3".to_owned())]).unwrap_err().to_string();
        assert!(e.ends_with("did you mean `MAINSTAY__NODE__ID`?"), "{e}");
        let e = l.add_toml("memtable_bytes = 1\n", "f.toml").unwrap_err().to_string();
        assert!(e.ends_with("did you mean `storage.memtable_bytes`?"), "{e}");
        let e = l.add_toml("[storage\n", "f.toml").unwrap_err().to_string();
        assert!(e.contains("line 1"), "{e}");
    }

    #[test]
    fn peers_may_be_text_list_or_table() {
        for text in
            ["peers = \"1=a:1,2=b:2\"", "peers = [\"1=a:1\", \"2=b:2\"]", "peers = { 1 = \"a:1\", 2 = \"b:2\" }"]
        {
            let mut l = Layers::defaults();
            l.add_toml(&format!("[node]\n{text}\n"), "f").unwrap();
            assert_eq!(l.get("node.peers").unwrap().text, "1=a:1,2=b:2");
        }
        let mut l = Layers::defaults();
        assert!(matches!(l.add_toml("[node]\nid = [[1]]\n", "f"), Err(ConfigError::Invalid { .. })));
    }
}
