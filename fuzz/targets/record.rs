//! Fuzz target of the decoder `record`.

#![no_main]

mainstay_fuzz::target!("record");
