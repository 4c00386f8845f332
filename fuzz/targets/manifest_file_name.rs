//! Fuzz target of the decoder `manifest_file_name`.

#![no_main]

mainstay_fuzz::target!("manifest_file_name");
