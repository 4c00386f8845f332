//! Fuzz target of the decoder `value`.

#![no_main]

mainstay_fuzz::target!("value");
