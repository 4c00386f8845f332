//! Fuzz target of the decoder `timeline_document`.

#![no_main]

mainstay_fuzz::target!("timeline_document");
