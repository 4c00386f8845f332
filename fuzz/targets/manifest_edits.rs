//! Fuzz target of the decoder `manifest_edits`.

#![no_main]

mainstay_fuzz::target!("manifest_edits");
