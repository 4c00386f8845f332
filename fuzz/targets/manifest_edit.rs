//! Fuzz target of the decoder `manifest_edit`.

#![no_main]

mainstay_fuzz::target!("manifest_edit");
