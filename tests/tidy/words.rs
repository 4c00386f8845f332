//! One name for one thing: words that the glossary replaces do not occur as identifiers. Owns: the list,
//! with what to say instead. Never: a word that is right somewhere in this code.

/// Banned as whole words or parts of snake-case and camel-case names, in lower case.
const NOT: [(&str, &str); 14] = [
    ("snapshot", "view (a read position), checkpoint (hard links), base backup (uploaded)"),
    ("high_watermark", "commit LSN"),
    ("hwm", "commit LSN"),
    ("committed_index", "commit LSN"),
    ("safe_point", "history floor"),
    ("gc_point", "history floor"),
    ("bootstrap", "seed, or create the cluster"),
    ("tainted", "quarantined"),
    ("handover", "switchover"),
    ("backup_store", "repository"),
    ("leader", "primary (a leader belongs to Raft)"),
    ("follower", "replica"),
    ("game_day", "drill"),
    ("slave", "replica"),
];

fn snake(identifier: &str) -> String {
    let mut out = String::new();
    for c in identifier.chars() {
        if c.is_uppercase() && !out.is_empty() && !out.ends_with('_') {
            out.push('_');
        }
        out.extend(c.to_lowercase());
    }
    out
}

/// Code of a line: neither comment nor text in quotes.
fn code(line: &str) -> String {
    let mut out = String::new();
    for (i, part) in line.split('"').enumerate() {
        if i % 2 == 0 {
            match part.split_once("//") {
                Some((before, _)) => {
                    out.push_str(before);
                    return out;
                }
                None => out.push_str(part),
            }
        }
    }
    out
}

fn violations(name: &str, text: &str) -> Vec<String> {
    let mut out = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let code = code(line);
        for identifier in code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty()) {
            let said = format!("_{}_", snake(identifier));
            for (word, instead) in NOT {
                if said.contains(&format!("_{word}_")) {
                    out.push(format!("{name}:{}: `{identifier}`: say {instead}", i + 1));
                }
            }
        }
    }
    out
}

#[test]
fn one_thing_has_one_name() {
    let wrong: Vec<String> = crate::sources().iter().flat_map(|(name, text)| violations(name, text)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(violations("x.rs", "let t = TakeSnapshot::new(); // a snapshot\n").len(), 1);
    let quoted = format!("say({q}the leader{q}); // leader\n", q = '"');
    assert_eq!(violations("x.rs", &quoted), Vec::<String>::new());
}
