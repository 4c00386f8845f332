//! Fuzz target of the decoder `evidence`.

#![no_main]

mainstay_fuzz::target!("evidence");
