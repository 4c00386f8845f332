//! Fuzz target of the decoder `batch`.

#![no_main]

mainstay_fuzz::target!("batch");
