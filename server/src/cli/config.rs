//! `mainstay config`: show and check the configuration.
//!
//! Owns: the printed form (valid TOML). Never: a secret in it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::server::NodeArgs;
use super::{Global, output};
use crate::codes::Exit;
use crate::config::{Config, KEYS, Layers, Origin};

/// Show and check the configuration
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  mainstay config print --origin
  mainstay config check /etc/mainstay.toml")]
pub enum ConfigCommand {
    /// Show the configuration that a server would run with
    Print(Box<PrintArgs>),
    /// Check a configuration file without running it
    Check(CheckArgs),
}

/// Show the configuration that a server would run with
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mainstay config print
  mainstay config print --origin --config /etc/mainstay.toml
  MAINSTAY__NODE__ID=2 mainstay config print -o json")]
pub struct PrintArgs {
    /// Say where each value comes from
    #[arg(long)]
    origin: bool,
    /// The node's configuration.
    #[command(flatten)]
    config: NodeArgs,
}

/// Check a configuration file without running it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mainstay config check /etc/mainstay.toml")]
pub struct CheckArgs {
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

#[derive(Serialize)]
struct Printed {
    values: BTreeMap<&'static str, PrintedValue>,
}

#[derive(Serialize)]
struct PrintedValue {
    value: Option<String>,
    origin: String,
}

pub(super) fn run(global: &Global, command: ConfigCommand) -> anyhow::Result<Exit> {
    match command {
        ConfigCommand::Print(args) => {
            let layers = args.config.layers()?;
            let config = Config::without_data(&layers)?;
            output::print(global.output, &document(&layers, &config), || toml(&layers, &config, args.origin))?;
        }
        ConfigCommand::Check(args) => {
            let mut layers = Layers::defaults();
            layers.add_file(&args.file)?;
            Config::without_data(&layers)?;
            let file = args.file.display().to_string();
            output::print(global.output, &BTreeMap::from([("valid", &file)]), || format!("{file} is valid"))?;
        }
    }
    Ok(Exit::Ok)
}

fn origin(layers: &Layers, path: &str) -> String {
    layers.get(path).map_or(Origin::Default, |v| v.origin.clone()).to_string()
}

fn document(layers: &Layers, config: &Config) -> Printed {
    let value = |path| PrintedValue { value: config.text(path), origin: origin(layers, path) };
    Printed { values: KEYS.iter().map(|k| (k.path, value(k.path))).collect() }
}

fn toml(layers: &Layers, config: &Config, with_origin: bool) -> String {
    let mut out = String::new();
    let mut section = "";
    for key in KEYS {
        if key.section() != section {
            let gap = if section.is_empty() { "" } else { "\n" };
            section = key.section();
            let _ = writeln!(out, "{gap}[{section}]");
        }
        let _ = writeln!(out, "# {}", key.help);
        let line = match config.text(key.path) {
            Some(text) if text.parse::<u64>().is_ok() || text == "true" || text == "false" => {
                format!("{} = {text}", key.name())
            }
            Some(text) => format!("{} = {}", key.name(), toml::Value::String(text)),
            None => format!("# {} is not set", key.name()),
        };
        let _ = match with_origin {
            true => writeln!(out, "{line}  # {}", origin(layers, key.path)),
            false => writeln!(out, "{line}"),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_reads_back_as_the_same_configuration() {
        let mut l = Layers::defaults();
        l.add_toml("[node]\ndata = 'd'\nid = 2\npeers = '1=a:1,2=b:1'\n[archive]\nrepository = 'file:///r'", "f")
            .unwrap();
        let config = Config::new(&l).unwrap();
        let mut again = Layers::defaults();
        again.add_toml(&toml(&l, &config, true), "printed").unwrap();
        assert_eq!(Config::new(&again).unwrap(), config);
    }
}
