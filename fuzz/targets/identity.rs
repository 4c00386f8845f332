//! Fuzz target of the decoder `identity`.

#![no_main]

mainstay_fuzz::target!("identity");
