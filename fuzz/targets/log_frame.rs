//! Fuzz target of the decoder `log_frame`.

#![no_main]

mainstay_fuzz::target!("log_frame");
