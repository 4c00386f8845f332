//! Documents against the code: every configuration key and subcommand is described. Owns: reading the
//! names from the source. Never: the wording.

fn read(path: &str) -> String {
    std::fs::read_to_string(crate::root().join(path)).unwrap()
}

/// `section.key` of every field that the configuration file knows.
fn config_keys(schema: &str) -> Vec<String> {
    let table = schema.split("const KEYS").nth(1).unwrap_or_default().split("];").next().unwrap_or_default();
    let paths = table.split("key(").skip(1).filter_map(|k| k.split('"').nth(1));
    paths.map(str::to_owned).collect()
}

/// Subcommands as the command line spells them.
fn subcommands(source: &str) -> Vec<String> {
    let body = source.split("enum Command {").nth(1).unwrap_or_default().split("\n}").next().unwrap_or_default();
    let names = body.lines().filter_map(|l| l.strip_prefix("    ")?.split(['(', ',', ' ']).next());
    names.filter(|n| n.starts_with(char::is_uppercase)).map(str::to_lowercase).collect()
}

#[test]
fn every_configuration_key_is_documented() {
    let (keys, page) = (config_keys(&read("server/src/config/schema.rs")), read("docs/configuration.md"));
    assert!(keys.len() > 10, "found only {keys:?}");
    let missing: Vec<_> = keys.iter().filter(|k| !page.contains(&format!("`{k}`"))).collect();
    assert!(missing.is_empty(), "docs/configuration.md does not name {missing:?}");
}

#[test]
fn every_subcommand_is_documented() {
    let (names, page) = (subcommands(&read("server/src/cli/mod.rs")), read("docs/cli.md"));
    assert!(names.len() > 10, "found only {names:?}");
    let missing: Vec<_> =
        names.iter().filter(|n| !page.contains(&format!("`{n}")) && !page.contains(&format!(" {n}`"))).collect();
    assert!(missing.is_empty(), "docs/cli.md does not name {missing:?}");
}
