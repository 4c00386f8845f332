//! Fuzz target of the decoder `manifest_file`.

#![no_main]

mainstay_fuzz::target!("manifest_file");
