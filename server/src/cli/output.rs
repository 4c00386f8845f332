//! Results on stdout: tables for people, versioned JSON for programs.
//!
//! Owns: the format switch, the `"schema":1` envelope, plain tables. Never: `println!` (it panics on
//! a closed pipe), colour or progress on stdout.

use std::io::{BufWriter, IsTerminal, StdoutLock, Write};

use comfy_table::{Table, presets};
use serde::Serialize;

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: one document, or one per line for streams.
    Json,
}

/// Version of every JSON document; raised when a field changes meaning or goes away.
const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Versioned<'a, T> {
    schema: u32,
    #[serde(flatten)]
    body: &'a T,
}

/// Buffered stdout. Flush it: errors at drop are lost.
pub(crate) fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(64 << 10, std::io::stdout().lock())
}

/// True when stdout is a terminal.
pub(crate) fn stdout_is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Writes one versioned JSON object and a line end; `body` must serialise as an object.
pub(crate) fn json_line(out: &mut impl Write, body: &impl Serialize) -> anyhow::Result<()> {
    serde_json::to_writer(&mut *out, &Versioned { schema: SCHEMA, body }).map_err(std::io::Error::from)?;
    out.write_all(b"\n")?;
    Ok(())
}

/// Prints a result as one JSON document, or as the text that `table` makes.
pub(crate) fn print(format: Format, body: &impl Serialize, table: impl FnOnce() -> String) -> anyhow::Result<()> {
    let mut out = stdout();
    match format {
        Format::Json => json_line(&mut out, body)?,
        Format::Table => writeln!(out, "{}", table().trim_end_matches('\n'))?,
    }
    out.flush()?;
    Ok(())
}

/// A table without borders.
pub(crate) fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(head.iter().map(|h| h.to_uppercase()));
    table.add_rows(rows);
    let lines: Vec<_> = table.lines().map(|l| l.trim_end().trim_start_matches(' ').to_owned()).collect();
    lines.join("\n")
}

/// Says something on stderr; a closed stderr is ignored.
pub(crate) fn say(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr(), "{}", text.as_ref());
}

/// Asks for a yes on the terminal.
///
/// # Errors
/// Usage when there is no terminal to ask: then `--yes` must be given.
pub(crate) fn confirm(question: &str, yes: bool) -> anyhow::Result<bool> {
    if yes {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(super::failure::usage(format!("{question} Pass --yes to do it without being asked.")));
    }
    let mut err = std::io::stderr();
    write!(err, "{question} [y/N] ")?;
    err.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// 1234567 as `1.2 MiB`.
pub(crate) fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}

/// Milliseconds as people read them: `850 ms`, `12.5 s`, `3 min`.
pub(crate) fn millis(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_carries_its_version_and_ends_the_line() {
        #[derive(Serialize)]
        struct Body {
            lsn: u64,
        }
        let mut out = Vec::new();
        json_line(&mut out, &Body { lsn: 7 }).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "{\"schema\":1,\"lsn\":7}\n");
    }

    #[test]
    fn tables_are_plain() {
        let t =
            table(&["node", "role"], [vec!["1".to_owned(), "primary".to_owned()], vec!["12".into(), "replica".into()]]);
        let lines: Vec<_> = t.lines().map(|l| l.split_whitespace().collect::<Vec<_>>()).collect();
        assert_eq!(lines, [vec!["NODE", "ROLE"], vec!["1", "primary"], vec!["12", "replica"]]);
        assert!(!t.contains('\x1b'));
    }

    #[test]
    fn durations_read_well() {
        assert_eq!([999, 12_540, 180_000, 7_200_000].map(millis), ["999 ms", "12.5 s", "3 min", "2 h"]);
    }
}
