//! Fuzz target of the decoder `base_document`.

#![no_main]

mainstay_fuzz::target!("base_document");
