//! Fuzz target of the decoder `log_segment`.

#![no_main]

mainstay_fuzz::target!("log_segment");
