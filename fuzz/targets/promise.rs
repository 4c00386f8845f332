//! Fuzz target of the decoder `promise`.

#![no_main]

mainstay_fuzz::target!("promise");
